//! Port of the store: it applies writes and answers reads.
//!
//! The two implementations, [`postgres`] and [`sqlite`], hold the same contract, which
//! `shared/tests/it/store.rs` runs against both:
//!
//! * `apply` is one transaction: ledger rows, effects and set-aside items of the whole batch, or
//!   nothing. `Ok` means committed. A message that has a ledger row changes nothing. A message
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
use crate::model::outcome::{Applied, Counter, ItemStatus};
use crate::model::rollup::{Resolution, Rollup};

#[async_trait]
pub trait Store: Send + Sync {
    /// Applies a batch of messages with different ids.
    async fn apply(&self, batch: Arc<[Message]>) -> Result<Applied, StoreError> {
        self.apply_within(batch, Duration::MAX).await
    }

    /// Applies a batch within `limit`, or within the time that a write may take when that is less.
    async fn apply_within(&self, batch: Arc<[Message]>, limit: Duration) -> Result<Applied, StoreError>;

    /// Ends a message that failed alone, time and again. The items of it that fail are set aside as
    /// [`Reason::NotApplied`](crate::model::outcome::Reason::NotApplied), in the transaction of its ledger
    /// row.
    async fn give_up_on(&self, message: Message, give_up: GiveUp) -> Result<Applied, StoreError>;

    /// Commits a small write of its own, which shows that the store takes writes now.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Notes, before messages are tried, that an attempt begins. Notes stay only where the process ends
    /// before `end_attempts`. Without `again` only messages without a note get one: those missing in the
    /// answer were noted by a process that ended. With `again` each message is counted. The answer holds the
    /// counts of the messages that were noted now.
    async fn begin_attempts(
        &self,
        messages: Arc<[MessageId]>,
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError>;

    /// Removes the notes on attempts that are over.
    async fn end_attempts(&self, messages: Arc<[MessageId]>) -> Result<(), StoreError>;

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError>;

    /// Counters by name (bytewise), after `after`, beginning with `prefix`, `limit` at most.
    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError>;

    /// Statuses of items, in the order of `items`; `None` while an item was not processed.
    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError>;

    /// The definition of a collection; the default one when it was never registered.
    async fn collection(&self, name: &str) -> Result<Collection, StoreError>;

    /// Collections that are defined, by name (bytewise), each with its definition.
    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError>;

    /// Replaces a definition. Each call makes a new version, even of an equal definition. Afterwards every
    /// document that is applied is checked and indexed by it. Documents that were there before are indexed by
    /// [`index_page`](Self::index_page).
    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError>;

    /// Indexes the next page of the documents that a collection held before its definition. `false` when all
    /// are indexed; the collection's `is_indexed` then says so.
    async fn index_page(&self, name: &str) -> Result<bool, StoreError>;

    /// One document; `None` while it has not come.
    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError>;

    /// Documents that are not deleted, by descending place. The work of one call is bounded, even when the
    /// filters leave few documents.
    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError>;

    /// Rollups of one type in a range of periods, ascending; none for an unknown type. A page ends once it
    /// holds [`PAGE_BYTES_MAX`](self::rules::points::PAGE_BYTES_MAX).
    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError>;

    /// Names of the metric types that have points, bytewise.
    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError>;

    /// Stores a message that cannot be applied among the dead letters, under the id of its body. A row that
    /// is there already, discarded or not, stays as it is.
    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError>;

    /// Dead letters by ascending id, which costs no index of its own. Unkeyed items come in the order in
    /// which they were accepted, the rest anywhere between them. A page is shorter than `limit` at the end of
    /// the list, or once it holds [`PAGE_BYTES_MAX`](crate::model::dead_letter::PAGE_BYTES_MAX).
    async fn dead_letters(&self, page: DeadLetterPage) -> Result<Vec<DeadLetter>, StoreError>;

    /// One dead letter, discarded or not.
    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError>;

    /// Applies dead letters once more, by ascending id. The row is the token: it is deleted in the
    /// transaction in which its item takes effect, and no other redrive can have it meanwhile. An item that
    /// fails again stays, with its new reason. Discarded ones are never applied. A message is decoded again,
    /// and applied as one that comes from the queue.
    async fn redrive(&self, redrive: Redrive) -> Result<RedrivenPage, StoreError>;

    /// Marks an item as never to be redriven; `false` when there is none. Its row and its status stay.
    async fn discard(&self, id: Uuid) -> Result<bool, StoreError>;

    /// Deletes a bounded part of the rows that are older than their retention, and makes the partitions of
    /// tomorrow. Any number of processes may call it at once.
    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError>;

    /// Reports the oldest accept time that a consumer holds or may be given; returns the reports of the other
    /// consumers. Reports in `silent` are deleted, unless their consumer has reported since.
    async fn hold(
        &self,
        own: ConsumerWatermark,
        silent: Vec<ReportedWatermark>,
    ) -> Result<Watermarks, StoreError>;

    /// Time of the store's clock, in milliseconds since 1970. Also the cheapest probe.
    async fn now_ms(&self) -> Result<i64, StoreError>;

    /// Time of the last id that lost its ledger row, in milliseconds since 1970; 0 while none was. It may
    /// lie ahead of every clock; an id at or before it is too old from the beginning.
    async fn floor_ms(&self) -> Result<i64, StoreError>;

    /// Brings the schema up to the version of this build.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes connections and checkpoints files.
    async fn close(&self);
}

/// A page of names.
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
    /// Field and value, as [`collection::index_value`](crate::model::collection::index_value) writes it. All
    /// must match, and only fields that are indexed may be named.
    pub filters: Vec<(String, String)>,
    /// Documents at this place or behind it.
    pub from: Option<Uuid>,
    /// Documents before this place.
    pub before: Option<Uuid>,
    pub limit: u32,
}

impl DocumentPage {
    /// Returns true when no place lies between the bounds.
    pub fn is_empty(&self) -> bool {
        self.from.is_some_and(|from| self.before.is_some_and(|before| from >= before))
    }
}

/// Documents of a page. A page shorter than its limit, without `stopped_at`, is the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentsFound {
    pub documents: Vec<Document>,
    /// Place before which an unfinished search goes on: it ended at [`SEARCH_STEPS_MAX`] or at its time,
    /// before the page was full. The place is that of a document of the collection.
    pub stopped_at: Option<Uuid>,
}

/// Maximum of index entries that the search for one page of filtered documents looks up.
pub const SEARCH_STEPS_MAX: i32 = 10_000;

/// A document as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: ItemKey,
    /// Position in its collection: the place of its item in the message that brought it.
    pub place: Uuid,
    /// The object as the client wrote it.
    pub data: String,
    pub accepted_at_ms: i64,
    /// Fingerprint of a keyed document.
    pub fingerprint: Option<Fingerprint>,
}

/// Content under the id of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Document(Document),
    /// The document was deleted, perhaps before it came.
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

/// Rollups of one type with `from <= period < below`.
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
    /// First period of the next page; `None` on the last one.
    pub next: Option<i32>,
}

/// Times for which rows are kept, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Upper bound of the store's clock for ages, in milliseconds since 1970: one clock that is ahead must
    /// not be enough to delete rows that are to be kept.
    pub now_ms_max: i64,
    pub points_ms: i64,
    pub minutes_ms: i64,
    pub hours_ms: i64,
    /// Time for which dead letters are kept after they were discarded.
    pub discarded_ms: i64,
    /// Time for which a key is promised to hold a repetition back.
    pub remembered_ms: i64,
    /// Low watermark: no message that was accepted before this time, in milliseconds since 1970, will come.
    /// Its ledger rows, keys and tombstones may be forgotten; `None` while none may. It is not an age: a
    /// message may have waited in the queue for longer than any. Keys of documents go with their documents,
    /// and neither a key nor a tombstone goes before its dead letter, nor before the floor lies
    /// `remembered_ms` above it.
    pub forget_before_ms: Option<i64>,
    /// Maximum of rows of each kind that one call deletes.
    pub rows_max: u32,
}

/// The oldest accept time, in milliseconds since 1970, of the messages that a consumer holds or that the
/// queue may still give to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerWatermark {
    /// Random number that the consumer's process drew.
    pub consumer: u64,
    pub oldest_ms: i64,
}

/// A consumer's report, and its time by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedWatermark {
    pub hold: ConsumerWatermark,
    pub told_at_ms: i64,
}

/// The reports of the other consumers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermarks {
    pub others: Vec<ReportedWatermark>,
    /// Time of the store's clock, in milliseconds since 1970.
    pub now_ms: i64,
}

/// Maximum of dead letters that a count reads.
pub const DEAD_LETTERS_COUNTED_MAX: i64 = 10_000;

/// Result of one call of `housekeep`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Housekept {
    pub rows: u64,
    pub partitions: u64,
    /// Partitions that still exist more than a day after their time.
    pub overdue: u64,
    /// Dead letters that are not discarded, among the first [`DEAD_LETTERS_COUNTED_MAX`] by id.
    pub dead_letters: u64,
    /// True when there is more to delete: call again.
    pub more: bool,
}

/// Settings for ending a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiveUp {
    /// Detail of its dead letters, without values.
    pub why: Arc<str>,
    /// True to apply the items that can be applied, by a search for those that fail alone, where the store
    /// has one. Otherwise all items are set aside without another try.
    pub search: bool,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed, or it is unknown whether it was; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(Arc<str>),
    /// The store is there and had no time for this call: all its connections were in use, or it ended a
    /// statement that took too long. As with `Unavailable`, the same call may succeed later; other calls need
    /// not suffer.
    #[error("the store is busy: {0}")]
    Busy(Arc<str>),
    /// The store answers other calls, and failed here: a time limit, a panic, or a refusal of unknown
    /// meaning. When the request itself is the reason, the same call fails again.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    /// A message with this id and another body was applied before: never acknowledge it.
    #[error("message {0} was applied with another body")]
    DigestMismatch(MessageId),
}
