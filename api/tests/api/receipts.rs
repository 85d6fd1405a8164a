//! Receipts: accepted, applied, failed, or never issued.
use reqwest::Method;
use serde_json::Value;

use crate::support::{Installation, cluster, embedded, json, on_both_pairs, problem};

async fn receipt(installation: &Installation, replica: usize, id: &str) -> Value {
    let request = installation.at(replica, Method::GET, &format!("/v1/receipts/{id}"));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200, "an issued id is never unknown");
    json(response).await
}

async fn settled(installation: &Installation, replica: usize, id: &str) -> Value {
    installation
        .wait_for("a settled receipt", async || {
            let receipt = receipt(installation, replica, id).await;
            (receipt["status"] != "accepted").then_some(receipt)
        })
        .await
}

on_both_pairs! {
    async fn a_receipt_becomes_applied_at_every_replica(installation) {
        let id = installation.increment(0, "applied", 1).await;
        for replica in 0..2 {
            let receipt = settled(&installation, replica, &id).await;
            assert_eq!(receipt["status"], "applied");
            assert!(receipt["applied_at"].as_str().expect("a time").ends_with('Z'));
        }
    }

    async fn an_increment_that_overflows_is_set_aside_alone(installation) {
        let body = format!(r#"[{{"by":{}}},{{"by":1}},{{"by":-5}}]"#, i64::MAX);
        let accepted = json(installation.post("/v1/counters/full/increments", &body).await).await;
        let id = |index: usize| accepted["ids"][index].as_str().expect("an id").to_owned();
        assert_eq!(settled(&installation, 0, &id(0)).await["status"], "applied");
        let failed = settled(&installation, 1, &id(1)).await;
        assert_eq!(failed["status"], "failed");
        assert_eq!(failed["reason"], "counter_overflow");
        assert_eq!(settled(&installation, 1, &id(2)).await["status"], "applied");
        let counter = installation.wait_for_value(0, "full", i64::MAX - 5).await;
        assert_eq!(counter["version"], 2);
    }

    async fn an_id_that_was_never_issued_is_not_found(installation) {
        let id = installation.increment(0, "real", 1).await;
        let other_check = if id.ends_with('0') { "1" } else { "0" };
        let forged = format!("{}{other_check}", &id[..35]);
        for unknown in [forged.as_str(), "x", "01234567-89ab-4cde-8f01-23456789abcd", &id.to_uppercase()[..35]] {
            problem(installation.get(&format!("/v1/receipts/{unknown}")).await, 404).await;
        }
    }
}

async fn known_while_nothing_is_applied(mut installation: Installation) -> Installation {
    for consumer in installation.consumers.drain(..) {
        consumer.stop().await;
    }
    let id = installation.increment(0, "early", 1).await;
    for replica in 0..2 {
        let receipt = receipt(&installation, replica, &id).await;
        assert_eq!(receipt["status"], "accepted");
        assert_eq!(receipt["kind"], "increment");
        assert_eq!(receipt["id"], id.as_str());
    }
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_known_before_its_row_exists_embedded() {
    embedded(known_while_nothing_is_applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_known_at_every_replica_before_its_row_exists_cluster() {
    cluster("early", known_while_nothing_is_applied).await;
}
