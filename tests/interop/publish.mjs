// Publishes messages as a service written with amqplib does. What it reads and prints: README.md.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// Unlike `import`, it looks for packages in NODE_PATH.
const amqp = createRequire(import.meta.url)("amqplib");

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const order = JSON.parse((await lines.next()).value);
const connection = await amqp.connect(order.url);
const channel = await connection.createConfirmChannel();
let returned = false;
channel.on("return", () => {
  returned = true;
});
for await (const line of lines) {
  const message = JSON.parse(line, typed);
  const outcome = await publish(message.exchange ?? order.exchange, message);
  console.log(JSON.stringify({ outcome }));
}
await channel.close();
await connection.close();
process.exit();

// JSON has neither times nor bytes.
function typed(_, value) {
  if (value?.$time) return new Date(value.$time);
  if (value?.$bytes) return Buffer.from(value.$bytes, "base64");
  return value;
}

// The broker returns a message before it confirms it.
function publish(exchange, { routing_key: routingKey, body, properties = {}, mandatory = false }) {
  const named = Object.entries(properties).map(([name, value]) => [camelCase(name), value]);
  const options = { ...Object.fromEntries(named), mandatory };
  returned = false;
  return new Promise((done) =>
    channel.publish(exchange, routingKey, Buffer.from(body), options, (error) =>
      done(error ? "refused" : returned ? "returned" : "confirmed"),
    ),
  );
}

function camelCase(name) {
  return name.replace(/_[a-z]/g, ([, letter]) => letter.toUpperCase());
}
