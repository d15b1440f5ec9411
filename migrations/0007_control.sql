-- What an operator decides about a projection.

-- Paused: no process applies its events until it is resumed.
ALTER TABLE readviews
    ADD COLUMN paused_at TIMESTAMPTZ,
    ADD COLUMN paused_by TEXT,
    ADD CONSTRAINT readviews_paused_check CHECK ((paused_at IS NULL) = (paused_by IS NULL));

-- Events that a projection failed at and was told to pass by. They are passed by in each rebuild as well.
CREATE TABLE readview_skips (
    name       TEXT        NOT NULL,
    event_id   UUID        NOT NULL,
    event_name TEXT        NOT NULL,
    tstamp     BIGINT      NOT NULL,
    handler    TEXT        NOT NULL,
    error      TEXT        NOT NULL,
    reason     TEXT        NOT NULL CHECK (reason <> ''),
    skipped_by TEXT        NOT NULL,
    skipped_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, event_id)
);
CREATE INDEX readview_skips_name_tstamp_idx ON readview_skips (name, tstamp);
