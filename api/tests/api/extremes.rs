//! Programs with the least and the greatest value of each number in their configuration.
use std::collections::BTreeMap;
use std::time::Duration;

use api::server::Server;
use shared::config::Config;
use shared::config::load::problem::ConfigError;
use shared::config::load::profile::Program;
use shared::config::load::ranges::RANGES;
use shared::config::load::{Sources, load};
use shared::program::backend;

use crate::support::{RunningConsumer, client, close, wait_for};

fn loaded(directory: &std::path::Path, key: &str, value: u64) -> Result<Config, ConfigError> {
    let url = format!("embedded:{}", directory.display());
    let flags = [
        ("server.workers", "1".to_owned()),
        ("server.port", "0".into()),
        ("server.shutdown_timeout_ms", "2000".into()),
        ("ops.port", "0".into()),
        ("queue.url", url.clone()),
        ("store.url", url),
        // These are beyond the least values of others, where one has to fit into another.
        ("server.waiters_max", "10".into()),
        ("queue.prefetch_bytes_max", "1099511627776".into()),
        (key, value.to_string()),
    ];
    let flags = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let env = BTreeMap::new();
    let sources =
        Sources { program: Program::Api, config_path: None, env_profile: None, env, env_file: None, flags };
    load(&sources).map(|loaded| loaded.config)
}

/// Starts the whole service, writes, reads, and stops.
async fn runs(config: &Config, name: &str) {
    let backend = backend::open(config).await.expect("it opens");
    backend.store.migrate().await.expect("the schema is brought up");
    backend.learn_floor().await.expect("the store answers");
    let consumer = RunningConsumer::start(config, &backend);
    let api = Server::start(config, &backend).expect("it starts");
    let client = client();
    let url = format!("http://{}/v1/counters/extreme", api.address);
    // A limit may refuse it, but an answer there must be.
    wait_for(&format!("{name}: an answer to a write"), async || {
        let answer =
            client.post(format!("{url}/increments")).timeout(Duration::from_secs(5)).send().await.ok()?;
        (answer.status() != 500).then_some(())
    })
    .await;
    // A connection that is kept for no time may end before it is used again.
    wait_for(&format!("{name}: an answer to a read"), async || {
        let answer = client.get(&url).timeout(Duration::from_secs(5)).send().await.ok()?;
        (answer.status() != 500).then_some(())
    })
    .await;
    let ended = api.completions().into_iter().chain(backend.completions()).any(|part| part.is_requested());
    assert!(!ended, "{name}: a part of the program ended by itself");
    drop(client);
    // A stop may have a long grace; there the test has seen enough.
    if config.server.drain_grace_ms == 0 {
        api.stop().await;
    }
    consumer.stop().await;
    close(backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_within_its_range_keeps_a_program_from_running() {
    for &(key, least, greatest) in RANGES {
        // A port may be taken or forbidden, so these are left out.
        let values = if matches!(key, "server.port" | "ops.port") {
            vec![0]
        } else {
            vec![least, least + 1, greatest]
        };
        for value in values {
            let (directory, name) = (tempfile::tempdir().expect("a directory"), format!("{key}={value}"));
            match loaded(directory.path(), key, value) {
                Ok(config) => runs(&config, &name).await,
                // A value that does not go together with another one.
                Err(error) => assert!(error.to_string().contains(" ("), "{name}: {error}"),
            }
        }
    }
}
