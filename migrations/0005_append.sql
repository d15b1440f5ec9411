-- Appending as fast as the database can: what was done for each row is done once a statement, and whoever goes through
-- `events_append` lets the ordering lock go before the flush, and is told after it.

-- An event's place is the next of the sequence, which the trigger below has moved to the time of day.
ALTER TABLE events ALTER COLUMN tstamp SET DEFAULT nextval('events_tstamp');

-- Runs before the first row, and before its defaults are taken, whoever inserts: psql, another service, COPY.
CREATE FUNCTION events_before_statement() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_us BIGINT;
BEGIN
    -- As an expression it needs no executor; PERFORM would.
    IF events_lock_order() IS NULL THEN END IF;
    now_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    -- Never back, also where the clock was. Either way the session has a `currval` then, for the trigger below.
    IF now_us > nextval('events_tstamp') THEN
        now_us := setval('events_tstamp', now_us);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER events_before_statement BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_before_statement();

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

-- Quiet where the transaction says that it sees to the NOTIFY itself.
DROP TRIGGER events_after_insert ON events;
CREATE TRIGGER events_after_insert AFTER INSERT ON events
FOR EACH STATEMENT WHEN (current_setting('events.quiet', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION events_after_insert();

-- Appends the events of several aggregates, each aggregate's as one append: all or none of them, where the aggregate has
-- the version that is expected (NULL: any). `actual` is the version of each aggregate before, `tstamps` the places of
-- the events that were appended, in their order.
CREATE PROCEDURE events_append(
    -- Of each append.
    aggregate_ids UUID[], expected BIGINT[],
    -- Of each event: its append, and which of that one's it is, both from 1; then what it holds.
    appends INT[], places INT[],
    ids UUID[], aggregate_names TEXT[], names TEXT[], versions INT[], datas JSON[], metadatas JSONB[], times TIMESTAMPTZ[],
    wake BOOLEAN,
    INOUT actual BIGINT[] DEFAULT NULL, INOUT tstamps BIGINT[] DEFAULT NULL
) LANGUAGE plpgsql AS $$
DECLARE
    setting TEXT;
    flushed PG_LSN;
BEGIN
    -- 1. The events. Nobody waits for the disk while the lock is held.
    setting := set_config('synchronous_commit', 'off', true);
    setting := set_config('events.quiet', 'on', true);
    IF events_lock_order() IS NULL THEN END IF;
    -- Statements of their own, so that their snapshots are newer than the lock.
    IF cardinality(ids) = 1 THEN
        -- As below, in statements that cost the server half. For a new aggregate the unique key is enough: nothing is
        -- read, and a conflict fails.
        IF expected[1] = 0 THEN
            actual := ARRAY[0::bigint];
        ELSE
            actual[1] := COALESCE((
                SELECT sequence_no FROM events WHERE aggregate_id = aggregate_ids[1] ORDER BY sequence_no DESC LIMIT 1
            ), 0);
        END IF;
        IF COALESCE(expected[1], actual[1]) = actual[1] THEN
            INSERT INTO events (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
            VALUES (ids[1], aggregate_ids[1], actual[1] + 1, aggregate_names[1], names[1], versions[1], datas[1],
                    metadatas[1], COALESCE(times[1], clock_timestamp()))
            RETURNING ARRAY[tstamp] INTO tstamps;
        END IF;
    ELSE
        -- A plan made anew for each call would cost more than the call.
        setting := set_config('plan_cache_mode', 'force_generic_plan', true);
        actual := ARRAY(
            SELECT COALESCE((
                SELECT sequence_no FROM events WHERE aggregate_id = a.id ORDER BY sequence_no DESC LIMIT 1
            ), 0)
            FROM UNNEST(aggregate_ids) WITH ORDINALITY AS a (id, append)
            ORDER BY append
        );
        WITH new AS (
            INSERT INTO events (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
            SELECT id, aggregate_ids[append], actual[append] + place, aggregate_name, name, version, data, metadata,
                   COALESCE(recorded_at, clock_timestamp())
            FROM UNNEST(appends, places, ids, aggregate_names, names, versions, datas, metadatas, times) WITH ORDINALITY
                 AS e (append, place, id, aggregate_name, name, version, data, metadata, recorded_at, nr)
            WHERE COALESCE(expected[append], actual[append]) = actual[append]
            ORDER BY nr
            RETURNING tstamp
        )
        SELECT array_agg(tstamp ORDER BY tstamp) INTO tstamps FROM new;
    END IF;
    COMMIT;
    -- 2. Apart, because a NOTIFY takes a lock of the whole server: nobody's appends are to wait for it.
    IF wake THEN
        PERFORM pg_notify('events', '');
        COMMIT;
    END IF;
    -- 3. What the caller waits for: its commit is flushed as the session wants it, and with it all that came before it
    -- in the write-ahead log.
    flushed := pg_logical_emit_message(true, 'events', '');
END
$$;
