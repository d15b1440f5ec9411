ALTER TABLE dance_hall
    DROP CONSTRAINT dance_hall_name_length,
    ADD CONSTRAINT dance_hall_name_length CHECK (char_length(name) <= 200);
