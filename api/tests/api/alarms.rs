//! A broker that runs out of memory, or that its administrator takes something away from: on a
//! private one, where nobody else suffers from it.
use std::time::Duration;

use reqwest::Client;
use shared::config::Config;
use testkit::private::Broker;

use crate::process::Process;
use crate::support::{base_config, close, open, wait_for};

/// Settings for the private broker and a database of the test.
async fn with_private_broker(word: &str, test: impl AsyncFnOnce(Config, Broker)) {
    testkit::private::broker(|broker| {
        testkit::isolated(word, |isolated| async move {
            let mut config = base_config();
            config.queue.url = broker.url().into();
            config.queue.prefix = isolated.prefix;
            config.store.url = isolated.database_url;
            test(config, broker).await;
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_broker_blocks_the_events_of_an_api_is_obeyed_in_time() {
    with_private_broker("alarmed", async |config, broker| {
        let backend = open(&config).await;
        let mut api = Process::start(&config);
        let client = Client::builder().no_proxy().build().expect("a client");
        let redrive = async || {
            let redrive = client.post(format!("http://{}/v1/dead-letters/redrive", api.address));
            redrive.json(&serde_json::json!({})).send().await.expect("an answer").status()
        };
        wait_for("a store that is there", async || (redrive().await == 202).then_some(())).await;
        broker.memory_alarm(true).await;
        wait_for("blocked events", async || {
            assert_eq!(redrive().await, 202);
            broker.blocks("forebay events publisher").await.then_some(())
        })
        .await;
        // It is told to the others when they can be told; nothing waits for that.
        assert_eq!(redrive().await, 202);
        api.terminate();
        let (status, took) = api.ended().await;
        assert_eq!(status.code(), Some(0));
        let shutdown_timeout = Duration::from_millis(config.server.shutdown_timeout_ms);
        assert!(took < shutdown_timeout + Duration::from_secs(10), "{took:?}");
        broker.memory_alarm(false).await;
        close(backend).await;
    })
    .await;
}
