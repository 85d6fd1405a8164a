//! A cluster whose queue was just made: nothing is published to it for a while (`queue.settle_ms`).
use std::time::{Duration, Instant};

use api::server::Server;
use reqwest::Method;

use crate::support::{Installation, client, cluster_config, open, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_ready_once_a_queue_that_was_just_made_takes_writes() {
    testkit::isolated("new_queue", |isolated| async move {
        let mut config = cluster_config(isolated);
        config.queue.settle_ms = 3_000;
        config.server.accept_timeout_ms = 2_000;
        let backend = open(&config).await;
        let apis = vec![Server::start(&config, &backend).expect("the API starts")];
        let (consumers, backends) = (Vec::new(), vec![backend]);
        let installation = Installation { config, apis, consumers, client: client(), backends };
        let write = async || {
            let begun = Instant::now();
            let request = installation.at(0, Method::POST, "/v1/counters/early/increments");
            (request.send().await.expect("an answer"), begun.elapsed())
        };
        installation
            .wait_for("a write that is refused at once", async || {
                let (refused, took) = write().await;
                let retry_after = refused.headers()["retry-after"].to_str().expect("text").to_owned();
                problem(refused, 503).await;
                (took < Duration::from_secs(1)).then(|| assert_eq!(retry_after, "3"))
            })
            .await;
        let early = installation.get("/readyz").await;
        assert_eq!(early.status(), 503);
        assert!(early.headers().contains_key("retry-after"));
        installation
            .wait_for("readiness", async || (installation.get("/readyz").await.status() == 200).then_some(()))
            .await;
        assert_eq!(write().await.0.status(), 202);
        installation.stop().await;
    })
    .await;
}
