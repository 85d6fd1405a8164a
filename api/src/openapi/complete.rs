//! What holds for every operation alike, added to the generated document in one place: the headers
//! that every answer has, the refusal of too many requests, what goes wrong with every body, and an
//! example of each problem.
use serde_json::{Map, Value, json};

/// What a request with a body may be refused with, as `4XX` in the annotations of a handler says.
const BODY_ERRORS: [(&str, &str); 5] = [
    ("400", "malformed: the body or a header"),
    ("408", "the body took too long"),
    ("413", "too large, or too many items"),
    ("415", "media type or content encoding"),
    ("422", "well-formed but invalid; or, for who waits, set aside or in conflict with another write"),
];

/// `(status, word of the problem type, detail)` of the examples.
const EXAMPLES: [(&str, &str, &str); 12] = [
    ("400", "malformed", "EOF while parsing an object at line 1 column 8"),
    ("403", "admin_off", "admin routes are off"),
    ("404", "not_found", "this id was never issued"),
    ("405", "method_not_allowed", "see /docs for what this path takes"),
    ("408", "body_timeout", "the body took too long to arrive"),
    ("409", "conflict", "another payload was accepted under this key"),
    ("410", "gone", "past the retention of its collection"),
    ("413", "too_large", "a body has 1048576 bytes at most"),
    ("415", "unsupported_media_type", "content encodings are not accepted on requests"),
    ("422", "invalid", "the request is invalid"),
    ("500", "internal", ""),
    ("503", "overloaded", "more requests than the service takes at once"),
];

/// Operations that are answered from memory; what is asked for with them has a tag.
const CACHED_READS: [&str; 6] = [
    "/v1/counters/{name}",
    "/counter",
    DOCUMENT,
    "/v1/metrics/summary",
    "/api/metrics/summary",
    "/v1/metrics/series",
];

/// Also answered for what is not stored, which has no tag and is never kept.
const DOCUMENT: &str = "/v1/data/{collection}/{id}";

/// Where no body is an increment by one.
const BODY_OPTIONAL: [&str; 2] = ["/v1/counters/{name}/increments", "/counter"];

/// Bodies that are one object and never many.
const ONE_ONLY: [&str; 2] = ["/v1/collections/{name}", "/v1/dead-letters/redrive"];

/// Answered by texts of their own.
const HEALTH: [&str; 3] = ["/livez", "/readyz", "/health"];

/// Completes a generated document.
pub fn complete(mut document: Value) -> Value {
    for (path, item) in members(&mut document["paths"]) {
        let mut methods: Vec<String> =
            members(item).map(|(method, _)| method.to_uppercase()).chain(["HEAD".into()]).collect();
        methods.retain(|method| method != "HEAD" || item.get("get").is_some());
        methods.sort_unstable();
        for (method, operation) in members(item) {
            if !operation["requestBody"].is_null() && !ONE_ONLY.contains(&&**path) {
                take_many(operation);
                operation["requestBody"]["required"] = (!BODY_OPTIONAL.contains(&&**path)).into();
            }
            complete_operation(path, method, operation, &methods.join(", "));
        }
    }
    document
}

fn complete_operation(path: &str, method: &str, operation: &mut Value, methods: &str) {
    let (has_key, waits) = (has_header(operation, "Idempotency-Key"), has_header(operation, "Prefer"));
    let responses = operation["responses"].as_object_mut().expect("every operation has responses");
    if responses.remove("4XX").is_some() {
        for (status, description) in BODY_ERRORS {
            responses.entry(status).or_insert_with(|| problem(description));
        }
    }
    if has_key {
        responses.entry("400").or_insert_with(|| problem("a malformed header"));
    }
    let mut not_allowed = problem("another method: this path takes those in `Allow`");
    not_allowed["headers"]["Allow"] = header("string", methods);
    responses.insert("405".into(), not_allowed);
    responses.insert("500".into(), problem("a defect, which the log tells by the request's id"));
    let overloaded = problem("too many requests at once");
    let unavailable = responses.entry("503").or_insert_with(|| overloaded.clone());
    if HEALTH.contains(&path) {
        let content = &overloaded["content"]["application/problem+json"];
        unavailable["content"]["application/problem+json"] = content.clone();
    }
    for (status, response) in responses {
        let is_problem = response["content"].get("application/problem+json").is_some();
        // A GET tells in any case how long its answer holds; so do answers about what changes by itself.
        if is_problem || method == "get" || (path, method, &**status) == (DOCUMENT, "delete", "200") {
            response["headers"]["Cache-Control"] = header("string", "`no-cache`: ask again; or `no-store`");
        }
        if method == "get" && CACHED_READS.contains(&path) && ["200", "304"].contains(&&**status) {
            add_cached(path, status, response);
        }
        let may_have_waited = ["200", "201"].contains(&&**status) || (method != "get" && status == "422");
        if waits && may_have_waited {
            response["headers"]["Preference-Applied"] = optional("string", "`wait=N` as granted");
        }
        complete_response(status, response);
    }
}

/// The headers of what is answered from memory.
fn add_cached(path: &str, status: &str, response: &mut Value) {
    let headers = &mut response["headers"];
    let kind = if path == DOCUMENT && status == "200" { optional } else { header };
    headers["ETag"] = kind("string", "strong");
    headers["Age"] = kind("integer", "seconds since the answer was known to be current");
    headers["Cache-Status"] = kind("string", "RFC 9211");
    if path == "/v1/counters/{name}" {
        headers["Vary"] = header("string", "`Prefer`");
    }
}

/// Where one item is taken, an array of them is, too, and answered with `ManyAccepted`.
fn take_many(operation: &mut Value) {
    let body = &mut operation["requestBody"]["content"]["application/json"]["schema"];
    let one = body.take();
    *body = json!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}]});
    let lines = &mut operation["requestBody"]["content"]["application/x-ndjson"];
    *lines = json!({"schema": {"type": "string", "description": "one item per line"}});
    let accepted = &mut operation["responses"]["202"];
    accepted["headers"]["Location"]["required"] = false.into();
    let answer = &mut accepted["content"]["application/json"]["schema"];
    *answer = json!({"oneOf": [answer.take(), {"$ref": "#/components/schemas/ManyAccepted"}]});
}

/// Whether it takes this header.
fn has_header(operation: &Value, name: &str) -> bool {
    let parameters = operation["parameters"].as_array();
    parameters.is_some_and(|parameters| parameters.iter().any(|header| header["name"] == name))
}

fn complete_response(status: &str, response: &mut Value) {
    let headers = &mut response["headers"];
    if headers.is_null() {
        *headers = json!({});
    }
    headers["X-Request-Id"] = header("string", "the client's, or one of ours; names the request in logs");
    if status == "503" {
        headers["Retry-After"] = header("integer", "seconds");
    }
    for name in ["Retry-After", "Location"] {
        if let Some(header) = headers.get_mut(name).filter(|header| header["required"].is_null()) {
            header["required"] = true.into();
        }
    }
    let content = response.get_mut("content").and_then(|types| types.get_mut("application/problem+json"));
    let Some(content) = content else { return };
    if let Some((_, word, detail)) = EXAMPLES.iter().find(|(example, ..)| *example == status) {
        let status: u16 = status.parse().expect("three digits");
        let title =
            actix_web::http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
        let kind = format!("urn:forebay:problem:{word}");
        content["example"] = json!({"type": kind, "title": title, "status": status, "detail": detail});
    }
}

fn problem(description: &str) -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({"description": description, "content": {"application/problem+json": {"schema": schema}}})
}

fn header(kind: &str, description: &str) -> Value {
    json!({"description": description, "required": true, "schema": {"type": kind}})
}

/// A header that is not always there.
fn optional(kind: &str, description: &str) -> Value {
    json!({"description": description, "required": false, "schema": {"type": kind}})
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(Map::iter_mut)
}
