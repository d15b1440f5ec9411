-- NOTIFY costs about as much as an append, so where processes append without a pause there is about one in 5 ms, whichever
-- they are.

-- The newest event that whoever listens was told of, by its tstamp.
CREATE SEQUENCE events_told AS BIGINT MINVALUE 0 START WITH 0 OWNED BY events.tstamp;
SELECT setval('events_told', 0);

-- NOTIFYs, where there are events that nobody told of. Who told of an event has told of all before it.
CREATE FUNCTION events_tell() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    newest BIGINT := (SELECT tstamp FROM events ORDER BY tstamp DESC LIMIT 1);
BEGIN
    IF newest > pg_sequence_last_value('events_told') THEN
        PERFORM setval('events_told', newest), pg_notify('events', '');
    END IF;
END
$$;

-- Whether whoever appended this, and holds the ordering lock, is to NOTIFY: where it was not said, if nobody did for 5 ms.
-- By the clock, not by the places, which stand still where it was set back.
CREATE FUNCTION events_to_tell(place BIGINT, wake BOOLEAN) RETURNS BOOLEAN LANGUAGE sql
RETURN CASE
    WHEN wake IS NOT NULL THEN wake
    WHEN abs(date_part('epoch', clock_timestamp()) * 1000000 - pg_sequence_last_value('events_told')) < 5000 THEN false
    ELSE setval('events_told', place) IS NOT NULL
END;

-- As before, but for this: where `wake` is NULL, whether to NOTIFY is found out here, and `told` says what was done; what
-- was not told of is for the caller to see to a moment later, with `events_tell`.
DROP PROCEDURE events_append_one;
DROP PROCEDURE events_append;

-- Appends one event, where its aggregate has the version that is expected (NULL: any). `actual` is that version before,
-- `place` the event's tstamp, NULL where it was not appended.
CREATE PROCEDURE events_append_one(
    aggregate_id UUID, expected BIGINT,
    id UUID, aggregate_name TEXT, name TEXT, version INT, data JSON, metadata JSONB, recorded_at TIMESTAMPTZ,
    wake BOOLEAN,
    INOUT actual BIGINT DEFAULT NULL, INOUT place BIGINT DEFAULT NULL, INOUT told BOOLEAN DEFAULT NULL
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF set_config('synchronous_commit', 'off', true) || set_config('events.quiet', 'on', true) IS NULL THEN END IF;
    IF expected = 0 THEN
        -- Nothing is read: if there is an event after all, the unique key says so.
        actual := 0;
    ELSE
        IF expected IS NULL AND events_lock_order() IS NULL THEN END IF;
        actual := COALESCE((
            SELECT sequence_no FROM events e WHERE e.aggregate_id = $1 ORDER BY sequence_no DESC LIMIT 1
        ), 0);
        IF expected <> actual THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO events (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
    VALUES ($3, $1, actual + 1, $4, $5, $6, $7, $8, COALESCE($9, clock_timestamp()))
    RETURNING tstamp INTO place;
    told := events_to_tell(place, wake);
    COMMIT;
    IF told THEN
        PERFORM pg_notify('events', '');
        COMMIT;
    END IF;
    IF pg_logical_emit_message(true, 'events', '') IS NULL THEN END IF;
END
$$;

-- Appends the events of several aggregates, each aggregate's as one append: all or none of them, where the aggregate has
-- the version that is expected (NULL: any). `actual` is the version of each aggregate before, `last` the tstamp of the
-- last event that was appended; the others have those before it, one by one.
CREATE PROCEDURE events_append(
    -- Of each append.
    aggregate_ids UUID[], expected BIGINT[],
    -- Of each event: its append, and which of that one's it is, both from 1; then what it holds.
    appends INT[], places INT[],
    ids UUID[], aggregate_names TEXT[], names TEXT[], versions INT[], datas JSON[], metadatas JSONB[], times TIMESTAMPTZ[],
    wake BOOLEAN,
    INOUT actual BIGINT[] DEFAULT NULL, INOUT last BIGINT DEFAULT NULL, INOUT told BOOLEAN DEFAULT NULL
) LANGUAGE plpgsql AS $$
BEGIN
    -- Also: a plan made anew for each call would cost more than the call.
    IF set_config('synchronous_commit', 'off', true) || set_config('events.quiet', 'on', true)
        || set_config('plan_cache_mode', 'force_generic_plan', true) IS NULL THEN END IF;
    IF 0 = ALL (expected) THEN
        actual := expected;
    ELSE
        -- A statement of its own, so that the snapshot of the next is newer than the lock.
        IF events_lock_order() IS NULL THEN END IF;
        actual := ARRAY(
            SELECT COALESCE((
                SELECT sequence_no FROM events WHERE aggregate_id = a.id ORDER BY sequence_no DESC LIMIT 1
            ), 0)
            FROM UNNEST(aggregate_ids) WITH ORDINALITY AS a (id, append)
            ORDER BY append
        );
    END IF;
    INSERT INTO events (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
    SELECT id, aggregate_ids[append], actual[append] + place, aggregate_name, name, version, data, metadata,
           COALESCE(recorded_at, clock_timestamp())
    -- In step, and in the order of the arrays. FROM UNNEST(..) would keep each array's values beside before it gives the first
    -- row, and a sort takes its time as well: under the lock that is a fifth of it.
    FROM (SELECT UNNEST(appends) AS append, UNNEST(places) AS place, UNNEST(ids) AS id,
                 UNNEST(aggregate_names) AS aggregate_name, UNNEST(names) AS name, UNNEST(versions) AS version,
                 UNNEST(datas) AS data, UNNEST(metadatas) AS metadata, UNNEST(times) AS recorded_at) AS e
    WHERE COALESCE(expected[append], actual[append]) = actual[append];
    last := currval('events_tstamp');
    told := events_to_tell(last, wake);
    COMMIT;
    IF told THEN
        PERFORM pg_notify('events', '');
        COMMIT;
    END IF;
    IF pg_logical_emit_message(true, 'events', '') IS NULL THEN END IF;
END
$$;
