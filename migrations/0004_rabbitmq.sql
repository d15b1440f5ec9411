-- What the processes that speak to RabbitMQ keep beside the positions. The relay's own place is a row of readviews, like
-- `relay:events.topic.exchange`.

-- The bindings made of each queue. AMQP cannot list them, and those of events that are no longer handled must go.
CREATE TABLE rabbitmq_bindings (
    queue       TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    PRIMARY KEY (queue, routing_key)
);

-- What each running process last said of its connections, for `status`, which is another process.
CREATE TABLE rabbitmq_processes (
    id      UUID        NOT NULL PRIMARY KEY,
    status  JSON        NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
