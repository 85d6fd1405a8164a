//! Facts that hold for every operation alike, added to the generated document in one place: errors, the
//! headers that every answer has, and that arrays of items are taken.
use serde_json::{Map, Value, json};

use super::errors::{self, Kind};
use super::values;
use crate::admission::auth::required_scope::RequiredScope;
use crate::routes::{Fact, Row, methods_of, table};

/// Also answered for what is not stored, which has no tag and is never kept.
const DOCUMENT: &str = "/v1/data/{collection}/{id}";

/// Completes a generated document.
pub fn complete(mut document: Value) -> Value {
    document["components"]["securitySchemes"]["key"] = json!({
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "fb_<id>_<secret>",
        "description": "A key of this installation; what it may do are its scopes, of which `admin` includes the \
                        others. An installation without keys asks for none."
    });
    let mut schemas = document["components"]["schemas"].take();
    for (path, item) in members(&mut document["paths"]) {
        for (method, operation) in members(item) {
            let mut rows = table().filter(|row| row.path == path);
            let row =
                rows.find(|row| row.method.eq_ignore_ascii_case(method)).expect("a row for each operation");
            if !operation["requestBody"].is_null() {
                complete_body(row, operation, &mut schemas);
            }
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                values::complete_parameter(path, parameter);
            }
            complete_operation(row, method, operation);
        }
    }
    values::complete_schemas(&mut schemas);
    document["components"]["schemas"] = schemas;
    document
}

fn complete_operation(row: &Row, method: &str, operation: &mut Value) {
    let (path, need) = (row.path, row.need);
    let id = operation["operationId"].as_str().expect("every operation has an id").to_owned();
    operation["security"] = need.scope().map_or(json!([]), |scope| json!([{"key": [scope.name()]}, {}]));
    let (is_keyed, waits) = (has_header(operation, "Idempotency-Key"), has_header(operation, "Prefer"));
    let has_body = !operation["requestBody"].is_null();
    let kind = match (need == RequiredScope::Nothing, method, is_keyed) {
        (true, ..) => Kind::Health,
        (_, "get", _) => Kind::Read,
        (.., true) => Kind::Accept,
        (.., false) => Kind::Change,
    };
    let responses = operation["responses"].as_object_mut().expect("every operation has responses");
    errors::add(responses, kind, has_body, need);
    errors::add_method_not_allowed(responses, &methods_of(path));
    for (status, response) in responses {
        if kind == Kind::Accept && ["201", "202"].contains(&&**status) {
            add_links(&id, response);
        }
        let is_problem = response["content"].get("application/problem+json").is_some();
        // A GET tells in any case how long its answer holds; so do answers about what changes by itself.
        if is_problem || method == "get" || (path, method, &**status) == (DOCUMENT, "delete", "200") {
            response["headers"]["Cache-Control"] = header("string", "`no-cache`: ask again; or `no-store`");
        }
        if row.has(Fact::Cached) && ["200", "304"].contains(&&**status) {
            add_cached(path, status, response);
        }
        let may_have_waited = ["200", "201"].contains(&&**status) || (method != "get" && status == "422");
        if waits && may_have_waited {
            response["headers"]["Preference-Applied"] = optional("string", "`wait=N` as granted");
        }
        complete_response(status, response);
    }
}

/// The id in an answer to a write names its receipt, and where the write brings a document, that too.
fn add_links(operation: &str, response: &mut Value) {
    let id = "$response.body#/id";
    response["links"]["receipt"] = json!({"operationId": "get_receipt", "parameters": {"id": id}});
    let collection = match operation {
        "create_document" => "$request.path.collection",
        "compat_create_document" => "default",
        _ => return,
    };
    let parameters = json!({"collection": collection, "id": id});
    response["links"]["document"] = json!({"operationId": "get_document", "parameters": parameters});
    response["links"]["deletion"] = json!({"operationId": "delete_document", "parameters": parameters});
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

fn complete_body(row: &Row, operation: &mut Value, schemas: &mut Value) {
    let example = values::body_example(row.path);
    if row.has(Fact::Many) {
        take_many(operation, schemas);
        let body = &mut operation["requestBody"];
        body["required"] = (!row.has(Fact::BodyOptional)).into();
        // Not among the examples: testers of documents send only what they can serialise.
        body["content"]["application/x-ndjson"]["schema"]["description"] =
            format!("one item per line, such as `{example}`").into();
    }
    operation["requestBody"]["content"]["application/json"]["example"] = example;
}

/// Where one item is taken, an array of them is, too, and answered with `ManyAccepted`. Both have a schema of
/// their own, since generators name what has no name after an operation.
fn take_many(operation: &mut Value, schemas: &mut Value) {
    let body = &mut operation["requestBody"]["content"]["application/json"]["schema"];
    let one = body.take();
    let name = one["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()).unwrap_or("Document");
    let name = format!("{}OrMany", name.trim_end_matches("Body"));
    *body = json!({"$ref": format!("#/components/schemas/{name}")});
    schemas[name] = json!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}]});
    let lines = &mut operation["requestBody"]["content"]["application/x-ndjson"];
    *lines = json!({"schema": {"type": "string"}});
    let accepted = &mut operation["responses"]["202"];
    accepted["headers"]["Location"]["required"] = false.into();
    let answer = &mut accepted["content"]["application/json"]["schema"];
    let many = json!({"$ref": "#/components/schemas/ManyAccepted"});
    schemas["AcceptedOrMany"] = json!({"oneOf": [answer.take(), many]});
    *answer = json!({"$ref": "#/components/schemas/AcceptedOrMany"});
}

/// Checks whether the operation takes this header.
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
