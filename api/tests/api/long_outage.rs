//! The broker is away while clients insist: each is refused at once, and nothing piles up.
use std::sync::Arc;
use std::time::{Duration, Instant};

use testkit::proxy::Proxy;

use crate::process::Process;
use crate::support::{base_config, close, open, problem, wait_for};

const CLIENTS: usize = 32;
const REFUSALS_EACH: usize = 150;

/// Bytes of one document: all of them together are far more than may be kept.
const DOCUMENT_BYTES: usize = 20_000;

/// What a process may grow by; the documents of this test are five times as much.
const GROWTH_BYTES_MAX: u64 = 20 << 20;

/// Far less than an accepted write may wait for its confirm; the machine may be busy.
const AT_ONCE: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_away_refusals_come_at_once_and_memory_stays_flat() {
    testkit::isolated("long_outage", |isolated| async move {
        let place = isolated.amqp_url.rsplit_once('@').map_or(isolated.amqp_url.as_str(), |(_, rest)| rest);
        let place = place.split('/').next().expect("a host and a port");
        let broker = Proxy::start(place).await.expect("a proxy");
        let mut config = base_config();
        config.queue.url = broker.through(&isolated.amqp_url);
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        config.server.accept_timeout_ms = 2_000;
        config.queue.confirm_timeout_ms = 500;
        let backend = open(&config).await;
        let api = Arc::new(Process::start(&config));
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let document = serde_json::json!({ "padding": "p".repeat(DOCUMENT_BYTES) });
        let url = format!("http://{}/v1/data/insisted", api.address);
        let write = || {
            let request = client.post(&url).json(&document).send();
            async { request.await.expect("an answer") }
        };
        let accepted = async || (write().await.status() == 202).then_some(());
        wait_for("an accepted write", accepted).await;
        // Buffers and pools have their size.
        futures_util::future::join_all((0..4 * CLIENTS).map(|_| write())).await;
        broker.black_hole(true);
        wait_for("a refusal", async || (write().await.status() == 503).then_some(())).await;
        let before = api.resident_bytes();
        let refused = (0..CLIENTS).map(|_| async {
            let mut slowest = Duration::ZERO;
            for _ in 0..REFUSALS_EACH {
                let begun = Instant::now();
                let response = write().await;
                assert!(response.headers().contains_key("retry-after"));
                problem(response, 503).await;
                slowest = slowest.max(begun.elapsed());
            }
            slowest
        });
        let slowest = futures_util::future::join_all(refused).await.into_iter().max().expect("some");
        let grown = api.resident_bytes().saturating_sub(before);
        assert!(slowest < AT_ONCE, "{slowest:?}");
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
        broker.black_hole(false);
        broker.cut();
        wait_for("an accepted write", accepted).await;
        close(backend).await;
    })
    .await;
}
