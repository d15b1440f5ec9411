-- Where each projection stands, and what stopped it.

CREATE TABLE readviews (
    name          TEXT   NOT NULL PRIMARY KEY,
    -- The tstamp of the last event that the projection has passed, whether it handles that event or not; 0: none.
    position      BIGINT NOT NULL DEFAULT 0,
    -- The event at the position, if that is known: of no meaning unless passed_tstamp = position. After a fail-over of the
    -- database with the events, another event may have that tstamp.
    passed_tstamp BIGINT,
    passed_id     UUID,
    -- It has UNLOGGED tables, whose rows are there as long as its row in readview_unlogged is.
    unlogged      BOOLEAN NOT NULL DEFAULT false
) WITH (fillfactor = 50); -- updated once a batch: room for the new row version on the same page

-- One row for each projection that has stopped at an event.
CREATE TABLE readview_failures (
    name       TEXT        NOT NULL PRIMARY KEY REFERENCES readviews (name) ON DELETE CASCADE,
    event_id   UUID        NOT NULL,
    event_name TEXT        NOT NULL,
    tstamp     BIGINT      NOT NULL,
    handler    TEXT        NOT NULL,
    error      TEXT        NOT NULL,
    attempts   INT         NOT NULL,
    -- If the event is newer than the program that stopped at it, the event's version: a program that knows it goes on.
    newer_version INT,
    failed_at  TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- Set by `retry`: the projection tries once more, and the row goes when the event is passed.
    retry      BOOLEAN     NOT NULL DEFAULT false
);

-- The projections whose rows in UNLOGGED tables are there: a crash of the server empties this table and those.
CREATE UNLOGGED TABLE readview_unlogged (
    name TEXT NOT NULL PRIMARY KEY
);

-- For how long the event has been in the store, in seconds. Its tstamp is ahead of a clock that was set back: then it is
-- known by when it was recorded, if that is not ahead of the clock as well.
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

-- How far behind each projection is.
CREATE VIEW projection_lag AS
SELECT r.name,
       r.position,
       (SELECT MAX(tstamp) FROM events) AS latest_event,
       pending.events_behind,
       pending.seconds_behind
FROM readviews r
CROSS JOIN LATERAL events_after(r.position) pending;
