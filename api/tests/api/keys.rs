//! Writes with an Idempotency-Key: one effect, no matter which client repeats them and where.
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shared::config::Config;
use shared::program::backend::Backend;

use crate::support::{Installation, close, cluster, json, on_both_pairs, open, problem};

const PATH: &str = "/v1/counters/keyed/increments";

async fn post(installation: &Installation, replica: usize, key: &str, body: Value) -> Response {
    let request = installation.at(replica, Method::POST, PATH).header("idempotency-key", key);
    request.json(&body).send().await.expect("an answer")
}

async fn accepted(response: Response) -> (String, String) {
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().expect("text").to_owned();
    (json(response).await["id"].as_str().expect("an id").to_owned(), location)
}

/// Part of a location before the message, which is another each time.
fn named(location: &str) -> &str {
    location.split("&message=").next().expect("a path")
}

fn ids(accepted: &Value) -> Vec<String> {
    let ids = accepted["ids"].as_array().expect("ids").iter();
    ids.map(|id| id.as_str().expect("an id").to_owned()).collect()
}

/// Returns the receipt once it is settled.
async fn settled(installation: &Installation, replica: usize, path: &str) -> Value {
    installation
        .wait_for("a settled receipt", async || {
            let response = installation.at(replica, Method::GET, path).send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            let receipt = json(response).await;
            (receipt["status"] != "accepted").then_some(receipt)
        })
        .await
}

/// Applies one more write, behind everything that was sent before, and returns the counter after
/// it. Consumers take messages in turns, so that is one write for each.
async fn counter_in_the_end(installation: &Installation) -> Value {
    for consumer in 0..2 * installation.consumers.len() {
        let id = installation.increment(0, &format!("last-{consumer}"), 1).await;
        settled(installation, 0, &format!("/v1/receipts/{id}")).await;
    }
    let response = installation.get("/v1/counters?prefix=keyed").await;
    json(response).await["items"][0].clone()
}

on_both_pairs! {
    async fn a_repetition_has_the_same_id_and_no_second_effect(installation) {
        let (id, location) = accepted(post(&installation, 0, "\"order-1\"", json!({"by": 5})).await).await;
        assert!(location.starts_with(&format!("/v1/receipts/{id}?payload=")), "{location}");
        for replica in 0..4 {
            // Without quotes, or with other spaces: the same key and the same payload.
            let (again, other) = accepted(post(&installation, replica, "order-1", json!({"by": 5})).await).await;
            assert_eq!((again, named(&other)), (id.clone(), named(&location)));
            assert_ne!(other, location, "it came in another message");
        }
        for replica in 0..2 {
            assert_eq!(settled(&installation, replica, &location).await["status"], "applied");
        }
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(5), &json!(1)));
        let (other, _) = accepted(post(&installation, 0, "order-2", json!({"by": 5})).await).await;
        assert_ne!(other, id);
        installation.wait_for_value(0, "keyed", 10).await;
    }

    async fn the_same_key_at_two_replicas_at_once_has_one_effect(installation) {
        let same = tokio::join!(
            post(&installation, 0, "same", json!({"by": 3})),
            post(&installation, 1, "same", json!({"by": 3}))
        );
        let (one, two) = (accepted(same.0).await, accepted(same.1).await);
        assert_eq!((&one.0, named(&one.1)), (&two.0, named(&two.1)));
        settled(&installation, 0, &one.1).await;
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(3), &json!(1)));
    }

    async fn of_two_payloads_under_one_key_one_is_applied_and_the_other_told(installation) {
        for round in 0..5 {
            let key = format!("two-{round}");
            let both = tokio::join!(
                post(&installation, 0, &key, json!({"by": 1})),
                post(&installation, 1, &key, json!({"by": 1_000}))
            );
            let mut statuses = Vec::new();
            for response in [both.0, both.1] {
                if response.status() == 422 {
                    let conflict = problem(response, 422).await;
                    assert_eq!(conflict["type"], "urn:forebay:problem:conflict");
                    statuses.push(conflict["receipt"]["status"].clone());
                } else {
                    let (_, location) = accepted(response).await;
                    statuses.push(settled(&installation, round, &location).await["status"].clone());
                }
            }
            statuses.sort_by_key(ToString::to_string);
            assert_eq!(statuses, ["applied", "conflict"]);
        }
        let counter = counter_in_the_end(&installation).await;
        assert_eq!(counter["version"], 5, "{counter}");
    }

    async fn who_waits_hears_of_a_conflict(installation) {
        installation.wait_until_events_arrive().await;
        let wait = async |replica: usize, by: i64| {
            let request = installation.at(replica, Method::POST, PATH).header("idempotency-key", "waits");
            request.header("prefer", "wait=20").json(&json!({"by": by})).send().await.expect("an answer")
        };
        let first = wait(0, 1).await;
        assert_eq!(first.status(), 200);
        assert_eq!(json(first).await["value"], 1);
        let conflict = problem(wait(1, 2).await, 422).await;
        assert_eq!(conflict["type"], "urn:forebay:problem:conflict");
        let id = conflict["receipt"]["id"].as_str().expect("an id");
        // The write that counts under the key was applied, and its receipt says so without a payload.
        assert_eq!(settled(&installation, 0, &format!("/v1/receipts/{id}")).await["status"], "applied");
        // The value after the increment was returned the first time only; a retry gets the present one.
        let repeated = wait(1, 1).await;
        assert_eq!((repeated.status().as_u16(), &repeated.headers()["forebay-value"]), (200, &"present".parse().expect("a value")));
        assert_eq!(json(repeated).await["version"], 1);
    }

    async fn a_batch_is_keyed_by_position_and_a_retry_of_a_partly_rejected_one_has_no_second_effect(installation) {
        let body = json!([{"by": 1}, {"by": "x"}, {"by": 100}]);
        let first = json(post(&installation, 0, "batch", body.clone()).await).await;
        assert_eq!((&first["accepted"], &first["rejected"][0]["index"]), (&json!(2), &json!(1)));
        let again = json(post(&installation, 1, "batch", body).await).await;
        assert_eq!(ids(&first), ids(&again));
        // The batch is corrected under the same key: the good items keep their positions.
        let corrected = json(post(&installation, 0, "batch", json!([{"by": 1}, {"by": 10}, {"by": 100}])).await).await;
        let corrected = ids(&corrected);
        assert_eq!([&corrected[0], &corrected[2]], [&ids(&first)[0], &ids(&first)[1]]);
        for id in &corrected {
            settled(&installation, 0, &format!("/v1/receipts/{id}")).await;
        }
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(111), &json!(3)));
        // The replica that received the first one knows it at once.
        let shifted = installation
            .wait_for("a conflict that is known at once", async || {
                let shifted = json(post(&installation, 0, "batch", json!([{"by": 10}, {"by": 10}])).await).await;
                (!shifted["rejected"].as_array()?.is_empty()).then_some(shifted)
            })
            .await;
        let rejected = &shifted["rejected"];
        assert_eq!(rejected.as_array().map(Vec::len), Some(1), "{shifted}");
        assert_eq!((&rejected[0]["index"], &rejected[0]["problem"]["type"]), (&json!(0), &json!("urn:forebay:problem:conflict")));
        let payloads = shifted["payloads"].as_array().expect("a payload for each that was accepted");
        let path = format!("/v1/receipts/{}?payload={}", ids(&shifted)[0], payloads[0].as_str().expect("a fingerprint"));
        assert_eq!(settled(&installation, 1, &path).await["status"], "applied");
    }

    async fn another_payload_under_a_key_within_one_request_is_told(installation) {
        let body = json!([{"by": 1, "idempotency_key": "in"}, {"by": 7, "idempotency_key": "in"}, {"by": 10}]);
        let answer = json(post(&installation, 0, "request", body).await).await;
        assert_eq!(answer["accepted"], 2, "{answer}");
        let rejected = &answer["rejected"];
        assert_eq!((&rejected[0]["index"], &rejected[0]["problem"]["type"]), (&json!(1), &json!("urn:forebay:problem:conflict")));
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(11), &json!(2)));
    }

    async fn who_won_may_repeat_where_the_loser_was_accepted(installation) {
        let (_, won) = accepted(post(&installation, 0, "race", json!({"by": 2})).await).await;
        assert_eq!(settled(&installation, 0, &won).await["status"], "applied");
        // It is accepted or refused at once, depending on the events that this replica has
        // received; it is never applied.
        let lost = post(&installation, 1, "race", json!({"by": 1})).await;
        if lost.status() == 202 {
            let (_, location) = accepted(lost).await;
            assert_eq!(settled(&installation, 1, &location).await["status"], "conflict");
        }
        for replica in [1, 0, 1] {
            let (_, again) = accepted(post(&installation, replica, "race", json!({"by": 2})).await).await;
            assert_eq!(named(&again), named(&won));
        }
    }

    async fn an_items_own_key_wins_over_that_of_its_request(installation) {
        let body = json!([{"by": 1, "idempotency_key": "own"}, {"by": 10}, {"by": 1, "idempotency_key": "own"}]);
        let first = ids(&json(post(&installation, 0, "request", body).await).await);
        assert_eq!(first[0], first[2], "the same key twice is the same write");
        let single = installation.at(1, Method::POST, PATH).json(&json!({"by": 1, "idempotency_key": "own"}));
        let (id, location) = accepted(single.send().await.expect("an answer")).await;
        assert_eq!(id, first[0]);
        settled(&installation, 0, &location).await;
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(11), &json!(2)));
    }

    async fn a_keyed_write_that_is_set_aside_stays_so(installation) {
        installation.wait_until_events_arrive().await;
        accepted(post(&installation, 0, "fill", json!({"by": i64::MAX})).await).await;
        installation.wait_for_value(0, "keyed", i64::MAX).await;
        for replica in 0..2 {
            let request = installation.at(replica, Method::POST, PATH).header("idempotency-key", "over");
            let response = request.header("prefer", "wait=20").send().await.expect("an answer");
            let set_aside = problem(response, 422).await;
            assert_eq!(set_aside["type"], "urn:forebay:problem:set_aside", "{set_aside}");
            assert_eq!(set_aside["receipt"]["reason"], "counter_overflow");
        }
    }

    async fn a_member_of_a_document_is_data_and_never_its_key(installation) {
        let values = [json!("same"), json!("same"), json!(5), json!(null), json!({"a": [1]}), json!("\u{e4}\n"), json!("k".repeat(300))];
        let documents: Vec<_> = values.iter().map(|value| json!({"idempotency_key": value})).collect();
        let answer = json(installation.post("/v1/data/member", &Value::from(documents.clone()).to_string()).await).await;
        assert_eq!((&answer["accepted"], answer.get("payloads")), (&json!(values.len()), None), "{answer}");
        for (id, document) in ids(&answer).iter().zip(&documents) {
            let stored = settled(&installation, 0, &format!("/v1/data/member/{id}")).await;
            assert_eq!((&stored["status"], &stored["data"]), (&json!("applied"), document));
        }
        // The header is the key, whatever the member says.
        let send = async |replica: usize, member: &str| {
            let request = installation.at(replica, Method::POST, "/data").header("idempotency-key", "header");
            request.header("prefer", "wait=20").json(&json!({"idempotency_key": member})).send().await.expect("an answer")
        };
        let first = send(0, "a").await;
        assert_eq!(first.status(), 201);
        assert_eq!(json(first).await["id"], json(send(1, "a").await).await["id"]);
        assert_eq!(problem(send(1, "b").await, 422).await["type"], "urn:forebay:problem:conflict");
    }

    async fn a_key_beside_a_document_is_that_of_its_item(installation) {
        let send = async |replica: usize, path: &str, media_type: &str, body: &str| {
            let request = installation.at(replica, Method::POST, path).header("content-type", media_type);
            request.header("prefer", "wait=20").header("idempotency-key", "request").body(body.to_owned()).send().await.expect("an answer")
        };
        let (path, plain, lines) = ("/v1/data/beside?items=keyed", "application/json", "application/x-ndjson");
        let items = [
            r#"{"idempotency_key":"a","document":{"idempotency_key":7,"document":{}}}"#,
            r#"{"document":{"n":2}}"#,
            r#"{"idempotency_key":"b","document":{"n":3}}"#,
            r#"{"idempotency_key":"c","document":{"n":4},"more":1}"#,
            r#"{"document":{"n":[1,1e99999]}}"#,
            r#"{"n":5}"#,
            r#"{"idempotency_key":"a","document":{"n":6}}"#,
        ];
        let array = format!("[{}]", items.join(","));
        let first = json(send(0, path, plain, &array).await).await;
        assert_eq!(first["accepted"], 3, "{first}");
        let rejected = first["rejected"].as_array().expect("a list");
        let shown: Vec<_> = rejected.iter().map(|item| (item["index"].as_u64(), item["problem"]["errors"][0]["pointer"].as_str())).collect();
        assert_eq!(shown, [(Some(3), Some("/more")), (Some(4), Some("/document/n/1")), (Some(5), Some("/n")), (Some(6), None)], "{first}");
        assert_eq!(rejected[3]["problem"]["type"], "urn:forebay:problem:conflict");
        for (media_type, body) in [(plain, array), (lines, items.join("\n"))] {
            assert_eq!(ids(&json(send(1, path, media_type, &body).await).await), ids(&first));
        }
        // The id of a single document has no position, and the collection is part of the payload.
        let alone = send(1, path, plain, items[2]).await;
        assert_eq!(alone.status(), 201);
        assert_eq!(json(alone).await["id"], ids(&first)[2]);
        for (path, body) in [(path, items[2].replace('3', "30")), ("/data?items=keyed", items[2].into())] {
            let conflict = problem(send(0, path, plain, &body).await, 422).await;
            assert_eq!(conflict["type"], "urn:forebay:problem:conflict", "{body}");
        }
        for (id, data) in ids(&first).iter().zip([json!({"idempotency_key": 7, "document": {}}), json!({"n": 2}), json!({"n": 3})]) {
            assert_eq!(settled(&installation, 0, &format!("/v1/data/beside/{id}")).await["data"], data);
        }
        let page = json(installation.get("/v1/data/beside").await).await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(3), "{page}");
        for (query, parameter) in [("items=plain", "items"), ("items=keyed&x=1", "x")] {
            let refused = problem(send(0, &format!("/data?{query}"), plain, "{}").await, 422).await;
            assert_eq!(refused["errors"][0]["parameter"], parameter);
        }
    }

    async fn a_key_that_is_none_is_refused_by_its_header(installation) {
        let long = "x".repeat(256);
        for key in ["", "\"", "\"a\"b\"", "a b", long.as_str()] {
            let refused = problem(post(&installation, 0, key, json!({})).await, 400).await;
            assert!(refused["detail"].as_str().expect("a detail").contains("Idempotency-Key"), "{refused}");
        }
        let twice = installation.at(0, Method::POST, PATH).header("idempotency-key", "a");
        problem(twice.header("idempotency-key", "a").send().await.expect("an answer"), 400).await;
        for own in [json!(""), json!(1), json!(long)] {
            let refused = installation.at(0, Method::POST, PATH).json(&json!({"idempotency_key": own}));
            let refused = problem(refused.send().await.expect("an answer"), 422).await;
            assert_eq!(refused["errors"][0]["pointer"], "/idempotency_key");
        }
        let (_, location) = accepted(post(&installation, 0, "a", json!({})).await).await;
        for payload in ["x", "g0000000000000000000000000000000", ""] {
            let path = location.split('=').next().expect("a path");
            problem(installation.get(&format!("{path}={payload}")).await, 422).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_after_its_replica_is_gone_has_no_second_effect() {
    cluster("gone", |mut installation| async move {
        let first = accepted(post(&installation, 0, "gone", json!({"by": 7})).await).await;
        installation.apis.remove(0).stop().await;
        let again = accepted(post(&installation, 0, "gone", json!({"by": 7})).await).await;
        assert_eq!((&first.0, named(&first.1)), (&again.0, named(&again.1)));
        settled(&installation, 0, &again.1).await;
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(7), &json!(1)));
        installation
    })
    .await;
}

/// Starts another replica of the same installation, with other secrets.
async fn with_secrets(installation: &mut Installation, secrets: &[&str]) -> Backend {
    let mut config: Config = installation.config.clone();
    config.ids.secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    let backend = open(&config).await;
    installation.apis.push(api::server::Server::start(&config, &backend).expect("the API starts"));
    let last = installation.apis.len() - 1;
    installation
        .wait_for("a healthy replica", async || {
            let response = installation.at(last, Method::GET, "/health").send().await.expect("an answer");
            (response.status() == 200).then_some(())
        })
        .await;
    backend
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_rotated_a_repetition_has_no_second_effect() {
    cluster("rotation", |mut installation| async move {
        let old = installation.config.ids.secrets[0].clone();
        let backend = with_secrets(&mut installation, &["new", &old]).await;
        let rotated = installation.apis.len() - 1;
        let (first, first_at) = accepted(post(&installation, 0, "rotated", json!({"by": 7})).await).await;
        let (again, again_at) =
            accepted(post(&installation, rotated, "rotated", json!({"by": 7})).await).await;
        // The last 16 bits are the check sum, which depends on the secret that signs.
        assert_eq!(first[..32], again[..32]);
        assert_ne!(first[32..], again[32..]);
        assert_eq!(settled(&installation, rotated, &first_at).await["status"], "applied");
        assert_eq!(settled(&installation, rotated, &again_at).await["status"], "applied");
        let counter = counter_in_the_end(&installation).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(7), &json!(1)));
        installation.apis.pop().expect("the one with other secrets").stop().await;
        close(backend).await;
        installation
    })
    .await;
}
