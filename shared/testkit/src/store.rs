//! A store in front of another one, for tests that make single operations fail or wait.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::model::collection::{Collection, Definition};
use shared::model::dead_letter::{DeadLetter, DeadLetterPage, DeadMessage, Redrive, RedrivenPage};
use shared::model::id::{ItemKey, MessageId};
use shared::model::message::Message;
use shared::model::outcome::{Applied, Counter, ItemStatus};
use shared::store::{
    ConsumerWatermark, DocumentPage, DocumentsFound, GiveUp, Housekept, NamePage, ReportedWatermark,
    Retention, RollupPage, RollupRange, Store, StoreError, Stored, Watermarks,
};
use uuid::Uuid;

type StoreResult<T> = Result<T, StoreError>;

/// Overrides some operations; the others go on to `behind`.
#[async_trait]
pub trait Layer: Send + Sync {
    fn behind(&self) -> &Arc<dyn Store>;

    async fn apply(&self, batch: Arc<[Message]>) -> StoreResult<Applied> {
        self.behind().apply(batch).await
    }

    /// Applies without the limit, for layers that override [`apply`](Self::apply) only.
    async fn apply_within(&self, batch: Arc<[Message]>, _limit: Duration) -> StoreResult<Applied> {
        self.apply(batch).await
    }

    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> StoreResult<Applied> {
        self.behind().give_up_on(message, give_up).await
    }

    async fn probe(&self) -> StoreResult<()> {
        self.behind().probe().await
    }

    async fn bury(&self, message: DeadMessage) -> StoreResult<()> {
        self.behind().bury(message).await
    }

    async fn counter(&self, name: &str) -> StoreResult<Option<Counter>> {
        self.behind().counter(name).await
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> StoreResult<Vec<Option<ItemStatus>>> {
        self.behind().item_statuses(items).await
    }

    async fn collection(&self, name: &str) -> StoreResult<Collection> {
        self.behind().collection(name).await
    }

    async fn document(&self, collection: &str, id: ItemKey) -> StoreResult<Option<Stored>> {
        self.behind().document(collection, id).await
    }

    async fn rollups(&self, range: RollupRange) -> StoreResult<RollupPage> {
        self.behind().rollups(range).await
    }

    async fn housekeep(&self, retention: Retention) -> StoreResult<Housekept> {
        self.behind().housekeep(retention).await
    }

    async fn now_ms(&self) -> StoreResult<i64> {
        self.behind().now_ms().await
    }

    async fn floor_ms(&self) -> StoreResult<i64> {
        self.behind().floor_ms().await
    }
}

/// The store that a layer makes.
#[derive(Debug)]
pub struct Layered<L>(pub L);

#[async_trait]
impl<L: Layer> Store for Layered<L> {
    async fn apply(&self, batch: Arc<[Message]>) -> StoreResult<Applied> {
        self.0.apply(batch).await
    }

    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> StoreResult<Applied> {
        self.0.apply_within(batch, limit).await
    }

    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> StoreResult<Applied> {
        self.0.give_up_on(message, give_up).await
    }

    async fn probe(&self) -> StoreResult<()> {
        self.0.probe().await
    }

    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> StoreResult<HashMap<MessageId, u32>> {
        self.0.behind().begin_attempts(messages, again).await
    }

    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> StoreResult<()> {
        self.0.behind().end_attempts(messages).await
    }

    async fn counter(&self, name: &str) -> StoreResult<Option<Counter>> {
        self.0.counter(name).await
    }

    async fn counters(&self, page: NamePage) -> StoreResult<Vec<Counter>> {
        self.0.behind().counters(page).await
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> StoreResult<Vec<Option<ItemStatus>>> {
        self.0.item_statuses(items).await
    }

    async fn collection(&self, name: &str) -> StoreResult<Collection> {
        self.0.collection(name).await
    }

    async fn collections(&self, page: NamePage) -> StoreResult<Vec<(String, Collection)>> {
        self.0.behind().collections(page).await
    }

    async fn define(&self, name: &str, definition: Definition) -> StoreResult<Collection> {
        self.0.behind().define(name, definition).await
    }

    async fn index_page(&self, name: &str) -> StoreResult<bool> {
        self.0.behind().index_page(name).await
    }

    async fn document(&self, collection: &str, id: ItemKey) -> StoreResult<Option<Stored>> {
        self.0.document(collection, id).await
    }

    async fn documents(&self, page: DocumentPage) -> StoreResult<DocumentsFound> {
        self.0.behind().documents(page).await
    }

    async fn rollups(&self, range: RollupRange) -> StoreResult<RollupPage> {
        self.0.rollups(range).await
    }

    async fn metric_types(&self, page: NamePage) -> StoreResult<Vec<Arc<str>>> {
        self.0.behind().metric_types(page).await
    }

    async fn bury(&self, message: DeadMessage) -> StoreResult<()> {
        self.0.bury(message).await
    }

    async fn dead_letters(&self, page: DeadLetterPage) -> StoreResult<Vec<DeadLetter>> {
        self.0.behind().dead_letters(page).await
    }

    async fn dead_letter(&self, id: Uuid) -> StoreResult<Option<DeadLetter>> {
        self.0.behind().dead_letter(id).await
    }

    async fn redrive(&self, redrive: Redrive) -> StoreResult<RedrivenPage> {
        self.0.behind().redrive(redrive).await
    }

    async fn discard(&self, id: Uuid) -> StoreResult<bool> {
        self.0.behind().discard(id).await
    }

    async fn housekeep(&self, retention: Retention) -> StoreResult<Housekept> {
        self.0.housekeep(retention).await
    }

    async fn hold(&self, own: ConsumerWatermark, silent: Vec<ReportedWatermark>) -> StoreResult<Watermarks> {
        self.0.behind().hold(own, silent).await
    }

    async fn now_ms(&self) -> StoreResult<i64> {
        self.0.now_ms().await
    }

    async fn floor_ms(&self) -> StoreResult<i64> {
        self.0.floor_ms().await
    }

    async fn migrate(&self) -> StoreResult<()> {
        self.0.behind().migrate().await
    }

    async fn close(&self) {
        self.0.behind().close().await;
    }
}
