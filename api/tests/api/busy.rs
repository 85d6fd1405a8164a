//! A store that is there and has no time for some reads: those get that answer, and no others do.
use reqwest::Response;
use shared::config::Config;

use crate::support::{Installation, cluster_with, json, problem};

/// Number of reads at once, far above the number of connections.
const BURST: usize = 40;

/// Statement that locks the documents, so that every list of them waits.
const HOLD: &str = "do $$ begin lock table documents in access exclusive mode; perform pg_sleep(60); end $$";
const RELEASE: &str = "select pg_terminate_backend(pid) from pg_locks \
    where relation = 'documents'::regclass and mode = 'AccessExclusiveLock' and granted";

async fn is_refused_as_busy(response: Response) {
    assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "1");
    assert_eq!(problem(response, 503).await["type"], "urn:forebay:problem:store_busy");
}

/// Checks that the breaker is closed, counters are read from the store, and waits are granted.
async fn is_well(installation: &Installation, round: usize) {
    let health = json(installation.get("/health").await).await;
    assert_eq!(
        (&health["status"], &health["breakers"]["store"]),
        (&"ok".into(), &"closed".into()),
        "{health}"
    );
    assert_eq!(installation.get(&format!("/v1/counters/never-{round}")).await.status(), 404);
    assert_eq!(installation.increment_and_wait(0, "beside").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_queries_and_a_burst_beyond_the_pool_are_told_as_busy_and_open_no_breaker() {
    let adjust = |config: &mut Config| {
        config.store.connections_max = 4;
        config.store.connect_timeout_ms = 300;
        config.store.read_timeout_ms = 1_000;
    };
    cluster_with("busy", adjust, |installation| async move {
        installation.wait_until_events_arrive().await;
        assert_eq!(installation.get("/v1/data/listed").await.status(), 200);
        let url = installation.config.store.url.clone();
        let holder = tokio::spawn(async move { testkit::execute(&url, HOLD.into()).await });
        installation
            .wait_for("a list that takes too long", async || {
                (installation.get("/v1/data/listed").await.status() == 503).then_some(())
            })
            .await;
        // One more than the failures in a row that open the breaker.
        for round in 0..5 {
            is_refused_as_busy(installation.get("/v1/data/listed").await).await;
            is_well(&installation, round).await;
        }
        let burst = (0..BURST).map(|_| {
            let request = installation.at(0, reqwest::Method::GET, "/v1/data/listed").send();
            tokio::spawn(async { request.await.expect("an answer") })
        });
        for read in burst.collect::<Vec<_>>() {
            is_refused_as_busy(read.await.expect("no panic")).await;
            let health = json(installation.get("/health").await).await;
            assert_eq!(health["breakers"]["store"], "closed", "{health}");
        }
        is_well(&installation, 5).await;
        testkit::execute(&installation.config.store.url, RELEASE.into()).await.expect("it may");
        holder.await.expect("no panic").expect_err("its session was ended");
        assert_eq!(installation.get("/v1/data/listed").await.status(), 200);
        installation
    })
    .await;
}
