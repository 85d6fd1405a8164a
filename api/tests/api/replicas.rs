//! Several replicas and consumers that behave like one.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;

use crate::support::{Installation, cluster, cluster_with, json};

/// Sets a time to live that no entry reaches: values follow by events alone.
fn no_expiry(config: &mut shared::config::Config) {
    config.cache.ttl_ms = 3_600_000;
    config.cache.negative_ttl_ms = 3_600_000;
}

async fn read(installation: &Installation, replica: usize) -> (u16, String, i64) {
    let request = installation.at(replica, Method::GET, "/v1/counters/shared");
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let how = response.headers().get("cache-status").map(|value| value.to_str().expect("text").to_owned());
    (status, how.unwrap_or_default(), json(response).await["version"].as_i64().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_cache_of_every_replica_by_events() {
    cluster_with("events", no_expiry, |installation| async move {
        installation.increment(0, "shared", 1).await;
        for replica in 0..2 {
            installation.wait_for_value(replica, "shared", 1).await;
        }
        for version in 2..=20 {
            installation.increment(version, "shared", 1).await;
            for replica in 0..2 {
                installation
                    .wait_for("the new version from memory", async || {
                        let (_, how, seen) = read(&installation, replica).await;
                        let version = i64::try_from(version).expect("small");
                        (seen == version && how == "forebay; hit").then_some(())
                    })
                    .await;
            }
        }
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_that_was_looked_for_before_its_first_increment_appears() {
    cluster_with("negative", no_expiry, |installation| async move {
        for replica in 0..2 {
            assert_eq!(read(&installation, replica).await.0, 404);
        }
        installation.increment(0, "shared", 4).await;
        for replica in 0..2 {
            installation.wait_for_value(replica, "shared", 4).await;
        }
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_never_go_backwards_at_a_replica_while_two_consumers_write() {
    cluster("monotonic", |installation| async move {
        let installation = Arc::new(installation);
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|replica| {
                let (installation, done) = (installation.clone(), done.clone());
                tokio::spawn(async move {
                    let (mut last, mut reads) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let (_, _, version) = read(&installation, replica).await;
                        assert!(version >= last, "{version} after {last}");
                        (last, reads) = (version, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let installation = installation.clone();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        installation.increment(writer, "shared", 1).await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("accepted");
        }
        for replica in 0..2 {
            let counter = installation.wait_for_value(replica, "shared", 400).await;
            assert_eq!(counter["version"], 400);
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.expect("never backwards") > 10);
        }
        Arc::into_inner(installation).expect("nobody else is left")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_stops_hands_over_what_it_holds() {
    cluster("handover", |mut installation| async move {
        let mut sent = 0;
        for round in 0..4 {
            for replica in 0..50 {
                installation.increment(replica, "shared", 1).await;
                sent += 1;
            }
            if round < 2 {
                installation.add_consumer().await;
                installation.consumers.remove(0).stop().await;
            }
        }
        installation.wait_for_value(0, "shared", sent).await;
        installation
    })
    .await;
}

/// Replaces a definition at the first replica.
async fn define(installation: &Installation, definition: serde_json::Value) {
    let request = installation.at(0, Method::PUT, "/v1/collections/things").json(&definition);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_holds_at_every_replica_at_once() {
    cluster("defined", |installation| async move {
        let post = async |replica: usize, data: serde_json::Value| {
            let request = installation.at(replica, Method::POST, "/v1/data/things").json(&data);
            request.send().await.expect("an answer").status().as_u16()
        };
        for round in 0..5 {
            let only = |kind: &str| serde_json::json!({"schema": {"properties": {"n": {"type": kind}}}});
            define(&installation, only("string")).await;
            for replica in 0..2 {
                assert_eq!(post(replica, serde_json::json!({"n": "text"})).await, 202, "{round}");
            }
            define(&installation, only("number")).await;
            // A document that only the older definition refuses is checked against the store.
            assert_eq!(post(1, serde_json::json!({"n": 1})).await, 202, "{round}");
            define(&installation, only("string")).await;
            // A document that only the older definition takes is refused once the event has come,
            // which no client sees.
            installation
                .wait_for("a refusal without an expiry", async || {
                    (post(1, serde_json::json!({"n": 1})).await == 422).then_some(())
                })
                .await;
            let field = format!("f{round}");
            let unknown = installation.at(1, Method::GET, &format!("/v1/data/things?{field}=1"));
            assert_eq!(unknown.send().await.expect("an answer").status(), 422, "{round}");
            define(&installation, serde_json::json!({"indexed": [field]})).await;
            let list = installation.at(1, Method::GET, &format!("/v1/data/things?{field}=1"));
            assert_eq!(list.send().await.expect("an answer").status(), 200, "{round}");
        }
        installation
    })
    .await;
}
