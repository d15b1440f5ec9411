-- The event store: the only source of truth. Rows are added, never changed.

CREATE TABLE events (
    id             UUID        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    -- Microseconds since the epoch, given by the trigger below: grows strictly in commit order.
    tstamp         BIGINT      NOT NULL CONSTRAINT events_tstamp_key UNIQUE,
    aggregate_id   UUID        NOT NULL,
    aggregate_name TEXT        NOT NULL CHECK (aggregate_name <> ''),
    -- 1, 2, 3 .. within the aggregate; the trigger gives the next one where it is left out.
    sequence_no    BIGINT      NOT NULL CHECK (sequence_no > 0),
    name           TEXT        NOT NULL CHECK (name <> ''),
    version        INT         NOT NULL DEFAULT 1 CHECK (version > 0),
    -- JSON, not JSONB: what was written is what is read, and projections read far more than they search.
    data           JSON        NOT NULL,
    metadata       JSONB       NOT NULL DEFAULT '{}',
    -- When it happened, as the writer says; an import keeps the time of the original.
    recorded_at    TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT events_aggregate_id_sequence_no_key UNIQUE (aggregate_id, sequence_no)
);

-- A projection reads the events of its own names after its own position; see `EventStore::read_after`.
CREATE INDEX events_name_tstamp_idx ON events (name, tstamp);

-- The highest tstamp given so far. A sequence, because a sequence is read and moved outside of snapshots: a
-- REPEATABLE READ transaction, too, sees the last value, and a clock that is set back gives no tstamp twice.
CREATE SEQUENCE events_tstamp AS BIGINT MINVALUE 0 START WITH 0 OWNED BY events.tstamp;

-- The ordering lock: held from the first event of a transaction until its end, so that events become
-- visible in the order of their tstamp. The number is 'events' in ASCII.
CREATE FUNCTION events_lock_order() RETURNS void LANGUAGE sql
RETURN pg_advisory_xact_lock(111559182283891);

CREATE FUNCTION events_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_us BIGINT;
BEGIN
    -- Whoever inserts, psql or another service, goes through here: the order does not hang on good manners.
    PERFORM events_lock_order();
    now_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    NEW.tstamp := nextval('events_tstamp');
    IF now_us > NEW.tstamp THEN
        NEW.tstamp := setval('events_tstamp', now_us);
    END IF;
    IF NEW.sequence_no IS NULL THEN
        NEW.sequence_no := 1 + COALESCE((
            SELECT MAX(sequence_no) FROM events WHERE aggregate_id = NEW.aggregate_id
        ), 0);
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER events_before_insert BEFORE INSERT ON events
FOR EACH ROW EXECUTE FUNCTION events_before_insert();

-- Wakes the projections. Sent at commit, once a transaction however many events it has.
CREATE FUNCTION events_after_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('events', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER events_after_insert AFTER INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_after_insert();

CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of events refused: events are never changed or removed', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Append an event that corrects the earlier one.';
END
$$;

CREATE TRIGGER events_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change();
