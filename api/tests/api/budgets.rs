//! Memory of requests that wait: it has a limit, beyond which they do not wait.
use std::time::Duration;

use crate::support::{RunningConsumer, base_config, close, json, open, wait_for};

/// Limit of both budgets; requests that wait may keep half of it.
const BODIES_BYTES_MAX: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_waits_beyond_the_budget_is_answered_at_once_and_the_room_is_given_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.server.bodies_bytes_max = BODIES_BYTES_MAX;
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let backend = open(&config).await;
    let api = api::server::Server::start(&config, &backend).expect("the API starts");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let write = || {
        let document = serde_json::json!({ "padding": "p".repeat(BODIES_BYTES_MAX / 3) });
        let url = format!("http://{}/v1/data/kept", api.address);
        let request = client.post(url).header("prefer", "wait=30").json(&document).send();
        async { request.await.expect("an answer") }
    };
    // No consumer applies anything.
    let first = tokio::spawn(write());
    wait_for("the first to wait", async || (api.waiting() == 1).then_some(())).await;
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let second = write().await;
        assert_eq!(second.status(), 202);
        assert!(second.headers().get("preference-applied").is_none(), "it did not wait");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(api.waiting(), 1);
    }
    let consumer = RunningConsumer::start(&config, &backend);
    let first = first.await.expect("no panic");
    assert_eq!(first.status(), 201);
    assert_eq!(json(first).await["data"]["padding"].as_str().map(str::len), Some(BODIES_BYTES_MAX / 3));
    let again = write().await;
    assert_eq!(again.status(), 201, "there is room again");
    api.stop().await;
    consumer.stop().await;
    close(backend).await;
}
