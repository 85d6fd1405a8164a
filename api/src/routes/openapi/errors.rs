//! Errors of every operation, by rule: the method, the body, the headers it takes.
//! Handlers say only what is their own.
use actix_web::http::StatusCode;
use serde_json::{Map, Value, json};
use shared::model::api_key::Scope;

use crate::admission::auth::required_scope::RequiredScope;

const PROBLEM: &str = "application/problem+json";

/// `(status, word of the problem type, detail)` of the examples.
const EXAMPLES: [(&str, &str, &str); 14] = [
    ("400", "malformed", "not JSON: the text ends within an object, at line 1 column 8"),
    ("401", "unauthorized", "this key is not known"),
    ("403", "forbidden", "this key lacks the scope write"),
    ("404", "not_found", "this id was never issued"),
    ("405", "method_not_allowed", "see /docs for what this path takes"),
    ("408", "body_timeout", "the body took too long to arrive"),
    ("409", "conflict", "another payload was accepted under this key"),
    ("410", "gone", "past the retention of its collection"),
    ("413", "too_large", "a body has 1048576 bytes at most"),
    ("415", "unsupported_media_type", "content encodings are not accepted on requests"),
    ("421", "misdirected", "this service does not answer to this host"),
    ("422", "invalid", "the request is invalid"),
    ("500", "internal", ""),
    ("503", "overloaded", "more requests than the service takes at once"),
];

/// Nature of an operation, as far as its errors depend on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers with a text of its own that tells whether it is well.
    Health,
    Read,
    /// A write through the queue.
    Accept,
    /// A change of the store, done when it is answered.
    Change,
}

/// Adds what the rules say and the handler does not.
pub fn add(responses: &mut Map<String, Value>, kind: Kind, has_body: bool, need: RequiredScope) {
    let guarded = need.scope();
    let mut may = |status: &str, holds: bool, description: &str| {
        if holds {
            responses.entry(status).or_insert_with(|| problem(description));
        }
    };
    let is_change = matches!(kind, Kind::Accept | Kind::Change);
    let part = if has_body { "the body or a header" } else { "a header" };
    may("400", kind != Kind::Health, &format!("malformed: {part}"));
    may("401", guarded.is_some(), "no key, or one that is not known or has expired; not without keys");
    may("403", guarded.is_some(), &forbidden(need));
    may("408", has_body, "the body took too long");
    may("413", has_body, "too large, or too many items");
    may("415", is_change, if has_body { "media type or content encoding" } else { "content encoding" });
    may("421", kind != Kind::Health, "without keys: sent to a host that is not this service's");
    may("422", kind != Kind::Health, &invalid(kind, has_body));
    may("500", true, "a defect, which the log tells by the request's id");
    may("503", true, unavailable(kind));
    if kind == Kind::Health {
        let overloaded = problem("")["content"][PROBLEM].clone();
        responses["503"]["content"][PROBLEM] = overloaded;
    }
    for status in ["401", "403"] {
        if let Some(response) = responses.get_mut(status) {
            response["headers"]["WWW-Authenticate"] = json!({
                "description": "`Bearer`, with what is wrong (RFC 6750)",
                "required": status == "401",
                "schema": {"type": "string"}
            });
        }
    }
    if let Some(response) = responses.get_mut("415") {
        let header = |description: &str| json!({"description": description, "required": false, "schema": {"type": "string"}});
        response["headers"]["Accept-Encoding"] = header("`identity`, when it was the encoding");
        if has_body {
            response["headers"]["Accept"] =
                header("the media types that are taken, when it was the type; `+json` types, too");
        }
    }
    for (status, response) in responses {
        add_example(status, response);
    }
}

/// `methods` are those of the path.
pub fn add_method_not_allowed(responses: &mut Map<String, Value>, methods: &str) {
    let mut not_allowed = problem("another method: this path takes those in `Allow`");
    not_allowed["headers"]["Allow"] =
        json!({"description": methods, "required": true, "schema": {"type": "string"}});
    add_example("405", &mut not_allowed);
    responses.insert("405".into(), not_allowed);
}

fn forbidden(need: RequiredScope) -> String {
    let scope = need.scope().map_or("", Scope::name);
    let off = if need == RequiredScope::Admin { "admin routes are off, or " } else { "" };
    format!("the key lacks the scope `{scope}`; without keys: {off}a page of another origin sent it")
}

fn invalid(kind: Kind, has_body: bool) -> String {
    let what = if has_body { "well-formed but invalid: see `errors`" } else { "a parameter is invalid" };
    let also = "; or, for who waits, set aside or in conflict with another write";
    [what, if kind == Kind::Accept { also } else { "" }].concat()
}

fn unavailable(kind: Kind) -> &'static str {
    match kind {
        Kind::Health => "too many requests at once",
        Kind::Read => "the store is away and the answer is not known; or too many requests at once",
        Kind::Accept => "not known to be durable: repeat it after `Retry-After`",
        Kind::Change => "the store is away: what became of it is not known, repeat it",
    }
}

fn add_example(status: &str, response: &mut Value) {
    let content = response.get_mut("content").and_then(|types| types.get_mut(PROBLEM));
    let Some(content) = content else { return };
    if let Some((_, word, detail)) = EXAMPLES.iter().find(|(example, ..)| *example == status) {
        let status: u16 = status.parse().expect("three digits");
        let title = StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
        let kind = format!("urn:forebay:problem:{word}");
        content["example"] = json!({"type": kind, "title": title, "status": status, "detail": detail});
    }
}

fn problem(description: &str) -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({"description": description, "content": {PROBLEM: {"schema": schema}}})
}
