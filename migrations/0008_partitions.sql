-- A projection that is applied in partitions has a row for each, called like `band:1/4`, beside its own.
ALTER TABLE readviews
    -- How many partitions its rows were made in. Of a partition: 1.
    ADD COLUMN partitions   INT  NOT NULL DEFAULT 1 CHECK (partitions > 0),
    ADD COLUMN partition_of TEXT REFERENCES readviews (name) ON UPDATE CASCADE ON DELETE CASCADE;

-- Moves the position of a projection to where all its partitions have come. They don't wait for each other with it: this
-- is called after each of their commits. The lock comes first, and the look is a statement of its own: so whoever has
-- committed before is seen, and nothing is moved that a reset has just moved back.
CREATE FUNCTION readviews_gather("projection" TEXT, awaited BOOLEAN) RETURNS void LANGUAGE plpgsql
-- Who holds the row longer, a rebuild for instance, wakes the partitions afterwards.
SET lock_timeout = '1s' AS $$
BEGIN
    PERFORM FROM readviews WHERE name = projection FOR NO KEY UPDATE;
    UPDATE readviews r SET position = all_of_them.position
    FROM (SELECT MIN(position) AS position FROM readviews WHERE partition_of = projection) all_of_them
    WHERE r.name = projection AND r.position < all_of_them.position;
    IF FOUND AND awaited THEN
        PERFORM pg_notify('readviews', projection);
    END IF;
EXCEPTION
    -- Or another partition was faster, and the session's transactions are of a higher isolation level.
    WHEN lock_not_available OR serialization_failure THEN NULL;
END
$$;

-- Gives a projection that was renamed the position, the partitions and the skipped events of its old name. Its tables keep
-- their rows, so no program may use the old name any more.
CREATE FUNCTION readviews_rename(old_name TEXT, new_name TEXT) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- Partitions are called like `band:1/4`. Failures follow by their foreign key.
    UPDATE readviews SET name = new_name || substr(name, length(old_name) + 1) WHERE old_name IN (name, partition_of);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'readviews has no projection "%"', old_name USING ERRCODE = 'no_data_found',
            HINT = 'SELECT name FROM readviews shows the names.';
    END IF;
    UPDATE readview_skips SET name = new_name WHERE name = old_name;
    UPDATE readview_unlogged SET name = new_name || substr(name, length(old_name) + 1)
    WHERE name = old_name OR starts_with(name, old_name || ':');
    PERFORM pg_notify('readviews', new_name);
END
$$;

DO $do$
BEGIN
    EXECUTE format('ALTER FUNCTION readviews_rename(TEXT, TEXT) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION readviews_gather(TEXT, BOOLEAN) SET search_path = %I, pg_temp', current_schema());
END
$do$;

-- As by PostgreSQL's default, which ALTER DEFAULT PRIVILEGES may have changed.
GRANT EXECUTE ON FUNCTION readviews_gather(TEXT, BOOLEAN), readviews_rename(TEXT, TEXT) TO PUBLIC;
