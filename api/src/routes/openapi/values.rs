//! The shapes of values by the name of their parameter or member: names, ids, keys, times and the words of
//! closed sets. A name has one meaning in the whole contract, so handlers say only what a value is for.
use serde_json::{Map, Value, json};
use shared::model::id::Kind;

/// The time in the examples of points.
pub const EXAMPLE_TIME: &str = "2026-11-20T08:00:00.250Z";

/// An id as it is shown; no installation issued it.
const ID: &str = "019a9c1e-7a10-8c01-9f3c-5a1d20000a41";

/// Names that [`check_name`](shared::model::write::check_name) takes. The two names `.` and `..` are refused beside it.
const NAME: &str = "^[A-Za-z0-9._:-]{1,128}$";

/// A bare word, or a string of RFC 8941 with its two escapes.
const KEY: &str = r#"^([!#-~]{1,255}|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#;

const FINGERPRINT: &str = "^[0-9a-f]{32}$";

/// `(schema, member, its words)` where no other word is ever answered.
const WORDS: [(&str, &str, &[&str]); 8] = [
    ("Accepted", "status", &["accepted", "applied"]),
    ("Receipt", "status", &["accepted", "applied", "failed", "conflict"]),
    ("DocumentBody", "status", &["accepted", "applied", "failed", "conflict", "deleted"]),
    ("RedrivenItem", "status", &["applied", "failed"]),
    ("Summary", "period", &["hourly", "daily", "weekly", "monthly", "custom"]),
    ("Health", "status", &["ok", "degraded", "down"]),
    ("Health", "queue", &["healthy", "unhealthy"]),
    ("Health", "store", &["healthy", "unhealthy"]),
];

/// Completes a parameter of the path.
pub fn complete_parameter(path: &str, parameter: &mut Value) {
    let (place, name) = (text_of(&parameter["in"]), text_of(&parameter["name"]));
    let is_required = parameter["required"] == true;
    let schema = &mut parameter["schema"];
    // It is given or left out, and never null.
    if schema["type"] == json!(["string", "null"]) {
        schema["type"] = "string".into();
    }
    if let Some(shape) = shape_of(&place, &name) {
        extend(schema, shape);
    }
    // Swagger UI sends an example also where nothing is needed: only what is needed has one.
    if let Some(example) = example_of(path, &name).filter(|_| is_required) {
        parameter["example"] = example.into();
    }
    if name == "fields" {
        parameter["example"] = json!({});
    }
}

fn shape_of(place: &str, name: &str) -> Option<Value> {
    let name_shape = || json!({"pattern": NAME, "minLength": 1, "maxLength": 128});
    Some(match (place, name) {
        ("path", "name" | "collection") | ("query", "type" | "after") => name_shape(),
        ("path", "id") | ("query", "message") => json!({"format": "uuid", "minLength": 36, "maxLength": 36}),
        ("query", "prefix") => json!({"pattern": NAME.replace("{1,", "{0,"), "maxLength": 128}),
        ("query", "payload") => json!({"pattern": "^[0-9A-Fa-f]{32}$", "minLength": 32, "maxLength": 32}),
        ("query", "period") => json!({"enum": ["hourly", "daily", "weekly", "monthly"]}),
        ("query", "step") => json!({"pattern": "^(minute|hour|day|[0-9]{1,9}[mhd]?)$"}),
        ("query", "reason") => json!({"pattern": "^[a-z_]{1,64}$"}),
        ("query", "kind") => json!({"enum": kinds()}),
        ("query", "items") => json!({"enum": ["keyed"]}),
        ("query", "fields") => json!({"additionalProperties": {"type": "string"}}),
        ("header", "Idempotency-Key") => json!({"pattern": KEY, "minLength": 1, "maxLength": 512}),
        _ => return None,
    })
}

/// Kinds of dead letters: those of writes, and whole messages.
fn kinds() -> Vec<&'static str> {
    Kind::ALL.into_iter().map(Kind::name).chain(["message"]).collect()
}

/// Values that are taken at any time: series of days reach as far back as there are points.
fn example_of(path: &str, name: &str) -> Option<&'static str> {
    Some(match name {
        "name" if path.starts_with("/v1/collections") => "orders",
        "name" => "page-views",
        "collection" => "orders",
        "id" => ID,
        "type" => "response_time",
        "from" => "2026-11-01T00:00:00Z",
        "to" => "2026-12-01T00:00:00Z",
        "step" => "day",
        _ => return None,
    })
}

/// The example of a request's body; without the keys that would make the next one a retry.
pub fn body_example(path: &str) -> Value {
    match path {
        "/v1/counters/{name}/increments" | "/counter" => json!({"by": 1}),
        "/v1/data/{collection}" | "/data" => json!({"sku": "A-1", "count": 3}),
        "/v1/metrics" | "/api/metrics" => {
            json!({"timestamp": EXAMPLE_TIME, "value": 12.5, "type": "response_time"})
        }
        "/v1/collections/{name}" => {
            json!({"schema": {"required": ["sku"]}, "indexed": ["sku"], "retention_days": 30})
        }
        "/v1/dead-letters/redrive" => json!({"filter": {"kind": "document"}, "limit": 100, "dry_run": true}),
        _ => panic!("{path} takes a body and has no example"),
    }
}

/// Completes the schemas of a document's components.
pub fn complete_schemas(schemas: &mut Value) {
    for (schema, member, words) in WORDS {
        let members = find_member(&mut schemas[schema], member);
        members.unwrap_or_else(|| panic!("{schema} has no {member}"))["enum"] = json!(words);
    }
    let breakers = find_member(&mut schemas["Health"], "breakers").expect("health has breakers");
    breakers["additionalProperties"]["enum"] = json!(["closed", "half_open", "open"]);
    for schema in schemas.as_object_mut().into_iter().flat_map(Map::values_mut) {
        complete_schema(schema);
    }
}

/// A member of the schema, or of a schema that it is made of.
fn find_member<'a>(schema: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    if schema["properties"][name].is_object() {
        return Some(&mut schema["properties"][name]);
    }
    schema.get_mut("allOf")?.as_array_mut()?.iter_mut().find_map(|part| find_member(part, name))
}

/// Completes a schema and those within.
pub fn complete_schema(schema: &mut Value) {
    let is_object = ["object".into(), json!(["object", "null"])].contains(&schema["type"]);
    if is_object && schema.get("properties").is_none() && schema.get("additionalProperties").is_none() {
        schema["additionalProperties"] = true.into();
    }
    if let Some(members) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, member) in members {
            complete_member(name, member);
            complete_schema(member);
        }
    }
    if let Some(items) = schema.get_mut("items") {
        complete_schema(items);
    }
    for parts in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get_mut(parts).and_then(Value::as_array_mut).into_iter().flatten() {
            complete_schema(part);
        }
    }
}

fn complete_member(name: &str, member: &mut Value) {
    match name {
        "id" => extend(member, json!({"format": "uuid", "example": ID})),
        "ids" => extend(&mut member["items"], json!({"format": "uuid", "example": ID})),
        "payloads" => extend(&mut member["items"], json!({"pattern": FINGERPRINT})),
        "schema" => {
            extend(member, json!({"type": ["object", "boolean", "null"], "additionalProperties": true}));
        }
        name if name.ends_with("_at") => extend(member, json!({"format": "date-time"})),
        _ => (),
    }
}

fn extend(schema: &mut Value, shape: Value) {
    let schema = schema.as_object_mut().expect("a schema is an object");
    if let Value::Object(shape) = shape {
        schema.extend(shape);
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use shared::config::RetentionSettings;

    use super::*;
    use crate::read::metric_query;
    use crate::rfc3339;

    #[test]
    fn the_example_of_a_series_is_taken_in_any_year() {
        let example = |name| example_of("/v1/metrics/series", name).expect("an example");
        let query = ["type", "from", "to", "step"].map(|name| format!("{name}={}", example(name))).join("&");
        for now in ["2026-11-20T08:00:00Z", "2027-06-01T00:00:00Z", "2050-01-01T00:00:00Z"] {
            let now_ms = rfc3339::parse(now).expect("a time");
            metric_query::series(&query, now_ms, &RetentionSettings::default()).expect(now);
        }
    }
}
