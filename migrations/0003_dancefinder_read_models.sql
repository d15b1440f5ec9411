-- The read models of DanceFinder. No foreign keys between them: their integrity is the write side's, and each
-- projection can be reset by itself.

-- Projection band
CREATE TABLE band (
    id      UUID        NOT NULL PRIMARY KEY,
    name    TEXT        NOT NULL CONSTRAINT band_name_key UNIQUE,
    created TIMESTAMPTZ NOT NULL
);

-- Projection dancehall
CREATE TABLE dance_hall (
    id           UUID             NOT NULL PRIMARY KEY,
    name         TEXT             NOT NULL CONSTRAINT dance_hall_name_length CHECK (char_length(name) <= 100),
    city         TEXT             NOT NULL,
    municipality TEXT             NOT NULL,
    state        TEXT             NOT NULL,
    -- Degrees, WGS 84; unknown until the hall is geocoded.
    latitude     DOUBLE PRECISION CHECK (latitude BETWEEN -90 AND 90),
    longitude    DOUBLE PRECISION CHECK (longitude BETWEEN -180 AND 180),
    created      TIMESTAMPTZ      NOT NULL
);
-- Halls of a place, also for the ignored ones
CREATE INDEX dance_hall_place_idx ON dance_hall (state, municipality, city);

-- Projection event
CREATE TABLE event (
    id            UUID        NOT NULL PRIMARY KEY,
    date          DATE        NOT NULL,
    band_id       UUID        NOT NULL,
    dance_hall_id UUID        NOT NULL,
    created       TIMESTAMPTZ NOT NULL
);
-- Dances of a week; of a band; at a hall
CREATE INDEX event_date_idx ON event (date);
CREATE INDEX event_band_id_idx ON event (band_id, date);
CREATE INDEX event_dance_hall_id_idx ON event (dance_hall_id, date);

-- Projection userpreferences. `subject` is the user, as the identity provider names them.
CREATE TABLE origin (
    id        UUID             NOT NULL PRIMARY KEY,
    subject   TEXT             NOT NULL,
    name      TEXT             NOT NULL,
    latitude  DOUBLE PRECISION NOT NULL,
    longitude DOUBLE PRECISION NOT NULL,
    created   TIMESTAMPTZ      NOT NULL
);
CREATE INDEX origin_subject_idx ON origin (subject);

-- A band is ignored by its name. band_id is the band that has the name now; NULL while no band has it.
CREATE TABLE ignored_band (
    subject   TEXT        NOT NULL,
    band_name TEXT        NOT NULL,
    band_id   UUID,
    created   TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, band_name)
);
CREATE INDEX ignored_band_band_id_idx ON ignored_band (band_id);
CREATE INDEX ignored_band_band_name_idx ON ignored_band (band_name);

CREATE TABLE ignored_dance_hall (
    subject       TEXT        NOT NULL,
    dance_hall_id UUID        NOT NULL,
    created       TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, dance_hall_id)
);
CREATE INDEX ignored_dance_hall_dance_hall_id_idx ON ignored_dance_hall (dance_hall_id);

CREATE TABLE ignored_city (
    subject TEXT        NOT NULL,
    city    TEXT        NOT NULL,
    created TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, city)
);

CREATE TABLE ignored_municipality (
    subject      TEXT        NOT NULL,
    municipality TEXT        NOT NULL,
    created      TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, municipality)
);

CREATE TABLE ignored_state (
    subject TEXT        NOT NULL,
    state   TEXT        NOT NULL,
    created TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, state)
);
