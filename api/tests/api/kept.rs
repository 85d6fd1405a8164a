//! Mistakes of other services in the field that this one does not make: framing of bodies, HEAD,
//! odd times, odd lines, overflow and keys. Each is an answer to keep.
use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::room::{rest, send};
use crate::support::{Installation, embedded, json as body_of, on_both_pairs, problem};

const JSON: &str = "content-type: application/json";

fn head(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{JSON}\r\n{headers}\r\n\r\n")
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_one_length_or_the_connection_ends_and_nothing_is_counted() {
    embedded(|installation| async {
        let address = installation.apis[0].address.to_string();
        let path = "/v1/counters/framed/increments";
        let last = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let chunked = "transfer-encoding: chunked";
        let good = [
            (chunked, "8\r\n{\"by\":1}\r\n0\r\ntrailer: x\r\n\r\n"),
            (chunked, "8;extension=\"a;b\"\r\n{\"by\":1}\r\n0;last\r\n\r\n"),
            (chunked, "0008\r\n{\"by\":1}\r\n000\r\n\r\n"),
            ("transfer-encoding: Chunked", "3\r\n{\"b\r\n5\r\ny\":1}\r\n0\r\n\r\n"),
            ("content-length: 8", "{\"by\":1}"),
        ];
        for (headers, body) in good {
            let mut stream = send(&address, &[&head(path, headers), body, last].concat()).await;
            assert_eq!(statuses(&rest(&mut stream).await), ["202", "200"], "{headers} {body}");
        }
        let (plain, chunks) = ("{\"by\":1}", "8\r\n{\"by\":1}\r\n0\r\n\r\n");
        for (headers, body) in [
            ("content-length: 8\r\ntransfer-encoding: chunked", chunks),
            ("transfer-encoding: chunked\r\ncontent-length: 8", chunks),
            ("content-length: 8\r\ncontent-length: 8", plain),
            ("content-length: 8\r\ncontent-length: 9", plain),
            ("content-length: 8, 8", plain),
            ("content-length: +8", plain),
            ("content-length: 0x8", plain),
            ("transfer-encoding: gzip, chunked", chunks),
            ("transfer-encoding: chunked, chunked", chunks),
            ("content-length : 8", plain),
            ("content-length: 8\r\na: b\r\n c", plain),
            ("content-length: 8\r\na: b\0c", plain),
            ("content-length: 8\r\na: b\rc", plain),
            (chunked, "8\n{\"by\":1}\n0\n\n"),
        ] {
            let mut stream = send(&address, &[&head(path, headers), body, last].concat()).await;
            let answer = rest(&mut stream).await;
            assert_eq!(statuses(&answer), ["400"], "{headers:?} {body:?}: {answer}");
            assert!(answer.contains("urn:forebay:problem:malformed"), "{headers:?}: {answer}");
        }
        let value = i64::try_from(good.len()).expect("few");
        installation.wait_for_value(0, "framed", value).await;
        // A hidden second request would be counted by now, too.
        let next = body_of(installation.increment_and_wait(0, "framed").await).await;
        assert_eq!(next["value"], value + 1);
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_on_one_connection_are_answered_each_and_head_has_no_body() {
    embedded(|installation| async {
        let address = installation.apis[0].address.to_string();
        let one = [&head("/v1/counters/piped/increments", "content-length: 8"), "{\"by\":1}"].concat();
        let between = "HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let last = "HEAD /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let all = [one.repeat(250), between.to_owned(), one.repeat(250), last.to_owned()].concat();
        let answer = rest(&mut send(&address, &all).await).await;
        let statuses = statuses(&answer);
        assert_eq!(statuses.len(), 502, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == "202").count(), 500);
        assert!(answer.ends_with("\r\n\r\n"), "the answer to HEAD has no body");
        installation.wait_for_value(0, "piped", 500).await;
        installation
    })
    .await;
}

/// Returns headers without those that differ from request to request.
async fn lasting_headers(
    installation: &Installation,
    method: Method,
    path: &str,
) -> BTreeMap<String, String> {
    let answer = installation.at(0, method, path).send().await.expect("an answer");
    let differs = |name: &str| ["date", "x-request-id", "age"].contains(&name);
    let headers = answer.headers().iter().filter(|(name, _)| !differs(name.as_str()));
    let mut headers: BTreeMap<_, _> =
        headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    headers.insert("status".into(), answer.status().to_string());
    headers
}

on_both_pairs! {
    async fn head_has_the_headers_of_get_on_every_route(installation) {
        let stored = installation.at(0, Method::POST, "/v1/data/headed").header("prefer", "wait=20");
        let stored = body_of(stored.json(&json!({})).send().await.expect("an answer")).await;
        let id = stored["id"].as_str().expect("an id");
        installation.increment_and_wait(0, "default").await;
        let document = body_of(installation.get("/openapi.json").await).await;
        let paths = document["paths"].as_object().expect("paths");
        let mut count = 0;
        for (path, _) in paths.iter().filter(|(_, item)| item["get"].is_object()) {
            let path = path.replace("{id}", id).replace("{name}", "default").replace("{collection}", "headed");
            let range = "?type=t&from=2026-10-01T00:00:00Z&to=2026-10-02T00:00:00Z&step=hour";
            let range = if path.ends_with("summary") { range.trim_end_matches("&step=hour") } else { range };
            let is_figure = path.ends_with("summary") || path.ends_with("series");
            let path = if is_figure { [&path, range].concat() } else { path };
            // The first one of both may find no cache.
            installation.get(&path).await;
            let get = lasting_headers(&installation, Method::GET, &path).await;
            assert_eq!(lasting_headers(&installation, Method::HEAD, &path).await, get, "{path}");
            count += 1;
        }
        assert!(count > 15, "{count}");
    }

    async fn odd_times_are_taken_or_refused_as_rfc_3339_says(installation) {
        let status = async |time: &str| {
            let point = json!({"timestamp": time, "value": 1, "type": "odd"});
            let request = installation.at(0, Method::POST, "/v1/metrics").header("prefer", "wait=20");
            request.json(&point).send().await.expect("an answer").status().as_u16()
        };
        let good = [
            "2026-10-31T23:59:60Z",
            "2026-10-31T15:59:60-08:00",
            "2026-10-31t23:59:59z",
            "2026-10-31T23:59:59-00:00",
            "2026-11-01T13:59:59+14:00",
            "2026-10-31T23:59:59.12345678901234567890Z",
            "2026-10-31T23:59:59.9999999Z",
        ];
        for time in good {
            assert_eq!(status(time).await, 201, "{time}");
        }
        for time in [
            "2026-10-31T22:59:60Z",
            "2026-10-31T24:00:00Z",
            "2026-10-31T23:59:61Z",
            "2026-10-31T23:59:59+24:00",
            "2026-10-31T23:59:59+1400",
            "2026-10-31T23:59:59,5Z",
            "2026-10-31T23:59Z",
            "2026-W44-6T23:59:59Z",
        ] {
            assert_eq!(status(time).await, 422, "{time}");
        }
        // All of them stay in their day.
        let day = "/v1/metrics/summary?type=odd&from=2026-10-31T00:00:00Z&to=2026-11-01T00:00:00Z";
        assert_eq!(body_of(installation.get(day).await).await["count"], good.len());
    }

    async fn lines_are_taken_or_refused_each_for_itself(installation) {
        let request = installation.at(0, Method::POST, "/v1/data/lines").header("content-type", "application/x-ndjson");
        let mut text = "{\"a\":1}\r\n\r\n \t\n{\"a\":\"\u{2028}\"}\n{\"a\":1} {\"a\":2}\n{\"a\":1},\n".as_bytes().to_vec();
        text.extend(b"{\"a\":\"\xe4\"}\n{\"a\":2}");
        let answer = body_of(request.body(text).send().await.expect("an answer")).await;
        assert_eq!(answer["accepted"], 3, "{answer}");
        let rejected = answer["rejected"].as_array().expect("a list");
        let shown: Vec<_> = rejected.iter().map(|item| (&item["index"], &item["problem"]["status"])).collect();
        assert_eq!(shown, [(&json!(2), &json!(400)), (&json!(3), &json!(400)), (&json!(4), &json!(400))], "{answer}");
    }

    async fn what_would_overflow_fails_alone_in_the_order_of_the_request(installation) {
        let by = |by: i64| json!({ "by": by });
        let (max, min) = (i64::MAX, -i64::MAX);
        let items = [by(max), by(1), by(-1), by(min), by(min), by(-1), by(-1), by(max)];
        let answer = installation.post("/v1/counters/edge/increments", &Value::from(items.to_vec()).to_string()).await;
        let answer = body_of(answer).await;
        let mut statuses = Vec::new();
        for id in answer["ids"].as_array().expect("ids") {
            let path = format!("/v1/receipts/{}", id.as_str().expect("an id"));
            let request = installation.at(0, Method::GET, &path).header("prefer", "wait=20");
            let receipt = body_of(request.send().await.expect("an answer")).await;
            statuses.push(receipt["status"].as_str().expect("a word").to_owned());
        }
        let expected = ["applied", "failed", "applied", "applied", "applied", "failed", "failed", "applied"];
        assert_eq!(statuses, expected);
        installation.wait_for_value(0, "edge", -1).await;
    }

    async fn one_request_with_one_key_three_times_has_one_effect(installation) {
        let by = |by: i64| json!({"by": by, "idempotency_key": "thrice"});
        let items = Value::from(vec![by(2), by(2), by(2), by(3)]);
        let answer = body_of(installation.post("/v1/counters/thrice/increments", &items.to_string()).await).await;
        let ids = answer["ids"].as_array().expect("ids");
        assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{answer}");
        assert_eq!(answer["rejected"][0]["problem"]["type"], "urn:forebay:problem:conflict", "{answer}");
        installation.wait_for_value(0, "thrice", 2).await;
    }

    async fn a_key_whose_request_was_refused_is_free_for_the_mended_one(installation) {
        let send = async |body: &str| {
            let request = installation.at(0, Method::POST, "/v1/counters/mended/increments").header("IDEMPOTENCY-KEY", "\"m\"");
            let request = request.header("content-type", "application/json").header("prefer", "wait=20");
            request.body(body.to_owned()).send().await.expect("an answer")
        };
        problem(send(r#"{"by":"x"}"#).await, 422).await;
        assert_eq!(send(r#"{"by":2}"#).await.status(), 200);
        installation.wait_for_value(0, "mended", 2).await;
    }

    async fn of_four_requests_at_once_under_one_key_one_has_an_effect(installation) {
        for round in 0..20 {
            let send = async |replica: usize, by: i64| {
                let path = "/v1/counters/raced/increments";
                let request = installation.at(replica, Method::POST, path).header("idempotency-key", format!("race-{round}"));
                request.json(&json!({ "by": by })).send().await.expect("an answer").status().as_u16()
            };
            // The payload that counted is known by the digits: thousands of the first, ones of the second.
            let (a, b, c, d) = tokio::join!(send(0, 1_000), send(1, 1), send(0, 1), send(1, 1_000));
            assert!([a, b, c, d].iter().all(|status| [202, 422].contains(status)), "{a} {b} {c} {d}");
        }
        let effects = installation
            .wait_for("one effect a round", async || {
                let value = body_of(installation.get("/v1/counters/raced").await).await["value"].as_i64()?;
                (value / 1_000 + value % 1_000 == 20).then_some(value)
            })
            .await;
        installation.increment_and_wait(0, "raced").await;
        installation.wait_for_value(0, "raced", effects + 1).await;
    }

    async fn odd_strings_come_back_and_are_found_as_they_were_sent(installation) {
        let put = installation.at(0, Method::PUT, "/v1/collections/odd").json(&json!({"indexed": ["s"]}));
        assert_eq!(put.send().await.expect("an answer").status(), 200);
        let strings = [
            "", " ", "\t\r\n", "undefined", "NaN", "-1E+02", "'; drop table documents; --", "\u{202e}right to left",
            "\u{feff}", "\u{2028}\u{2029}", "🏳️‍🌈", "Z̡̖̜͎a̵l̴g̕o̸", "<script>alert(1)</script>", "%s%p%n", "../../etc/passwd", "$(id)",
            "\u{1}\u{7f}\u{9f}", "\\\"/", "\u{10ffff}", "ﬃ", "i̇ıİ", "${jndi:ldap://a}", "Ω≈ç√", "0x1p-2", "\u{fffd}\u{fffe}",
        ];
        let documents: Vec<_> = strings.iter().map(|text| json!({"s": text, (*text): [text]})).collect();
        let mut answer = installation.post("/v1/data/odd", &Value::from(documents).to_string()).await;
        assert_eq!(answer.status(), 202);
        let ids = body_of(answer).await["ids"].clone();
        assert_eq!(ids.as_array().map(Vec::len), Some(strings.len()), "{ids}");
        for (text, id) in strings.iter().zip(ids.as_array().expect("ids")) {
            let path = format!("/v1/data/odd/{}", id.as_str().expect("an id"));
            let stored = installation
                .wait_for("what was stored", async || {
                    let stored = body_of(installation.get(&path).await).await;
                    (stored["status"] == "applied").then_some(stored)
                })
                .await;
            assert_eq!(stored["data"], json!({"s": text, (*text): [text]}), "{text:?}");
            let encoded = text.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"));
            answer = installation.get(&format!("/v1/data/odd?s={encoded}")).await;
            let page = body_of(answer).await;
            assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{text:?}: {page}");
            assert_eq!(page["items"][0]["id"], *id, "{text:?}");
        }
    }
}
