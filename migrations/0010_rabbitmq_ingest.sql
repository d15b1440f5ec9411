-- Which consumer of a queue may append its messages (`run --ingest`). In the database of the events.
CREATE TABLE rabbitmq_ingest (
    queue       TEXT        NOT NULL PRIMARY KEY,
    -- Made anew for each connection that consumes. A consumer appends only while it is the one here: one that was frozen,
    -- or whose connection is lost, may hold messages of which the next has stored the later ones.
    consumer    UUID        NOT NULL,
    since       TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- The content of messages with neither an id nor a time, by number: from their commit until the broker is known to have
    -- got the acknowledgement.
    unconfirmed UUID[]      NOT NULL DEFAULT '{}'
);
