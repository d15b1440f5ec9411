"""Publishes messages as a service written with pika does. What it reads and prints: README.md."""

import base64
import json
import sys
from datetime import datetime
from decimal import Decimal

import pika
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.v1.event import CloudEvent
from pika.exceptions import NackError, UnroutableError


def main():
    order = json.loads(sys.stdin.readline())
    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    channel = connection.channel()
    channel.confirm_delivery()
    for line in sys.stdin:
        message = json.loads(line, object_hook=typed, parse_float=Decimal)
        if "cloud_event" in message:
            message |= of_cloud_event(**message["cloud_event"])
        outcome = publish(channel, message.get("exchange", order["exchange"]), message)
        print(json.dumps({"outcome": outcome}), flush=True)
    connection.close()


def typed(value):
    """JSON has neither times nor bytes, and pika no floats."""
    if "$time" in value:
        return datetime.fromisoformat(value["$time"])
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    return value


def of_cloud_event(attributes, data, binding="amqp", mode="binary"):
    """Properties and body as the package makes them."""
    event = CloudEvent(attributes, data)
    if binding == "rabbitmq":
        message = getattr(rabbitmq, f"to_{mode}_event")(event)
        return {"properties": {"headers": message.headers, "content_type": message.content_type}, "body": message.body}
    message = getattr(amqp, f"to_{mode}_event")(event)
    properties = {"headers": message.application_properties, "content_type": message.properties.get("content-type")}
    return {"properties": properties, "body": message.application_data}


def publish(channel, exchange, message):
    properties = pika.BasicProperties(**message.get("properties", {}))
    try:
        channel.basic_publish(
            exchange, message["routing_key"], message["body"], properties, mandatory=message.get("mandatory", False)
        )
    except UnroutableError:
        return "returned"
    except NackError:
        return "refused"
    return "confirmed"


main()
