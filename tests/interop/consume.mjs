// Consumes messages as a service written with amqplib does. What it reads and prints: README.md.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// Unlike `import`, it looks for packages in NODE_PATH.
const amqp = createRequire(import.meta.url)("amqplib");

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const order = JSON.parse((await lines.next()).value);
const connection = await amqp.connect(order.url);
const channel = await connection.createChannel();
await channel.assertExchange(order.exchange, "topic", { durable: true });
await channel.assertQueue(order.queue, { durable: true });
for (const binding of order.bindings) {
  await channel.bindQueue(order.queue, order.exchange, binding);
}
await channel.prefetch(10);
say({ ready: true });
let left = order.count;
await new Promise((done) =>
  channel.consume(order.queue, (message) => {
    say(seen(message));
    channel.ack(message);
    left -= 1;
    if (left === 0) done();
  }),
);
await channel.close();
await connection.close();
process.exit();

function seen({ fields, properties, content }) {
  const { headers, ...others } = properties;
  const named = Object.entries(others).filter(([, value]) => value !== undefined);
  return {
    exchange: fields.exchange,
    routing_key: fields.routingKey,
    headers: Object.fromEntries(
      Object.entries(headers ?? {}).map(([name, value]) => [name, { type: typeof value, value }]),
    ),
    properties: Object.fromEntries(named.map(([name, value]) => [snakeCase(name), value])),
    body: content.toString("base64"),
  };
}

function snakeCase(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function say(what) {
  console.log(JSON.stringify(what));
}
