//! Bad input gets its own answer, and no part of it reaches a message.
use reqwest::{Method, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
            (400, "{\"by\":\"x\""),
            (400, "{\"by\":\"x\"} trailing"),
            (400, "{\"no\":1,"),
            (422, "{\"by\":\"\\ud800\"}"),
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
            (422, "{\"idempotency_key\":null}"),
            (422, "{\"idempotency_key\":\"\"}"),
            (422, "{\"idempotency_key\":\"a\\nb\"}"),
            (422, "{\"idempotency_key\":\"\u{e4}\"}"),
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

    async fn half_a_surrogate_pair_and_a_null_key_are_answered_alike_by_every_kind(installation) {
        let paths = ["/v1/counters/bad/increments", "/v1/data/bad", "/v1/metrics", "/counter", "/data", "/api/metrics"];
        for path in paths {
            let texts = [(r#"{"a":["\ud800"]}"#, "/a/0"), (r#"{"\udc00":1}"#, "")];
            let keys = [(r#"{"idempotency_key":null}"#, "/idempotency_key"), (r#"{"idempotency_key":"\u007f"}"#, "/idempotency_key")];
            // A document's members are its own.
            let keys = keys.into_iter().filter(|_| !path.contains("data"));
            for (body, pointer) in texts.into_iter().chain(keys) {
                let refused = problem(installation.post(path, body).await, 422).await;
                assert_eq!(refused["errors"][0]["pointer"], pointer, "{path} {body}");
                let many = problem(installation.post(path, &format!("[{body}]")).await, 422).await;
                assert_eq!(many["rejected"][0]["problem"], refused, "{path} {body}");
            }
        }
    }

    async fn names_of_dots_are_refused_where_no_url_could_name_them(installation) {
        // A client that follows RFC 3986 would take the dots out of the path before it sends it.
        let status = async |head: String| {
            let mut stream = TcpStream::connect(installation.apis[0].address).await.expect("a connection");
            stream.write_all(head.as_bytes()).await.expect("is sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer.split(' ').nth(1).expect("a status").to_owned()
        };
        let end = "HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        for name in [".", "..", "%2E%2e"] {
            for path in [format!("/v1/counters/{name}"), format!("/v1/data/{name}"), format!("/v1/collections/{name}")] {
                assert_eq!(status(format!("GET {path} {end}")).await, "422", "{path}");
            }
            assert_eq!(status(format!("POST /v1/counters/{name}/increments {end}")).await, "422", "{name}");
        }
        assert_eq!(status(format!("GET /v1/counters/... {end}")).await, "404");
        assert_eq!(installation.get("/v1/counters?prefix=.&after=..").await.status(), 200);
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
        for charset in ["latin1", "\"utf-16\"", ""] {
            let foreign = format!("application/json; charset={charset}");
            problem(send(&installation, path, &[("content-type", &foreign)], by()).await, 415).await;
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
        let large = format!("{{\"by\":1{}}}", " ".repeat(installation.config.server.item_bytes_max));
        problem(send(&installation, path, &[JSON], large.clone().into_bytes()).await, 413).await;
        for (content_type, text) in [(JSON, format!("[{large},{{}}]")), (LINES, format!("{large}\n{{}}"))] {
            let accepted = json(send(&installation, path, &[content_type], text.into_bytes()).await).await;
            assert_eq!(accepted["accepted"], 1);
            assert_eq!(accepted["rejected"][0]["index"], 0);
            assert_eq!(accepted["rejected"][0]["problem"]["status"], 413);
        }
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
        problem(send(&installation, "/v1/counters", &[JSON], b"{}".to_vec()).await, 405).await;
        for query in ["limit=0", "limit=1001", "limit=many", "after=%00", "order=up", "limit=1&limit=2"] {
            let refused = problem(installation.get(&format!("/v1/counters?{query}")).await, 422).await;
            let parameter = query.split('=').next().expect("a name");
            assert_eq!(refused["errors"][0]["parameter"], parameter, "{query}");
        }
    }

    async fn a_parameter_that_nobody_knows_or_that_stands_there_twice_is_named(installation) {
        let id = installation.increment(0, "known", 1).await;
        for (path, known) in [
            ("/v1/counters".to_owned(), "limit=5"),
            ("/v1/counters/known".into(), ""),
            ("/counter".into(), ""),
            ("/v1/metrics/types".into(), "limit=5"),
            ("/v1/metrics/summary".into(), "type=a"),
            ("/v1/metrics/series".into(), "type=a"),
            (format!("/v1/receipts/{id}"), "payload=00000000000000000000000000000000"),
        ] {
            let refused = problem(installation.get(&format!("{path}?{known}&sort=up")).await, 422).await;
            assert_eq!(refused["errors"][0]["parameter"], "sort", "{path}");
            if !known.is_empty() {
                let refused = problem(installation.get(&format!("{path}?{known}&{known}")).await, 422).await;
                let parameter = known.split('=').next().expect("a name");
                assert_eq!(refused["errors"][0]["parameter"], parameter, "{path}");
            }
        }
    }

    async fn writes_take_neither_unknown_parameters_nor_encoded_bodies(installation) {
        let id = {
            let stored = installation.at(0, Method::POST, "/v1/data/c").header("prefer", "wait=30");
            json(stored.json(&serde_json::json!({})).send().await.expect("an answer")).await["id"].as_str().expect("an id").to_owned()
        };
        let document = format!("/v1/data/c/{id}");
        for (method, path, body) in [
            (Method::POST, "/v1/counters/a/increments", "{}"),
            (Method::POST, "/v1/data/c", "{}"),
            (Method::DELETE, document.as_str(), ""),
            (Method::PUT, "/v1/collections/c", "{}"),
            (Method::DELETE, "/v1/collections/c", ""),
            (Method::GET, "/v1/collections/c", ""),
            (Method::POST, "/v1/metrics", "{}"),
            (Method::POST, "/v1/dead-letters/redrive", "{}"),
            (Method::DELETE, "/v1/dead-letters/c", ""),
            (Method::GET, "/v1/dead-letters/c", ""),
            (Method::POST, "/counter", "{}"),
            (Method::POST, "/data", "{}"),
            (Method::POST, "/api/metrics", "{}"),
        ] {
            let request = |path: &str| {
                let request = installation.at(0, method.clone(), path).header("content-type", "application/json");
                request.body(body)
            };
            let unknown = request(&format!("{path}?sort=up")).send().await.expect("an answer");
            let unknown = problem(unknown, 422).await;
            assert_eq!(unknown["errors"][0]["parameter"], "sort", "{method} {path}");
            if method != Method::GET {
                let encoded = request(path).header("content-encoding", "identity").send().await.expect("an answer");
                assert_eq!(encoded.status(), 415, "{method} {path}");
                problem(encoded, 415).await;
            }
        }
        assert_eq!(installation.get(&document).await.status(), 200);
    }

    async fn the_document_and_its_pages_are_read_only(installation) {
        for (path, content_type) in [("/openapi.json", "application/json"), ("/docs/", "text/html"), ("/docs/index.css", "text/css")] {
            let get = installation.get(path).await;
            assert_eq!(get.status(), 200, "{path}");
            assert!(get.headers()["content-type"].to_str().expect("text").starts_with(content_type), "{path}");
            assert!(!get.bytes().await.expect("a body").is_empty(), "{path}");
            let head = installation.at(0, Method::HEAD, path).send().await.expect("an answer");
            assert_eq!(head.status(), 200, "{path}");
            assert!(head.bytes().await.expect("nothing").is_empty(), "{path}");
        }
        // The redirect that the client follows.
        assert_eq!(installation.get("/docs").await.url().path(), "/docs/");
        problem(installation.get("/docs/none").await, 404).await;
        for path in ["/openapi.json", "/docs", "/docs/", "/docs/index.css"] {
            let refused = installation.at(0, Method::POST, path).send().await.expect("an answer");
            assert_eq!(refused.headers()["allow"], "GET, HEAD", "{path}");
            problem(refused, 405).await;
        }
        let initializer = installation.get("/docs/swagger-initializer.js").await;
        assert!(initializer.text().await.expect("text").contains("/openapi.json"));
    }

    async fn what_holds_only_now_is_not_kept_by_caches(installation) {
        for path in [
            "/v1/counters", "/v1/data/none", "/data", "/v1/metrics/types", "/livez", "/readyz", "/health", "/none",
            "/v1/counters/none", "/v1/counters?limit=0",
        ] {
            assert_eq!(installation.get(path).await.headers()["cache-control"], "no-store", "{path}");
        }
        let refused = installation.post("/v1/data/none", "{").await;
        assert_eq!(refused.headers()["cache-control"], "no-store");
    }

    async fn a_request_id_is_taken_over_when_it_is_plain(installation) {
        let request = installation.at(0, Method::GET, "/livez").header("x-request-id", "abc-1");
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"], "abc-1");
        for other in [String::new(), "x".repeat(500)] {
            let request = installation.at(0, Method::GET, "/livez").header("x-request-id", other);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.headers()["x-request-id"].len(), 16);
        }
        let health = json(installation.get("/health").await).await;
        assert_eq!(health["status"], "ok");
    }
}
