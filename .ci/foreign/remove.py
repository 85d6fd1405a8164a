"""Removes the queues and exchanges of a prefix: remove.py AMQP_URL PREFIX."""

import sys

import pika

url, prefix = sys.argv[1:]
with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    for word in ("writes", "dead"):
        channel.queue_delete(f"{prefix}.{word}.v1")
    for word in ("dead", "events"):
        channel.exchange_delete(f"{prefix}.{word}.v1")
