//! The store on SQLite: one file, one process, nothing to run beside it.
//!
//! Here is the port; `files` holds the one writing connection and the readers, `apply` the
//! transaction that writes. With a single writer nothing changes between reading and writing, so
//! counters always take the exact path of [`sums`](super::sums): SQLite itself would turn an
//! integer that overflows into a REAL.
mod apply;
mod files;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use self::files::Files;
use super::page::Bounds;
use super::{Applied, Counter, CounterPage, Fate, Store, StoreError};
use crate::clock;
use crate::id::ItemKey;
use crate::message::Message;

/// See the module.
pub struct SqliteStore {
    files: Files,
}

const COUNTER: &str = "select name, value, version, updated_at_ms from counters where name = ?1";

const COUNTERS: &str = "select name, value, version, updated_at_ms from counters \
    where name > ?1 and name >= ?2 and name < ?3 order by name limit ?4";

const FATE: &str = "select \
    (select applied_at_ms from applied_message where id = ?2) as applied_at_ms, \
    dead.set_aside_at_ms, dead.reason, dead.detail \
    from (select 1) left join dead_letters as dead on dead.id = ?1";

impl SqliteStore {
    /// Opens `store.db` in `directory`, which is made if it is not there. Must be called on a
    /// runtime: all work is done on that one, from wherever the store is used.
    pub async fn open(directory: &Path) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self { files: Files::open(directory).await? }))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, batch: Arc<[Message]>) -> Result<Applied, StoreError> {
        let work = self.files.write("apply", move |connection| {
            Box::pin(async move { apply::apply(connection, &batch).await })
        });
        work.await
    }

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError> {
        let name = name.to_owned();
        let work = self.files.read("counter", move |connection| {
            Box::pin(async move {
                let row = sqlx::query(COUNTER).bind(name).fetch_optional(connection).await?;
                Ok(row.as_ref().map(counter_of).transpose()?)
            })
        });
        work.await
    }

    async fn counters(&self, page: CounterPage) -> Result<Vec<Counter>, StoreError> {
        let Some(Bounds { after, from, below, limit }) = Bounds::of(page) else { return Ok(Vec::new()) };
        let work = self.files.read("counters", move |connection| {
            Box::pin(async move {
                let query = sqlx::query(COUNTERS).bind(after).bind(from).bind(below).bind(limit);
                let rows = query.fetch_all(connection).await?;
                Ok(rows.iter().map(counter_of).collect::<Result<_, _>>()?)
            })
        });
        work.await
    }

    async fn fate(&self, item: ItemKey) -> Result<Option<Fate>, StoreError> {
        let work = self.files.read("fate", move |connection| {
            Box::pin(async move {
                let query = sqlx::query(FATE).bind(item.as_uuid()).bind(item.message().as_uuid());
                Ok(fate_of(&query.fetch_one(connection).await?)?)
            })
        });
        work.await
    }

    /// The clock of this process, which is the only one that writes; read only when the file can be.
    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.files.read("now", |_| Box::pin(async { Ok(clock::now_ms()) })).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.files.migrate().await
    }

    async fn close(&self) {
        self.files.close().await;
    }
}

fn counter_of(row: &SqliteRow) -> Result<Counter, sqlx::Error> {
    Ok(Counter {
        name: row.try_get::<&str, _>(0)?.into(),
        value: row.try_get(1)?,
        version: row.try_get(2)?,
        updated_at_ms: row.try_get(3)?,
    })
}

fn fate_of(row: &SqliteRow) -> Result<Option<Fate>, sqlx::Error> {
    let applied: Option<i64> = row.try_get(0)?;
    let set_aside: Option<i64> = row.try_get(1)?;
    Ok(match set_aside {
        Some(at_ms) => Some(Fate::Failed { at_ms, reason: row.try_get(2)?, detail: row.try_get(3)? }),
        None => applied.map(|at_ms| Fate::Applied { at_ms }),
    })
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, SqliteConnection};

    use super::*;

    #[tokio::test]
    async fn every_statement_finds_its_rows_by_key() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("opens");
        let schema = include_str!("../../migrations/sqlite/0001_ledger_and_counters.sql");
        sqlx::raw_sql(schema).execute(&mut connection).await.expect("migrates");
        for statement in [COUNTER, COUNTERS, FATE, apply::SEEN, apply::CURRENT, apply::ENTER, apply::PUT] {
            let explain = sqlx::AssertSqlSafe(format!("explain query plan {statement}"));
            let plan = sqlx::query(explain).fetch_all(&mut connection).await.expect("explains");
            let steps: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            for table in ["applied_message", "counters", "dead"] {
                let scan = format!("SCAN {table}");
                assert!(!steps.iter().any(|step| step.starts_with(&scan)), "{statement}: {steps:?}");
            }
            let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
            assert!(!sorts, "{statement}: {steps:?}");
        }
        let looks_up = |steps: &[String]| steps.iter().any(|step| step.contains("USING PRIMARY KEY"));
        for statement in [COUNTER, COUNTERS, apply::SEEN, apply::CURRENT] {
            let explain = sqlx::AssertSqlSafe(format!("explain query plan {statement}"));
            let plan = sqlx::query(explain).fetch_all(&mut connection).await.expect("explains");
            let steps: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert!(looks_up(&steps), "{statement}: {steps:?}");
        }
    }
}
