-- Where each projection stands, and what stopped it.

CREATE TABLE readviews (
    name          TEXT   NOT NULL PRIMARY KEY,
    -- The tstamp of the last event that the projection has passed, whether it handles that event or not; 0: none.
    position      BIGINT NOT NULL DEFAULT 0 CHECK (position >= 0),
    -- The event at the position, NULL if unknown; meaningful only if passed_tstamp = position. After a fail-over of the
    -- events' database, another event may have the same tstamp.
    passed_tstamp BIGINT,
    passed_id     UUID,
    -- Whether the projection had UNLOGGED tables when a process last looked.
    unlogged      BOOLEAN NOT NULL DEFAULT false
) WITH (fillfactor = 50); -- updated once a batch: room for the new row version on the same page

-- One row for each projection that has stopped at an event.
CREATE TABLE readview_failures (
    name       TEXT        NOT NULL PRIMARY KEY REFERENCES readviews (name) ON UPDATE CASCADE ON DELETE CASCADE,
    event_id   UUID        NOT NULL,
    event_name TEXT        NOT NULL,
    tstamp     BIGINT      NOT NULL,
    handler    TEXT        NOT NULL,
    error      TEXT        NOT NULL,
    attempts   INT         NOT NULL,
    -- The schema version of the event if the program that stopped did not know it; a program that knows it continues.
    newer_version INT,
    failed_at  TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- Set by `retry`: the projection tries once more, and the row goes when the event is passed.
    retry      BOOLEAN     NOT NULL DEFAULT false
);

-- The projections, and partitions, whose rows are from after the last server crash, or from logged tables: a crash empties
-- this table together with the UNLOGGED tables of read models. A process adds a projection again if its tables were logged.
CREATE UNLOGGED TABLE readview_unlogged (
    name TEXT NOT NULL PRIMARY KEY
);

-- Returns how long the event has been in the store, in seconds. If its tstamp is ahead of the clock, because the clock
-- was set back, recorded_at is used instead; if that is ahead as well, the result is 0.
CREATE FUNCTION event_age("tstamp" BIGINT, recorded_at TIMESTAMPTZ) RETURNS DOUBLE PRECISION LANGUAGE sql
RETURN GREATEST(0, CASE
    WHEN tstamp / 1000000.0 <= extract(epoch FROM clock_timestamp())
        THEN extract(epoch FROM clock_timestamp()) - tstamp / 1000000.0
    ELSE extract(epoch FROM clock_timestamp() - recorded_at)
END);

-- What lies after a position. Cheap on a large store: it looks at 10,001 events at the most, so an events_behind of
-- 10001 means "more than 10,000".
CREATE FUNCTION events_after("position" BIGINT, OUT events_behind BIGINT, OUT seconds_behind DOUBLE PRECISION)
LANGUAGE sql
BEGIN ATOMIC
    SELECT COUNT(*),
           -- How long the oldest of them has been waiting.
           COALESCE((SELECT event_age(e.tstamp, e.recorded_at) FROM events e WHERE e.tstamp > $1 ORDER BY e.tstamp LIMIT 1), 0)
    FROM (SELECT tstamp FROM events WHERE tstamp > $1 ORDER BY tstamp LIMIT 10001) oldest;
END;

-- As by PostgreSQL's default, which ALTER DEFAULT PRIVILEGES may have changed.
GRANT EXECUTE ON FUNCTION event_age(BIGINT, TIMESTAMPTZ), events_after(BIGINT) TO PUBLIC;

-- How far behind each projection is.
CREATE VIEW projection_lag AS
SELECT r.name,
       r.position,
       (SELECT MAX(tstamp) FROM events) AS latest_event,
       pending.events_behind,
       pending.seconds_behind
FROM readviews r
CROSS JOIN LATERAL events_after(r.position) pending;
