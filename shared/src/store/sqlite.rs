//! The store on SQLite: one file, one process, no server beside it.
//!
//! This file holds the port; `files` holds the one writing connection and the readers, `apply` the
//! transaction that writes, and the other modules the statements of their tables. With a single writer no row
//! changes between reading and writing, so counters always take the exact path of
//! [`sums`](super::rules::sums): SQLite itself would turn an integer that overflows into a REAL.
mod apply;
mod attempts;
mod collections;
mod dead_letters;
mod documents;
mod fields;
mod files;
mod housekeeping;
mod keys;
mod points;
mod read;
mod values;
mod watermarks;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use self::collections::DefinitionCache;
use self::files::{Files, SqliteFailure};
use super::rules::ledger::TooOld;
use super::rules::page::Bounds;
use super::{
    Apply, ConsumerWatermark, DeadLetters, Define, DocumentPage, DocumentsFound, GiveUp, Housekeep,
    Housekept, NamePage, Reads, ReportedWatermark, Retention, RollupPage, RollupRange, Store, StoreError,
    Stored, Watermarks,
};
use crate::config;
use crate::model::collection::{Collection, Definition};
use crate::model::dead_letter::{DeadLetter, DeadLetterPage, DeadMessage, Redrive, RedrivenPage};
use crate::model::id::{ItemKey, MessageId};
use crate::model::message::Message;
use crate::model::outcome::{Applied, Counter, ItemStatus};
use crate::runtime::clock;

/// Store in one SQLite file. See the module.
pub struct SqliteStore {
    files: Files,
    definitions: Arc<DefinitionCache>,
    last_key: housekeeping::LastKey,
    write_timeout: Duration,
}

impl SqliteStore {
    /// Opens `store.db` in `directory`, which is made if it is not there. Must be called on a runtime: all
    /// work runs on that runtime, from wherever the store is used.
    pub async fn open(directory: &Path, config: &config::StoreSettings) -> Result<Arc<Self>, StoreError> {
        Self::open_with(directory, config, &config::Collections::default()).await
    }

    /// Opens the store as [`open`](Self::open) does, with these settings of collections.
    pub async fn open_with(
        directory: &Path,
        config: &config::StoreSettings,
        collections: &config::Collections,
    ) -> Result<Arc<Self>, StoreError> {
        let read_timeout = Duration::from_millis(config.read_timeout_ms);
        let write_timeout = Duration::from_millis(config.write_timeout_ms);
        let files = Files::open(directory, read_timeout, write_timeout, config.list_connections_max).await?;
        Ok(Arc::new(Self {
            files,
            definitions: Arc::new(DefinitionCache::new(collections)),
            last_key: Mutex::default(),
            write_timeout,
        }))
    }
}

#[async_trait]
impl Apply for SqliteStore {
    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError> {
        let limit = self.write_timeout.min(limit);
        let attempt = || {
            let (cache, batch) = (Arc::clone(&self.definitions), Arc::clone(&batch));
            self.files.try_write("apply", limit, |c| {
                Box::pin(async move { apply::apply(c, &cache, &batch, TooOld::SetAside).await })
            })
        };
        self.definitions.checked(attempt).await.map_err(failed_in_time)
    }

    /// SQLite refuses no single item, so there is no item to search for.
    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError> {
        self.files.write("give_up_on", |c| Box::pin(apply::give_up_on(c, message, give_up.why))).await
    }

    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError> {
        self.files.write("bury", |c| Box::pin(dead_letters::bury(c, message))).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.files.write("probe", |c| Box::pin(attempts::probe(c))).await
    }

    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError> {
        self.files.write("begin_attempts", move |c| Box::pin(attempts::begin(c, messages, again))).await
    }

    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> Result<(), StoreError> {
        self.files.write("end_attempts", |c| Box::pin(attempts::end(c, messages))).await
    }
}

#[async_trait]
impl Reads for SqliteStore {
    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError> {
        let name = name.to_owned();
        self.files.read("counter", |c| Box::pin(read::counter(c, name))).await
    }

    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.files.list("counters", |c| Box::pin(read::counters(c, bounds))).await
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        self.files.read("fates", |c| Box::pin(async move { read::item_statuses(c, &items).await })).await
    }

    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.files.list("collections", |c| Box::pin(collections::page(c, bounds))).await
    }

    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError> {
        let collection = collection.to_owned();
        self.files.read("document", move |c| Box::pin(documents::one(c, collection, id))).await
    }

    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError> {
        self.files.list("documents", |c| Box::pin(documents::page(c, page))).await
    }

    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError> {
        self.files.list("rollups", |c| Box::pin(points::range(c, range))).await
    }

    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.files.list("metric_types", |c| Box::pin(points::names(c, bounds))).await
    }

    /// Returns the clock of this process, which is the only one that writes, once the file could be read.
    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.files.read("now", |_| Box::pin(async { Ok(clock::now_ms()) })).await
    }

    async fn floor_ms(&self) -> Result<i64, StoreError> {
        let floor = self.files.read("floor", |c| Box::pin(housekeeping::floor(c))).await?;
        Ok(floor.map_or(0, MessageId::time_ms))
    }
}

#[async_trait]
impl Define for SqliteStore {
    async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        let name = name.to_owned();
        let read =
            self.files.read("collection", |c| Box::pin(async move { collections::read(c, &name).await }));
        Ok(read.await?.collection)
    }

    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError> {
        let name = name.to_owned();
        self.files.write("define", |c| Box::pin(collections::define(c, name, definition))).await
    }

    async fn index_page(&self, name: &str) -> Result<bool, StoreError> {
        let (cache, name) = (Arc::clone(&self.definitions), name.to_owned());
        self.files.write("index_page", |c| Box::pin(fields::index_page(c, cache, name))).await
    }
}

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn dead_letters(&self, page: DeadLetterPage) -> Result<Vec<DeadLetter>, StoreError> {
        self.files.list("dead_letters", |c| Box::pin(async move { dead_letters::page(c, &page).await })).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.files.read("dead_letter", move |c| Box::pin(dead_letters::one(c, id))).await
    }

    async fn redrive(&self, redrive: Redrive) -> Result<RedrivenPage, StoreError> {
        let attempt = || {
            let (cache, redrive) = (Arc::clone(&self.definitions), redrive.clone());
            let limit = self.write_timeout;
            self.files.try_write("redrive", limit, |c| Box::pin(dead_letters::redrive(c, cache, redrive)))
        };
        Ok(self.definitions.checked(attempt).await?)
    }

    async fn discard(&self, id: Uuid) -> Result<bool, StoreError> {
        self.files.write("discard", move |c| Box::pin(dead_letters::discard(c, id))).await
    }
}

#[async_trait]
impl Housekeep for SqliteStore {
    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError> {
        housekeeping::housekeep(&self.files, &self.definitions, &self.last_key, retention).await
    }

    async fn hold(
        &self,
        own: ConsumerWatermark,
        silent: Vec<ReportedWatermark>,
    ) -> Result<Watermarks, StoreError> {
        self.files.write("hold", move |c| Box::pin(watermarks::hold(c, own, silent))).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        self.files.migrate().await
    }

    async fn close(&self) {
        self.files.close().await;
    }
}

/// Turns `Busy` into `Failed`: the content of a write that was ended at its time limit may be the reason.
fn failed_in_time(failure: SqliteFailure) -> StoreError {
    match StoreError::from(failure) {
        StoreError::Busy(why) => StoreError::Failed(why),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Row, SqliteConnection};

    use super::*;

    /// Statements that look rows up by keys, or walk a range of them.
    const LOOK_UPS: [&str; 38] = [
        read::COUNTER,
        read::COUNTERS,
        read::FATES,
        apply::ENTER,
        apply::SEEN,
        apply::CURRENT,
        apply::PUT,
        apply::BURY,
        keys::ENTER,
        keys::EARLIER,
        collections::ONE,
        collections::PAGE,
        collections::VERSIONS,
        collections::PUT,
        collections::HAS_DOCUMENTS,
        collections::DROP_FIELD,
        fields::NEXT,
        fields::INDEXED_TO,
        dead_letters::PAGE,
        dead_letters::ONE,
        dead_letters::DISCARD,
        dead_letters::BURY,
        dead_letters::TAKE,
        dead_letters::KEEP,
        documents::ERASE,
        documents::DOOMED_PLAIN,
        documents::DOOMED_KEYED,
        fields::INDEX,
        fields::FORGET,
        documents::PLAIN,
        documents::KEYED,
        documents::PAGE,
        documents::SEARCH,
        points::TYPES,
        points::ADD_TYPES,
        points::NAMES,
        points::FIND,
        points::RANGE,
    ];

    /// Names of tables that may be scanned: lists that a statement brings along.
    const LISTS: [&str; 7] = ["json_each", "key", "item", "doomed", "entry", "walk", "CONSTANT"];

    async fn plan(connection: &mut SqliteConnection, statement: &str) -> Vec<String> {
        let explain = sqlx::AssertSqlSafe(format!("explain query plan {statement}"));
        let plan = sqlx::query(explain).fetch_all(connection).await.expect("explains");
        plan.iter().map(|row| row.get("detail")).collect()
    }

    #[tokio::test]
    async fn every_statement_finds_its_rows_by_key() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("opens");
        for schema in [
            include_str!("../../migrations/sqlite/0001_ledger_and_counters.sql"),
            include_str!("../../migrations/sqlite/0002_documents_metrics_keys.sql"),
            include_str!("../../migrations/sqlite/0003_floor_and_retention.sql"),
            include_str!("../../migrations/sqlite/0004_message_attempts.sql"),
            include_str!("../../migrations/sqlite/0005_live_documents.sql"),
        ] {
            sqlx::raw_sql(schema).execute(&mut connection).await.expect("migrates");
        }
        let housekeeping = [
            keys::PAGE,
            keys::RENEW,
            dead_letters::MARK_REUSED,
            housekeeping::ROLLUPS,
            housekeeping::OLD,
            housekeeping::ENTOMB_OLD,
            housekeeping::DELETE_OLD,
            housekeeping::DELETE_OLD_KEYS,
            housekeeping::FLOOR,
            housekeeping::RAISE,
            housekeeping::OLD_MESSAGES,
            housekeeping::FORGET_MESSAGES,
            housekeeping::DELETED,
            housekeeping::DISCARDED,
            keys::FORGET,
            watermarks::REPORT,
            watermarks::LEAVE,
            attempts::PROBE,
            attempts::BEGIN,
            attempts::END,
        ];
        for statement in LOOK_UPS.into_iter().chain(housekeeping) {
            let steps = plan(&mut connection, statement).await;
            for step in &steps {
                let scanned = step.strip_prefix("SCAN ").and_then(|step| step.split(' ').next());
                assert!(scanned.is_none_or(|name| LISTS.contains(&name)), "{statement}: {steps:?}");
                assert!(!step.contains("TEMP B-TREE"), "{statement}: {steps:?}");
                // An index that is made for the one statement reads the whole table first.
                assert!(!step.contains("AUTOMATIC"), "{statement}: {steps:?}");
            }
        }
        for (statement, key) in [
            (read::COUNTER, "PRIMARY KEY (name=?)"),
            (read::COUNTERS, "PRIMARY KEY (name>? AND name<?)"),
            (apply::SEEN, "PRIMARY KEY (id=?)"),
            (apply::CURRENT, "PRIMARY KEY (name=?)"),
            (keys::EARLIER, "PRIMARY KEY (id=?)"),
            (collections::PAGE, "PRIMARY KEY (name>? AND name<?)"),
            (fields::NEXT, "documents_1 (collection=? AND place<?)"),
            (collections::DROP_FIELD, "PRIMARY KEY (collection=? AND field=?)"),
            (documents::DOOMED_PLAIN, "documents_1 (collection=? AND place=?)"),
            (documents::DOOMED_KEYED, "documents_id (collection=? AND id=?)"),
            (fields::INDEX, "documents_1 (collection=? AND place=?)"),
            (fields::FORGET, "PRIMARY KEY (collection=? AND field=? AND value=? AND place=?)"),
            (documents::KEYED, "documents_id (collection=? AND id=?)"),
            (documents::PAGE, "documents_live (collection=? AND place>? AND place<?)"),
            (documents::SEARCH, "PRIMARY KEY (collection=? AND field=? AND value=? AND place>? AND place<?)"),
            (documents::SEARCH, "PRIMARY KEY (collection=? AND field=? AND value=? AND place=?)"),
            (points::FIND, "rollups_1 (resolution=? AND type=? AND period=?)"),
            (points::RANGE, "rollups_1 (resolution=? AND type=? AND period>? AND period<?)"),
            (dead_letters::PAGE, "dead_letters_1 (id>? AND id<?)"),
            (dead_letters::ONE, "dead_letters_1 (id=?)"),
            (dead_letters::TAKE, "dead_letters_1 (id=?)"),
            (keys::PAGE, "keyed_writes_applied_at ("),
            (keys::PAGE, "dead_letters_1 (id=?)"),
            (keys::RENEW, "PRIMARY KEY (id=?)"),
            (housekeeping::ROLLUPS, "rollups_period (resolution=? AND period<?)"),
            (housekeeping::OLD, "documents_live (collection=? AND place<?)"),
            (housekeeping::ENTOMB_OLD, "documents_live (collection=? AND place<?)"),
            (housekeeping::DELETE_OLD, "documents_live (collection=? AND place<?)"),
            (housekeeping::DELETE_OLD_KEYS, "documents_live (collection=? AND place<?)"),
            (housekeeping::OLD_MESSAGES, "PRIMARY KEY (id<?)"),
            (housekeeping::FORGET_MESSAGES, "PRIMARY KEY (id<?)"),
            (housekeeping::DELETED, "documents_deleted (accepted_at_ms<?)"),
            (housekeeping::DELETED, "dead_letters_1 (id=?)"),
            (housekeeping::DISCARDED, "dead_letters_discarded (discarded_at_ms>? AND discarded_at_ms<?)"),
        ] {
            let steps = plan(&mut connection, statement).await;
            assert!(steps.iter().any(|step| step.contains(key)), "{key}: {statement}: {steps:?}");
        }
    }
}
