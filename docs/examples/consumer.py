"""A program that follows what Forebay's consumers do, written from docs/messages.md. Prints a line of JSON for each
thing it understood, and `{"old": …}` when what it knew may be out of date.

    pip install pika
    python consumer.py
"""

import argparse
import json
import time

import pika

SILENCE_MAX_SECONDS = 3


class Publishers:
    """Last number of each publisher, and when it was heard."""

    def __init__(self):
        self.last = {}

    def hear(self, event, now):
        """Whether nothing was missed before this event."""
        publisher, number, body = event["publisher"], event["number"], event["body"]
        repeats = body == "goodbye" or (isinstance(body, dict) and "heartbeat" in body)
        known = self.last.get(publisher)
        if known is None:
            # One that begins now has said nothing before.
            whole = number == (0 if repeats else 1)
        else:
            whole = number == known[0] + (0 if repeats else 1)
        self.last[publisher] = (number, now)
        if body == "goodbye" or (isinstance(body, dict) and "defined" in body):
            del self.last[publisher]
        return whole

    def silent(self, now):
        gone = [name for name, (_, heard) in self.last.items() if now - heard > SILENCE_MAX_SECONDS]
        for name in gone:
            del self.last[name]
        return bool(gone)


def tell(**thing):
    print(json.dumps(thing), flush=True)


def tell_committed(committed):
    """Members and entries of later versions are passed over."""
    for counter in committed.get("counters", []):
        tell(counter=counter["name"], value=counter["value"], version=counter["version"])
    for name in committed.get("types", []):
        tell(points_of=name)
    for document in committed.get("deleted", []):
        tell(deleted=document)
    for failed in committed.get("failed", []):
        tell(item=failed["item"], outcome="failed", reason=failed["reason"])
    for keyed in committed.get("keyed", []):
        tell(item=keyed["item"], outcome=keyed["verdict"], fingerprint=keyed["fingerprint"])
    # Last: all of its items that are neither failed nor keyed took effect.
    for message in committed.get("messages", []):
        tell(message=message, outcome="applied")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--amqp", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--prefix", default="forebay")
    parser.add_argument("--seconds", type=float, help="ends after so long; by default never")
    arguments = parser.parse_args()

    with pika.BlockingConnection(pika.URLParameters(arguments.amqp)) as connection:
        channel = connection.channel()
        exchange = f"{arguments.prefix}.events.v1"
        channel.exchange_declare(exchange, "topic", passive=True)
        limits = {"x-max-length": 10_000, "x-message-ttl": 30_000}
        queue = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=limits).method.queue
        channel.queue_bind(queue, exchange, "#")
        tell(listening=exchange)
        publishers, begun = Publishers(), time.monotonic()
        for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=1):
            now = time.monotonic()
            if publishers.silent(now):
                tell(old="a publisher was not heard for too long")
            if body is not None:
                event = json.loads(body)
                if not publishers.hear(event, now):
                    tell(old="events were missed")
                if isinstance(event["body"], dict) and "committed" in event["body"]:
                    tell_committed(event["body"]["committed"])
            if arguments.seconds is not None and now - begun > arguments.seconds:
                break


if __name__ == "__main__":
    main()
