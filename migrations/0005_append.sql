-- Appending as fast as the database can: what was done for each row is done once a statement, and whoever goes through
-- `events_append` lets the ordering lock go before the flush, and is told after it.
--
-- In PL/pgSQL an expression costs about as much as what it does, and a trigger's WHEN is parsed anew by each statement:
-- so there are few of both.

-- An event's place is the next of the sequence, which the trigger below has moved to the time of day.
ALTER TABLE events ALTER COLUMN tstamp SET DEFAULT nextval('events_tstamp');

-- Runs before the first row, and before its defaults are taken, whoever inserts: psql, another service, COPY.
CREATE FUNCTION events_before_statement() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved BIGINT;
BEGIN
    -- As an expression it needs no executor; PERFORM would.
    IF events_lock_order() IS NULL THEN END IF;
    -- Never back, also where the clock was. The session has a `currval` then, for the trigger below.
    moved := setval('events_tstamp', greatest(
        pg_sequence_last_value('events_tstamp') + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    ));
    -- Wakes the projections, when this is committed; not where the transaction says that it sees to that itself.
    IF current_setting('events.quiet', true) IS DISTINCT FROM 'on' THEN
        PERFORM pg_notify('events', '');
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER events_before_statement BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_before_statement();

DROP TRIGGER events_after_insert ON events;
DROP FUNCTION events_after_insert;

-- For the exceptions alone: a row that came with a place of its own, or without its sequence_no.
CREATE OR REPLACE FUNCTION events_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.tstamp IS DISTINCT FROM currval('events_tstamp') THEN
        NEW.tstamp := nextval('events_tstamp');
    END IF;
    IF NEW.sequence_no IS NULL THEN
        NEW.sequence_no := 1 + COALESCE((
            SELECT MAX(sequence_no) FROM events WHERE aggregate_id = NEW.aggregate_id
        ), 0);
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER events_before_insert ON events;
CREATE TRIGGER events_before_insert BEFORE INSERT ON events
FOR EACH ROW WHEN (NEW.tstamp IS DISTINCT FROM currval('events_tstamp') OR NEW.sequence_no IS NULL)
EXECUTE FUNCTION events_before_insert();

-- Both procedures: 1. append, and commit without waiting for the disk, since the lock is held that long; 2. where it is
-- time to `wake`, NOTIFY in a transaction of its own, because that takes a lock of the whole server, and nobody's appends
-- are to wait for it; 3. what the caller waits for, a commit that is flushed as the session wants it, and with it all
-- that came before it in the write-ahead log.

-- Appends one event, where its aggregate has the version that is expected (NULL: any). `actual` is that version before,
-- `place` the event's tstamp, NULL where it was not appended.
CREATE PROCEDURE events_append_one(
    aggregate_id UUID, expected BIGINT,
    id UUID, aggregate_name TEXT, name TEXT, version INT, data JSON, metadata JSONB, recorded_at TIMESTAMPTZ,
    wake BOOLEAN,
    INOUT actual BIGINT DEFAULT NULL, INOUT place BIGINT DEFAULT NULL
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
    COMMIT;
    IF wake THEN
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
    INOUT actual BIGINT[] DEFAULT NULL, INOUT last BIGINT DEFAULT NULL
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
    FROM UNNEST(appends, places, ids, aggregate_names, names, versions, datas, metadatas, times) WITH ORDINALITY
         AS e (append, place, id, aggregate_name, name, version, data, metadata, recorded_at, nr)
    WHERE COALESCE(expected[append], actual[append]) = actual[append]
    ORDER BY nr;
    last := currval('events_tstamp');
    COMMIT;
    IF wake THEN
        PERFORM pg_notify('events', '');
        COMMIT;
    END IF;
    IF pg_logical_emit_message(true, 'events', '') IS NULL THEN END IF;
END
$$;
