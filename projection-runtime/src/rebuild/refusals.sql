-- What a rebuild of these tables would get wrong, with its cure.
SELECT format('rule `%s` of `%s` changes what is written to the table', r.rulename, t.name) AS what,
       format('DROP RULE %I ON %s;', r.rulename, t.oid::regclass) AS cure
FROM (SELECT name, to_regclass(name)::oid AS oid FROM UNNEST($1::text[]) AS name) t
JOIN pg_rewrite r ON r.ev_class = t.oid
UNION ALL
SELECT format('foreign key `%s` of `%s` looks at each statement, and several are needed', c.conname, t.name),
       format('ALTER TABLE %s ALTER CONSTRAINT %I DEFERRABLE;', t.oid::regclass, c.conname)
FROM (SELECT name, to_regclass(name)::oid AS oid FROM UNNEST($1::text[]) AS name) t
JOIN pg_constraint c ON c.conrelid = t.oid AND c.contype = 'f' AND NOT c.condeferrable
WHERE c.confrelid IN (SELECT to_regclass(name) FROM UNNEST($1::text[]) AS name)
UNION ALL
SELECT format('row security of `%s` hides rows from user `%s`', t.name, current_user),
       format('ALTER ROLE %I BYPASSRLS; or run it as the owner of the table', current_user)
FROM (SELECT name, to_regclass(name)::oid AS oid FROM UNNEST($1::text[]) AS name) t
WHERE row_security_active(t.oid)
