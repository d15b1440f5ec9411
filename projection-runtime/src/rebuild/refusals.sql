-- What a rebuild of these tables would get wrong, and the privileges that it lacks, with its cure.
WITH own AS (SELECT name, to_regclass(name)::oid AS oid FROM UNNEST($1::text[]) AS name)
SELECT format('role `%s` may not create %s in database `%s`', current_user, needed.what, current_database()) AS what,
       format('GRANT %s ON DATABASE %I TO %I;', needed.privilege, current_database(), current_user) AS cure
FROM (VALUES ('CREATE', 'schemas'), ('TEMPORARY', 'temporary tables')) AS needed (privilege, what)
WHERE NOT has_database_privilege(current_database(), needed.privilege)
UNION ALL
SELECT format('`%s` is named with its schema, so that its handlers would write to it, not to a copy', name),
       'leave the schema out of `tables` and of the statements, and put it on the search_path'
FROM own
WHERE name LIKE '%.%'
UNION ALL
SELECT format('rule `%s` of `%s` changes what is written to the table', r.rulename, own.name),
       format('DROP RULE %I ON %s;', r.rulename, own.oid::regclass)
FROM own
JOIN pg_rewrite r ON r.ev_class = own.oid
UNION ALL
-- Of whichever table: rows are removed and written by several statements, and come back under their keys.
SELECT format('foreign key `%s` of `%s` acts on, or looks at, each statement, and several are needed',
              c.conname, c.conrelid::regclass),
       format('ALTER TABLE %s DROP CONSTRAINT %I;', c.conrelid::regclass, c.conname)
FROM own
JOIN pg_constraint c ON c.confrelid = own.oid AND c.contype = 'f'
WHERE NOT c.condeferrable OR c.confdeltype <> 'a' OR c.confupdtype <> 'a'
UNION ALL
SELECT format('row security of `%s` hides rows from user `%s`', own.name, current_user),
       format('ALTER ROLE %I BYPASSRLS; or run it as the owner of the table', current_user)
FROM own
WHERE row_security_active(own.oid)
