//! Headers and bodies in unusual but correct spellings, and errors in others named in the answer.
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::room::{rest, send};
use crate::support::{Installation, embedded, json, on_both_pairs, problem};

const JSON: &str = "application/json";

async fn get(installation: &Installation, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = installation.at(0, Method::GET, path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().await.expect("an answer")
}

async fn post(
    installation: &Installation,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Response {
    let request = installation.at(0, Method::POST, path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body.into()).send().await.expect("an answer")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("text")
}

/// Paths whose answers have an entity tag.
async fn tagged(installation: &Installation) -> Vec<String> {
    let wait = [("prefer", "wait=20"), ("content-type", JSON)];
    assert_eq!(post(installation, "/counter", &[], "").await.status(), 200);
    let point = r#"{"timestamp":"2026-10-01T10:00:00Z","value":1,"type":"t"}"#;
    assert!(post(installation, "/v1/metrics", &wait, point).await.status().is_success());
    let stored = json(post(installation, "/v1/data/e", &wait, "{}").await).await;
    let between = "type=t&from=2026-10-01T00:00:00Z&to=2026-10-02T00:00:00Z";
    vec![
        "/counter".into(),
        "/v1/counters/default".into(),
        format!("/v1/data/e/{}", stored["id"].as_str().expect("an id")),
        format!("/v1/metrics/summary?{between}"),
        format!("/api/metrics/summary?{between}"),
        format!("/v1/metrics/series?{between}&step=hour"),
    ]
}

on_both_pairs! {
    async fn a_quoted_entity_tag_is_one_tag_whatever_is_in_it(installation) {
        for path in tagged(&installation).await {
            let tag = installation
                .wait_for("a tag", async || {
                    let answer = installation.get(&path).await;
                    answer.headers().get("etag").map(|tag| tag.to_str().expect("text").to_owned())
                })
                .await;
            let bare = tag.trim_matches('"').to_owned();
            for same in [tag.clone(), format!("W/{tag}"), format!("\"0\", {tag}"), format!(",{tag} ,"), "*".into()] {
                let answer = get(&installation, &path, &[("if-none-match", &same)]).await;
                assert_eq!(answer.status(), 304, "{path} {same}");
            }
            let lines = [("if-none-match", "\"0\""), ("if-none-match", &*tag)];
            assert_eq!(get(&installation, &path, &lines).await.status(), 304, "{path}");
            for other in [
                "\"client,*,tag\"".into(),
                format!("\"x,{tag},y\""),
                "\"a, *, b\"".into(),
                format!("\"0\", {tag}x"),
                format!("{tag}{tag}"),
                format!("w/{tag}"),
                format!("W/ {tag}"),
                bare,
                "\"0\", *".into(),
                "**".into(),
            ] {
                let begun = Instant::now();
                let headers = [("if-none-match", &*other), ("prefer", "wait=20")];
                let answer = get(&installation, &path, &headers).await;
                assert_eq!(answer.status(), 200, "{path} {other}");
                assert!(begun.elapsed() < Duration::from_secs(10), "{path} {other}: it waited");
            }
        }
    }

    async fn a_media_type_is_read_with_its_quoted_parameters_and_every_name_of_json_is_taken(installation) {
        for (kind, body, accepted) in [
            (r#"application/json; profile="x;charset=latin1""#, r#"{"a":1}"#, false),
            (r#"application/json; profile="x\";charset=latin1""#, r#"{"a":1}"#, false),
            (r#"application/json;charset="u\tf\-8""#, r#"{"a":1}"#, false),
            ("application/cloudevents+json", r#"{"a":1}"#, false),
            ("application/cloudevents-batch+json", r#"[{"a":1},{"a":2}]"#, true),
            ("application/vnd.api+JSON; charset=utf-8", r#"{"a":1}"#, false),
            ("application/reports+json", r#"[{"a":1}]"#, true),
            ("application/ndjson", "{\"a\":1}\n{\"a\":2}", true),
            ("Application/JSONL", "{\"a\":1}\n{\"a\":2}", true),
        ] {
            let answer = post(&installation, "/v1/data/m", &[("content-type", kind)], body).await;
            assert_eq!(answer.status(), 202, "{kind}");
            assert_eq!(json(answer).await["accepted"].is_u64(), accepted, "{kind}");
        }
        for kind in [
            r#"application/json; profile="x"; charset=latin1"#,
            r#"application/json; profile="x;charset=utf-8"#,
            "application/+json",
            "+json",
            "application/jso",
            "application/json+xml",
            "application/json, application/json",
        ] {
            problem(post(&installation, "/v1/data/m", &[("content-type", kind)], r#"{"a":1}"#).await, 415).await;
        }
        let twice = [("content-type", JSON), ("content-type", "text/plain")];
        problem(post(&installation, "/v1/data/m", &twice, r#"{"a":1}"#).await, 415).await;
    }

    async fn a_byte_order_mark_is_ignored_before_a_body_and_named_elsewhere(installation) {
        let path = "/v1/counters/marked/increments";
        let json_type = [("content-type", JSON)];
        let lines_type = [("content-type", "application/x-ndjson")];
        let mut expected = 0;
        for (headers, body, by) in [
            (json_type, "\u{feff}{\"by\":2}", 2),
            (json_type, "\u{feff} [{\"by\":3}]", 3),
            (json_type, "\u{feff}", 1),
            (lines_type, "\u{feff}{\"by\":4}\n{\"by\":5}", 9),
        ] {
            let answer = post(&installation, path, &headers, body).await;
            assert_eq!(answer.status(), 202, "{body}");
            let answer = json(answer).await;
            assert!(answer["rejected"].as_array().is_none_or(Vec::is_empty), "{answer}");
            expected += by;
        }
        installation.wait_for_value(0, "marked", expected).await;
        let named = |problem: &Value| {
            assert!(problem["detail"].as_str().expect("a text").contains("byte order mark"), "{problem}");
        };
        named(&problem(post(&installation, path, &json_type, "\u{feff}\u{feff}{}").await, 400).await);
        named(&problem(post(&installation, path, &json_type, &b"\xff\xfe{\0}\0"[..]).await, 400).await);
        named(&problem(post(&installation, path, &json_type, &b"\xfe\xff\0{\0}"[..]).await, 400).await);
        let joined = json(post(&installation, path, &lines_type, "{}\n\u{feff}{}").await).await;
        assert_eq!(joined["rejected"][0]["index"], 1, "{joined}");
        named(&joined["rejected"][0]["problem"]);
    }

    async fn a_key_is_an_item_whose_parameters_do_not_matter(installation) {
        let path = "/v1/counters/items/increments";
        let mut ids = Vec::new();
        for key in ["\"one\"", "\"one\";v=1", "\"one\"; a=\"x\";b", "one", " one "] {
            let answer = post(&installation, path, &[("IDEMPOTENCY-key", key)], "").await;
            assert_eq!(answer.status(), 202, "{key}");
            ids.push(json(answer).await["id"].clone());
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        for bad in ["\"one\"x", "\"one\", \"two\"", "\"one\";", "\"one\";=1"] {
            problem(post(&installation, path, &[("idempotency-key", bad)], "").await, 400).await;
        }
        installation.wait_for_value(0, "items", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_type_or_encoding_is_told_what_is_taken() {
    embedded(|installation| async {
        let both = [
            ("POST", "/v1/data/x"),
            ("POST", "/data"),
            ("POST", "/v1/counters/x/increments"),
            ("POST", "/counter"),
            ("POST", "/v1/metrics"),
            ("POST", "/api/metrics"),
            ("PUT", "/v1/collections/x"),
            ("POST", "/v1/dead-letters/redrive"),
        ];
        for (method, path) in both {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let send = async |name: &str, value: &str| {
                let request = installation.at(0, method.clone(), path).header(name, value);
                let answer = request.body("{}").send().await.expect("an answer");
                assert_eq!(answer.status(), 415, "{path}");
                answer.headers().clone()
            };
            let typed = send("content-type", "text/plain").await;
            assert!(text(&typed, "accept").starts_with(JSON), "{path}");
            assert!(!typed.contains_key("accept-encoding"), "{path}");
            let encoded = send("content-encoding", "gzip").await;
            assert_eq!(text(&encoded, "accept-encoding"), "identity", "{path}");
            assert!(!encoded.contains_key("accept"), "{path}");
        }
        let lines = [("content-type", "application/x-ndjson")];
        let redrive = post(&installation, "/v1/dead-letters/redrive", &lines, "{}").await;
        assert_eq!((redrive.status().as_u16(), text(redrive.headers(), "accept")), (415, JSON));
        let increments = post(&installation, "/counter", &[("content-type", "a/b")], "{}").await;
        assert!(text(increments.headers(), "accept").contains("application/x-ndjson"));
        let encoded =
            installation.at(0, Method::DELETE, "/v1/collections/x").header("content-encoding", "br");
        let encoded = encoded.send().await.expect("an answer");
        assert_eq!(
            (encoded.status().as_u16(), text(encoded.headers(), "accept-encoding")),
            (415, "identity")
        );
        installation
    })
    .await;
}

/// Returns the last answer on a connection: head in lower case, and body.
async fn last_answer(installation: &Installation, request: &str) -> (String, Value) {
    let mut stream = send(&installation.apis[0].address.to_string(), request).await;
    let answer = rest(&mut stream).await;
    let (_, last) = answer.rsplit_once("HTTP/1.").expect("an answer");
    let (head, body) = last.split_once("\r\n\r\n").expect("a whole head");
    (head.to_ascii_lowercase(), serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_http_library_refuses_is_a_problem_with_a_request_id() {
    embedded(|installation| async {
        let host = "host: localhost\r\n";
        let long = "a".repeat(66_000);
        let longer = "a".repeat(200_000);
        let many = "a: b\r\n".repeat(100);
        let good = format!("GET /livez HTTP/1.1\r\n{host}\r\n");
        let counted = format!("POST /v1/counters/head/increments HTTP/1.1\r\n{host}content-length: 2\r\ncontent-type: application/json\r\n\r\n{{}}");
        for before in ["", &good, &counted, &good.repeat(30)] {
            for (request, status, word) in [
                ("GET / HTTP/1.1\r\nhost : localhost\r\n\r\n".to_owned(), 400, "malformed"),
                ("nonsense\r\n\r\n".to_owned(), 400, "malformed"),
                (format!("GET / HTTP/1.1\r\n{host}content-length: x\r\n\r\n"), 400, "malformed"),
                ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "malformed"),
                (format!("GET / HTTP/1.1\r\n{host}{many}\r\n"), 431, "head_too_large"),
                (format!("GET / HTTP/1.1\r\n{host}a: {longer}\r\n\r\n"), 431, "head_too_large"),
                (format!("GET /{long} HTTP/1.1\r\n{host}\r\n"), 414, "target_too_long"),
                (format!("GET /{longer} HTTP/1.1\r\n{host}\r\n"), 414, "target_too_long"),
            ] {
                let (head, body) = last_answer(&installation, &format!("{before}{request}")).await;
                let shown = &request[..request.len().min(60)];
                assert!(head.starts_with(&format!("1 {status} ")), "{shown}: {head}");
                assert!(head.contains("\r\nconnection: close"), "{shown}: {head}");
                assert!(head.contains("\r\nx-request-id: "), "{shown}: {head}");
                assert!(head.contains("\r\ncontent-type: application/problem+json"), "{shown}: {head}");
                assert_eq!(body["status"], status, "{shown}: {body}");
                assert_eq!(body["type"], format!("urn:forebay:problem:{word}"), "{shown}: {body}");
            }
        }
        installation.wait_for_value(0, "head", 8).await;
        installation
    })
    .await;
}
