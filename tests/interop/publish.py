"""Publishes messages as a service written with pika does. What it reads and prints: README.md."""

import base64
import json
import sys
from datetime import datetime
from decimal import Decimal

import pika
from pika.exceptions import NackError, UnroutableError


def main():
    order = json.loads(sys.stdin.readline())
    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    channel = connection.channel()
    channel.confirm_delivery()
    for line in sys.stdin:
        message = json.loads(line, object_hook=typed, parse_float=Decimal)
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
