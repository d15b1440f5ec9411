-- Where each projection stands, and what stopped it.

CREATE TABLE readviews (
    name          TEXT   NOT NULL PRIMARY KEY,
    -- The tstamp of the last event that the projection has passed, whether it handles that event or not; 0: none.
    position      BIGINT NOT NULL DEFAULT 0,
    -- The event at the position, if that is known: of no meaning unless passed_tstamp = position. After a fail-over of the
    -- database with the events, another event may have that tstamp.
    passed_tstamp BIGINT,
    passed_id     UUID
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

-- What lies after a position. Cheap on a large store: it looks at 10,001 events at the most, so an events_behind of
-- 10001 means "more than 10,000".
CREATE FUNCTION events_after("position" BIGINT, OUT events_behind BIGINT, OUT seconds_behind DOUBLE PRECISION)
LANGUAGE sql
BEGIN ATOMIC
    SELECT COUNT(*),
           -- How long the oldest of them has been waiting.
           COALESCE(GREATEST(extract(epoch FROM clock_timestamp()) - MIN(tstamp) / 1000000.0, 0), 0)
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
