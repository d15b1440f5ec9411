-- Gives the live tables the rows that `rebuild_pairs` says, and sequences that are at least as far.
DO $$
DECLARE
    beside CONSTANT text := current_setting('rebuild.schema');
    item     record;
    sequence record;
    step     text;
    written  bigint;
BEGIN
    SET CONSTRAINTS ALL DEFERRED;
    -- The new rows already include what these triggers write. The tables are locked, so no other writer needs them.
    FOR item IN SELECT r.item, r.name FROM rebuild_triggers r WHERE r.fires AND r.writes LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', item.item::regclass, item.name);
    END LOOP;
    FOREACH step IN ARRAY ARRAY['remove', 'write'] LOOP
        FOR item IN
            SELECT t.item AS name, t.item::regclass AS live, format('%I.%I', beside, t.item) AS copy, t.columns, t.unwritten,
                   t.missing, t.extra, t.changed, 'rebuild_kept_' || t.place AS kept,
                   -- Where an update could meet another row on its way, or is forbidden, the row is removed first.
                   (SELECT COUNT(*) > 1 FROM pg_index i WHERE i.indrelid = t.item::regclass AND i.indisunique)
                   OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.item::regclass AND i.indisexclusion)
                   OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.item::regclass AND a.attidentity = 'a'
                                AND a.attname = ANY (t.columns))
                   AS replaced
            FROM rebuild_tables t
            WHERE t.missing + t.extra + t.changed > 0
            ORDER BY t.place
        LOOP
            IF step = 'remove' THEN
                IF item.replaced THEN
                    -- Columns that no handler writes keep their values.
                    EXECUTE format(
                        'CREATE TEMPORARY TABLE %I ON COMMIT DROP AS
                         SELECT p.copy AS rebuild_copy%s FROM rebuild_pairs p JOIN %s l ON l.tableoid = p.live_part AND l.ctid = p.live
                         WHERE p.item = %L AND p.copy IS NOT NULL',
                        item.kept, (SELECT string_agg(format(', l.%I', c), '') FROM UNNEST(item.unwritten) AS c), item.live,
                        item.name);
                END IF;
                EXECUTE format(
                    'DELETE FROM %s l USING rebuild_pairs p
                     WHERE p.item = %L AND l.tableoid = p.live_part AND l.ctid = p.live AND (p.copy IS NULL OR %L)',
                    item.live, item.name, item.replaced);
                GET DIAGNOSTICS written = ROW_COUNT;
                -- A trigger of the table that keeps a row from being written would leave it as it was, unseen.
                IF written <> item.extra + (CASE WHEN item.replaced THEN item.changed ELSE 0 END) THEN
                    RAISE EXCEPTION 'rows of % could not be removed: a trigger of the table prevents it', item.name;
                END IF;
                CONTINUE;
            END IF;
            written := 0;
            IF NOT item.replaced THEN
                EXECUTE format(
                    'UPDATE %s l SET (%s) = ROW(%s) FROM rebuild_pairs p JOIN %s c ON c.ctid = p.copy
                     WHERE p.item = %L AND l.tableoid = p.live_part AND l.ctid = p.live',
                    item.live,
                    (SELECT string_agg(quote_ident(c), ', ') FROM UNNEST(item.columns) AS c),
                    (SELECT string_agg(format('c.%I', c), ', ') FROM UNNEST(item.columns) AS c),
                    item.copy, item.name);
                GET DIAGNOSTICS written = ROW_COUNT;
            END IF;
            item.missing := item.missing + item.changed - written;
            written := 0;
            IF item.replaced THEN
                EXECUTE format(
                    'INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE
                     SELECT %s FROM rebuild_pairs p JOIN %s c ON c.ctid = p.copy JOIN %I k ON k.rebuild_copy = p.copy
                     WHERE p.item = %L AND p.live IS NOT NULL ORDER BY p.copy',
                    item.live,
                    (SELECT string_agg(quote_ident(c), ', ') FROM UNNEST(item.columns || item.unwritten) AS c),
                    (SELECT string_agg(format(CASE WHEN c = ANY (item.columns) THEN 'c.%I' ELSE 'k.%I' END, c), ', ')
                     FROM UNNEST(item.columns || item.unwritten) AS c),
                    item.copy, item.kept, item.name);
                GET DIAGNOSTICS written = ROW_COUNT;
                item.missing := item.missing - written;
            END IF;
            EXECUTE format(
                'INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE
                 SELECT %s FROM rebuild_pairs p JOIN %s c ON c.ctid = p.copy
                 WHERE p.item = %L AND p.live IS NULL ORDER BY p.copy',
                item.live,
                (SELECT string_agg(quote_ident(c), ', ') FROM UNNEST(item.columns) AS c),
                (SELECT string_agg(format('c.%I', c), ', ') FROM UNNEST(item.columns) AS c),
                item.copy, item.name);
            GET DIAGNOSTICS written = ROW_COUNT;
            IF written <> item.missing THEN
                RAISE EXCEPTION 'rows of % could not be written: a trigger of the table prevents it', item.name;
            END IF;
        END LOOP;
    END LOOP;
    IF EXISTS (SELECT FROM rebuild_triggers WHERE fires AND writes) THEN
        -- A table with pending deferred checks cannot be altered.
        SET CONSTRAINTS ALL IMMEDIATE;
        FOR item IN SELECT r.item, r.name, r.enabled FROM rebuild_triggers r WHERE r.fires AND r.writes LOOP
            EXECUTE format('ALTER TABLE %s ENABLE %s TRIGGER %I', item.item::regclass,
                           CASE item.enabled WHEN 'A' THEN 'ALWAYS' END, item.name);
        END LOOP;
    END IF;
    FOR sequence IN
        SELECT pg_get_serial_sequence(t.item, c)::regclass AS live,
               to_regclass(pg_get_serial_sequence(format('%I.%I', beside, t.item), c)) AS copy
        FROM rebuild_tables t CROSS JOIN UNNEST(t.columns) AS c
        WHERE pg_get_serial_sequence(t.item, c) IS NOT NULL
    LOOP
        IF pg_catalog.pg_sequence_last_value(sequence.copy) > COALESCE(pg_catalog.pg_sequence_last_value(sequence.live), 0) THEN
            PERFORM pg_catalog.setval(sequence.live, pg_catalog.pg_sequence_last_value(sequence.copy));
        END IF;
    END LOOP;
END
$$;
