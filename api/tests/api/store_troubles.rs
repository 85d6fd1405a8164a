//! A store that is there and cannot be used: read-only, out of connections, without space. Writes
//! are still accepted, no request waits for the store once that is known, earlier reads are
//! answered from memory, and the service recovers by itself.
use std::time::{Duration, Instant};

use reqwest::Response;
use shared::config::Config;
use testkit::trouble::{Trouble, give_to};

use crate::support::{Installation, cluster_config, cluster_with, json, start};

/// Time for a prompt answer, far less than the 20 s for which the waiting writes of these tests ask.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Number of writes accepted meanwhile, besides those that wait.
const DURING: i64 = 20;

fn adjust(config: &mut Config) {
    config.store.connect_timeout_ms = 500;
    config.store.read_timeout_ms = 500;
    config.cache.ttl_ms = 200;
}

/// Reads the cached answer; returns its status and the value.
async fn read(installation: &Installation) -> (String, i64) {
    let response: Response = installation.get("/v1/counters/known").await;
    assert_eq!(response.status(), 200, "what was read before is read still");
    let how = response.headers()["cache-status"].to_str().expect("text").to_owned();
    (how, json(response).await["value"].as_i64().expect("a value"))
}

/// Waits until writes that wait are answered with 202 at once, always. Returns their number.
async fn wait_for_prompt_answers(installation: &Installation) -> i64 {
    let mut written = 0;
    // The heartbeats of a consumer report the state of the store; until then some requests may wait.
    let (begun, mut in_a_row) = (Instant::now(), 0);
    while in_a_row < 20 {
        assert!(begun.elapsed() < Duration::from_mins(1), "it is never known");
        let asked = Instant::now();
        let response = installation.increment_and_wait(0, "known").await;
        assert_eq!(response.status(), 202);
        written += 1;
        in_a_row = if asked.elapsed() < AT_ONCE { in_a_row + 1 } else { 0 };
    }
    written
}

async fn survives(installation: &Installation, administered: &str, trouble: Trouble, reads_fail: bool) {
    installation.wait_until_events_arrive().await;
    installation.increment(0, "known", 5).await;
    installation.wait_for_value(0, "known", 5).await;
    trouble.begin(administered).await;
    for _ in 0..DURING {
        installation.increment(0, "known", 1).await;
    }
    let written = DURING + wait_for_prompt_answers(installation).await;
    if reads_fail {
        installation
            .wait_for("a stale answer", async || {
                (read(installation).await == ("forebay; hit; detail=stale".into(), 5)).then_some(())
            })
            .await;
        installation
            .wait_for("a degraded replica", async || {
                let health = installation.get("/health").await;
                assert_eq!(health.status(), 200, "writes are still accepted");
                (json(health).await["status"] == "degraded").then_some(())
            })
            .await;
    } else {
        assert_eq!(read(installation).await.1, 5, "nothing of it is applied");
    }
    trouble.end(administered).await;
    let counter = installation.wait_for_value(1, "known", 5 + written).await;
    assert_eq!(counter["version"], 1 + written);
    installation.wait_until_events_arrive().await;
    let health = json(installation.get("/health").await).await;
    assert_eq!(health["status"], "ok", "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_store_that_is_read_only_writes_are_accepted_and_nobody_is_kept_waiting() {
    cluster_with("read_only", adjust, |installation| async {
        let database = installation.config.store.url.clone();
        survives(&installation, &database, Trouble::read_only(&database), false).await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_store_without_room_writes_are_accepted_and_nobody_is_kept_waiting() {
    cluster_with("no_room", adjust, |installation| async {
        let database = installation.config.store.url.clone();
        survives(&installation, &database, Trouble::full_disk(), false).await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_store_without_connections_writes_are_accepted_and_reads_are_stale() {
    testkit::role(|role| async move {
        testkit::isolated("crowded", |isolated| async move {
            let administered = isolated.database_url.clone();
            let mut config = cluster_config(isolated);
            adjust(&mut config);
            config.store.url = give_to(&administered, &role).await;
            let installation = start(config, &|store| store).await;
            let trouble = Trouble::no_connections(&administered, &role);
            survives(&installation, &administered, trouble, true).await;
            installation.stop().await;
        })
        .await;
    })
    .await;
}
