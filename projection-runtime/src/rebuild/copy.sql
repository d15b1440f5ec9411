-- Creates the projection's shadow tables, empty, in their own schema, with everything that affects a handler: columns
-- with defaults, constraints and indexes, sequences, foreign keys among them, triggers that change a row before it is
-- written, and triggers that may write to these tables (triggers.sql). Other triggers would report rows that are not
-- live. The schema also has `readviews` and `readview_failures`, so that the shadow tables have their own position.
DO $$
DECLARE
    beside    CONSTANT text := current_setting('rebuild.schema');
    live_path CONSTANT text := current_setting('search_path');
    -- Columns that handlers are known to write.
    written   CONSTANT text[] := current_setting('rebuild.written')::text[];
    own       CONSTANT text[] := current_setting('rebuild.tables')::text[];
    statements text[] := '{}';
    item       text;
    sequence   record;
    observed   record;
    key        text;
    keys       text[];
BEGIN
    EXECUTE format('CREATE SCHEMA %I', beside);
    EXECUTE format('COMMENT ON SCHEMA %I IS %L', beside, format(
        'Made by a rebuild: tables of projection %s that are made anew. Removed when that is done, or at the next start.',
        current_setting('rebuild.name')));
    EXECUTE format('CREATE TABLE %I.%I ()', beside, current_setting('rebuild.marker'));
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
            EXECUTE format('ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT pg_catalog.nextval(%L)',
                beside, item, sequence.attname, format('%I.%I', beside, sequence.relname));
        END LOOP;
    END LOOP;
    -- As text, in which the tables have no schema: below they are the new ones.
    FOREACH item IN ARRAY own LOOP
        statements := statements
            || ARRAY(SELECT pg_get_triggerdef(oid, true)
                     FROM pg_trigger
                     WHERE tgrelid = item::regclass AND oid IN (SELECT oid FROM rebuild_triggers WHERE fires))
            || ARRAY(SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', item, conname, pg_get_constraintdef(oid))
                     FROM pg_constraint
                     WHERE contype = 'f' AND conrelid = item::regclass
                       AND confrelid = ANY (SELECT to_regclass(name) FROM UNNEST(own) AS name));
    END LOOP;
    PERFORM set_config('search_path', quote_ident(beside) || ', ' || live_path, true);
    FOREACH item IN ARRAY statements LOOP
        EXECUTE item;
    END LOOP;
    -- Observes which other columns are written: a default records that it was evaluated; a statement that inserts rows
    -- without evaluating it, or updates the column, writes the column. columns.sql reads the result.
    EXECUTE format(
        'CREATE FUNCTION %I.rebuild_observe() RETURNS trigger LANGUAGE plpgsql AS $f$
         DECLARE
             key     text;
             written boolean;
             given   regclass;
         BEGIN
             FOREACH key IN ARRAY TG_ARGV LOOP
                 written := TG_OP = ''UPDATE'' OR current_setting(''rebuild.default_'' || key, true) IS DISTINCT FROM ''on'';
                 IF written AND TG_OP = ''INSERT'' THEN
                     written := EXISTS (SELECT FROM rebuild_inserted);
                 END IF;
                 given := format(''%%I.rebuild_given_%%s'', TG_TABLE_SCHEMA, key)::regclass;
                 IF written AND pg_catalog.pg_sequence_last_value(given) IS NULL THEN
                     PERFORM pg_catalog.nextval(given);
                 END IF;
                 PERFORM set_config(''rebuild.default_'' || key, '''', true);
             END LOOP;
             RETURN NULL;
         END
         $f$', beside);
    FOREACH item IN ARRAY own LOOP
        keys := '{}';
        FOR observed IN
            SELECT a.attname AS name, a.attrelid || '_' || a.attnum AS key, format_type(a.atttypid, a.atttypmod) AS type,
                   a.attidentity <> '' AS numbered, pg_get_expr(d.adbin, d.adrelid) AS taken,
                   pg_get_serial_sequence(format('%I.%I', beside, item), a.attname)::regclass AS numbers
            FROM pg_attribute a
            JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = format('%I.%I', beside, item)::regclass AND a.attnum > 0 AND NOT a.attisdropped
              AND a.attgenerated = '' AND t.typdefault IS NULL AND item || '.' || a.attname <> ALL (written)
              -- A NOT NULL column without a default must be written.
              AND (NOT a.attnotnull OR a.atthasdef OR a.attidentity <> '')
        LOOP
            key := observed.key;
            keys := keys || key;
            IF observed.numbers IS NOT NULL THEN
                -- Starts at a number found nowhere else, to show whether a handler reads it and writes it to another
                -- column.
                SELECT s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, format_type(s.seqtypid, NULL) AS type,
                       CASE WHEN s.seqincrement <= 0 THEN s.seqstart
                            WHEN s.seqmax > 4611686018427387904 THEN 4611686018427387904
                            WHEN s.seqmax > 1073741824 THEN 1073741824
                            ELSE s.seqstart END AS seqstart
                INTO sequence
                FROM pg_sequence s WHERE s.seqrelid = observed.numbers;
                IF observed.numbered THEN
                    EXECUTE format('ALTER TABLE %I.%I ALTER COLUMN %I DROP IDENTITY', beside, item, observed.name);
                    EXECUTE format(
                        'CREATE SEQUENCE %1$I.rebuild_numbers_%2$s AS %5$s INCREMENT %6$s MINVALUE %7$s MAXVALUE %8$s START %9$s %10$s
                         OWNED BY %1$I.%3$I.%4$I',
                        beside, key, item, observed.name, sequence.type, sequence.seqincrement, sequence.seqmin,
                        sequence.seqmax, sequence.seqstart, CASE WHEN sequence.seqcycle THEN 'CYCLE' END);
                    observed.taken := format('nextval(%L)', format('%I.rebuild_numbers_%s', beside, key));
                ELSE
                    EXECUTE format('ALTER SEQUENCE %s RESTART WITH %s', observed.numbers, sequence.seqstart);
                END IF;
            END IF;
            EXECUTE format('CREATE SEQUENCE %I.rebuild_given_%s', beside, key);
            EXECUTE format(
                'ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT
                 CASE WHEN set_config(%L, ''on'', true) IS NOT NULL THEN (%s)::%s END',
                beside, item, observed.name, 'rebuild.default_' || key, COALESCE(observed.taken, 'NULL'), observed.type);
            EXECUTE format(
                'CREATE TRIGGER %1$I BEFORE UPDATE OF %2$I ON %3$I.%4$I FOR EACH STATEMENT
                 EXECUTE FUNCTION %3$I.rebuild_observe(%5$L)',
                'rebuild_updated_' || key, observed.name, beside, item, key);
        END LOOP;
        IF keys <> '{}' THEN
            EXECUTE format(
                'CREATE TRIGGER rebuild_inserted AFTER INSERT ON %1$I.%2$I REFERENCING NEW TABLE AS rebuild_inserted
                 FOR EACH STATEMENT EXECUTE FUNCTION %1$I.rebuild_observe(%3$s)',
                beside, item, (SELECT string_agg(quote_literal(k), ', ') FROM UNNEST(keys) AS k));
        END IF;
    END LOOP;
    EXECUTE 'INSERT INTO readviews (name) VALUES ($1)' USING current_setting('rebuild.name');
    PERFORM set_config('search_path', live_path, true);
END
$$;
