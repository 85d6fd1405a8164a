"""A producer that is not Forebay's API, written from docs/messages.md: increments, a keyed document and a point in
one message. Prints the ids of the items as clients see them, as JSON.

    pip install pika
    python producer.py --secret "$FIRST_OF_IDS_SECRETS"
"""

import argparse
import hashlib
import json
import secrets
import sys
import time

import pika
import pika.exceptions

KINDS = {"increment": 1, "document": 2, "delete": 3, "point": 4}
FIXED_BITS = 0xF << 76 | 0b11 << 62 | 1 << 31 | 0b111 << 28 | 0xFFFF
LAYOUT = 8 << 76 | 0b10 << 62
ATTEMPTS_MAX = 10


def uuid_text(number):
    digits = f"{number:032x}"
    return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


class Ids:
    """Ids of the messages of one producer, each used once."""

    def __init__(self):
        self.producer, self.counter, self.last_ms = secrets.randbits(32), secrets.randbits(10), 0

    def next(self, now_ms):
        self.counter = (self.counter + 1) % 1024
        self.last_ms = max(now_ms, self.last_ms + (self.counter == 0))
        high, low = self.producer >> 30, self.producer & 0x3FFF_FFFF
        return LAYOUT | self.last_ms << 80 | self.counter << 66 | high << 64 | low << 32


def item_id(message, kind, index):
    return message | KINDS[kind] << 28 | index << 16


def hash_of(*parts):
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()[:16]


def keyed_id(principal, kind, key, index=0):
    number = int.from_bytes(hash_of("forebay keyed id", principal, kind, key, str(index)), "big")
    return number & ~FIXED_BITS | LAYOUT | 1 << 31 | KINDS[kind] << 28


def fingerprint(method, target, item):
    return hash_of("forebay fingerprint", method, target, item).hex()


def canonical(value):
    """Of documents without numbers that have a fraction or an exponent, which this example does not send."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def siphash_1_3(key, data):
    mask = (1 << 64) - 1
    k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(number, by):
        return (number << by | number >> 64 - by) & mask

    def round_once():
        v[0], v[2] = (v[0] + v[1]) & mask, (v[2] + v[3]) & mask
        v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2], v[0] = (v[2] + v[1]) & mask, (v[0] + v[3]) & mask
        v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)

    whole = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(whole), 8):
        word = int.from_bytes(whole[at : at + 8], "little")
        v[3] ^= word
        round_once()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        round_once()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def shown(item, secret):
    key = hashlib.sha256(b"forebay id check\0" + secret.encode()).digest()[:16]
    return uuid_text(item | siphash_1_3(key, item.to_bytes(16, "big")) & 0xFFFF)


def publish(url, prefix, message, body):
    """Returns once the message is durable. What is not known to be is sent again, the same bytes."""
    properties = pika.BasicProperties(
        delivery_mode=2, content_type="application/json", message_id=uuid_text(message)
    )
    for attempt in range(ATTEMPTS_MAX):
        # A new session each time: after a return no confirm of the old one counts.
        try:
            with pika.BlockingConnection(pika.URLParameters(url)) as connection:
                channel = connection.channel()
                # Raises until the queues are there and old enough.
                channel.exchange_declare(f"{prefix}.dead.v1", "direct", passive=True)
                channel.confirm_delivery()
                channel.basic_publish("", f"{prefix}.writes.v1", body, properties, mandatory=True)
                return
        except pika.exceptions.AMQPError as error:
            print(f"attempt {attempt + 1}: {error!r}", file=sys.stderr)
            time.sleep(1)
    sys.exit("no confirm: whether the message was taken is unknown")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--amqp", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--prefix", default="forebay")
    parser.add_argument("--secret", required=True, help="the first of ids.secrets")
    parser.add_argument("--key", default="order-1")
    arguments = parser.parse_args()

    now_ms = time.time_ns() // 1_000_000
    message = Ids().next(now_ms)
    order = {"sku": "A-1", "count": 3, "gift": None, "note": "für \"dich\""}
    keyed = keyed_id("anonymous", "document", arguments.key)
    items = [
        {"increment": {"counter": "example-clicks", "by": 7}},
        {"increment": {"counter": "example-clicks", "by": -2}},
        {
            "document": {"collection": "example-orders", "data": order},
            "keyed": {"id": uuid_text(keyed), "fingerprint": fingerprint("POST", "example-orders", canonical(order))},
        },
        {"point": {"type": "example-load", "at_ms": now_ms - 60_000, "value": 0.25}},
    ]
    envelope = {"v": 1, "id": uuid_text(message), "accepted_at_ms": now_ms, "items": items}
    body = json.dumps(envelope).encode()
    # Twice, as after a lost confirm: it has one effect.
    for _ in range(2):
        publish(arguments.amqp, arguments.prefix, message, body)

    told = []
    for index, item in enumerate(items):
        kind = next(iter(item))
        number = keyed if "keyed" in item else item_id(message, kind, index)
        told.append({"kind": kind, "id": shown(number, arguments.secret), "item": item})
    print(json.dumps({"message": uuid_text(message), "items": told}))


if __name__ == "__main__":
    main()
