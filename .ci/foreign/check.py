"""Runs docs/examples against an installation and compares what its API shows: check.py AMQP_URL PREFIX API_URL SECRET."""

import datetime
import json
import pathlib
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "examples"
PATIENCE_SECONDS = 30
amqp, prefix, api, secret = sys.argv[1:]


def request(method, path, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(
        api + path, data, {"content-type": "application/json", **headers}, method=method
    )
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers, json.load(refused)


def wait_for(what, ask):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            found = ask()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    sys.exit(f"timed out: {what}")


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found!r} instead of {wanted!r}")


def check_key_by_api(told):
    """A retry through the API is the same write, and its id the one that the producer made."""
    data = told["item"]["document"]["data"]
    path = f"/v1/data/{told['item']['document']['collection']}"
    # Another order of members is the same payload.
    again = dict(reversed(data.items()))
    status, headers, stored = request("POST", path, again, idempotency_key="order-1", prefer="wait=20")
    expect("a retry", (status, stored["id"], stored["data"]), (201, told["id"], data))
    fingerprint = told["item"]["keyed"]["fingerprint"]
    expect("its fingerprint", f"payload={fingerprint}" in headers["location"], True)
    status, _, refused = request("POST", path, {"sku": "B"}, idempotency_key="order-1", prefer="wait=20")
    expect("another payload", (status, refused["type"]), (422, "urn:forebay:problem:conflict"))
    listed = request("GET", path)[2]["items"]
    expect("documents", [document["id"] for document in listed], [told["id"]])


def check_events(told, lines):
    message, document = told["message"], told["items"][2]["item"]["keyed"]["id"]
    wanted = {
        "the counter": lambda line: line.get("counter") == "example-clicks" and line["value"] == 5,
        "the points": lambda line: line.get("points_of") == "example-load",
        "the document": lambda line: line.get("item") == document and line["outcome"] == "applied",
        "the message": lambda line: line.get("message") == message and line["outcome"] == "applied",
    }
    deadline = time.monotonic() + PATIENCE_SECONDS
    while wanted:
        try:
            line = lines.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            sys.exit(f"the listener did not understand: {', '.join(wanted)}")
        wanted = {what: holds for what, holds in wanted.items() if not holds(line)}


def main():
    wait_for("a healthy API", lambda: request("GET", "/health")[2]["status"] == "ok")
    shared = ["--amqp", amqp, "--prefix", prefix]
    listen = [sys.executable, EXAMPLES / "consumer.py", *shared]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as listener:
        try:
            expect("first line", json.loads(listener.stdout.readline()), {"listening": f"{prefix}.events.v1"})
            lines = queue.Queue()
            follow = lambda: [lines.put(json.loads(line)) for line in listener.stdout]
            threading.Thread(target=follow, daemon=True).start()
            produce = [sys.executable, EXAMPLES / "producer.py", *shared, "--secret", secret]
            told = json.loads(subprocess.run(produce, check=True, stdout=subprocess.PIPE).stdout)
            check_events(told, lines)
        finally:
            listener.kill()
    for item in told["items"]:
        # The API recognises the id, so its check is right.
        receipt = request("GET", f"/v1/receipts/{item['id']}")
        expect(f"receipt of {item['kind']}", (receipt[0], receipt[2]["kind"]), (200, item["kind"]))
        expect(f"receipt of {item['kind']}", receipt[2]["status"], "applied")
    counter = request("GET", "/v1/counters/example-clicks")[2]
    expect("counter", (counter["value"], counter["version"]), (5, 2))
    # Whole days around the point, which may be of yesterday.
    day = datetime.datetime.now(datetime.UTC).date()
    first, last = (day + datetime.timedelta(days) for days in (-1, 1))
    range_of_days = f"from={first}T00:00:00Z&to={last}T00:00:00Z"
    figures = request("GET", f"/v1/metrics/summary?type=example-load&{range_of_days}")[2]
    expect("points", (figures["count"], figures["max"]), (1, 0.25))
    check_key_by_api(told["items"][2])
    print("a producer and a listener in Python are understood, and understand")


main()
