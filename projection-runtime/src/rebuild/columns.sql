-- Fills `rebuild_unwritten` with the columns that no handler writes, as observed while the shadow tables were filled
-- (see copy.sql). A trigger that gives a column a value counts as a writer. Fills `rebuild_numbered` with written
-- columns that hold numbers of a sequence which starts far away in the shadow tables, because no handler was known to
-- write it.
DO $$
DECLARE
    beside CONSTANT text := current_setting('rebuild.schema');
    own    CONSTANT text[] := current_setting('rebuild.tables')::text[];
    it     record;
    other  record;
    is_written boolean;
    nestloop CONSTANT text := current_setting('enable_nestloop');
BEGIN
    CREATE TEMPORARY TABLE rebuild_unwritten (tab text, col text) ON COMMIT DROP;
    CREATE TEMPORARY TABLE rebuild_numbered (tab text, col text) ON COMMIT DROP;
    CREATE TEMPORARY TABLE rebuild_columns ON COMMIT DROP AS
    SELECT t.name AS tab, c.oid::regclass AS copy, a.attnum, a.attname AS col, format_type(a.atttypid, a.atttypmod) AS type,
           ty.typname, g.oid IS NOT NULL AS observed, pg_sequence_last_value(g.oid) IS NOT NULL AS given,
           -- The default of the live table's column.
           pg_get_expr(d.adbin, d.adrelid) AS taken,
           NOT (COALESCE(d.adbin::text ~ 'FUNCEXPR|OPEXPR|SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO', false)
                OR la.attidentity <> '') AS constant,
           pg_sequence_last_value(pg_get_serial_sequence(c.oid::regclass::text, a.attname)::regclass) IS NOT NULL AS numbered,
           EXISTS (SELECT FROM pg_trigger tr JOIN pg_proc p ON p.oid = tr.tgfoid
                   WHERE tr.tgrelid = la.attrelid AND NOT tr.tgisinternal AND tr.tgenabled IN ('O', 'A') AND tr.tgtype & 3 = 3
                     AND lower(p.prosrc) ~ ('\m' || regexp_replace(lower(a.attname), '(\W)', '\\\1', 'g') || '\M')) AS by_trigger
    FROM UNNEST(own) AS t (name)
    JOIN pg_class c ON c.oid = to_regclass(format('%I.%I', beside, t.name))
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    JOIN pg_type ty ON ty.oid = a.atttypid
    JOIN pg_attribute la ON la.attrelid = to_regclass(t.name) AND la.attname = a.attname
    LEFT JOIN pg_attrdef d ON d.adrelid = la.attrelid AND d.adnum = la.attnum
    LEFT JOIN pg_class g ON g.oid = to_regclass(format('%I.rebuild_given_%s_%s', beside, c.oid, a.attnum));
    -- For the joins below. EXISTS makes the planner expect an early match and choose a nested loop, which takes quadratic
    -- time if nothing matches. What comes later looks rows up by their address, by nested loops.
    PERFORM set_config('enable_nestloop', 'off', true), set_config('enable_hashjoin', 'on', true);
    FOR it IN SELECT * FROM rebuild_columns WHERE observed LOOP
        is_written := it.given OR it.by_trigger;
        IF NOT is_written AND it.constant THEN
            -- A trigger may have given it a value.
            EXECUTE format('SELECT EXISTS (SELECT FROM %s c WHERE record_image_ne(ROW(c.%I), ROW((%s)::%s)))',
                           it.copy, it.col, COALESCE(it.taken, 'NULL'), it.type) INTO is_written;
        ELSIF NOT is_written AND it.typname IN ('int2', 'int4', 'int8', 'uuid', 'text', 'varchar', 'timestamptz', 'timestamp') THEN
            -- If a handler read a generated value and wrote it to another column, both columns belong together.
            FOR other IN
                SELECT * FROM rebuild_columns r
                WHERE NOT (r.observed AND NOT r.given)
                  AND (r.typname = it.typname OR r.typname IN ('int2', 'int4', 'int8') AND it.typname IN ('int2', 'int4', 'int8'))
            LOOP
                EXIT WHEN is_written;
                -- Columns of different collations cannot be compared.
                EXECUTE format('SELECT EXISTS (SELECT FROM %1$s o WHERE o.%2$I %5$s IN (SELECT c.%3$I FROM %4$s c))',
                               other.copy, other.col, it.col, it.copy,
                               CASE WHEN it.typname IN ('text', 'varchar') THEN 'COLLATE "C"' END) INTO is_written;
            END LOOP;
        END IF;
        IF NOT is_written THEN
            INSERT INTO rebuild_unwritten VALUES (it.tab, it.col);
        ELSIF it.numbered THEN
            INSERT INTO rebuild_numbered VALUES (it.tab, it.col);
        END IF;
    END LOOP;
    PERFORM set_config('enable_nestloop', nestloop, true);
END
$$;
