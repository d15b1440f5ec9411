-- Which code and which tables the rows were made with; NULL: not known.
ALTER TABLE readviews ADD COLUMN made_by JSONB;

ALTER TABLE readviews
    -- Number of times the rows were replaced: by a rebuild that changed rows, an undo or a reset.
    ADD COLUMN generation BIGINT NOT NULL DEFAULT 0,
    -- The generation of each projection in `after` at the time the first rows were made; NULL: unknown.
    ADD COLUMN built_on JSONB;

-- Projections that are being rebuilt or verified beside their live tables: one row each, while it goes on.
CREATE TABLE readview_rebuilds (
    name       TEXT        NOT NULL PRIMARY KEY,
    -- Where the copy of the projection's tables is. Whoever finds this row, and nobody at work, removes it.
    schema     TEXT        NOT NULL,
    stage      TEXT        NOT NULL,
    -- Events of the projection that are applied, and how many there are.
    events     BIGINT      NOT NULL DEFAULT 0,
    total      BIGINT      NOT NULL DEFAULT 0,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    seen_at    TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
