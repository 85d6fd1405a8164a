// Checks that a running Forebay keeps its HTTP contract, again and again for some seconds:
//
//   BASE_URL=http://127.0.0.1:8080 k6 run loadtests/smoke.js
//
// It checks answers, not speed: speed depends on the machine and is the matter of `compare`.
import http from "k6/http";
import exec from "k6/execution";
import { check, sleep } from "k6";

const BASE_URL = (__ENV.BASE_URL || "http://127.0.0.1:8080").replace(/\/$/, "");
const RUN = __ENV.RUN || `smoke-${Date.now()}`;
const JSON_TYPE = { headers: { "Content-Type": "application/json" } };
const NDJSON_TYPE = { headers: { "Content-Type": "application/x-ndjson" } };
const APPLIED_WITHIN_SECONDS = 10;

export const options = {
  vus: 2,
  duration: "5s",
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate==0"],
  },
};

// Answers that a check asks for on purpose count as failed only when they are another status.
const expecting = (status, params = {}) =>
  Object.assign({}, params, { responseCallback: http.expectedStatuses(status) });

const json = (response) => {
  try {
    return response.json();
  } catch (_) {
    return {};
  }
};

const counterUrl = (name) => `${BASE_URL}/v1/counters/${name}`;

export function setup() {
  const response = http.get(`${BASE_URL}/readyz`);
  if (response.status !== 200) {
    exec.test.abort(`no Forebay is ready at ${BASE_URL}: ${response.status} ${response.error}`);
  }
  return { run: RUN };
}

export default function ({ run }) {
  const name = `${run}:${exec.vu.idInTest}-${exec.vu.iterationInScenario}`;
  const ids = [...single(name), ...array(name), ...lines(name)];
  awaitReceipts(ids);
  counter(name);
  list(run, name);
  mistakes(name);
  shortPath();
  keys(name);
  documents(name);
  metrics(name);
}

function single(name) {
  const response = http.post(`${counterUrl(name)}/increments`, '{"by":5}', JSON_TYPE);
  const body = json(response);
  check(response, {
    "an increment is accepted": (r) => r.status === 202 && body.status === "accepted",
    "its answer names the receipt": (r) => r.headers.Location === `/v1/receipts/${body.id}`,
    "its answer has a time and a request id": (r) =>
      !Number.isNaN(Date.parse(body.accepted_at)) && Boolean(r.headers["X-Request-Id"]),
  });
  const empty = http.post(`${counterUrl(name)}/increments`, null);
  check(empty, { "an increment without a body is accepted": (r) => r.status === 202 });
  return [body.id, json(empty).id];
}

function array(name) {
  const response = http.post(`${counterUrl(name)}/increments`, '[{"by":1},{"by":"x"},{"by":-3}]', JSON_TYPE);
  return batch("array", response, 2, 1);
}

function lines(name) {
  const response = http.post(`${counterUrl(name)}/increments`, '{"by":7}\n{"by":\n{}\n', NDJSON_TYPE);
  return batch("NDJSON", response, 2, 1);
}

function batch(what, response, accepted, rejectedIndex) {
  const body = json(response);
  const rejected = body.rejected || [];
  check(response, {
    [`the valid items of ${what} are accepted`]: (r) =>
      r.status === 202 && body.accepted === accepted && body.ids.length === accepted,
    [`the bad item of ${what} is told by its index`]: () =>
      rejected.length === 1 && rejected[0].index === rejectedIndex && rejected[0].problem.status >= 400,
  });
  return body.ids || [];
}

function awaitReceipts(ids) {
  const deadline = Date.now() + APPLIED_WITHIN_SECONDS * 1000;
  for (const id of ids) {
    let receipt = {};
    for (;;) {
      const response = http.get(`${BASE_URL}/v1/receipts/${id}`, { tags: { name: "receipt" } });
      receipt = json(response);
      if (receipt.status !== "accepted" || Date.now() > deadline) {
        break;
      }
      sleep(0.02);
    }
    check(receipt, {
      "a receipt becomes applied": (r) => r.status === "applied" && r.id === id && r.kind === "increment",
    });
  }
}

function counter(name) {
  const wanted = { value: 5 + 1 + 1 - 3 + 7 + 1, version: 6 };
  let response;
  let body = {};
  const deadline = Date.now() + APPLIED_WITHIN_SECONDS * 1000;
  do {
    response = http.get(counterUrl(name), { tags: { name: "counter" } });
    body = json(response);
  } while (body.version !== wanted.version && Date.now() < deadline);
  check(response, {
    "a counter holds the sum and counts its increments": (r) =>
      r.status === 200 && body.name === name && body.value === wanted.value && body.version === wanted.version,
    "a counter carries a strong ETag": (r) => /^"[^"]+"$/.test(r.headers.Etag || ""),
    "a cached read says where it came from": (r) => /^forebay;/.test(r.headers["Cache-Status"] || ""),
  });
  const headers = { "If-None-Match": response.headers.Etag };
  const unchanged = http.get(counterUrl(name), expecting(304, { headers }));
  check(unchanged, { "an unchanged counter is not sent again": (r) => r.status === 304 && !r.body });
}

function list(run, name) {
  const response = http.get(`${BASE_URL}/v1/counters?prefix=${run}&limit=1000`, { tags: { name: "list" } });
  const items = json(response).items || [];
  check(response, {
    "the list holds the counter": (r) => r.status === 200 && items.some((item) => item.name === name),
    "the list is sorted by name": () => items.every((item, i) => i === 0 || items[i - 1].name < item.name),
  });
}

function mistakes(name) {
  const problem = (response, status) =>
    response.status === status &&
    (response.headers["Content-Type"] || "").startsWith("application/problem+json") &&
    json(response).status === status;
  const url = `${counterUrl(name)}/increments`;
  const malformed = http.post(url, '{"by":', expecting(400, JSON_TYPE));
  check(malformed, { "malformed JSON is 400": (r) => problem(r, 400) });
  const text = http.post(url, "1", expecting(415, { headers: { "Content-Type": "text/plain" } }));
  check(text, { "another media type is 415": (r) => problem(r, 415) });
  const invalid = http.post(url, '{"by":"x"}', expecting(422, JSON_TYPE));
  check(invalid, { "an invalid increment is 422": (r) => problem(r, 422) });
  const unknown = http.get(counterUrl(`${name}-never`), expecting(404));
  check(unknown, { "a counter that was never written is 404": (r) => problem(r, 404) });
}

function shortPath() {
  const written = http.post(`${BASE_URL}/counter`, null);
  const body = json(written);
  check(written, {
    "the short path answers the count or the receipt": (r) =>
      (r.status === 200 && Number.isInteger(body.count)) || (r.status === 202 && body.status === "accepted"),
  });
  const read = http.get(`${BASE_URL}/counter`);
  check(read, { "the short path reads the count": (r) => r.status === 200 && Number.isInteger(json(r).count) });
}

// Applied or, where the machine is slow, at least accepted.
const settled = (response, status) => [status, 202].includes(response.status);

function keys(name) {
  const url = `${counterUrl(`${name}-keyed`)}/increments`;
  const headers = { "Content-Type": "application/json", "Idempotency-Key": `"${name}"`, Prefer: "wait=10" };
  const first = http.post(url, '{"by":2}', { headers });
  const again = http.post(url, '{ "by": 2 }', { headers });
  check(again, { "a retry under its key is taken": (r) => settled(first, 200) && settled(r, 200) });
  const other = http.post(url, '{"by":3}', expecting(422, { headers }));
  check(other, { "another payload under the key is 422": (r) => r.status === 422 });
  const value = json(http.get(counterUrl(`${name}-keyed`), { tags: { name: "counter" } })).value;
  check(value, { "a keyed increment counts once": (sum) => sum === 2 });
}

function documents(name) {
  const collection = `${BASE_URL}/v1/data/${name}`;
  const params = { headers: { "Content-Type": "application/json", Prefer: "wait=10" } };
  const stored = http.post(collection, '{"n":1,"text":"a"}', params);
  const { id } = json(stored);
  check(stored, { "a document is stored": (r) => settled(r, 201) && Boolean(id) });
  const read = http.get(`${collection}/${id}`, { tags: { name: "document" } });
  check(read, { "a document is read as it was sent": (r) => r.status === 200 && json(r).data.text === "a" });
  const page = http.get(collection, { tags: { name: "documents" } });
  check(page, { "a document is in the list": (r) => r.status === 200 && json(r).items[0].id === id });
  const deleted = http.del(`${collection}/${id}`, null, { headers: { Prefer: "wait=10" } });
  check(deleted, { "a document is deleted": (r) => settled(r, 200) });
  const gone = http.get(`${collection}/${id}`, expecting(404, { tags: { name: "document" } }));
  check(gone, { "a deleted document is 404": (r) => r.status === 404 });
}

function metrics(name) {
  const point = (value) => ({ timestamp: new Date().toISOString(), value, type: name });
  const params = { headers: { "Content-Type": "application/json", Prefer: "wait=10" } };
  for (const value of [10, 20, 60]) {
    const stored = http.post(`${BASE_URL}/v1/metrics`, JSON.stringify(point(value)), params);
    check(stored, { "a point is stored": (r) => settled(r, 201) });
  }
  const url = `${BASE_URL}/v1/metrics/summary?type=${name}&period=monthly`;
  const summary = json(http.get(url, { tags: { name: "summary" } }));
  check(summary, {
    "a summary tells what the points come to": (s) =>
      s.count === 3 && s.average_value === 30 && s.min === 10 && s.max === 60 && Math.abs(s.p50 - 20) <= 0.2,
  });
}
