-- NOTIFY costs about as much as an append, so processes that append continuously send about one every 5 ms in total.
--
-- A writer may call these functions directly. The worst result is a missing or superfluous NOTIFY. NOTIFY is a
-- hint: without it, the projections find new events by polling.

-- The position up to which events were announced by NOTIFY. An announcement covers all events up to that position.
CREATE SEQUENCE events_told AS BIGINT MINVALUE 0 START WITH 0 OWNED BY events.tstamp;
SELECT pg_catalog.setval('events_told', 0);
GRANT SELECT ON SEQUENCE events_told TO PUBLIC;

-- Records that all events appended so far are about to be announced. Always returns true.
CREATE FUNCTION events_told_all() RETURNS BOOLEAN LANGUAGE sql SECURITY DEFINER
RETURN pg_catalog.setval('events_told', COALESCE(pg_catalog.pg_sequence_last_value('events_tstamp'), 0)) IS NOT NULL;

-- Returns whether the appending transaction, which holds the ordering lock, must NOTIFY: `wake`, or if that is NULL,
-- whether the last NOTIFY was at least 5 ms ago. Measured by the clock, because positions do not advance while the
-- clock is set back.
CREATE FUNCTION events_to_tell(wake BOOLEAN) RETURNS BOOLEAN LANGUAGE sql
RETURN CASE
    WHEN wake IS NOT NULL THEN wake
    WHEN abs(date_part('epoch', clock_timestamp()) * 1000000 - pg_catalog.pg_sequence_last_value('events_told')) < 5000 THEN false
    ELSE events_told_all()
END;

-- Sends a NOTIFY if there are events that were not announced.
CREATE FUNCTION events_tell() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    newest BIGINT := (SELECT tstamp FROM events ORDER BY tstamp DESC LIMIT 1);
BEGIN
    IF newest > pg_catalog.pg_sequence_last_value('events_told') THEN
        PERFORM pg_catalog.setval('events_told', newest), pg_catalog.pg_notify('events', '');
    END IF;
END
$$;

DO $do$
BEGIN
    EXECUTE format('ALTER FUNCTION events_told_all() SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION events_tell() SET search_path = %I, pg_temp', current_schema());
END
$do$;

-- As by PostgreSQL's default, which ALTER DEFAULT PRIVILEGES may have changed.
GRANT EXECUTE ON FUNCTION events_told_all(), events_to_tell(BOOLEAN), events_tell() TO PUBLIC;
