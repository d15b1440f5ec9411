-- NOTIFY costs about as much as an append, so processes that append without a pause send about one in 5 ms together.
--
-- A writer may call these functions directly. The worst that comes of it is a missing or superfluous NOTIFY, which is a
-- hint: without one, the projections find new events by their poll.

-- The position up to which events were announced by NOTIFY. Whoever announces an event announces all before it.
CREATE SEQUENCE events_told AS BIGINT MINVALUE 0 START WITH 0 OWNED BY events.tstamp;
SELECT setval('events_told', 0);
GRANT SELECT ON SEQUENCE events_told TO PUBLIC;

-- Records that everything that has been appended so far is about to be announced.
CREATE FUNCTION events_told_all() RETURNS BOOLEAN LANGUAGE sql SECURITY DEFINER
RETURN setval('events_told', COALESCE(pg_sequence_last_value('events_tstamp'), 0)) IS NOT NULL;

-- Whether the appending transaction, which holds the ordering lock, is to NOTIFY: as `wake` says, or, if that is NULL, if
-- nobody did for 5 ms. By the clock, not by the positions, which stand still if the clock was set back.
CREATE FUNCTION events_to_tell(wake BOOLEAN) RETURNS BOOLEAN LANGUAGE sql
RETURN CASE
    WHEN wake IS NOT NULL THEN wake
    WHEN abs(date_part('epoch', clock_timestamp()) * 1000000 - pg_sequence_last_value('events_told')) < 5000 THEN false
    ELSE events_told_all()
END;

-- Sends a NOTIFY if there are events that were not announced.
CREATE FUNCTION events_tell() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    newest BIGINT := (SELECT tstamp FROM events ORDER BY tstamp DESC LIMIT 1);
BEGIN
    IF newest > pg_sequence_last_value('events_told') THEN
        PERFORM setval('events_told', newest), pg_notify('events', '');
    END IF;
END
$$;

DO $do$
BEGIN
    EXECUTE format('ALTER FUNCTION events_told_all() SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION events_tell() SET search_path = %I, pg_temp', current_schema());
END
$do$;
