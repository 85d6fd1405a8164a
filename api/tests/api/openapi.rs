//! Every operation keeps the OpenAPI document: requests, and their answers checked against it.
use std::collections::BTreeSet;

use api::rfc3339::rfc3339;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shared::runtime::clock;

use crate::support::{Installation, cluster_with, embedded, json};

/// Sends one request to each operation, in an order in which each finds what it needs; `{…}` in a
/// path stands for a value of an earlier answer.
#[tokio::test(flavor = "multi_thread")]
async fn every_operation_answers_as_it_is_documented() {
    let admin = |config: &mut shared::config::Config| config.auth.admin_without_keys = true;
    cluster_with("operations", admin, async |installation: Installation| {
        let document = document();
        let mut tried = BTreeSet::new();
        let mut ids = Ids::default();
        for Case { method, route, path, body, status } in cases() {
            let path = ids.fill(path);
            let request = installation.at(0, method.clone(), &path);
            let request = if body.is_null() { request } else { request.json(&body) };
            // All earlier writes are applied once this is answered.
            let request = if method == Method::GET { request } else { request.header("prefer", "wait=30") };
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), status, "{method} {path}");
            let answer = check(&document, &method, route, response).await;
            ids.learn(route, &answer);
            tried.insert((method.as_str().to_lowercase(), route.to_owned()));
        }
        let documented: BTreeSet<_> =
            operations(&document).map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(tried, documented, "operations that were tried, and that are documented");
        installation
    })
    .await;
}

/// Answers other than the usual ones hold the document, too.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_repeated_reads_answer_as_they_are_documented() {
    embedded(async |installation: Installation| {
        let document = document();
        let read = async |path: &str, etag: &str| {
            let request = installation.at(0, Method::GET, path).header("if-none-match", etag);
            request.send().await.expect("an answer")
        };
        let document_id = {
            let request = installation.at(0, Method::POST, "/v1/data/c").header("prefer", "wait=30");
            let stored = request.json(&json!({"a": 1})).send().await.expect("an answer");
            json(stored).await["id"].as_str().expect("an id").to_owned()
        };
        installation.increment_and_wait(0, "a").await;
        for (route, path) in [
            ("/v1/counters/{name}", "/v1/counters/a".to_owned()),
            ("/counter", "/counter".into()),
            ("/v1/data/{collection}/{id}", format!("/v1/data/c/{document_id}")),
            ("/v1/metrics/summary", "/v1/metrics/summary?type=a&period=daily".into()),
            ("/api/metrics/summary", "/api/metrics/summary?type=a&period=daily".into()),
        ] {
            let known = read(&path, "*").await;
            assert_eq!(known.status(), 304, "{path}");
            check(&document, &Method::GET, route, known).await;
            let unknown = installation
                .get(&format!("{path}{}nothing=1", if path.contains('?') { '&' } else { '?' }))
                .await;
            assert_eq!(unknown.status(), 422, "{path}");
            check(&document, &Method::GET, route, unknown).await;
            let other = installation.at(0, Method::PATCH, &path).send().await.expect("an answer");
            let allow = other.headers()["allow"].to_str().expect("text").to_owned();
            assert_eq!(other.status(), 405, "{path}");
            let declared = &document["paths"][route]["get"]["responses"]["405"]["headers"]["Allow"];
            assert_eq!(declared["description"], allow, "{route}");
            check(&document, &Method::GET, route, other).await;
        }
        for (route, path, lines) in [
            ("/v1/counters/{name}/increments", "/v1/counters/a/increments", "{}\n{}"),
            ("/counter", "/counter", "{}"),
            ("/data", "/data", "{}"),
            ("/v1/metrics", "/v1/metrics", "{}"),
            ("/api/metrics", "/api/metrics", "{}"),
        ] {
            let request =
                installation.at(0, Method::POST, path).header("content-type", "application/x-ndjson");
            let answer = request.body(lines).send().await.expect("an answer");
            check(&document, &Method::POST, route, answer).await;
            let body = &document["paths"][route]["post"]["requestBody"];
            assert!(body["content"]["application/x-ndjson"].is_object(), "{route}");
            let bare = installation.at(0, Method::POST, path).send().await.expect("an answer");
            assert_eq!(bare.status().is_success(), body["required"] == false, "{route}");
            check(&document, &Method::POST, route, bare).await;
        }
        installation
    })
    .await;
}

struct Case {
    method: Method,
    route: &'static str,
    path: &'static str,
    body: Value,
    status: u16,
}

fn cases() -> Vec<Case> {
    let now = rfc3339(clock::now_ms());
    let point = json!({"timestamp": now, "value": 1.5, "type": "cpu"});
    let case = |method: Method, route, path, body, status| Case { method, route, path, body, status };
    let get = |route, path| case(Method::GET, route, path, Value::Null, 200);
    let definition = json!({"schema": {"type": "object"}, "indexed": ["a"], "retention_days": 7});
    vec![
        case(
            Method::POST,
            "/v1/counters/{name}/increments",
            "/v1/counters/a/increments",
            json!({"by": 2}),
            200,
        ),
        get("/v1/counters/{name}", "/v1/counters/a"),
        get("/v1/counters", "/v1/counters"),
        case(Method::POST, "/counter", "/counter", Value::Null, 200),
        get("/counter", "/counter"),
        case(Method::PUT, "/v1/collections/{name}", "/v1/collections/c", definition, 200),
        get("/v1/collections/{name}", "/v1/collections/c"),
        get("/v1/collections", "/v1/collections?limit=1&prefix=c"),
        case(Method::POST, "/v1/data/{collection}", "/v1/data/c", json!({"a": 1}), 201),
        get("/v1/receipts/{id}", "/v1/receipts/{document}"),
        get("/v1/data/{collection}", "/v1/data/c?a=1"),
        get("/v1/data/{collection}/{id}", "/v1/data/c/{document}"),
        case(Method::DELETE, "/v1/data/{collection}/{id}", "/v1/data/c/{document}", Value::Null, 200),
        case(Method::DELETE, "/v1/collections/{name}", "/v1/collections/c", Value::Null, 200),
        case(Method::POST, "/data", "/data", json!({"a": 1}), 201),
        get("/data", "/data"),
        case(Method::POST, "/v1/metrics", "/v1/metrics", point.clone(), 201),
        get("/v1/metrics/summary", "/v1/metrics/summary?type=cpu&period=daily"),
        get("/v1/metrics/series", "/v1/metrics/series?type=cpu&from={hour_ago}&to={now}&step=hour"),
        get("/v1/metrics/types", "/v1/metrics/types"),
        case(Method::POST, "/api/metrics", "/api/metrics", point, 201),
        get("/api/metrics/summary", "/api/metrics/summary?type=cpu&period=monthly"),
        // This value is one more than a counter holds.
        case(
            Method::POST,
            "/v1/counters/{name}/increments",
            "/v1/counters/full/increments",
            json!({"by": i64::MAX}),
            200,
        ),
        case(
            Method::POST,
            "/v1/counters/{name}/increments",
            "/v1/counters/full/increments",
            json!({"by": 1}),
            422,
        ),
        get("/v1/dead-letters", "/v1/dead-letters?kind=increment"),
        get("/v1/dead-letters/{id}", "/v1/dead-letters/{letter}"),
        case(
            Method::POST,
            "/v1/dead-letters/redrive",
            "/v1/dead-letters/redrive",
            json!({"filter": {"reason": "counter_overflow"}, "limit": 10, "dry_run": false}),
            202,
        ),
        case(Method::DELETE, "/v1/dead-letters/{id}", "/v1/dead-letters/{letter}", Value::Null, 204),
        get("/livez", "/livez"),
        get("/readyz", "/readyz"),
        get("/health", "/health"),
    ]
}

/// Values of earlier answers.
#[derive(Default)]
struct Ids {
    document: String,
    letter: String,
}

impl Ids {
    fn fill(&self, path: &str) -> String {
        let time = |hours: i64| rfc3339(clock::now_ms() + hours * 3_600_000);
        let path = path.replace("{document}", &self.document).replace("{letter}", &self.letter);
        path.replace("{hour_ago}", &time(-1)).replace("{now}", &time(0))
    }

    fn learn(&mut self, route: &str, answer: &Value) {
        if route == "/v1/data/{collection}" && self.document.is_empty() {
            answer["id"].as_str().expect("an id").clone_into(&mut self.document);
        }
        if let Some(id) = answer["receipt"]["id"].as_str() {
            id.clone_into(&mut self.letter);
        }
    }
}

/// Headers that say nothing about the answer itself.
const OF_THE_PROTOCOL: [&str; 5] =
    ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// Asserts that status, media type, headers and body agree with the document; returns the body.
async fn check(document: &Value, method: &Method, route: &str, response: Response) -> Value {
    let operation = &document["paths"][route][method.as_str().to_lowercase()];
    let status = response.status().as_u16().to_string();
    let declared = &operation["responses"][&status];
    assert!(declared.is_object(), "{method} {route}: {status} is not declared");
    let headers = declared["headers"].as_object().into_iter().flatten();
    for (name, _) in headers.filter(|(_, header)| header["required"] == true) {
        assert!(response.headers().contains_key(name), "{method} {route}: {name} is missing");
    }
    for name in response.headers().keys().filter(|name| !OF_THE_PROTOCOL.contains(&name.as_str())) {
        let mut names = declared["headers"].as_object().into_iter().flatten();
        let is_declared = names.any(|(declared, _)| declared.eq_ignore_ascii_case(name.as_str()));
        assert!(is_declared, "{method} {route}: {status} does not declare {name}");
    }
    let media_type =
        response.headers().get("content-type").map(|value| value.to_str().expect("text").to_owned());
    let content = declared["content"].as_object();
    let reported = media_type.as_ref().map_or(content.is_none(), |media_type| {
        content.is_some_and(|content| content.contains_key(media_type))
    });
    assert!(reported, "{method} {route} {status}: {media_type:?} is not the media type that is declared");
    let Some(media_type) = media_type.filter(|media_type| media_type.contains("json")) else {
        return Value::Null;
    };
    let body = json(response).await;
    let mut schema = declared["content"][&media_type]["schema"].clone();
    assert!(schema.is_object(), "{method} {route} {status}: no schema for {media_type}");
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> =
        validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{method} {route} {status}: {errors:?} in {body}");
    body
}

fn document() -> Value {
    api::routes::openapi::document()
}

/// Iterates over all operations as `(method, path, operation)`.
pub fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .expect("operations")
            .iter()
            .map(move |(method, operation)| (&**method, &**path, operation))
    })
}
