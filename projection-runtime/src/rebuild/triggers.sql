-- Fills `rebuild_triggers` with the triggers of the projection's tables that shadow tables have if they are enabled
-- (`fires`): those that change a row before it is written, and those whose functions may write to these tables (`writes`),
-- for what they write is part of the rows. PostgreSQL does not record what a function writes, so its text decides: it
-- names one of the tables, runs dynamic SQL, or is in a language that is not parsed here. Functions that it calls count
-- as well. If the text misleads, the rebuild is refused: see written.rs and `refusals` in difference.rs.
CREATE TEMPORARY TABLE rebuild_triggers ON COMMIT DROP AS
WITH RECURSIVE own AS (
    SELECT name AS item, to_regclass(name)::oid AS oid FROM UNNEST(current_setting('rebuild.tables')::text[]) AS name
),
found AS (
    SELECT own.item, t.oid, t.tgname AS name, t.tgenabled AS enabled, t.tgfoid, t.xmin AS version,
           -- Before, and for each row.
           t.tgtype & 3 = 3 AS changes_rows
    FROM own JOIN pg_trigger t ON t.tgrelid = own.oid
    WHERE NOT t.tgisinternal
),
called (trigger, function) AS (
    SELECT oid, tgfoid FROM found
    UNION
    SELECT c.trigger, p.oid
    FROM called c
    CROSS JOIN LATERAL (
        SELECT ARRAY(SELECT (regexp_matches(lower(prosrc || COALESCE(pg_get_function_sqlbody(oid), '')), '[[:alnum:]_$]+', 'g'))[1])
               AS words
        FROM pg_proc WHERE oid = c.function
    ) source
    JOIN pg_proc p ON lower(p.proname) = ANY (source.words)
    WHERE p.pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
),
sources AS (
    SELECT c.trigger, l.lanname AS language, p.pronamespace = 'pg_catalog'::regnamespace AS builtin,
           -- Without comments and literals.
           regexp_replace(lower(p.prosrc || COALESCE(pg_get_function_sqlbody(p.oid), '')),
                          '--[^\n]*|/\*([^*]|\*[^/])*\*/|''([^'']|'''')*''', ' ', 'g') AS source
    FROM called c JOIN pg_proc p ON p.oid = c.function JOIN pg_language l ON l.oid = p.prolang
)
SELECT *
FROM (
    SELECT f.item, f.oid, f.name, f.enabled, f.enabled IN ('O', 'A') AS fires, f.changes_rows,
           EXISTS (
               SELECT FROM sources s
               WHERE s.trigger = f.oid AND NOT s.builtin
                 AND (s.language NOT IN ('plpgsql', 'sql') OR s.source ~ '\mexecute\M'
                      OR EXISTS (SELECT FROM own WHERE s.source ~ ('\m' || lower(own.item) || '\M')))
           ) AS writes,
           -- Another text after each change of the trigger or a function, also after one that was undone: the catalogue's
           -- rows are new ones.
           concat_ws(' ', f.oid, f.version, (
               SELECT string_agg(concat_ws(' ', p.oid, p.xmin), ' ' ORDER BY p.oid)
               FROM called c JOIN pg_proc p ON p.oid = c.function
               WHERE c.trigger = f.oid
           )) AS state
    FROM found f
) triggers
WHERE changes_rows OR writes;
