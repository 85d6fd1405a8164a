//! Heads of requests that are long, refused before their body, or ask for a feature that is not offered.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::load::{Answered, ask};
use crate::room::{PATIENCE, rest, send};
use crate::support::{embedded_with, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_query_with_very_many_parameters_is_refused_at_once_on_every_route() {
    embedded_with(
        |_| {},
        |installation| async {
            let many: Vec<_> = (0..12_000).map(|index| format!("{index:x}")).collect();
            let many = many.join("&");
            assert!(many.len() > 55_000, "as long as a target may be");
            let id = installation.increment(0, "many", 1).await;
            let routes = [
                ("GET", "/v1/counters"),
                ("GET", "/v1/counters/many"),
                ("GET", "/counter"),
                ("GET", "/v1/data/many"),
                ("GET", "/data"),
                ("GET", "/v1/metrics/summary"),
                ("GET", "/api/metrics/summary"),
                ("GET", "/v1/metrics/series"),
                ("GET", "/v1/metrics/types"),
                ("GET", "/v1/dead-letters"),
                ("GET", "/v1/collections/many"),
                ("GET", &*format!("/v1/receipts/{id}")),
                ("POST", "/v1/counters/many/increments"),
                ("POST", "/v1/data/many"),
                ("POST", "/v1/metrics"),
                ("POST", "/counter"),
                ("POST", "/data"),
                ("POST", "/api/metrics"),
            ];
            let mut took = BTreeMap::new();
            for (method, path) in routes {
                let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
                let request = installation.at(0, method.clone(), &format!("{path}?{many}"));
                let begun = Instant::now();
                let refused = problem(request.send().await.expect("an answer"), 422).await;
                took.insert(begun.elapsed(), (method, path));
                assert_eq!(refused["errors"][0]["parameter"], "query", "{path}: {refused}");
            }
            // A comparison of each with each took some hundred milliseconds, and seconds in this build.
            let slowest = took.last_key_value().expect("some");
            assert!(*slowest.0 < Duration::from_millis(500), "{slowest:?}");
            installation
        },
    )
    .await;
}

/// Longest part of a head that is tried; the server takes 128 KiB for the whole head.
const LONG: usize = 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_long_part_of_a_head_is_read_in_a_time_that_grows_with_its_length_only() {
    embedded_with(
        |_| {},
        |installation| async {
            installation.increment(0, "long", 1).await;
            installation.wait_for_value(0, "long", 1).await;
            let long = |part: &str| part.repeat(LONG / part.len());
            let path = "/v1/counters/long";
            let heads = [
                (format!("GET /v1/counters/{} HTTP/1.1", long("%41")), 422),
                (format!("GET {path}?{} HTTP/1.1", long("%26")), 422),
                (format!("GET {path}?{} HTTP/1.1", long("&")), 200),
                (format!("GET {} HTTP/1.1", long("/a")), 404),
                (format!("GET {path} HTTP/1.1\r\nif-none-match: {}", long("\"a\",")), 200),
                (format!("GET {path} HTTP/1.1\r\nif-none-match: {}", long(",")), 200),
                (format!("GET {path} HTTP/1.1\r\nprefer: {}", long("a;\"b\\\"\",")), 200),
                (format!("GET {path} HTTP/1.1\r\nx-request-id: {}", long("i")), 200),
                (format!("GET {path} HTTP/1.1\r\nconnection: {}", long("a,")), 200),
                (format!("GET {path} HTTP/1.1\r\n{}", "a: b\r\n".repeat(90).trim_end()), 200),
                (format!("POST {path}/increments HTTP/1.1\r\nidempotency-key: {}", long("k")), 400),
                (format!("POST {path}/increments HTTP/1.1\r\ncontent-type: {}", long("a;")), 202),
                (format!("POST {path}/increments HTTP/1.1\r\ntraceparent: {}", long("0")), 202),
            ];
            for (head, expected) in heads {
                let mut stream =
                    TcpStream::connect(installation.apis[0].address).await.expect("a connection");
                let begun = Instant::now();
                let answered = ask(&mut stream, &format!("{head}\r\nhost: localhost\r\n\r\n")).await;
                let shown = &head[..head.len().min(90)];
                assert!(
                    matches!(answered, Answered::Whole { status, .. } if status == expected),
                    "{shown} {answered:?}"
                );
                // A comparison of each with each would be thousands of millions of steps.
                assert!(begun.elapsed() < Duration::from_secs(1), "{shown} {:?}", begun.elapsed());
            }
            installation
        },
    )
    .await;
}

/// Sends a head and returns the answers until the server waits for more or closes.
async fn statuses(address: &str, head: &str) -> Vec<String> {
    let mut stream =
        send(address, &format!("{head}\r\nhost: localhost\r\nexpect: 100-continue\r\n\r\n")).await;
    let mut answer = Vec::new();
    // The first answer comes in one piece.
    let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
    assert!(matches!(read, Ok(Ok(1..))), "{head}: {read:?}");
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).map(|line| line[9..12].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_its_head_refuses_is_not_told_to_go_on() {
    embedded_with(
        |_| {},
        |installation| async {
            let address = installation.apis[0].address.to_string();
            let json = "content-type: application/json\r\n";
            for (head, expected) in [
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}content-length: 9000000"), "413"),
                (format!("POST /nowhere HTTP/1.1\r\n{json}content-length: 9000000"), "404"),
                (format!("PATCH /v1/data/x HTTP/1.1\r\n{json}content-length: 9"), "405"),
                (
                    format!("POST /v1/data/x HTTP/1.1\r\n{json}content-encoding: gzip\r\ncontent-length: 9"),
                    "415",
                ),
                ("POST /v1/data/x HTTP/1.1\r\ncontent-type: text/plain\r\ncontent-length: 9".into(), "415"),
                (format!("POST /v1/data/x?y=1 HTTP/1.1\r\n{json}content-length: 9"), "422"),
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}content-length: 9"), "100"),
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}transfer-encoding: chunked"), "100"),
            ] {
                assert_eq!(statuses(&address, &head).await, [expected], "{head}");
            }
            let head = "POST /v1/counters/asks/increments HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n";
            let mut stream = send(&address, head).await;
            let mut leave = [0; 25];
            stream.read_exact(&mut leave).await.expect("leave to go on");
            assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
            let answered = ask(&mut stream, r#"{"by":3}"#).await;
            assert!(matches!(answered, Answered::Whole { status: 202, closes: false }), "{answered:?}");
            installation.wait_for_value(0, "asks", 3).await;
            installation
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_offered_is_ignored_and_the_body_read_by_its_length() {
    embedded_with(
        |_| {},
        |installation| async {
            let address = installation.apis[0].address.to_string();
            let offers = ["connection: upgrade\r\nupgrade: websocket\r\n", "upgrade: websocket\r\n"];
            let more = ["connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n", "connection: upgrade\r\n"];
            let mut expected = 0;
            for offer in offers.into_iter().chain(more) {
                for body in [r#"{"by":2}"#, r#"[{"by":1},{"by":1}]"#, ""] {
                    let request = format!(
                        "POST /v1/counters/offers/increments HTTP/1.1\r\nhost: localhost\r\n{offer}\
                         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let answered = ask(&mut send(&address, "").await, &request).await;
                    assert!(
                        matches!(answered, Answered::Whole { status: 202, closes: _ }),
                        "{offer} {answered:?}"
                    );
                    expected += if body.is_empty() { 1 } else { 2 };
                }
                let get = format!("GET /v1/counters/offers HTTP/1.1\r\nhost: localhost\r\n{offer}\r\n");
                let mut stream = send(&address, &get).await;
                let answer = rest(&mut stream).await.to_ascii_lowercase();
                assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            }
            let value: Value = installation.wait_for_value(0, "offers", expected).await;
            assert_eq!(value["value"], expected);
            installation
        },
    )
    .await;
}
