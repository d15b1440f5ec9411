-- Appending as fast as the database can: these procedures release the ordering lock before the flush, and return after it.
--
-- Both run three steps: 1. append, and commit without waiting for the disk, because the lock is held until then; 2. if
-- the projections are due a wake-up, NOTIFY in a separate transaction, because NOTIFY acquires a server-wide lock and
-- no append should wait for it; 3. make a commit that is flushed (and replicated) according to the session's
-- `synchronous_commit`, and with it everything before it in the write-ahead log. The caller waits for this commit.
--
-- `patience`: how long to wait for locks, as a value of `lock_timeout`; NULL: the session's `lock_timeout`.
--
-- They run with the caller's privileges: a procedure that commits can neither be SECURITY DEFINER nor have a fixed
-- search_path. Therefore they qualify the event store's objects with their schema.
DO $do$
BEGIN
    EXECUTE format($sql$
        -- Appends one event if its aggregate has the expected stream version (NULL: any). `actual` is the stream
        -- version before the append, `place` the event's tstamp, NULL if it was not appended.
        --
        -- If `wake` is NULL, the procedure decides whether to NOTIFY; `told` returns the decision. The caller announces
        -- events without a NOTIFY a moment later, with `events_tell`.
        CREATE PROCEDURE events_append_one(
            aggregate_id UUID, expected BIGINT,
            id UUID, aggregate_name TEXT, name TEXT, version INT, data JSON, metadata JSONB, recorded_at TIMESTAMPTZ,
            wake BOOLEAN,
            INOUT actual BIGINT DEFAULT NULL, INOUT place BIGINT DEFAULT NULL, INOUT told BOOLEAN DEFAULT NULL,
            patience TEXT DEFAULT NULL
        ) LANGUAGE plpgsql AS $procedure$
        #variable_conflict use_column
        BEGIN
            -- The statement after the one that waits for the ordering lock must see what was committed meanwhile.
            IF current_setting('transaction_isolation') <> 'read committed' THEN
                COMMIT;
                SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            END IF;
            IF set_config('synchronous_commit', 'off', true) || set_config('events.quiet', 'on', true) IS NULL THEN END IF;
            IF patience IS NOT NULL AND set_config('lock_timeout', patience, true) IS NULL THEN END IF;
            IF expected = 0 THEN
                -- No read is needed: if the aggregate has an event, the unique key is violated.
                actual := 0;
            ELSE
                IF expected IS NULL AND %1$I.events_lock_order() IS NULL THEN END IF;
                actual := COALESCE((
                    SELECT sequence_no FROM %1$I.events e WHERE e.aggregate_id = $1 ORDER BY sequence_no DESC LIMIT 1
                ), 0);
                IF expected <> actual THEN
                    RETURN;
                END IF;
            END IF;
            INSERT INTO %1$I.events
                (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
            VALUES ($3, $1, actual + 1, $4, $5, $6, $7, $8, COALESCE($9, clock_timestamp()))
            RETURNING tstamp INTO place;
            IF place IS NULL THEN
                RAISE EXCEPTION 'a trigger or a rule of the table "events" drops events' USING ERRCODE = '55000';
            END IF;
            told := %1$I.events_to_tell(wake);
            COMMIT;
            IF told THEN
                -- The events are committed: from here on no wait may end with an error.
                IF set_config('lock_timeout', '0', true) IS NULL THEN END IF;
                PERFORM pg_notify('events', '');
                COMMIT;
            END IF;
            IF pg_logical_emit_message(true, 'events', '') IS NULL THEN END IF;
        END
        $procedure$
    $sql$, current_schema());
    EXECUTE format($sql$
        -- Appends the events of several aggregates, one append per aggregate. Each append is all or nothing, and needs
        -- the expected stream version (NULL: any). `actual` is the stream version of each aggregate before, `last` the
        -- tstamp of the last event that was appended; the events before it have the consecutive numbers that end there.
        CREATE PROCEDURE events_append(
            -- One element per append.
            aggregate_ids UUID[], expected BIGINT[],
            -- One element per event: its append and its index in that append, both from 1; then its columns.
            appends INT[], places INT[],
            ids UUID[], aggregate_names TEXT[], names TEXT[], versions INT[], datas JSON[], metadatas JSONB[],
            times TIMESTAMPTZ[],
            wake BOOLEAN,
            INOUT actual BIGINT[] DEFAULT NULL, INOUT last BIGINT DEFAULT NULL, INOUT told BOOLEAN DEFAULT NULL,
            patience TEXT DEFAULT NULL
        ) LANGUAGE plpgsql AS $procedure$
        DECLARE
            stored BIGINT;
        BEGIN
            -- The statement after the one that waits for the ordering lock must see what was committed meanwhile.
            IF current_setting('transaction_isolation') <> 'read committed' THEN
                COMMIT;
                SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            END IF;
            -- The generic plan, because planning each call would cost more than the call.
            IF set_config('synchronous_commit', 'off', true) || set_config('events.quiet', 'on', true)
                || set_config('plan_cache_mode', 'force_generic_plan', true) IS NULL THEN END IF;
            IF patience IS NOT NULL AND set_config('lock_timeout', patience, true) IS NULL THEN END IF;
            IF 0 = ALL (expected) THEN
                actual := expected;
            ELSE
                -- A statement of its own, so that the snapshot of the next is newer than the lock.
                IF %1$I.events_lock_order() IS NULL THEN END IF;
                actual := ARRAY(
                    SELECT COALESCE((
                        SELECT sequence_no FROM %1$I.events WHERE aggregate_id = a.id ORDER BY sequence_no DESC LIMIT 1
                    ), 0)
                    FROM UNNEST(aggregate_ids) WITH ORDINALITY AS a (id, append)
                    ORDER BY append
                );
            END IF;
            INSERT INTO %1$I.events
                (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
            SELECT id, aggregate_ids[append], actual[append] + place, aggregate_name, name, version, data, metadata,
                   COALESCE(recorded_at, clock_timestamp())
            -- In step, and in the order of the arrays. FROM UNNEST(..) would store each array's values before it returns
            -- the first row, and a sort takes its time as well: under the lock that is a fifth of it.
            FROM (SELECT UNNEST(appends) AS append, UNNEST(places) AS place, UNNEST(ids) AS id,
                         UNNEST(aggregate_names) AS aggregate_name, UNNEST(names) AS name, UNNEST(versions) AS version,
                         UNNEST(datas) AS data, UNNEST(metadatas) AS metadata, UNNEST(times) AS recorded_at) AS e
            WHERE COALESCE(expected[append], actual[append]) = actual[append];
            GET DIAGNOSTICS stored = ROW_COUNT;
            IF stored < cardinality(ids) AND stored < (
                SELECT COUNT(*) FROM UNNEST(appends) AS a (append)
                WHERE COALESCE(expected[append], actual[append]) = actual[append]
            ) THEN
                RAISE EXCEPTION 'a trigger or a rule of the table "events" drops events' USING ERRCODE = '55000';
            END IF;
            last := pg_catalog.currval(%2$L);
            told := %1$I.events_to_tell(wake);
            COMMIT;
            IF told THEN
                -- The events are committed: from here on no wait may end with an error.
                IF set_config('lock_timeout', '0', true) IS NULL THEN END IF;
                PERFORM pg_notify('events', '');
                COMMIT;
            END IF;
            IF pg_logical_emit_message(true, 'events', '') IS NULL THEN END IF;
        END
        $procedure$
    $sql$, current_schema(), format('%I.events_tstamp', current_schema()));
END
$do$;

-- As by PostgreSQL's default, which ALTER DEFAULT PRIVILEGES may have changed.
GRANT EXECUTE ON PROCEDURE events_append_one, events_append TO PUBLIC;
