//! The OpenAPI document by itself: generators and forms depend on its ids, references, shapes and
//! examples. `.ci/openapi.sh` runs the tools themselves.
use std::collections::BTreeSet;
use std::path::Path;

use api::rfc3339;
use api::routes;
use api::routes::openapi::document;
use api::routes::openapi::values::EXAMPLE_TIME;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};
use shared::runtime::clock;

use crate::openapi::operations;
use crate::support::{Installation, embedded_with, json};

/// Path of the committed document; `UPDATE_DOCS=1` writes it.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

/// Parameters with text of any form: RFC 7240 and RFC 9110 define them.
const FREE_PARAMETERS: [&str; 2] = ["Prefer", "If-None-Match"];

/// Parameters that a form sends by their example though they may be left out.
const OPTIONAL_WITH_EXAMPLE: [&str; 2] = ["period", "fields"];

#[test]
fn the_committed_document_is_the_generated_one() {
    let generated = format!("{:#}\n", document());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(COMMITTED, &generated).expect("is written");
    }
    let committed = std::fs::read_to_string(Path::new(COMMITTED)).expect("is committed");
    assert!(committed == generated, "docs/openapi.json is not what the code says: run `just docs`");
}

#[test]
fn every_operation_has_a_summary_and_its_errors_are_problems() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let summary = operation["summary"].as_str().expect("a summary");
        assert!(!summary.is_empty(), "{method} {path}");
        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses {
            let content = &response["content"];
            let is_problem = content.get("application/problem+json").is_some();
            let has_error_status = status.starts_with('4') || status.starts_with('5');
            // Health paths answer 503 with a body of their own.
            let health = ["/readyz", "/health"].contains(&path);
            assert!(is_problem == has_error_status || health, "{method} {path} {status}: {content}");
            if status == "503" {
                assert!(response["headers"].get("Retry-After").is_some(), "{method} {path} {status}");
            }
        }
    }
}

#[test]
fn every_operation_declares_the_common_refusals_with_an_example() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let is_health = operation["tags"][0] == "health";
        let has_body = operation.get("requestBody").is_some();
        let common = ["405", "500", "503"].iter();
        let guarded = ["400", "401", "403", "421", "422"].iter().filter(|_| !is_health);
        let with_body = ["408", "413", "415"].iter().filter(|_| has_body);
        for status in common.chain(guarded).chain(with_body) {
            let problem = &operation["responses"][status]["content"]["application/problem+json"];
            let example = &problem["example"];
            assert_eq!(example["status"].to_string(), **status, "{method} {path}: {problem}");
        }
    }
}

/// A path that is not in the table of routes cannot be registered; each operation is sent a request by
/// `every_operation_answers_as_it_is_documented`.
#[test]
fn the_document_and_the_router_have_the_same_operations() {
    let document = document();
    let documented: BTreeSet<_> =
        operations(&document).map(|(method, path, _)| (method.to_uppercase(), path.to_owned())).collect();
    let about_itself = |path: &str| ["/", "/openapi.json"].contains(&path) || path.starts_with("/docs");
    let routed = routes::table().filter(|row| !about_itself(row.path));
    let routed: BTreeSet<_> = routed.map(|row| (row.method.to_owned(), row.path.to_owned())).collect();
    assert_eq!(documented, routed);
}

/// An id is the verb and its object, in snake case: `list` where a page is answered, else `get`;
/// the short paths have the id of the long one behind `compat_`.
#[test]
fn operation_ids_say_verb_and_resource_and_are_unique() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().expect("an id");
        let is_short = operation["tags"][0] == "short paths";
        assert_eq!(id.starts_with("compat_"), is_short, "{method} {path}: {id}");
        let (verb, resource) = id.trim_start_matches("compat_").split_once('_').expect("verb_resource");
        let is_page = schema_of(&document, operation, "200")["properties"]["next"].is_object();
        let verbs: &[&str] = match method {
            "get" if is_page => &["list"],
            "get" => &["get"],
            "put" => &["put"],
            "delete" => &["delete"],
            _ => &["create", "increment", "record", "redrive"],
        };
        assert!(verbs.contains(&verb), "{method} {path}: {id}");
        let is_snake = resource.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(is_snake && !resource.is_empty(), "{method} {path}: {id}");
        // Generators write them in camel case or lower case, too.
        assert!(ids.insert(id.replace('_', "")), "{id} stands there twice");
    }
    for short in ids.iter().filter_map(|id| id.strip_prefix("compat")) {
        assert!(ids.contains(short), "compat_{short} stands for no operation");
    }
}

/// Finds the schema of a JSON answer.
fn schema_of<'a>(document: &'a Value, operation: &'a Value, status: &str) -> &'a Value {
    let schema = &operation["responses"][status]["content"]["application/json"]["schema"];
    schema["$ref"]
        .as_str()
        .map_or(schema, |reference| document.pointer(reference.trim_start_matches('#')).expect("a schema"))
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let ids: BTreeSet<_> =
        operations(&document).filter_map(|(.., operation)| operation["operationId"].as_str()).collect();
    let (mut references, mut links) = (0, 0);
    visit(&document, &mut |at, value| {
        assert!(!value.is_null() || at.contains("/example/"), "{at} is null");
        if let Some(reference) = value["$ref"].as_str() {
            let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
            assert!(target.is_some(), "{at}: {reference}");
            references += 1;
        }
        if at.contains("/links/") && value.is_object() && value.get("parameters").is_some() {
            assert!(ids.contains(value["operationId"].as_str().expect("an id")), "{at}: {value}");
            links += 1;
        }
    });
    assert!(references > 100 && links > 5, "{references} references, {links} links");
    for (method, path, operation) in operations(&document) {
        for required in operation["security"].as_array().expect("security") {
            for scheme in required.as_object().expect("schemes").keys() {
                let known = &document["components"]["securitySchemes"][scheme];
                assert!(known.is_object(), "{method} {path}: {scheme}");
            }
        }
    }
}

/// The examples are those of parameters, bodies, answers and members.
#[test]
fn every_example_holds_its_schema_and_brings_no_key() {
    let document = document();
    let mut count = 0;
    visit(&document, &mut |at, value| {
        let Some(example) = value.get("example").filter(|_| !at.ends_with("/properties")) else { return };
        let mut schema = value.get("schema").unwrap_or(value).clone();
        schema["components"] = document["components"].clone();
        let options = jsonschema::options().should_validate_formats(true);
        let validator = options.build(&schema).unwrap_or_else(|error| panic!("{at}: {error}"));
        let errors: Vec<_> = validator.iter_errors(example).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{at}: {example}: {errors:?}");
        assert!(!example.to_string().contains("idempotency_key"), "{at}: {example}");
        count += 1;
    });
    assert!(count > 100, "{count}");
}

#[test]
fn what_a_request_needs_has_an_example_and_what_it_may_leave_out_has_none() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let body = operation["requestBody"]["content"].as_object();
        assert!(body.is_none_or(|body| body["application/json"]["example"].is_object()), "{method} {path}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            let has_example = parameter.get("example").is_some();
            let wanted = parameter["required"] == true || OPTIONAL_WITH_EXAMPLE.contains(&name);
            assert_eq!(has_example, wanted, "{method} {path}: {name}");
        }
    }
}

#[test]
fn every_text_parameter_says_its_form() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, schema) = (parameter["name"].as_str().expect("a name"), &parameter["schema"]);
            let says = ["pattern", "format", "enum"].iter().any(|word| schema.get(word).is_some());
            let is_text = schema["type"] == "string";
            assert!(says || !is_text || FREE_PARAMETERS.contains(&name), "{method} {path}: {name} {schema}");
            assert!(schema["type"].is_string(), "{method} {path}: {name} is null or no parameter");
        }
    }
}

#[test]
fn documents_are_open_objects_times_have_their_format_and_closed_words_are_listed() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let mut open = 0;
    visit(&document, &mut |at, value| {
        let is_object = value["type"] == "object" || value["type"][0] == "object";
        if is_object && value.get("properties").is_none() {
            assert!(!value["additionalProperties"].is_null(), "{at}: {value}");
            open += 1;
        }
    });
    assert!(open > 5, "{open}");
    let members = schemas.iter().flat_map(|(schema, value)| {
        let members = value["properties"].as_object().into_iter().flatten();
        members.map(move |(name, member)| (schema, name, member))
    });
    for (schema, name, member) in members {
        let at = format!("{schema}.{name}: {member}");
        assert!(!name.ends_with("_at") || member["format"] == "date-time", "{at}");
        let is_word = name == "status" && schema != "Problem" && schema != "ExternalData";
        assert_eq!(member["enum"].is_array() && name == "status", is_word, "{at}");
    }
    let context = &document["components"]["schemas"]["ExternalData"]["properties"]["external_metric_context"];
    assert!(context.is_object() && context.get("type").is_none(), "any JSON: {context}");
    assert!(document["servers"][0]["url"].is_string());
}

/// "Try it out" without a change, at a new installation, answers with success. The exceptions are
/// paths to an object that was never written.
#[tokio::test(flavor = "multi_thread")]
async fn the_served_examples_are_taken_as_they_are() {
    let admin = |config: &mut shared::config::Config| config.auth.admin_without_keys = true;
    embedded_with(admin, async |installation: Installation| {
        let served = json(installation.get("/openapi.json").await).await;
        let mut tried = 0;
        for (method, path, operation) in operations(&served) {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let path = filled(path, operation);
            for body in bodies_of(operation) {
                let request = installation.at(0, method.clone(), &path);
                let request = match &body {
                    Some((media_type, text)) => request.header("content-type", media_type).body(text.clone()),
                    None => request,
                };
                let status = request.send().await.expect("an answer").status();
                let may_be_missing = body.is_none() && path.matches('/').count() > 2;
                let is_taken = status.is_success() || (may_be_missing && status == StatusCode::NOT_FOUND);
                assert!(is_taken, "{method} {path} {body:?}: {status}");
                tried += 1;
            }
        }
        assert!(tried > 30, "{tried}");
        installation
    })
    .await;
}

/// The examples of a body with their media types, once more as two lines where lines are taken;
/// `None` where there is no body.
fn bodies_of(operation: &Value) -> Vec<Option<(String, String)>> {
    let content = operation["requestBody"]["content"].as_object();
    let Some(content) = content else { return vec![None] };
    let example = &content["application/json"]["example"];
    let text_of = |media_type: &str| match media_type {
        "application/x-ndjson" => format!("{example}\n{example}\n"),
        _ => example.to_string(),
    };
    content.keys().map(|media_type| Some((media_type.clone(), text_of(media_type)))).collect()
}

/// Fills the path and the query with the examples of its parameters, which need no encoding.
fn filled(path: &str, operation: &Value) -> String {
    let (mut path, mut query) = (path.to_owned(), Vec::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().expect("a name");
        let Some(example) = parameter["example"].as_str() else { continue };
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), example),
            Some("query") => query.push(format!("{name}={example}")),
            _ => (),
        }
    }
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

/// The examples have points of the time at which the document is read; nothing else differs from
/// the committed one.
#[tokio::test(flavor = "multi_thread")]
async fn the_served_document_is_the_committed_one_with_points_of_now() {
    embedded_with(
        |_| (),
        async |installation: Installation| {
            let before = clock::now_ms();
            let served = installation.get("/openapi.json").await.text().await.expect("text");
            let parsed: Value = serde_json::from_str(&served).expect("JSON");
            let content = &parsed["paths"]["/v1/metrics"]["post"]["requestBody"]["content"];
            let time =
                content["application/json"]["example"]["timestamp"].as_str().expect("a time").to_owned();
            let at_ms = rfc3339::parse(&time).expect("a time");
            assert!((before..=clock::now_ms()).contains(&at_ms), "{time}");
            let lines = content["application/x-ndjson"]["schema"]["description"].as_str().expect("a text");
            assert!(lines.contains(&time), "{lines}");
            assert_eq!(served.replace(&time, EXAMPLE_TIME), document().to_string());
            installation
        },
    )
    .await;
}

/// Calls `call` with each value and its place.
fn visit(value: &Value, call: &mut impl FnMut(&str, &Value)) {
    fn walk(at: &str, value: &Value, call: &mut impl FnMut(&str, &Value)) {
        call(at, value);
        let members = value.as_object().into_iter().flat_map(Map::iter);
        // The content of an example is data.
        for (name, member) in members.filter(|(name, _)| *name != "example" || at.ends_with("/properties")) {
            walk(&format!("{at}/{name}"), member, call);
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            walk(&format!("{at}/{index}"), item, call);
        }
    }
    walk("#", value, call);
}
