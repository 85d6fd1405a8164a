//! The broker is there and takes nothing: its queue is full, or it has run out of memory.
use std::time::{Duration, Instant};

use reqwest::{Method, Response};

use crate::support::{Installation, cluster_with, embedded_with, json, problem};

/// Far less than the 10 s for which an accepted write of these tests may wait for its confirm.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn write_much(installation: &Installation) -> Response {
    let json = serde_json::json!({ "padding": "p".repeat(5_000) }).to_string();
    installation.post("/v1/data/full", &json).await
}

async fn health(installation: &Installation) -> (u16, String) {
    let response = installation.get("/health").await;
    let status = response.status().as_u16();
    (status, json(response).await["queue"].as_str().expect("a word").to_owned())
}

mod a_full_queue_is_told_as_such_and_by_the_health_and_takes_again_by_itself {
    use super::*;

    fn adjust(config: &mut shared::config::Config) {
        config.queue.bytes_max = 100_000;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn embedded() {
        embedded_with(adjust, test).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cluster() {
        cluster_with("full", adjust, test).await;
    }

    async fn test(mut installation: Installation) -> Installation {
        for consumer in installation.consumers.drain(..) {
            consumer.stop().await;
        }
        installation
            .wait_for("a full queue in the health", async || {
                let response = write_much(&installation).await;
                if response.status() != 202 {
                    assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "5");
                    let problem = problem(response, 503).await;
                    assert_eq!(problem["type"], "urn:forebay:problem:queue_full");
                }
                (health(&installation).await == (503, "unhealthy".into())).then_some(())
            })
            .await;
        assert_eq!(installation.get("/readyz").await.status(), 200, "reads are still answered");
        installation.add_consumer().await;
        // Without a write: who routes by health would never send one.
        installation
            .wait_for("a healthy replica", async || {
                (health(&installation).await == (200, "healthy".into())).then_some(())
            })
            .await;
        installation
            .wait_for("an accepted write", async || {
                (write_much(&installation).await.status() == 202).then_some(())
            })
            .await;
        installation
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_memory_is_told_at_once_while_what_waits_is_applied_and_heals_by_itself() {
    testkit::private::broker(|broker| async move {
        let adjust = |config: &mut shared::config::Config| {
            config.queue.url = broker.url().into();
        };
        cluster_with("alarm", adjust, |installation| async {
            for _ in 0..50 {
                installation.increment(0, "before", 1).await;
            }
            broker.memory_alarm(true).await;
            let write = || installation.at(0, Method::POST, "/v1/counters/during/increments").send();
            installation
                .wait_for("an unhealthy queue", async || {
                    problem(write().await.expect("an answer"), 503).await;
                    (health(&installation).await == (503, "unhealthy".into())).then_some(())
                })
                .await;
            for _ in 0..20 {
                let began = Instant::now();
                let response = write().await.expect("an answer");
                assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "1");
                problem(response, 503).await;
                assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            }
            installation.wait_for_value(0, "before", 50).await;
            broker.memory_alarm(false).await;
            installation
                .wait_for("a healthy replica", async || {
                    (health(&installation).await == (200, "healthy".into())).then_some(())
                })
                .await;
            installation.increment(0, "after", 1).await;
            installation.wait_for_value(0, "after", 1).await;
            installation
        })
        .await;
    })
    .await;
}
