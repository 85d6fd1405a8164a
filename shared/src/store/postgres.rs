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

use self::failure::PgFailure;
use self::known::KnownState;
use self::limits::{Class, Limit};
use self::session::PgSession;
use super::rules::page::Bounds;
use super::{
    ConsumerWatermark, DocumentPage, DocumentsFound, GiveUp, Housekept, NamePage, ReportedWatermark,
    Retention, RollupPage, RollupRange, Store, StoreError, Stored, Watermarks,
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
    read_timeout: Limit,
    list_timeout: Limit,
    write_timeout: Limit,
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
            read_timeout: Limit::new(Class::Read, config.read_timeout_ms),
            list_timeout: Limit::new(Class::List, config.read_timeout_ms),
            write_timeout: Limit::new(Class::Write, config.write_timeout_ms),
        }))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError> {
        let limit = self.write_timeout.time.min(limit);
        let known = Arc::clone(&self.known);
        let work = self.session.run("apply", self.write_timeout.within(limit), move |connection| {
            Box::pin(async move {
                let applied = apply::apply(connection, &known, &batch, limit).await;
                applied.map_err(PgFailure::of_transaction)
            })
        });
        work.await
    }

    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError> {
        let (known, limit) = (Arc::clone(&self.known), self.write_timeout.time);
        let work = self.session.run("give_up_on", self.write_timeout, move |connection| {
            Box::pin(async move {
                let applied = apply::give_up_on(connection, &known, &message, &give_up, limit).await;
                applied.map_err(PgFailure::of_transaction)
            })
        });
        work.await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.session.run("probe", self.read_timeout, |connection| Box::pin(attempts::probe(connection))).await
    }

    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError> {
        let work = self.session.run("begin_attempts", self.read_timeout, move |connection| {
            Box::pin(async move { attempts::begin(connection, &messages, again).await })
        });
        work.await
    }

    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> Result<(), StoreError> {
        let work = self.session.run("end_attempts", self.read_timeout, move |connection| {
            Box::pin(async move { attempts::end(connection, &messages).await })
        });
        work.await
    }

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError> {
        // The server would refuse the text, and its refusal would look like an outage.
        if name.contains('\0') {
            return Ok(None);
        }
        let name = name.to_owned();
        let work = self.session.run("counter", self.read_timeout, move |connection| {
            Box::pin(async move { read::counter(connection, &name).await })
        });
        work.await
    }

    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        let work = self.session.run("counters", self.list_timeout, move |connection| {
            Box::pin(async move { read::counters(connection, &bounds).await })
        });
        work.await
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        let work = self.session.run("fates", self.read_timeout, move |connection| {
            Box::pin(async move { read::item_statuses(connection, &items).await })
        });
        work.await
    }

    async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        if name.contains('\0') {
            return Ok(Collection::default());
        }
        let name = name.to_owned();
        let work = self.session.run("collection", self.read_timeout, move |connection| {
            Box::pin(async move { collections::collection(connection, &name).await })
        });
        work.await
    }

    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        let work = self.session.run("collections", self.list_timeout, move |connection| {
            Box::pin(async move { collections::page(connection, &bounds).await })
        });
        work.await
    }

    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError> {
        let name = name.to_owned();
        let work = self.session.run("define", self.write_timeout, move |connection| {
            Box::pin(async move { collections::define(connection, &name, definition).await })
        });
        work.await
    }

    async fn index_page(&self, name: &str) -> Result<bool, StoreError> {
        let (known, name) = (Arc::clone(&self.known), name.to_owned());
        let work = self.session.run("index_page", self.write_timeout, move |connection| {
            Box::pin(async move { fields::index_page(connection, &known.compiled, &name).await })
        });
        work.await
    }

    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError> {
        if collection.contains('\0') {
            return Ok(None);
        }
        let collection = collection.to_owned();
        let work = self.session.run("document", self.read_timeout, move |connection| {
            Box::pin(async move { listing::document(connection, &collection, id).await })
        });
        work.await
    }

    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError> {
        let has_nul = |(field, value): &(String, String)| field.contains('\0') || value.contains('\0');
        if page.limit == 0 || page.collection.contains('\0') || page.filters.iter().any(has_nul) {
            return Ok(DocumentsFound::default());
        }
        // The search ends by itself well before the server would end it.
        let search_time_max = self.list_timeout.time / 4;
        let work = self.session.run("documents", self.list_timeout, move |connection| {
            Box::pin(async move { listing::page(connection, &page, search_time_max).await })
        });
        work.await
    }

    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError> {
        if range.kind.contains('\0') {
            return Ok(RollupPage::default());
        }
        let work = self.session.run("rollups", self.list_timeout, move |connection| {
            Box::pin(async move { rollups::range(connection, &range).await })
        });
        work.await
    }

    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError> {
        let Some(bounds) = Bounds::of(page) else { return Ok(Vec::new()) };
        let work = self.session.run("metric_types", self.list_timeout, move |connection| {
            Box::pin(async move { read::metric_types(connection, &bounds).await })
        });
        work.await
    }

    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError> {
        let work = self.session.run("bury", self.write_timeout, move |connection| {
            Box::pin(async move { dead_messages::bury(connection, &message).await })
        });
        work.await
    }

    async fn dead_letters(&self, page: DeadLetterPage) -> Result<Vec<DeadLetter>, StoreError> {
        if page.filter.has_nul() {
            return Ok(Vec::new());
        }
        let work = self.session.run("dead_letters", self.list_timeout, move |connection| {
            Box::pin(async move { dead_letters::page(connection, &page).await })
        });
        work.await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        let work = self.session.run("dead_letter", self.read_timeout, move |connection| {
            Box::pin(async move { dead_letters::one(connection, id).await })
        });
        work.await
    }

    async fn redrive(&self, redrive: Redrive) -> Result<RedrivenPage, StoreError> {
        if redrive.filter.has_nul() {
            return Ok(RedrivenPage::default());
        }
        let known = Arc::clone(&self.known);
        let work = self.session.run("redrive", self.write_timeout, move |connection| {
            Box::pin(async move { redrive::redrive(connection, &known, &redrive).await })
        });
        work.await
    }

    async fn discard(&self, id: Uuid) -> Result<bool, StoreError> {
        let work = self.session.run("discard", self.write_timeout, move |connection| {
            Box::pin(async move { dead_letters::discard(connection, id).await })
        });
        work.await
    }

    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError> {
        let (known, limit) = (Arc::clone(&self.known), self.write_timeout.time / 2);
        let work = self.session.run("housekeep", self.write_timeout, move |connection| {
            Box::pin(async move { housekeeping::housekeep(connection, &known, retention, limit).await })
        });
        work.await
    }

    async fn hold(
        &self,
        own: ConsumerWatermark,
        silent: Vec<ReportedWatermark>,
    ) -> Result<Watermarks, StoreError> {
        let work = self.session.run("hold", self.read_timeout, move |connection| {
            Box::pin(async move { watermarks::hold(connection, own, &silent).await })
        });
        work.await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.session.run("now", self.read_timeout, |connection| Box::pin(read::now_ms(connection))).await
    }

    async fn floor_ms(&self) -> Result<i64, StoreError> {
        let work = self.session.run("floor", self.read_timeout, |connection| {
            Box::pin(async move {
                let floor = MessageId::from_uuid(ledger::floor(connection).await?);
                Ok(floor.map_or(0, MessageId::time_ms))
            })
        });
        work.await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.session.migrate().await
    }

    async fn close(&self) {
        self.session.close(self.write_timeout.time).await;
    }
}
