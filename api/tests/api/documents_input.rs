//! Bad documents get their own answer, and no part of them is stored; lists take what they name.
use api::rfc3339::{parse, rfc3339};
use reqwest::{Method, Response};
use serde_json::{Value, json as value};

use crate::support::{Installation, cluster_with, json, on_both_pairs, problem};

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const PATH: &str = "/v1/data/bad";

async fn send(installation: &Installation, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Response {
    let request = installation.at(0, Method::POST, PATH);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body.into()).send().await.expect("an answer")
}

/// Makes a JSON object with this many members.
fn members(count: usize) -> String {
    let members: Vec<_> = (0..count).map(|key| format!(r#""k{key}":{key}"#)).collect();
    format!("{{{}}}", members.join(","))
}

/// Makes an object with nested arrays, this deep in all.
fn nested(depth: usize) -> String {
    format!(r#"{{"a":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1))
}

on_both_pairs! {
    async fn each_bad_document_gets_its_status(installation) {
        let digits = format!(r#"{{"a":[1,{}]}}"#, "1".repeat(1_001));
        let cases: &[(u16, Option<&str>, &str)] = &[
            (400, None, ""),
            (400, None, "{"),
            (400, None, r#"{"a":1}}"#),
            (400, None, r#"{"a":1} {"a":1}"#),
            (400, None, r#"{"a":01}"#),
            (400, None, r#"{"a":NaN}"#),
            (400, None, r#"{"a":Infinity}"#),
            (400, None, r#"{"a":'x'}"#),
            (400, None, r#"{"a":1,}"#),
            (400, None, "{\"a\":\"\n\"}"),
            (400, None, r#"[{"a":1},"#),
            (422, Some(""), "null"),
            (422, Some(""), "5"),
            (422, Some(""), "\"x\""),
            (422, Some(""), "[]"),
            (422, Some(""), r#"{"a":1,"a":2}"#),
            (422, Some("/a"), r#"{"a":{"b":1,"\u0062":2}}"#),
            (422, Some("/a/0"), r#"{"a":["\ud800"]}"#),
            (422, Some("/a"), r#"{"a":"\udc00\ud800"}"#),
            (422, Some(""), r#"{"\udfff":1}"#),
            (422, Some("/a"), r#"{"a":1e10000}"#),
            (422, Some("/a"), r#"{"a":-1e-10000}"#),
            (422, Some("/a/1"), &digits),
            (422, None, &nested(65)),
            (422, None, &nested(100_000)),
        ];
        for (status, pointer, body) in cases {
            let response = send(&installation, &[JSON], *body).await;
            assert_eq!(response.status().as_u16(), *status, "{body:.80}");
            let refused = problem(response, *status).await;
            if pointer.is_some() {
                assert_eq!(refused["errors"][0]["pointer"].as_str(), *pointer, "{body:.80}");
            }
        }
        problem(send(&installation, &[JSON], b"{\"a\":\"\xff\"}").await, 400).await;
        problem(send(&installation, &[JSON], b"{\"a\":\"\xed\xa0\x80\"}").await, 400).await;
        assert_eq!(json(installation.get(PATH).await).await["items"], serde_json::json!([]));
    }

    async fn what_lies_at_the_limits_is_stored(installation) {
        let limit = installation.config.server.item_bytes_max;
        let largest = format!(r#"{{"a":"{}"}}"#, "x".repeat(limit - 8));
        assert_eq!(largest.len(), limit);
        let digits = "7".repeat(1_000);
        let good = [
            largest, nested(64), members(15_000),
            format!(r#"{{"a":[{digits},-{digits},0.{}]}}"#, &digits[1..]),
            r#"{"a":[9223372036854775808,-9223372036854775809,18446744073709551616,1e400,1e9999,-1E-9999]}"#.into(),
            r#"{"\u0000":["\u0000","a\u0000b"]}"#.into(),
            r#"{"a":[9223372036854775807,-9223372036854775808,5e-324,1.7976931348623157e308]}"#.into(),
            r#"{"":{"":"\ud83d\ude00 \u007f \uffff"}}"#.into(),
        ];
        for data in &good {
            let response = send(&installation, &[JSON], data.as_str()).await;
            assert_eq!(response.status(), 202, "{data:.80}");
            let location = response.headers()["location"].to_str().expect("text").to_owned();
            let suffix = format!(r#","data":{data}}}"#);
            installation
                .wait_for("it is stored as it was written", async || {
                    let text = installation.get(&location).await.text().await.expect("text");
                    text.ends_with(&suffix).then_some(())
                })
                .await;
        }
    }

    async fn sizes_are_limited(installation) {
        let server = &installation.config.server;
        let spaces = |bytes: usize| format!(r#"{{"a":1{}}}"#, " ".repeat(bytes));
        problem(send(&installation, &[JSON], spaces(server.body_bytes_max)).await, 413).await;
        problem(send(&installation, &[JSON], spaces(server.item_bytes_max)).await, 413).await;
        let mixed = format!("[{},{{}}]", spaces(server.item_bytes_max));
        let accepted = json(send(&installation, &[JSON], mixed).await).await;
        assert_eq!(accepted["accepted"], 1);
        assert_eq!(accepted["rejected"][0]["problem"]["status"], 413);
        let items = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        problem(send(&installation, &[JSON], items(1_001)).await, 413).await;
        assert_eq!(send(&installation, &[JSON], items(1_000)).await.status(), 202);
        problem(send(&installation, &[LINES], "{}\n".repeat(1_001)).await, 413).await;
        assert_eq!(send(&installation, &[LINES], "{}\n".repeat(1_000)).await.status(), 202);
        problem(send(&installation, &[LINES], "\n").await, 422).await;
    }

    async fn media_types_and_encodings_are_checked(installation) {
        problem(send(&installation, &[], "{}").await, 415).await;
        problem(send(&installation, &[("content-type", "text/plain")], "{}").await, 415).await;
        problem(send(&installation, &[("content-type", "application/json-seq")], "{}").await, 415).await;
        for encoding in ["gzip", "br", "identity"] {
            problem(send(&installation, &[JSON, ("content-encoding", encoding)], "{}").await, 415).await;
        }
    }

    async fn bad_names_and_parameters_are_named(installation) {
        let long = "x".repeat(129);
        for name in ["a%20b", "%C3%A4", "a%00", &long] {
            let path = format!("/v1/data/{name}");
            for response in [installation.get(&path).await, installation.post(&path, "{}").await] {
                let refused = problem(response, 422).await;
                assert_eq!(refused["errors"][0]["parameter"], "collection");
            }
        }
        let zeros = format!("after={}", "0".repeat(32));
        let no_zone = "accepted_before=2026-11-20T08:00:00";
        for query in ["limit=0", "limit=1001", "limit=x", "limit=1&limit=1", "after=", "after=%00", "after=x", &zeros, "accepted_after=now", no_zone] {
            let refused = problem(installation.get(&format!("{PATH}?{query}")).await, 422).await;
            let parameter = query.split('=').next().expect("a name");
            assert_eq!(refused["errors"][0]["parameter"], parameter, "{query}");
        }
        for (method, path, allowed) in [
            (Method::PUT, PATH, "GET, HEAD, POST"),
            (Method::POST, "/v1/data/bad/x", "DELETE, GET, HEAD"),
            (Method::POST, "/v1/collections/bad", "DELETE, GET, HEAD, PUT"),
            (Method::DELETE, "/data", "GET, HEAD, POST"),
            (Method::PUT, "/v1/collections", "GET, HEAD"),
        ] {
            let refused = installation.at(0, method, path).send().await.expect("an answer");
            assert_eq!(refused.headers()["allow"], allowed);
            problem(refused, 405).await;
        }
    }

    async fn definitions_are_listed_by_name_in_pages(installation) {
        let list = async |query: &str| json(installation.get(&format!("/v1/collections{query}")).await).await;
        assert_eq!(list("").await, value!({"items": [], "next": null}));
        let stored = installation.at(0, Method::POST, "/v1/data/undefined").header("prefer", "wait=30");
        assert_eq!(stored.json(&value!({"n": 1})).send().await.expect("an answer").status(), 201);
        let schema = value!({"description": "x".repeat(60_000)});
        for name in ["orders", "events", "orders:old"] {
            let put = installation.at(0, Method::PUT, &format!("/v1/collections/{name}"));
            let put = put.json(&value!({"schema": schema, "indexed": ["n"], "retention_days": 7}));
            assert_eq!(put.send().await.expect("an answer").status(), 200);
        }
        let all = list("").await;
        for item in all["items"].as_array().expect("items") {
            let path = format!("/v1/collections/{}", item["name"].as_str().expect("a name"));
            assert_eq!(*item, json(installation.get(&path).await).await);
        }
        let names = |page: &Value| -> Vec<Value> {
            page["items"].as_array().expect("items").iter().map(|item| item["name"].clone()).collect()
        };
        assert_eq!((names(&all), &all["next"]), (vec!["events".into(), "orders".into(), "orders:old".into()], &Value::Null));
        let first = list("?limit=2").await;
        assert_eq!((names(&first), &first["next"]), (vec!["events".into(), "orders".into()], &"orders".into()));
        let second = list("?limit=2&after=orders").await;
        assert_eq!((names(&second), &second["next"]), (vec!["orders:old".into()], &Value::Null));
        assert_eq!(names(&list("?prefix=orders").await).len(), 2);
        // One page has as many schemas as it may hold, the next has the rest.
        let many = installation.config.server.page_bytes_max / 60_000 + 1;
        for number in 0..many {
            let put = installation.at(0, Method::PUT, &format!("/v1/collections/many:{number:04}"));
            assert_eq!(put.json(&value!({"schema": schema})).send().await.expect("an answer").status(), 200);
        }
        let (mut seen, mut query, mut pages) = (Vec::new(), "?prefix=many&limit=1000".to_owned(), 0);
        loop {
            let page = list(&query).await;
            seen.extend(names(&page));
            pages += 1;
            let Some(next) = page["next"].as_str() else { break };
            query = format!("?prefix=many&limit=1000&after={next}");
        }
        assert_eq!((seen.len(), seen.is_sorted_by_key(Value::to_string), pages), (many, true, 2));
        for (query, parameter) in [("limit=0", "limit"), ("after=a%20b", "after"), ("sort=up", "sort")] {
            let refused = problem(installation.get(&format!("/v1/collections?{query}")).await, 422).await;
            assert_eq!(refused["errors"][0]["parameter"], parameter);
        }
    }

    /// Documents with a key are listed, too, although their ids have no time.
    async fn a_list_between_two_times_is_that_part_of_the_whole(installation) {
        let put = installation.at(0, Method::PUT, "/v1/collections/bad").json(&value!({"indexed": ["f"]}));
        assert_eq!(put.send().await.expect("an answer").status(), 200);
        for number in 0..6 {
            let request = installation.at(number, Method::POST, PATH).header("prefer", "wait=30");
            let request = if number % 2 == 0 { request } else { request.header("idempotency-key", format!("k{number}")) };
            let stored = request.json(&value!({"f": number / 3})).send().await.expect("an answer");
            assert_eq!(stored.status(), 201);
        }
        let list = async |query: &str| {
            let (mut items, mut after) = (Vec::new(), String::new());
            loop {
                let page = json(installation.get(&format!("{PATH}?{query}{after}")).await).await;
                items.extend(page["items"].as_array().expect("items").clone());
                let Some(next) = page["next"].as_str() else { return items };
                after = format!("&after={next}");
            }
        };
        let time_of = |item: &Value| parse(item["accepted_at"].as_str().expect("text")).expect("a time");
        let whole = list("limit=9").await;
        assert_eq!(whole.len(), 6);
        let ends = [time_of(&whole[5]) - 1, time_of(&whole[4]), time_of(&whole[1]), time_of(&whole[0]) + 1];
        for (after, before) in ends.iter().flat_map(|after| ends.map(|before| (*after, before))) {
            for (filter, f) in [("", None), ("&f=1", Some(1)), ("&f=1.0", Some(1))] {
                let is_in = |item: &&Value| {
                    let at_ms = time_of(item);
                    at_ms > after && at_ms < before && f.is_none_or(|f| item["data"]["f"] == f)
                };
                let expected: Vec<Value> = whole.iter().filter(is_in).cloned().collect();
                let (after, before) = (rfc3339(after), rfc3339(before));
                let bounds = format!("accepted_after={after}&accepted_before={before}{filter}");
                assert_eq!(list(&format!("limit=2&{bounds}")).await, expected, "{bounds}");
            }
        }
        // The times are finer than those of documents, and with an offset.
        let newest = rfc3339(time_of(&whole[0])).replace('Z', "");
        let at_newest = format!("accepted_after={newest}Z");
        assert_eq!(list(&at_newest).await, Vec::<Value>::new());
        assert!(list(&format!("accepted_before={newest}1Z")).await == whole);
        let hours_behind = format!("accepted_before={newest}-02:00&accepted_after={newest}%2B02:00");
        assert!(list(&hours_behind).await == whole);
        // Lists take these names for themselves.
        for field in ["accepted_after", "accepted_before"] {
            let put = installation.at(0, Method::PUT, "/v1/collections/other").json(&value!({"indexed": ["n", field]}));
            let refused = problem(put.send().await.expect("an answer"), 422).await;
            assert_eq!(refused["errors"][0]["pointer"], "/indexed/1");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nobody_is_an_administrator_until_the_setting_says_so() {
    let off = |config: &mut shared::config::Config| config.auth.admin_without_keys = false;
    cluster_with("admin_off", off, |installation| async move {
        for method in [Method::PUT, Method::GET, Method::DELETE] {
            let request = installation.at(0, method, "/v1/collections/orders");
            let refused = problem(request.body("{}").send().await.expect("an answer"), 403).await;
            assert_eq!(refused["type"], "urn:forebay:problem:admin_off");
            assert!(refused["detail"].as_str().expect("text").contains("auth.admin_without_keys"));
        }
        installation
    })
    .await;
}
