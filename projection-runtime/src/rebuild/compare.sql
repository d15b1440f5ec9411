-- Finds the rows in which the live tables differ from those in the other schema; as REFRESH MATERIALIZED VIEW
-- CONCURRENTLY does. Into `rebuild_pairs`: where the differing rows are, in both; NULL: not there.
DO $$
DECLARE
    beside CONSTANT text := current_setting('rebuild.schema');
    own    CONSTANT text[] := current_setting('rebuild.tables')::text[];
    item    text;
    live    regclass;
    copy    text;
    columns text[];
    kept    text[];
    key     text[];
    pairs   text;
    filled  boolean;
BEGIN
    IF EXISTS (SELECT FROM rebuild_numbered) THEN
        RAISE EXCEPTION 'the last events write column %, which the events before left to its default; start again',
            (SELECT string_agg(tab || '.' || col, ', ') FROM rebuild_numbered);
    END IF;
    CREATE TEMPORARY TABLE rebuild_pairs (item text, live_part oid, live tid, copy tid) ON COMMIT DROP;
    CREATE TEMPORARY TABLE rebuild_tables (
        place serial, item text, columns text[], key text[], rows bigint, missing bigint, extra bigint, changed bigint,
        unwritten text[]
    ) ON COMMIT DROP;
    -- The first of them, column by column as text.
    CREATE TEMPORARY TABLE rebuild_shown (item text, live text[], copy text[]) ON COMMIT DROP;
    PERFORM set_config('work_mem', '64MB', true), set_config('row_security', 'off', true);
    IF current_setting('rebuild.lock') = 'on' THEN
        -- The projection waits meanwhile: not for long, and it is tried again.
        -- Longer than it takes until the server cancels an autovacuum that is in the way.
        PERFORM set_config('lock_timeout',
            (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000 + 500)::int || 'ms', true);
        FOREACH item IN ARRAY own LOOP
            -- Readers go on; whoever else writes waits.
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', item::regclass);
        END LOOP;
    END IF;
    FOREACH item IN ARRAY own LOOP
        live := item::regclass;
        copy := format('%I.%I', beside, item);
        columns := ARRAY(
            SELECT attname FROM pg_attribute
            WHERE attrelid = live AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
        );
        -- Without rows, the columns cannot be observed.
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', copy) INTO filled;
        kept := ARRAY(SELECT c FROM UNNEST(columns) AS c
                      JOIN rebuild_unwritten ON filled AND tab = item AND col = c);
        columns := ARRAY(SELECT c FROM UNNEST(columns) WITH ORDINALITY AS u (c, nr) WHERE c <> ALL (kept) ORDER BY nr);
        key := (
            SELECT ARRAY(SELECT a.attname FROM pg_attribute a
                         WHERE a.attrelid = live AND a.attnum = ANY (k.columns) ORDER BY a.attnum)
            FROM (SELECT i.indisprimary, i.indexrelid, (i.indkey::int2[])[0:i.indnkeyatts - 1] AS columns
                  FROM pg_index i
                  WHERE i.indrelid = live AND i.indisunique AND i.indisvalid AND i.indimmediate
                    AND i.indpred IS NULL AND i.indexprs IS NULL) k
            WHERE NOT EXISTS (SELECT FROM pg_attribute a
                              WHERE a.attrelid = live AND a.attnum = ANY (k.columns)
                                AND (NOT a.attnotnull OR a.attname = ANY (kept)))
            ORDER BY k.indisprimary DESC, k.indexrelid
            LIMIT 1
        );
        IF key IS NOT NULL THEN
            -- Compared as they are stored, so that all types can be, and 1.0 is not 1.00. Where a row is not there, its
            -- key is NULL.
            pairs := format(
                'SELECT %L, l.tableoid, l.ctid, c.ctid FROM %s l FULL JOIN %s c ON %s
                 WHERE record_image_ne(ROW(%s), ROW(%s))',
                item, live, copy,
                (SELECT string_agg(format('l.%1$I = c.%1$I', k), ' AND ') FROM UNNEST(key) AS k),
                (SELECT string_agg(format('l.%I', c), ', ') FROM UNNEST(columns) AS c),
                (SELECT string_agg(format('c.%I', c), ', ') FROM UNNEST(columns) AS c));
        ELSE
            -- The whole row is the key, and which of several equal ones it is.
            pairs := format(
                'WITH l AS (SELECT tableoid, ctid, ROW(%3$s)::text AS k,
                                   row_number() OVER (PARTITION BY ROW(%3$s)::text) AS n FROM %1$s),
                      c AS (SELECT ctid, ROW(%3$s)::text AS k,
                                   row_number() OVER (PARTITION BY ROW(%3$s)::text) AS n FROM %2$s)
                 SELECT %4$L, l.tableoid, l.ctid, c.ctid FROM l FULL JOIN c USING (k, n)
                 WHERE l.ctid IS NULL OR c.ctid IS NULL',
                live, copy, (SELECT string_agg(quote_ident(c), ', ') FROM UNNEST(columns) AS c), item);
        END IF;
        EXECUTE 'INSERT INTO rebuild_pairs ' || pairs;
        EXECUTE format(
            'INSERT INTO rebuild_tables (item, columns, key, unwritten, rows, missing, extra, changed)
             SELECT %L, $1, $2, $3, (SELECT COUNT(*) FROM %s), COUNT(*) FILTER (WHERE live IS NULL),
                    COUNT(*) FILTER (WHERE copy IS NULL), COUNT(*) FILTER (WHERE live IS NOT NULL AND copy IS NOT NULL)
             FROM rebuild_pairs WHERE item = %L', item, copy, item) USING columns, COALESCE(key, columns), kept;
        EXECUTE format(
            'INSERT INTO rebuild_shown
             SELECT %1$L, CASE WHEN p.live IS NOT NULL THEN ARRAY[%2$s]::text[] END,
                    CASE WHEN p.copy IS NOT NULL THEN ARRAY[%3$s]::text[] END
             FROM (SELECT * FROM rebuild_pairs WHERE item = %1$L ORDER BY copy, live LIMIT 20) p
             LEFT JOIN %4$s l ON l.tableoid = p.live_part AND l.ctid = p.live
             LEFT JOIN %5$s c ON c.ctid = p.copy',
            item,
            (SELECT string_agg(format('l.%I::text', c), ', ') FROM UNNEST(columns) AS c),
            (SELECT string_agg(format('c.%I::text', c), ', ') FROM UNNEST(columns) AS c),
            live, copy);
    END LOOP;
END
$$;
