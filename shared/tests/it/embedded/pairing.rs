//! The pairing of the two files of the embedded form.
use std::fs;
use std::path::Path;

use shared::config::Config;
use shared::program::backend::{self, Backend};

use super::*;

async fn open(directory: &Path) -> anyhow::Result<Backend> {
    let mut config = Config::default();
    config.queue.url = format!("embedded:{}", directory.display());
    config.store.url.clone_from(&config.queue.url);
    backend::open(&config).await
}

async fn close(backend: Backend) {
    backend.queue.close().await;
    backend.store.close().await;
}

/// Makes both files: opens, accepts one message and ends.
async fn used(directory: &Path) {
    let backend = open(directory).await.expect("opens");
    backend.store.migrate().await.expect("the schema is brought up");
    publish(&backend.queue.publisher(), "waits").await.expect("durable");
    close(backend).await;
}

async fn waiting(directory: &Path) -> usize {
    let backend = open(directory).await.expect("opens");
    let count =
        backend.queue.subscribe(Lane::Writes, 0).await.expect("subscribes").waiting().await.expect("known");
    close(backend).await;
    usize::try_from(count).expect("few")
}

#[tokio::test]
async fn a_queue_beside_a_missing_an_empty_or_another_store_is_refused_and_taken_with_its_own() {
    let (own, other, kept) = (Directory::new("own"), Directory::new("other"), Directory::new("kept"));
    used(&own.0).await;
    used(&other.0).await;
    fs::rename(own.0.join("store.db"), kept.0.join("store.db")).expect("is moved");
    let refused = async || format!("{:#}", open(&own.0).await.err().expect("refused"));
    for part in ["store.db", "is missing", &own.0.display().to_string(), "move queue.db away"] {
        let reported = refused().await;
        assert!(reported.contains(part), "{reported}");
    }
    assert!(!own.0.join("store.db").exists(), "no empty one is made in its place");
    // The file is as the command line makes it.
    fs::write(own.0.join("store.db"), b"").expect("is written");
    assert!(refused().await.contains("is new"));
    fs::copy(other.0.join("store.db"), own.0.join("store.db")).expect("is copied");
    assert!(refused().await.contains("belongs to another queue"));
    fs::copy(kept.0.join("store.db"), own.0.join("store.db")).expect("is copied");
    assert_eq!(waiting(&own.0).await, 1);
}

#[tokio::test]
async fn a_pair_of_an_earlier_build_and_a_store_without_its_queue_are_used_on() {
    let directory = Directory::new("earlier");
    used(&directory.0).await;
    for file in ["queue.db", "store.db"] {
        let options = SqliteConnectOptions::new().filename(directory.0.join(file));
        let mut connection = options.connect().await.expect("connects");
        connection.execute("pragma application_id = 0").await.expect("is written");
        connection.close().await.expect("closes");
    }
    assert_eq!(waiting(&directory.0).await, 1);
    fs::remove_file(directory.0.join("queue.db")).expect("is removed");
    assert_eq!(waiting(&directory.0).await, 0, "a new queue for the store");
    fs::remove_file(directory.0.join("store.db")).expect("is removed");
    assert!(open(&directory.0).await.is_err(), "both were tied");
}
