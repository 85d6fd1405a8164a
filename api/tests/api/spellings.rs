//! Ids, payloads and numbers: spellings with the same meaning, and spellings with another.
use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Installation, json as body_of, on_both_pairs, problem};

async fn keyed(installation: &Installation, replica: usize, key: &str, body: &str) -> Response {
    let request = installation.at(replica, Method::POST, "/v1/data/paid");
    let request = request.header("idempotency-key", key).header("prefer", "wait=20");
    request.header("content-type", "application/json").body(body.to_owned()).send().await.expect("an answer")
}

/// A page of which only names are read: its numbers are too large for a test's reader.
#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    data: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Returns the members `name` of the documents that a query finds, sorted.
async fn found(installation: &Installation, query: &str) -> Vec<String> {
    let answer = installation.get(&format!("/v1/data/numbers?{query}")).await;
    assert_eq!(answer.status(), 200, "{query}");
    let page: Page = serde_json::from_str(&answer.text().await.expect("text")).expect("a page");
    let mut names: Vec<_> = page.items.into_iter().map(|item| item.data.name).collect();
    names.sort();
    names
}

on_both_pairs! {
    async fn an_id_in_upper_case_is_the_same_id_wherever_one_is_taken(installation) {
        let stored = installation.at(0, Method::POST, "/v1/data/ids").header("prefer", "wait=20");
        let stored = body_of(stored.json(&json!({"n": 1})).send().await.expect("an answer")).await;
        let id = stored["id"].as_str().expect("an id");
        let upper = id.to_uppercase();
        assert_ne!(id, upper);
        for path in [format!("/v1/data/ids/{upper}"), format!("/v1/receipts/{upper}")] {
            let answer = installation
                .wait_for("what was stored", async || {
                    let answer = body_of(installation.get(&path).await).await;
                    (answer["status"] == "applied").then_some(answer)
                })
                .await;
            assert_eq!(answer["id"], id, "{path}: the answer has the one spelling");
        }
        // A conflict has the payload in its location.
        let first = body_of(keyed(&installation, 0, "upper", r#"{"n":1}"#).await).await;
        let other = keyed(&installation, 0, "upper", r#"{"n":2}"#).await;
        assert_eq!(other.status(), 422);
        let first = first["id"].as_str().expect("an id").to_uppercase();
        let receipt = installation.get(&format!("/v1/receipts/{first}?payload={}", "AB".repeat(16))).await;
        assert_eq!(body_of(receipt).await["status"], "conflict");
        // A page begins behind a position that a client may have kept in its own spelling.
        installation.post("/v1/data/ids", r#"{"n":2}"#).await;
        let page = installation
            .wait_for("two documents", async || {
                let page = body_of(installation.get("/v1/data/ids?limit=1").await).await;
                page["next"].is_string().then_some(page)
            })
            .await;
        let next = page["next"].as_str().expect("a cursor").to_uppercase();
        let second = body_of(installation.get(&format!("/v1/data/ids?limit=1&after={next}")).await).await;
        assert_eq!(second["items"][0]["id"], id);
        let deleted = installation.at(0, Method::DELETE, &format!("/v1/data/ids/{upper}")).send().await;
        assert!(deleted.expect("an answer").status().is_success());
        installation
            .wait_for("the deletion", async || {
                (installation.get(&format!("/v1/data/ids/{id}")).await.status() == 404).then_some(())
            })
            .await;
    }

    async fn a_dead_letter_is_found_by_its_id_in_upper_case(installation) {
        installation.increment_and_wait(0, "full").await;
        let by = json!({"by": i64::MAX});
        let over = installation.at(0, Method::POST, "/v1/counters/full/increments").header("prefer", "wait=20");
        let refused = problem(over.json(&by).send().await.expect("an answer"), 422).await;
        let id = refused["receipt"]["id"].as_str().expect("an id");
        let upper = id.to_uppercase();
        let path = format!("/v1/dead-letters/{upper}");
        let letter = body_of(installation.get(&path).await).await;
        assert_eq!(letter["id"], id, "{letter}");
        let redrive = json!({"filter": {"id": upper}, "dry_run": true});
        let dry = installation.post("/v1/dead-letters/redrive", &redrive.to_string()).await;
        let status = dry.status();
        let dry = body_of(dry).await;
        assert!(status.is_success(), "{dry}");
        let deleted = installation.at(0, Method::DELETE, &path).send().await.expect("an answer");
        assert_eq!(deleted.status(), 204);
        let letter = body_of(installation.get(&format!("/v1/dead-letters/{id}")).await).await;
        assert!(letter["discarded_at"].is_string(), "{letter}");
    }

    async fn a_payload_under_a_key_is_its_json_without_loss(installation) {
        let amount = |text: &str| format!(r#"{{"amount":{text},"by":{{"x":1,"y":[2.5]}}}}"#);
        for (index, (first, same, others)) in [
            ("0.1", vec!["0.10", "1e-1", "10E-2"], vec!["0.1000000000000000055", "0.1000000000000000000001"]),
            ("9007199254740993.0", vec!["9007199254740993.00"], vec!["9007199254740992.0", "9007199254740993"]),
            ("12345678901234567890.25", vec!["1234567890123456789025e-2"], vec!["12345678901234567890.26", "12345678901234567000.0"]),
            ("10", vec!["10 "], vec!["10.0", "1e1", "11"]),
            ("10.0", vec!["1e1", "100e-1"], vec!["10", "10.000000000000000001"]),
            ("18446744073709551616", vec!["18446744073709551616 "], vec!["18446744073709551617", "18446744073709551616.0"]),
            ("1e20", vec!["10e19"], vec!["100000000000000000000"]),
            ("1.5e400", vec!["15e399", "1.50E+0400"], vec!["1.5e401", "-1.5e400"]),
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("amount-{index}");
            let stored = keyed(&installation, 0, &key, &amount(first)).await;
            assert_eq!(stored.status(), 201, "{first}");
            let location = stored.headers()["location"].to_str().expect("text");
            let id = location.rsplit('/').next().and_then(|id| id.split('?').next()).expect("an id").to_owned();
            assert!(stored.text().await.expect("text").ends_with(&format!(r#","data":{}}}"#, amount(first))));
            for same in same {
                // Other spaces, another order of members, another spelling of a string.
                let body = format!("{{ \"\\u0062y\": {{\"y\":[ 25e-1 ],\"x\":1}}, \"amount\" : {same} }}");
                let again = keyed(&installation, 1, &key, &body).await;
                assert!(again.status().is_success(), "{first} {same} {}", again.status());
                assert!(again.text().await.expect("text").contains(&id), "{first} {same}");
            }
            for other in others {
                let refused = problem(keyed(&installation, 1, &key, &amount(other)).await, 422).await;
                assert_eq!(refused["type"], "urn:forebay:problem:conflict", "{first} {other}");
            }
        }
        let page = installation.get("/v1/data/paid").await.text().await.expect("text");
        assert_eq!(page.matches(r#""amount""#).count(), 8, "one effect a key");
    }

    async fn equal_numbers_find_each_other_in_filters_and_different_ones_do_not(installation) {
        let put = installation.at(0, Method::PUT, "/v1/collections/numbers").json(&json!({"indexed": ["n", "m"]}));
        assert_eq!(put.send().await.expect("an answer").status(), 200);
        let numbers = [
            "1e18", "1000000000000000000", "1000000000000000000.0", "1000000000000000001", "1.000000000000000001e18",
            "9007199254740992", "9007199254740993", "9007199254740992.0", "9007199254740993.0", "9.007199254740993e15",
            "-9223372036854775808", "-9223372036854775808.0", "0.1", "0.10", "0.1000000000000000055", "3", "3.0",
            "3.0000000000000000001", "-0", "0", "0.0", "1e300", "1.5e-300", "100000000000000000000.0", "1e20",
            "9223372036854775808", "9223372036854775808.0", "-9223372036854775809", "18446744073709551615", "18446744073709551616",
            "36893488147419103233", "1e400", "10.0e399", "1e401", "-1e400", "\"1e400\"", "1e-400", "\"\\u0000\"", "\"\\u0000\\u0000\"",
            "\"1e18\"", "\"1000000000000000000\"", "\"3\"", "\"3.0\"", "true", "\"true\"",
        ];
        let documents: Vec<_> = numbers
            .iter()
            .map(|number| format!(r#"{{"n":{number},"m":1,"name":{}}}"#, Value::from(*number)))
            .collect();
        installation.post("/v1/data/numbers", &format!("[{}]", documents.join(","))).await;
        installation
            .wait_for("all of them", async || (found(&installation, "m=1").await.len() == numbers.len()).then_some(()))
            .await;
        for (query, expected) in [
            ("n=1e18", &["1e18", "1000000000000000000", "1000000000000000000.0", "\"1e18\""][..]),
            ("n=1000000000000000000", &["1e18", "1000000000000000000", "1000000000000000000.0", "\"1000000000000000000\""]),
            ("n=10e17", &["1e18", "1000000000000000000", "1000000000000000000.0"]),
            ("n=1000000000000000001", &["1000000000000000001", "1.000000000000000001e18"]),
            ("n=9007199254740993", &["9007199254740993", "9007199254740993.0", "9.007199254740993e15"]),
            ("n=9007199254740992&m=1", &["9007199254740992", "9007199254740992.0"]),
            ("n=9007199254740993.0&m=1.0", &["9007199254740993", "9007199254740993.0", "9.007199254740993e15"]),
            ("n=-9223372036854775808", &["-9223372036854775808", "-9223372036854775808.0"]),
            ("n=0.1", &["0.1", "0.10"]),
            ("n=0.1000000000000000055", &["0.1000000000000000055"]),
            ("n=3", &["3", "3.0", "\"3\""]),
            ("n=3.0", &["3", "3.0", "\"3.0\""]),
            ("n=3.0000000000000000001", &["3.0000000000000000001"]),
            ("n=-0", &["-0", "0", "0.0"]),
            ("n=1e300", &["1e300"]),
            ("n=15e-301", &["1.5e-300"]),
            ("n=100000000000000000000", &["100000000000000000000.0", "1e20"]),
            ("n=true", &["true", "\"true\""]),
            ("n=9223372036854775808", &["9223372036854775808", "9223372036854775808.0"]),
            ("n=9.223372036854775808e18", &["9223372036854775808", "9223372036854775808.0"]),
            ("n=-9223372036854775809", &["-9223372036854775809"]),
            ("n=18446744073709551615", &["18446744073709551615"]),
            ("n=18446744073709551616.0", &["18446744073709551616"]),
            ("n=36893488147419103233&m=1", &["36893488147419103233"]),
            ("n=36893488147419103232", &[]),
            ("n=1e400", &["1e400", "10.0e399", "\"1e400\""]),
            ("n=1e401", &["1e401"]),
            ("n=-10e399", &["-1e400"]),
            ("n=1e-400", &["1e-400"]),
            ("n=%00", &["\"\\u0000\""]),
            ("n=4", &[]),
        ] {
            let mut expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
            expected.sort();
            assert_eq!(found(&installation, query).await, expected, "{query}");
        }
        // A page is full of matches, whatever else the index holds.
        let page = body_of(installation.get("/v1/data/numbers?n=9007199254740993&limit=2").await).await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(2), "{page}");
        let next = page["next"].as_str().expect("a next page");
        let rest = format!("/v1/data/numbers?n=9007199254740993&limit=2&after={next}");
        let rest = body_of(installation.get(&rest).await).await;
        assert_eq!((rest["items"].as_array().map(Vec::len), &rest["next"]), (Some(1), &Value::Null), "{rest}");
    }

    async fn large_numbers_are_checked_by_their_exact_value(installation) {
        let schema = json!({"properties": {"n": {"type": "integer", "multipleOf": 3, "maximum": 1e30}}});
        let put = installation.at(0, Method::PUT, "/v1/collections/large").json(&json!({"schema": schema}));
        assert_eq!(put.send().await.expect("an answer").status(), 200);
        for (number, status) in [
            ("36893488147419103233", 201),
            ("36893488147419103234", 422),
            ("36893488147419103233.0", 201),
            ("36893488147419103233.00000000000000000001", 422),
            ("999999999999999999999999999999", 201),
            ("1000000000000000000000000000002", 422),
            ("-3e400", 201),
            ("-1e400", 422),
            ("3e-400", 422),
        ] {
            let request = installation.at(0, Method::POST, "/v1/data/large").header("prefer", "wait=20");
            let request = request.header("content-type", "application/json");
            let answer = request.body(format!(r#"{{"n":{number}}}"#)).send().await.expect("an answer");
            assert_eq!(answer.status(), status, "{number}");
            if status == 422 {
                assert_eq!(problem(answer, 422).await["errors"][0]["pointer"], "/n", "{number}");
            }
        }
        let rounded = r#"{"schema":{"properties":{"n":{"maximum":18446744073709551616}}}}"#;
        let put = installation.at(0, Method::PUT, "/v1/collections/large").header("content-type", "application/json");
        let refused = problem(put.body(rounded).send().await.expect("an answer"), 422).await;
        assert_eq!(refused["errors"][0]["pointer"], "/schema/properties/n/maximum", "{refused}");
    }
}
