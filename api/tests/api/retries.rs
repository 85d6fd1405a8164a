//! Retries of writes that were applied long ago: the answer has the present value.
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::{Installation, cluster, embedded, json, on_both_pairs};

/// Header that marks a present value; without it the value is the one that an increment made.
const VALUE: &str = "forebay-value";

fn keyed(installation: &Installation, replica: usize, path: &str, key: &str) -> RequestBuilder {
    installation.at(replica, Method::POST, path).header("idempotency-key", key).header("prefer", "wait=20")
}

async fn sent(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

async fn answered(response: Response, status: u16) -> Value {
    assert_eq!(response.status(), status, "{:?}", response.text().await);
    json(response).await
}

on_both_pairs! {
    async fn a_retry_of_an_increment_is_answered_with_the_counter_as_it_is_now(installation) {
        installation.wait_until_events_arrive().await;
        for (path, first, now) in [
            ("/v1/counters/again/increments", json!({"name": "again", "value": 5, "version": 1}), json!({"name": "again", "value": 6, "version": 2})),
            ("/counter", json!({"count": 5}), json!({"count": 6})),
        ] {
            let key = format!("once{}", path.len());
            let made = sent(keyed(&installation, 0, path, &key).json(&json!({"by": 5}))).await;
            assert!(!made.headers().contains_key(VALUE), "this increment made it");
            assert_eq!(answered(made, 200).await, first);
            answered(sent(installation.at(0, Method::POST, path).header("prefer", "wait=20")).await, 200).await;
            for replica in 0..2 {
                let retried = sent(keyed(&installation, replica, path, &key).json(&json!({"by": 5}))).await;
                assert_eq!(retried.headers()[VALUE], "present");
                assert_eq!(retried.headers()["preference-applied"], "wait=20");
                assert_eq!(answered(retried, 200).await, now);
            }
        }
    }

    async fn a_retry_of_a_document_or_a_point_is_answered_with_what_is_stored(installation) {
        installation.wait_until_events_arrive().await;
        for path in ["/v1/data/again", "/data"] {
            let store = async |replica: usize, body: &'static str| {
                let request = keyed(&installation, replica, path, &path.replace('/', "-")).header("content-type", "application/json");
                sent(request.body(body)).await
            };
            let made = answered(store(0, r#"{"a": 1, "b": 2}"#).await, 201).await;
            for replica in 0..2 {
                // The answer has the stored document, however the retry is spelled.
                let retried = store(replica, r#"{"b":2,"a":1}"#).await;
                let location = retried.headers()["location"].to_str().expect("text");
                let path = location.split('?').next().expect("a path");
                assert!(path.ends_with(made["id"].as_str().expect("an id")), "{location}");
                assert_eq!(answered(retried, 201).await, made);
            }
            let collection = if path == "/data" { "default" } else { "again" };
            let stored = format!("/v1/data/{collection}/{}", made["id"].as_str().expect("an id"));
            answered(sent(installation.at(0, Method::DELETE, &stored).header("prefer", "wait=20")).await, 200).await;
            let gone = answered(store(1, r#"{"a":1,"b":2}"#).await, 200).await;
            assert_eq!(gone, json!({"id": made["id"], "status": "deleted"}));
        }
        let point = json!({"timestamp": api::rfc3339::rfc3339(shared::runtime::clock::now_ms()), "value": 1.5, "type": "t"});
        let first = answered(sent(keyed(&installation, 0, "/api/metrics", "p").json(&point)).await, 201).await;
        for replica in 0..2 {
            let retried = sent(keyed(&installation, replica, "/api/metrics", "p").json(&point)).await;
            assert_eq!(answered(retried, 201).await, first);
        }
    }

    async fn a_retry_that_does_not_wait_is_not_called_accepted_once_it_is_known_as_applied(installation) {
        let path = "/v1/counters/plain/increments";
        let post = async || {
            let request = installation.at(0, Method::POST, path).header("idempotency-key", "plain");
            answered(sent(request).await, 202).await
        };
        assert_eq!(post().await["status"], "accepted");
        installation.wait_for("a retry that is known as applied", async || (post().await["status"] == "applied").then_some(())).await;
        let one = json(installation.get("/v1/counters/plain").await).await;
        assert_eq!((&one["value"], &one["version"]), (&json!(1), &json!(1)));
    }
}

async fn retried_without_consumers(mut installation: Installation) -> Installation {
    installation.wait_until_events_arrive().await;
    let path = "/v1/counters/alone/increments";
    answered(sent(keyed(&installation, 0, path, "alone")).await, 200).await;
    for consumer in installation.consumers.drain(..) {
        consumer.stop().await;
    }
    installation
        .wait_for("no consumer", async || {
            (json(installation.get("/health").await).await["consumers"] == 0).then_some(())
        })
        .await;
    for replica in 0..installation.apis.len() {
        let retried = answered(sent(keyed(&installation, replica, path, "alone")).await, 200).await;
        assert_eq!(retried, json!({"name": "alone", "value": 1, "version": 1}));
    }
    assert_eq!(answered(sent(keyed(&installation, 0, path, "never")).await, 202).await["status"], "accepted");
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_answered_although_no_consumer_runs() {
    embedded(retried_without_consumers).await;
    cluster("alone", retried_without_consumers).await;
}
