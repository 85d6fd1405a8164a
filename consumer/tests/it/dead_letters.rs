//! `forebay-consumer dead-letters`, as an operator runs it, on both backend pairs.
use std::path::Path;
use std::process::{Command, Output};

use shared::config::Config;
use shared::model::dead_letter::DeadMessage;
use shared::model::id::{IdIssuer, ItemKey};
use shared::model::message::{Builder, Undecodable, decode, encode_increment};
use shared::program::backend::{self, Backend};

/// Time of 2025-11-20, around noon.
const NOON_MS: i64 = 1_763_640_000_000;

const CONSUMER: &str = env!("CARGO_BIN_EXE_forebay-consumer");

fn run(directory: &Path, env: &[(&str, &str)], arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(CONSUMER);
    command.arg("dead-letters").args(arguments).current_dir(directory).env_clear();
    let Output { status, stdout, stderr } = command.envs(env.iter().copied()).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.success(), text(stdout), text(stderr))
}

/// Applies increments of the counter `full` in one message; returns their keys.
async fn apply(backend: &Backend, batcher: u32, increments: &[i64]) -> Vec<ItemKey> {
    let mut builder = Builder::new(IdIssuer::new(batcher, 1).next(NOON_MS), NOON_MS);
    for by in increments {
        let mut encoded = Vec::new();
        encode_increment(&mut encoded, "full", *by);
        builder.push(&encoded, 1);
    }
    let message = decode(&builder.finish().body).expect("a message");
    let keys = (0..increments.len()).map(|index| message.item_key(index)).collect();
    backend.store.apply([message].into()).await.expect("is applied");
    keys
}

/// Stores two dead messages, a body that is no JSON and one that an older build could not read; returns
/// their ids.
async fn bury(backend: &Backend) -> [String; 2] {
    let mut builder = Builder::new(IdIssuer::new(3, 1).next(NOON_MS), NOON_MS);
    let mut encoded = Vec::new();
    encode_increment(&mut encoded, "buried", 1);
    builder.push(&encoded, 1);
    let (readable, garbage) = (builder.finish().body, "no\u{7} JSON".into());
    let mut ids = Vec::new();
    for body in [garbage, readable] {
        let dead = DeadMessage::undecodable(body, &Undecodable::Version(9));
        backend.store.bury(dead.clone()).await.expect("is buried");
        ids.push(dead.id().to_string());
    }
    ids.try_into().expect("two")
}

async fn close(backend: Backend) {
    backend.queue.close().await;
    backend.events.close().await;
    backend.store.close().await;
}

/// Runs the commands in the order of an operator's work. The store stays open meanwhile where it may.
async fn walk(config: &Config, env: &[(&str, &str)]) {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| run(directory.path(), env, arguments);
    let backend = backend::open(config).await.expect("the backend opens");
    backend.store.migrate().await.expect("the schema is brought up");
    let keys = apply(&backend, 1, &[i64::MAX, 1, 2]).await;
    let [one, other] = [1, 2].map(|index| backend.ids.sign(keys[index]).to_string());
    close(backend).await;

    let (succeeded, table, _) = run(&["list", "--kind", "increment", "--limit", "1"]);
    assert!(succeeded && table.contains(&one) && table.contains("counter_overflow"), "{table}");
    assert!(!table.contains(&other) && table.contains(&format!("--after {one}")), "{table}");
    let (_, json, _) = run(&["list", "--json", "--after", &one]);
    let listed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(listed.as_array().expect("a list").len(), 1);
    assert_eq!(listed[0]["item"]["increment"]["by"], 2);
    let (succeeded, shown, _) = run(&["show", &one]);
    assert!(succeeded && shown.contains(r#"{"increment":{"counter":"full","by":1}}"#), "{shown}");

    let backend = backend::open(config).await.expect("the backend opens");
    apply(&backend, 2, &[-10]).await;
    close(backend).await;
    let (succeeded, reported, _) = run(&["discard", &other]);
    assert!(succeeded && reported.contains("discarded"), "{reported}");
    let (_, reported, _) = run(&["redrive", "--dry-run"]);
    assert!(reported.contains("1 would be applied, 0 would be failed again"), "{reported}");
    let (succeeded, json, error) = run(&["redrive", "--id", &one, "--json"]);
    let done: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(succeeded && done["redriven"] == 1 && done["items"][0]["status"] == "applied", "{json}{error}");
    let (succeeded, _, error) = run(&["show", &one]);
    assert!(!succeeded && error.contains("there is no dead letter"), "{error}");
    let (succeeded, _, error) = run(&["discard", "x"]);
    assert!(!succeeded && error.contains("x is no id"), "{error}");
    let (_, table, _) = run(&["list", "--discarded"]);
    assert!(table.contains(&other), "{table}");

    let backend = backend::open(config).await.expect("the backend opens");
    let counter = backend.store.counter("full").await.expect("is read").expect("is there");
    assert_eq!((counter.value, counter.version), (i64::MAX - 9, 3));
    let [garbage, readable] = bury(&backend).await;
    close(backend).await;

    let (_, table, _) = run(&["list", "--kind", "message", "--reason", "unknown_version"]);
    assert!(table.contains(&garbage) && table.contains(&readable), "{table}");
    let first = garbage.clone().min(readable.clone());
    let (_, table, _) = run(&["list", "--kind", "message", "--limit", "1"]);
    assert!(table.contains(&format!("--after {first}")), "{table}");
    let (_, table, error) = run(&["list", "--kind", "message", "--after", &first]);
    assert!(
        !table.contains(&first) && table.contains(&garbage.clone().max(readable.clone())),
        "{table}{error}"
    );
    let (succeeded, shown, _) = run(&["show", &garbage]);
    assert!(succeeded && shown.contains("item       no\\u{7} JSON"), "{shown}");
    let (_, json, _) = run(&["show", "--json", &garbage]);
    let shown: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(shown["item"], "no\u{7} JSON");
    let (_, json, error) = run(&["redrive", "--kind", "message", "--json"]);
    let done: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(done["redriven"] == 1 && done["failed_again"] == 1 && done["next"].is_null(), "{json}{error}");
    let (succeeded, reported, _) = run(&["discard", &garbage]);
    assert!(succeeded && reported.contains("discarded"), "{reported}");
    let backend = backend::open(config).await.expect("the backend opens");
    let counter = backend.store.counter("buried").await.expect("is read").expect("is there");
    assert_eq!(counter.value, 1);
    close(backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_looked_after_past_its_queue() {
    testkit::isolated("letters", async |isolated| {
        let mut config = Config::default();
        config.queue.url.clone_from(&isolated.amqp_url);
        config.queue.prefix.clone_from(&isolated.prefix);
        config.store.url.clone_from(&isolated.database_url);
        config.ids.secrets = vec!["test".into()];
        let env = [
            // No server listens there: the queue is not needed.
            ("AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f"),
            ("DATABASE_URL", &*isolated.database_url),
            ("FOREBAY__IDS__SECRETS", "test"),
        ];
        walk(&config, &env).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_is_looked_after_while_nothing_else_uses_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    let url = format!("embedded:{}", directory.path().display());
    config.queue.url.clone_from(&url);
    config.store.url.clone_from(&url);
    let env = [("FOREBAY__QUEUE__URL", &*url), ("FOREBAY__STORE__URL", &*url)];
    walk(&config, &env).await;
    let backend = backend::open(&config).await.expect("the backend opens");
    let (succeeded, _, error) = run(directory.path(), &env, &["list"]);
    assert!(!succeeded && error.contains("is in use by another process"), "{error}");
    close(backend).await;
}
