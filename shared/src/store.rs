//! Where writes take effect and reads come from, as a port.
//!
//! Two implementations, [`postgres`] and [`sqlite`], hold the same contract, which
//! `shared/tests/it/store.rs` runs against both:
//!
//! * `apply` is one transaction: ledger rows, effects and set-aside items of the whole batch, or
//!   nothing. `Ok` means committed. A message whose ledger row exists changes nothing, and one
//!   that is so old that its row may have been dropped is set aside whole.
//! * Items are applied as if one after the other, in the order of messages and items; an item
//!   that cannot be applied is set aside and the next one is applied.
pub mod postgres;
pub mod rules;
pub mod sqlite;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::collection::{Collection, Definition};
use crate::model::dead_letter::{DeadLetter, DeadLetterPage, DeadMessage, Redrive, RedrivenPage};
use crate::model::id::{ItemKey, MessageId};
use crate::model::idempotency::Fingerprint;
use crate::model::message::Message;
use crate::model::outcome::{Applied, Counter, Fate};
use crate::model::rollup::{Resolution, Rollup};

#[async_trait]
pub trait Store: Send + Sync {
    /// Applies a batch of messages with different ids.
    async fn apply(&self, batch: Arc<[Message]>) -> Result<Applied, StoreError> {
        self.apply_within(batch, Duration::MAX).await
    }

    /// The same in less time than a write may take: for `limit`, when that is less.
    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError>;

    /// Ends a message that failed alone, time and again: what fails of it is set aside as
    /// [`Reason::NotApplied`](crate::model::outcome::Reason::NotApplied), in the transaction of its ledger row.
    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError>;

    /// Commits a small write of its own: whether the store takes writes now.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Notes, before messages are tried, that an attempt begins: only those of a process that ended
    /// meanwhile stay noted. Without `again` only what was not noted before is, so that the messages
    /// that are missing in the answer were noted by such a process; with `again` each is counted. The
    /// answer holds the counts of those that were noted now.
    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError>;

    /// Forgets the attempts at messages, which are over.
    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> Result<(), StoreError>;

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError>;

    /// Counters by name (bytewise), after `after`, beginning with `prefix`, `limit` at most.
    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError>;

    /// What became of each item, in the order of `items`; `None` while it was not processed.
    async fn fates(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<Fate>>, StoreError>;

    /// The definition of a collection; the default one when it was never registered.
    async fn collection(&self, name: &str) -> Result<Collection, StoreError>;

    /// Collections that are defined, by name (bytewise), each with its definition.
    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError>;

    /// Replaces a definition. Each call makes a new version, whatever came before. Afterwards
    /// every document that is applied is checked and indexed by it; those that were there before
    /// are indexed by [`index_page`](Self::index_page).
    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError>;

    /// Indexes the next documents of a collection that was defined over existing ones, a page at
    /// a time; `false` when all are indexed, which the collection's `is_indexed` then says.
    async fn index_page(&self, name: &str) -> Result<bool, StoreError>;

    /// One document: `None` while it has not come.
    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError>;

    /// Documents that are not deleted, by descending place. The work of one call is bounded, however
    /// little the filters leave.
    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError>;

    /// The rollups of one type in a range of periods, ascending; none for an unknown type. A page ends
    /// once it holds [`PAGE_BYTES_MAX`](self::rules::points::PAGE_BYTES_MAX).
    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError>;

    /// Names of the metric types that have points, bytewise.
    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError>;

    /// Keeps a message that cannot be applied among the dead letters, where its own id is that of
    /// its body: one that is there already, discarded or not, stays as it is.
    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError>;

    /// What was set aside, by ascending id, which costs no index of its own: unkeyed items come in
    /// the order in which they were accepted, the rest anywhere between them. Fewer than `limit` come
    /// when there are no more, or when they hold [`PAGE_BYTES_MAX`](crate::model::dead_letter::PAGE_BYTES_MAX) together.
    async fn dead_letters(&self, page: DeadLetterPage) -> Result<Vec<DeadLetter>, StoreError>;

    /// One of them, discarded or not.
    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError>;

    /// Applies once more what was set aside, by ascending id. The row is the token: it goes in the
    /// transaction in which its item takes effect, and nobody else can have it meanwhile. An item
    /// that fails again stays, with its new reason. Discarded ones are never applied. A message is
    /// decoded again, and applied as one that comes from the queue.
    async fn redrive(&self, redrive: Redrive) -> Result<RedrivenPage, StoreError>;

    /// Marks an item as never to be redriven; `false` when there is none. Its row and its fate stay.
    async fn discard(&self, id: Uuid) -> Result<bool, StoreError>;

    /// Deletes what is older than its retention, a bounded part of it, and makes the partitions of
    /// tomorrow. Any number of processes may call it at once.
    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError>;

    /// Tells the oldest accept time that a consumer holds or may be given, and what the other
    /// consumers told. `silent` ones are forgotten, unless they told something since.
    async fn hold(&self, own: Hold, silent: Vec<Holder>) -> Result<Held, StoreError>;

    /// The store's clock, in milliseconds since 1970. Also the cheapest probe.
    async fn now_ms(&self) -> Result<i64, StoreError>;

    /// The time of the last id whose ledger row was dropped, in milliseconds since 1970; 0 while none
    /// was. It may lie ahead of every clock; an id at or before it is too old from the beginning.
    async fn floor_ms(&self) -> Result<i64, StoreError>;

    /// Brings the schema up to what this build knows.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes connections and checkpoints files.
    async fn close(&self);
}

/// A page of things that have a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    pub prefix: String,
    pub after: Option<String>,
    pub limit: u32,
}

/// A page of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentPage {
    pub collection: String,
    /// Field and value as [`collection::index_value`](crate::model::collection::index_value) writes it;
    /// all must match, and only fields that are indexed may be named.
    pub filters: Vec<(String, String)>,
    /// Documents whose place is this one or lies behind it.
    pub from: Option<Uuid>,
    /// Documents whose place lies before this one.
    pub before: Option<Uuid>,
    pub limit: u32,
}

impl DocumentPage {
    /// Whether no place lies between its bounds.
    pub fn is_empty(&self) -> bool {
        self.from.is_some_and(|from| self.before.is_some_and(|before| from >= before))
    }
}

/// The documents of a page. Fewer than its limit, without `stopped_at`, are the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentsFound {
    pub documents: Vec<Document>,
    /// The search ended at [`SEARCH_STEPS_MAX`] or at its time, before the page was full: it goes on
    /// before this place, which is that of a document of the collection.
    pub stopped_at: Option<Uuid>,
}

/// Index entries that the search for one page of filtered documents looks up at most.
pub const SEARCH_STEPS_MAX: i32 = 10_000;

/// A document as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: ItemKey,
    /// Where it stands in its collection: the place of its item in the message that brought it.
    pub place: Uuid,
    /// The object as the client wrote it.
    pub data: String,
    pub accepted_at_ms: i64,
    /// Of a keyed one.
    pub fingerprint: Option<Fingerprint>,
}

/// What is stored under the id of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Document(Document),
    /// It was deleted, perhaps before it came.
    Deleted,
}

impl Stored {
    pub(crate) fn into_document(self) -> Option<Document> {
        match self {
            Self::Document(document) => Some(document),
            Self::Deleted => None,
        }
    }
}

/// Rollups of one type whose period is `from <= period < below`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollupRange {
    pub kind: String,
    pub resolution: Resolution,
    pub from: i32,
    pub below: i32,
}

/// Rollups by period, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RollupPage {
    pub rollups: Vec<(i32, Rollup)>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<i32>,
}

/// How long things are kept, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ages count up to the store's clock, or to this time in milliseconds since 1970 where that is
    /// earlier: one clock that is ahead must not be enough to delete what is to be kept.
    pub now_ms_max: i64,
    pub points_ms: i64,
    pub minutes_ms: i64,
    pub hours_ms: i64,
    /// How long dead letters are kept after they were discarded.
    pub discarded_ms: i64,
    /// For how long a key is promised to hold a repetition back.
    pub remembered_ms: i64,
    /// What was accepted before this time, in milliseconds since 1970, comes no more: its ledger rows,
    /// keys and tombstones may be forgotten; `None` while none may. Not an age: a message may have
    /// waited in the queue for longer than any. Keys of documents go with their documents, and
    /// neither a key nor a tombstone goes before its dead letter, nor before the floor lies
    /// `remembered_ms` above it.
    pub forget_before_ms: Option<i64>,
    /// Rows that one call deletes at most, of each kind.
    pub rows_max: u32,
}

/// The oldest accept time, in milliseconds since 1970, of the messages that a consumer holds, or
/// that the queue may still give to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Drawn at random by its process.
    pub consumer: u64,
    pub oldest_ms: i64,
}

/// What a consumer told, and when, by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub hold: Hold,
    pub told_at_ms: i64,
}

/// What the other consumers told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub others: Vec<Holder>,
    /// By the store's clock, in milliseconds since 1970.
    pub now_ms: i64,
}

/// Dead letters that a count looks at.
pub const DEAD_LETTERS_COUNTED_MAX: i64 = 10_000;

/// What one call of `housekeep` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Housekept {
    pub rows: u64,
    pub partitions: u64,
    /// Partitions that are there although they should have gone more than a day ago.
    pub overdue: u64,
    /// Dead letters that are not discarded, among the first [`DEAD_LETTERS_COUNTED_MAX`] by id.
    pub dead_letters: u64,
    /// There is more to delete: call again.
    pub more: bool,
}

/// How a message is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiveUp {
    /// Its detail in the dead letters, without values.
    pub why: Arc<str>,
    /// Applies what can be applied, and searches for the items that fail alone, where the store can;
    /// otherwise all are set aside without another try.
    pub search: bool,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed, or it is unknown whether it was; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(Arc<str>),
    /// It is there and had no time for this call: all its connections were in use, or it ended a
    /// statement that took too long. As with `Unavailable`, the same call may succeed later; others
    /// need not suffer.
    #[error("the store is busy: {0}")]
    Busy(Arc<str>),
    /// It answers others, and failed here: a time limit, a panic, a refusal of which it is not known
    /// what it means. When what was asked is the reason, the same call fails again.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    /// A message with this id and another body was applied before: never acknowledge it.
    #[error("message {0} was applied with another body")]
    DigestMismatch(MessageId),
}
