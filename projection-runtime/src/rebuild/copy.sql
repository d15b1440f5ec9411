-- Makes the projection's tables anew, empty, in a schema of their own, with all that changes what a handler does: columns
-- with defaults, constraints and indexes, sequences, foreign keys among them, triggers that change a row before it is
-- written, and triggers that may write to these tables (triggers.sql). Others would only tell of rows that are not
-- live. Beside them are `readviews` and `readview_failures`, so that the copy has its own position.
DO $$
DECLARE
    beside    CONSTANT text := current_setting('rebuild.schema');
    live_path CONSTANT text := current_setting('search_path');
    own       CONSTANT text[] := current_setting('rebuild.tables')::text[];
    statements text[] := '{}';
    item       text;
    sequence   record;
BEGIN
    EXECUTE format('CREATE SCHEMA %I', beside);
    EXECUTE format('COMMENT ON SCHEMA %I IS %L', beside, format(
        'Made by a rebuild: tables of projection %s that are made anew. Removed when that is done, or at the next start.',
        current_setting('rebuild.name')));
    FOREACH item IN ARRAY own || ARRAY['readviews', 'readview_failures'] LOOP
        -- Not logged: after a crash of the server all of it is empty, rows and position.
        EXECUTE format('CREATE UNLOGGED TABLE %I.%I (LIKE %s INCLUDING ALL)', beside, item, item::regclass);
        FOR sequence IN
            SELECT a.attname, c.relname, format_type(s.seqtypid, NULL) AS type, s.*
            FROM pg_depend d
            JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
            JOIN pg_sequence s ON s.seqrelid = c.oid
            JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
              AND d.refobjid = item::regclass AND d.deptype = 'a'
        LOOP
            EXECUTE format(
                'CREATE SEQUENCE %1$I.%2$I AS %5$s INCREMENT %6$s MINVALUE %7$s MAXVALUE %8$s START %9$s %10$s
                 OWNED BY %1$I.%3$I.%4$I',
                beside, sequence.relname, item, sequence.attname, sequence.type, sequence.seqincrement,
                sequence.seqmin, sequence.seqmax, sequence.seqstart, CASE WHEN sequence.seqcycle THEN 'CYCLE' END);
            EXECUTE format('ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT nextval(%L)',
                beside, item, sequence.attname, format('%I.%I', beside, sequence.relname));
        END LOOP;
    END LOOP;
    -- As text, in which the tables have no schema: below they are the new ones.
    FOREACH item IN ARRAY own LOOP
        statements := statements
            || ARRAY(SELECT pg_get_triggerdef(oid, true)
                     FROM pg_trigger
                     WHERE tgrelid = item::regclass AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                       -- Before, and for each row.
                       AND (tgtype & 3 = 3 OR oid IN (SELECT oid FROM rebuild_triggers)))
            || ARRAY(SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', item, conname, pg_get_constraintdef(oid))
                     FROM pg_constraint
                     WHERE contype = 'f' AND conrelid = item::regclass
                       AND confrelid = ANY (SELECT to_regclass(name) FROM UNNEST(own) AS name));
    END LOOP;
    PERFORM set_config('search_path', quote_ident(beside) || ', ' || live_path, true);
    FOREACH item IN ARRAY statements LOOP
        EXECUTE item;
    END LOOP;
    EXECUTE 'INSERT INTO readviews (name) VALUES ($1)' USING current_setting('rebuild.name');
    PERFORM set_config('search_path', live_path, true);
END
$$;
