//! A broker that is there and takes nothing: its queue is full, or it has run out of memory.
use std::time::{Duration, Instant};

use reqwest::{Method, Response};

use crate::support::{Installation, cluster_with, embedded_with, json, problem};

/// Time for a prompt answer, far less than the 10 s for which an accepted write of these tests may
/// wait for its confirm.
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
        // Health changes without a write: a load balancer that routes by health would never send one.
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
        cluster_with("alarm", adjust, |mut installation| async {
            // No consumer applies anything before the alarm.
            for consumer in installation.consumers.drain(..) {
                consumer.stop().await;
            }
            for _ in 0..50 {
                installation.increment(0, "before", 1).await;
            }
            broker.memory_alarm(true).await;
            let write = async |installation: &Installation| {
                let request = installation.at(0, Method::POST, "/v1/counters/during/increments");
                request.send().await.expect("an answer")
            };
            installation
                .wait_for("an unhealthy queue", async || {
                    problem(write(&installation).await, 503).await;
                    (health(&installation).await == (503, "unhealthy".into())).then_some(())
                })
                .await;
            for _ in 0..20 {
                let began = Instant::now();
                let response = write(&installation).await;
                assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "1");
                problem(response, 503).await;
                assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            }
            installation.add_consumer().await;
            installation.wait_for_value(0, "before", 50).await;
            problem(write(&installation).await, 503).await;
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

/// The limit is no argument of the queue, and no program knows it: it is an administrator's decision.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_makes_the_queue_full_is_told_loses_nothing_and_heals_when_it_goes() {
    testkit::private::broker(|broker| async move {
        let adjust = |config: &mut shared::config::Config| {
            config.queue.url = broker.url().into();
        };
        cluster_with("policy", adjust, |mut installation| async {
            for consumer in installation.consumers.drain(..) {
                consumer.stop().await;
            }
            let prefix = installation.config.queue.prefix.clone();
            broker.policy(&prefix, Some(r#"{"max-length":5}"#)).await;
            let write = async || {
                let request = installation.at(0, Method::POST, "/v1/counters/policy/increments");
                let response = request.send().await.expect("an answer");
                if response.status() == 202 {
                    return 1;
                }
                assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "5");
                let problem = problem(response, 503).await;
                assert_eq!(problem["type"], "urn:forebay:problem:queue_full");
                0
            };
            let (mut accepted, mut refused, begun) = (0, 0, Instant::now());
            while refused < 10 || health(&installation).await != (503, "unhealthy".into()) {
                assert!(begun.elapsed() < Duration::from_secs(30), "{accepted} accepted, {refused} refused");
                let taken = write().await;
                (accepted, refused) = (accepted + taken, refused + 1 - taken);
            }
            assert!(accepted > 0, "the policy counts messages");
            broker.policy(&prefix, None).await;
            // Health changes without a write: a load balancer that routes by health would never send one.
            installation
                .wait_for("a healthy replica", async || {
                    (health(&installation).await == (200, "healthy".into())).then_some(())
                })
                .await;
            while write().await == 0 {
                assert!(begun.elapsed() < Duration::from_mins(1), "still full");
            }
            accepted += 1;
            installation.add_consumer().await;
            installation.wait_for_value(0, "policy", accepted).await;
            installation.wait_until_events_arrive().await;
            installation.wait_for_value(1, "policy", accepted).await;
            installation
        })
        .await;
    })
    .await;
}
