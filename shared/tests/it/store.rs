//! The store's contract. `contract` holds the duties of both implementations, `postgres` and
//! `sqlite` the mistakes that only one of them can make.
mod contract;
mod heavy;
mod interruption;
mod lists;
mod postgres;
mod proxy;
mod sent;
mod sqlite;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shared::config;
use shared::model::id::{IdIssuer, ItemKey, MessageId};
use shared::model::message::{Builder, Message, decode};
use shared::model::outcome::{Applied, ItemStatus};
use shared::store::postgres::PostgresStore;
use shared::store::sqlite::SqliteStore;
use shared::store::{Store, StoreError};

/// Time of 2025-11-20, around noon.
const NOON_MS: i64 = 1_763_640_000_000;

/// A factory of messages with ids of their own.
struct Messages(IdIssuer);

impl Messages {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(IdIssuer::new(NEXT.fetch_add(1, Ordering::Relaxed), 0))
    }

    fn id(&mut self) -> MessageId {
        self.0.next(NOON_MS)
    }

    fn increments(&mut self, increments: &[(&str, i64)]) -> Message {
        message(self.id(), &items(increments))
    }

    /// Makes a message per increment.
    fn each(&mut self, increments: &[(&str, i64)]) -> Vec<Message> {
        increments.iter().map(|increment| self.increments(&[*increment])).collect()
    }
}

/// Makes a message through the wire format, as the consumer gets it.
fn message(id: MessageId, items: &[String]) -> Message {
    let mut builder = Builder::new(id, NOON_MS + 7);
    for item in items {
        builder.push(item.as_bytes(), 1);
    }
    decode(&builder.finish().body).expect("a message")
}

fn items(increments: &[(&str, i64)]) -> Vec<String> {
    let item = |(name, by): &(&str, i64)| format!(r#"{{"increment":{{"counter":"{name}","by":{by}}}}}"#);
    increments.iter().map(item).collect()
}

async fn apply(store: &Arc<dyn Store>, batch: &[Message]) -> Applied {
    store.apply(batch.into()).await.expect("is applied")
}

/// Applies until the outcome is known, as a consumer does.
async fn apply_until_known(store: &Arc<dyn Store>, batch: &[Message]) -> Applied {
    loop {
        match store.apply(batch.into()).await {
            Ok(applied) => return applied,
            Err(StoreError::Unavailable(_) | StoreError::Busy(_) | StoreError::Failed(_)) => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn fate(store: &Arc<dyn Store>, item: ItemKey) -> Option<ItemStatus> {
    store.item_statuses([item].into()).await.expect("is read").into_iter().next().flatten()
}

/// Value and version of a counter; 0 and 0 without a row.
async fn standing(store: &Arc<dyn Store>, name: &str) -> (i64, i64) {
    let counter = store.counter(name).await.expect("is read");
    counter.map_or((0, 0), |counter| (counter.value, counter.version))
}

fn unavailable(error: StoreError) -> String {
    match error {
        StoreError::Unavailable(text) => text.to_string(),
        other @ (StoreError::Busy(_) | StoreError::Failed(_) | StoreError::DigestMismatch(_)) => {
            panic!("{other}")
        }
    }
}

fn failed(error: StoreError) -> String {
    match error {
        StoreError::Failed(text) => text.to_string(),
        other => panic!("{other}"),
    }
}

fn postgres_config(url: &str) -> config::StoreSettings {
    config::StoreSettings { url: url.into(), connect_timeout_ms: 5_000, ..config::StoreSettings::default() }
}

/// Opens a store on Postgres, migrated.
async fn postgres(config: &config::StoreSettings) -> Arc<dyn Store> {
    let store = PostgresStore::open(config).expect("opens");
    store.migrate().await.expect("migrates");
    store
}

/// A directory that is removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(word: &str) -> Self {
        let path = std::env::temp_dir().join(testkit::unique(word));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    async fn store(&self) -> Arc<dyn Store> {
        let store =
            SqliteStore::open(&self.0, &shared::config::StoreSettings::default()).await.expect("opens");
        store.migrate().await.expect("migrates");
        store
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
