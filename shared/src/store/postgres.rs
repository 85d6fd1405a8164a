//! The store on PostgreSQL.
//!
//! This file holds the settings and the port; `session` lends connections and bounds every call, `apply` is
//! the one transaction that writes, `partitions` and `schema` prepare the tables for it, and `read` holds
//! simple reads. The callers decide when and how much to write.
mod apply;
mod attempts;
mod collections;
mod columns;
mod counters;
mod database;
mod days;
mod dead_letters;
mod dead_messages;
mod documents;
mod effects;
mod expired_documents;
mod failure;
mod fields;
mod housekeeping;
mod isolate;
mod keys;
mod known;
mod ledger;
mod limits;
mod listing;
mod partitions;
mod points;
mod read;
mod redrive;
mod retire;
mod rollups;
mod schema;
mod session;
mod watermarks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use uuid::Uuid;

use self::known::KnownState;
use self::limits::{Class, Limit};
use self::session::PgSession;
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

/// Store in a PostgreSQL database. See the module.
pub struct PostgresStore {
    session: PgSession,
    known: Arc<KnownState>,
    read: Limit,
    list: Limit,
    write: Limit,
}

impl PostgresStore {
    /// Reads the settings and connects to nothing. Must be called on a runtime: all connections
    /// live on that one, from wherever the store is used.
    pub fn open(config: &config::StoreSettings) -> anyhow::Result<Arc<Self>> {
        Self::open_with(config, &config::Collections::default())
    }

    pub fn open_with(
        config: &config::StoreSettings,
        collections: &config::Collections,
    ) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            session: PgSession::new(config).context("store.url")?,
            known: Arc::new(KnownState::new(collections)),
            read: Limit::new(Class::Read, config.read_timeout_ms),
            list: Limit::new(Class::List, config.read_timeout_ms),
            write: Limit::new(Class::Write, config.write_timeout_ms),
        }))
    }
}

#[async_trait]
impl Apply for PostgresStore {
    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError> {
        let (known, time) = (Arc::clone(&self.known), self.write.time.min(limit));
        let limit = self.write.within(time);
        self.session.run("apply", limit, move |c| Box::pin(apply::apply(c, known, batch, time))).await
    }

    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError> {
        let (known, limit) = (Arc::clone(&self.known), self.write);
        self.session
            .run("give_up_on", limit, move |c| {
                Box::pin(apply::give_up_on(c, known, message, give_up, limit.time))
            })
            .await
    }

    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError> {
        self.session.run("bury", self.write, |c| Box::pin(dead_messages::bury(c, message))).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.session.run("probe", self.read, |c| Box::pin(attempts::probe(c))).await
    }

    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError> {
        self.session
            .run("begin_attempts", self.read, move |c| Box::pin(attempts::begin(c, messages, again)))
            .await
    }

    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> Result<(), StoreError> {
        self.session.run("end_attempts", self.read, |c| Box::pin(attempts::end(c, messages))).await
    }
}

#[async_trait]
impl Reads for PostgresStore {
    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError> {
        // The server would refuse the text, and its refusal would look like an outage.
        if name.contains('\0') {
            return Ok(None);
        }
        let name = name.to_owned();
        self.session.run("counter", self.read, |c| Box::pin(read::counter(c, name))).await
    }

    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.session.run("counters", self.list, |c| Box::pin(read::counters(c, bounds))).await
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        self.session
            .run("fates", self.read, |c| Box::pin(async move { read::item_statuses(c, &items).await }))
            .await
    }

    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.session.run("collections", self.list, |c| Box::pin(collections::page(c, bounds))).await
    }

    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError> {
        if collection.contains('\0') {
            return Ok(None);
        }
        let collection = collection.to_owned();
        self.session.run("document", self.read, move |c| Box::pin(listing::document(c, collection, id))).await
    }

    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError> {
        let has_nul = |(field, value): &(String, String)| field.contains('\0') || value.contains('\0');
        if page.limit == 0 || page.collection.contains('\0') || page.filters.iter().any(has_nul) {
            return Ok(DocumentsFound::default());
        }
        // The search ends by itself well before the server would end it.
        let search_max = self.list.time / 4;
        self.session.run("documents", self.list, move |c| Box::pin(listing::page(c, page, search_max))).await
    }

    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError> {
        if range.kind.contains('\0') {
            return Ok(RollupPage::default());
        }
        self.session.run("rollups", self.list, |c| Box::pin(rollups::range(c, range))).await
    }

    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        self.session.run("metric_types", self.list, |c| Box::pin(read::metric_types(c, bounds))).await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.session.run("now", self.read, |c| Box::pin(read::now_ms(c))).await
    }

    async fn floor_ms(&self) -> Result<i64, StoreError> {
        self.session.run("floor", self.read, |c| Box::pin(ledger::floor_ms(c))).await
    }
}

#[async_trait]
impl Define for PostgresStore {
    async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        if name.contains('\0') {
            return Ok(Collection::default());
        }
        let name = name.to_owned();
        self.session.run("collection", self.read, |c| Box::pin(collections::collection(c, name))).await
    }

    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError> {
        let name = name.to_owned();
        self.session.run("define", self.write, |c| Box::pin(collections::define(c, name, definition))).await
    }

    async fn index_page(&self, name: &str) -> Result<bool, StoreError> {
        let (known, name) = (Arc::clone(&self.known), name.to_owned());
        self.session.run("index_page", self.write, |c| Box::pin(fields::index_page(c, known, name))).await
    }
}

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn dead_letters(&self, page: DeadLetterPage) -> Result<Vec<DeadLetter>, StoreError> {
        if page.filter.has_nul() {
            return Ok(Vec::new());
        }
        self.session
            .run("dead_letters", self.list, |c| Box::pin(async move { dead_letters::page(c, &page).await }))
            .await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.session.run("dead_letter", self.read, move |c| Box::pin(dead_letters::one(c, id))).await
    }

    async fn redrive(&self, redrive: Redrive) -> Result<RedrivenPage, StoreError> {
        if redrive.filter.has_nul() {
            return Ok(RedrivenPage::default());
        }
        let known = Arc::clone(&self.known);
        self.session.run("redrive", self.write, |c| Box::pin(redrive::redrive(c, known, redrive))).await
    }

    async fn discard(&self, id: Uuid) -> Result<bool, StoreError> {
        self.session.run("discard", self.write, move |c| Box::pin(dead_letters::discard(c, id))).await
    }
}

#[async_trait]
impl Housekeep for PostgresStore {
    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError> {
        let (known, limit) = (Arc::clone(&self.known), self.write.time / 2);
        self.session
            .run("housekeep", self.write, move |c| {
                Box::pin(housekeeping::housekeep(c, known, retention, limit))
            })
            .await
    }

    async fn hold(
        &self,
        own: ConsumerWatermark,
        silent: Vec<ReportedWatermark>,
    ) -> Result<Watermarks, StoreError> {
        self.session.run("hold", self.read, move |c| Box::pin(watermarks::hold(c, own, silent))).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        self.session.migrate().await
    }

    async fn close(&self) {
        self.session.close(self.write.time).await;
    }
}
