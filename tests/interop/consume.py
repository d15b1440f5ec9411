"""Consumes messages as a service written with pika does. What it reads and prints: README.md."""

import base64
import json
import sys

import pika
import pika.data
from cloudevents.core.bindings import amqp


def main():
    order = json.loads(sys.stdin.readline())
    keep_types()
    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    channel = connection.channel()
    channel.exchange_declare(order["exchange"], "topic", durable=True)
    channel.queue_declare(order["queue"], durable=True)
    for binding in order["bindings"]:
        channel.queue_bind(order["queue"], order["exchange"], binding)
    channel.basic_qos(prefetch_count=10)
    say({"ready": True})
    left = order["count"]
    for method, properties, body in channel.consume(order["queue"]):
        say(seen(method, properties, body))
        channel.basic_ack(method.delivery_tag)
        left -= 1
        if left == 0:
            break
    connection.close()


def keep_types():
    """pika decodes several types of AMQP to one of Python. Its decoder returns pairs of type and value from now on."""
    decode_value = pika.data.decode_value

    def decode_with_type(encoded, offset):
        value, end = decode_value(encoded, offset)
        return {"type": chr(encoded[offset]), "value": value}, end

    pika.data.decode_value = decode_with_type


def seen(method, properties, body):
    named = {name: value for name, value in vars(properties).items() if value is not None}
    event = cloud_event(properties, body)
    return event | {
        "exchange": method.exchange,
        "routing_key": method.routing_key,
        "headers": named.pop("headers", {}),
        "properties": named,
        "body": base64.b64encode(body).decode(),
    }


def cloud_event(properties, body):
    """The message as the package reads it, if it is a CloudEvent."""
    headers = {name: header["value"] for name, header in (properties.headers or {}).items()}
    if not any(name.startswith(("cloudEvents:", "cloudEvents_")) for name in headers):
        return {}
    message = amqp.AMQPMessage({"content-type": properties.content_type}, headers, body)
    event = amqp.from_amqp_event(message)
    attributes = {name: getattr(value, "isoformat", lambda: value)() for name, value in event.get_attributes().items()}
    return {"cloud_event": {"attributes": attributes, "data": event.get_data()}}


def say(what):
    print(json.dumps(what, default=str), flush=True)


main()
