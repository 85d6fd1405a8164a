//! Postgres.
use super::{Applied, Counter, CounterPage, Fate, Store, StoreError};
use crate::id::ItemKey;
use crate::message::Message;
use async_trait::async_trait;
use std::sync::Arc;
pub struct PostgresStore {}
#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, _batch: Arc<[Message]>) -> Result<Applied, StoreError> {
        unreachable!()
    }
    async fn counter(&self, _name: &str) -> Result<Option<Counter>, StoreError> {
        unreachable!()
    }
    async fn counters(&self, _page: CounterPage) -> Result<Vec<Counter>, StoreError> {
        unreachable!()
    }
    async fn fate(&self, _item: ItemKey) -> Result<Option<Fate>, StoreError> {
        unreachable!()
    }
    async fn now_ms(&self) -> Result<i64, StoreError> {
        unreachable!()
    }
    async fn migrate(&self) -> Result<(), StoreError> {
        unreachable!()
    }
    async fn close(&self) {}
}
impl PostgresStore {
    pub fn open(_config: &crate::config::Store) -> anyhow::Result<Arc<Self>> {
        unreachable!()
    }
}
