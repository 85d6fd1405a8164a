//! The store on PostgreSQL.
//!
//! Here are the settings and the port; `session` lends connections and bounds every call,
//! `apply` is the one transaction that writes, `partitions` and `schema` are what must exist
//! before it, `read` is the rest. Nothing here decides when or how much to write.
mod apply;
mod database;
mod failure;
mod partitions;
mod read;
mod schema;
mod session;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;

use self::partitions::Partitions;
use self::session::Session;
use super::page::Bounds;
use super::{Applied, Counter, CounterPage, Fate, Store, StoreError};
use crate::config;
use crate::id::ItemKey;
use crate::message::Message;

/// See the module.
pub struct PostgresStore {
    session: Session,
    partitions: Arc<Partitions>,
    read_timeout: Duration,
    write_timeout: Duration,
}

impl PostgresStore {
    /// Reads the settings and connects to nothing. Must be called on a runtime: all connections
    /// live on that one, from wherever the store is used.
    pub fn open(config: &config::Store) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            session: Session::new(config).context("store.url")?,
            partitions: Arc::default(),
            read_timeout: Duration::from_millis(config.read_timeout_ms),
            write_timeout: Duration::from_millis(config.write_timeout_ms),
        }))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, batch: Arc<[Message]>) -> Result<Applied, StoreError> {
        let partitions = Arc::clone(&self.partitions);
        let work = self.session.run("apply", self.write_timeout, move |connection| {
            Box::pin(async move { apply::apply(connection, &partitions, &batch).await })
        });
        work.await
    }

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError> {
        // The server would refuse the text, and that would look like an outage.
        if name.contains('\0') {
            return Ok(None);
        }
        let name = name.to_owned();
        let work = self.session.run("counter", self.read_timeout, move |connection| {
            Box::pin(async move { read::counter(connection, &name).await })
        });
        work.await
    }

    async fn counters(&self, page: CounterPage) -> Result<Vec<Counter>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        let work = self.session.run("counters", self.read_timeout, move |connection| {
            Box::pin(async move { read::counters(connection, &bounds).await })
        });
        work.await
    }

    async fn fate(&self, item: ItemKey) -> Result<Option<Fate>, StoreError> {
        let work = self
            .session
            .run("fate", self.read_timeout, move |connection| Box::pin(read::fate(connection, item)));
        work.await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.session.run("now", self.read_timeout, |connection| Box::pin(read::now_ms(connection))).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.session.migrate().await
    }

    async fn close(&self) {
        self.session.close(self.write_timeout).await;
    }
}
