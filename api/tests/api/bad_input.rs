//! Bad input gets its own answer, and nothing of it reaches a message.
use reqwest::{Method, Response};

use crate::support::{Installation, json, on_both_pairs, problem};

async fn send(installation: &Installation, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
    let request = installation.at(0, Method::POST, path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body).send().await.expect("an answer")
}

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");

on_both_pairs! {
    async fn each_bad_increment_gets_its_status(installation) {
        let deep = format!(r#"{{"by":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        let cases: &[(u16, &str)] = &[
            (400, "{"),
            (400, "{\"by\":1}}"),
            (400, "{\"by\":1} trailing"),
            (400, "{\"by\":01}"),
            (400, "{\"by\":NaN}"),
            (400, "{\"by\":Infinity}"),
            (422, "{\"by\":1e999}"),
            (400, "{\"by\":\"\\ud800\"}"),
            (422, &deep),
            (422, "{\"by\":\"\\u0000\"}"),
            (422, "{\"by\":9223372036854775808}"),
            (422, "{\"by\":-9223372036854775809}"),
            (422, "{\"by\":1.5}"),
            (422, "{\"by\":1e3}"),
            (422, "{\"by\":null}"),
            (422, "{\"by\":true}"),
            (422, "{\"by\":1,\"by\":2}"),
            (422, "{\"By\":1}"),
            (422, "{\"by\":1,\"extra\":1}"),
            (422, "null"),
            (422, "5"),
            (422, "\"x\""),
            (422, "[]"),
            (422, "[{\"by\":\"x\"}]"),
            (400, "[{\"by\":1},"),
        ];
        for (status, body) in cases {
            let response = send(&installation, "/v1/counters/bad/increments", &[JSON], body.as_bytes().into()).await;
            assert_eq!(response.status().as_u16(), *status, "{body}");
            problem(response, *status).await;
        }
        let response = send(&installation, "/v1/counters/bad/increments", &[JSON], vec![b'"', 0xFF, b'"']).await;
        problem(response, 400).await;
        problem(installation.get("/v1/counters/bad").await, 404).await;
    }

    async fn an_invalid_field_is_pointed_at(installation) {
        let response = send(&installation, "/v1/counters/bad/increments", &[JSON], br#"{"by":"x"}"#.into()).await;
        assert_eq!(problem(response, 422).await["errors"][0]["pointer"], "/by");
    }

    async fn names_outside_the_alphabet_are_refused(installation) {
        let long = "x".repeat(129);
        for name in ["a%20b", "%C3%A4", "a%00", "a%2Fb", long.as_str()] {
            let path = format!("/v1/counters/{name}/increments");
            let invalid = problem(send(&installation, &path, &[], Vec::new()).await, 422).await;
            assert_eq!(invalid["errors"][0]["parameter"], "name");
            problem(installation.get(&format!("/v1/counters/{name}")).await, 422).await;
        }
        let longest = "x".repeat(128);
        let path = format!("/v1/counters/{longest}/increments");
        assert_eq!(send(&installation, &path, &[], Vec::new()).await.status(), 202);
    }

    async fn media_types_and_encodings_are_checked(installation) {
        let path = "/v1/counters/bad/increments";
        let by = || br#"{"by":1}"#.to_vec();
        problem(send(&installation, path, &[], by()).await, 415).await;
        problem(send(&installation, path, &[("content-type", "text/plain")], by()).await, 415).await;
        for encoding in ["gzip", "br", "identity"] {
            problem(send(&installation, path, &[JSON, ("content-encoding", encoding)], by()).await, 415).await;
        }
        let with_charset = ("content-type", "Application/JSON; charset=utf-8");
        assert_eq!(send(&installation, path, &[with_charset], by()).await.status(), 202);
    }

    async fn sizes_are_limited(installation) {
        let path = "/v1/counters/bad/increments";
        let too_large = format!("{{\"by\":1{}}}", " ".repeat(installation.config.server.body_bytes_max));
        problem(send(&installation, path, &[JSON], too_large.into_bytes()).await, 413).await;
        let items = format!("[{}]", vec!["{}"; 1_001].join(","));
        problem(send(&installation, path, &[JSON], items.into_bytes()).await, 413).await;
        problem(send(&installation, path, &[LINES], "{}\n".repeat(1_001).into_bytes()).await, 413).await;
        assert_eq!(send(&installation, path, &[LINES], "{}\n".repeat(1_000).into_bytes()).await.status(), 202);
        problem(send(&installation, path, &[LINES], Vec::new()).await, 422).await;
    }

    async fn a_request_of_bad_items_only_tells_each(installation) {
        let body = br#"[{"by":"x"},{"no":1}]"#.to_vec();
        let refused = problem(send(&installation, "/v1/counters/bad/increments", &[JSON], body).await, 422).await;
        assert_eq!(refused["rejected"][1]["index"], 1);
        assert_eq!(refused["rejected"][1]["problem"]["status"], 422);
    }

    async fn wrong_paths_methods_and_parameters_are_told(installation) {
        problem(installation.get("/v1/counter").await, 404).await;
        let refused = installation.get("/v1/counters/a/increments").await;
        assert_eq!(refused.headers()["allow"], "POST");
        problem(refused, 405).await;
        let head = installation.at(0, Method::HEAD, "/health").send().await.expect("an answer");
        assert_eq!(head.status(), 200);
        let keyed = installation.at(0, Method::POST, "/counter").header("idempotency-key", "k");
        problem(keyed.send().await.expect("an answer"), 422).await;
        problem(send(&installation, "/v1/counters", &[JSON], b"{}".to_vec()).await, 405).await;
        for query in ["limit=0", "limit=1001", "limit=many", "after=%00", "order=up", "limit=1&limit=2"] {
            problem(installation.get(&format!("/v1/counters?{query}")).await, 422).await;
        }
    }

    async fn a_request_id_is_taken_over_when_it_is_plain(installation) {
        let request = installation.at(0, Method::GET, "/livez").header("x-request-id", "abc-1");
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"], "abc-1");
        let request = installation.at(0, Method::GET, "/livez").header("x-request-id", "x".repeat(500));
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"].len(), 16);
        let health = json(installation.get("/health").await).await;
        assert_eq!(health["status"], "ok");
    }
}
