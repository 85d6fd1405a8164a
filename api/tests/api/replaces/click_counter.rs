//! A counter behind one path.
//!
//! ```text
//! POST /counter    → 200 {"count": 1}     adds one and answers the new count
//! GET  /counter    → 200 {"count": 1}
//! ```
use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{json, on_both_pairs};

on_both_pairs! {
    async fn a_counter_counts(installation) {
        assert_eq!(json(installation.get("/counter").await).await, json!({"count": 0}));
        for count in 1..=3 {
            let response = installation.at(0, Method::POST, "/counter").send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            assert_eq!(json(response).await, json!({"count": count}));
            assert_eq!(json(installation.get("/counter").await).await, json!({"count": count}));
        }
    }

    async fn a_hundred_clients_at_once_get_a_hundred_counts(installation) {
        // A replica that does not receive the consumers' events yet does not know the count that a
        // click made.
        for replica in 0..installation.apis.len() {
            installation.wait_for("what became of a write at each replica", async || {
                let warming = installation.at(replica, Method::POST, "/v1/counters/warm/increments");
                let response = warming.header("Prefer", "wait=5").send().await.expect("an answer");
                (response.status() == 200 && !response.headers().contains_key("forebay-value")).then_some(())
            })
            .await;
        }
        let click = async |client: usize| {
            let response = installation.at(client, Method::POST, "/counter").send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            json(response).await["count"].as_i64().expect("a count")
        };
        let counts: BTreeSet<i64> = join_all((0..100).map(click)).await.into_iter().collect();
        assert_eq!(counts, (1..=100).collect());
        for replica in 0..installation.apis.len() {
            installation.wait_for("all clicks at each replica", async || {
                let response = installation.at(replica, Method::GET, "/counter").send().await.expect("an answer");
                (json(response).await == json!({"count": 100})).then_some(())
            })
            .await;
        }
    }
}
