//! An installation without consumers: writes are durable, and every client sees that nothing applies them.
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Installation, cluster, embedded, json};

async fn health(installation: &Installation, replica: usize) -> Value {
    json(installation.at(replica, Method::GET, "/health").send().await.expect("an answer")).await
}

async fn consumers_metric(installation: &Installation) -> Option<String> {
    let url = format!("http://{}/metrics", installation.apis[0].ops_address);
    let text = installation.client.get(url).send().await.expect("an answer").text().await.expect("text");
    text.lines().find_map(|line| line.strip_prefix("forebay_consumers ")).map(str::to_owned)
}

async fn without_consumers(mut installation: Installation) -> Installation {
    installation.wait_until_events_arrive().await;
    let count = installation.consumers.len();
    installation
        .wait_for("all consumers", async || {
            (health(&installation, 0).await["consumers"] == count).then_some(())
        })
        .await;
    assert_eq!(health(&installation, 0).await["status"], "ok");
    for consumer in installation.consumers.drain(..) {
        consumer.stop().await;
    }
    // It waits until it knows that no consumer is there, because a restart may be under way.
    let started = Instant::now();
    let held = installation.increment_and_wait(0, "held").await;
    assert_eq!((held.status().as_u16(), json(held).await["status"].clone()), (202, json!("accepted")));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    for replica in 0..installation.apis.len() {
        installation
            .wait_for("a degraded replica", async || {
                let health = health(&installation, replica).await;
                (health["status"] == "degraded" && health["consumers"] == 0 && health["queue"] == "healthy")
                    .then_some(())
            })
            .await;
        let started = Instant::now();
        assert_eq!(installation.increment_and_wait(replica, "held").await.status(), 202);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    assert_eq!(consumers_metric(&installation).await.as_deref(), Some("0"));
    let ready = installation.get("/readyz").await;
    assert_eq!(ready.status(), 200, "writes are taken");
    installation.add_consumer().await;
    for replica in 0..installation.apis.len() {
        installation
            .wait_for("a healthy replica", async || {
                let health = health(&installation, replica).await;
                (health["status"] == "ok" && health["consumers"] == 1).then_some(())
            })
            .await;
        assert_eq!(installation.increment_and_wait(replica, "back").await.status(), 200);
    }
    assert_eq!(consumers_metric(&installation).await.as_deref(), Some("1"));
    installation.wait_for_value(0, "held", 1 + i64::try_from(installation.apis.len()).expect("few")).await;
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn no_consumer_is_seen_and_keeps_nobody_waiting() {
    // The metric is that of the process.
    testkit::alone::alone(async {
        embedded(without_consumers).await;
        cluster("no-consumer", without_consumers).await;
    })
    .await;
}
