//! Reads of applied writes, and of the store's time.
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::error::StoreError;
use crate::model::collection::Collection;
use crate::model::id::ItemKey;
use crate::model::idempotency::Fingerprint;
use crate::model::outcome::{Counter, ItemStatus};
use crate::model::rollup::{Resolution, Rollup};

#[async_trait]
pub trait Reads: Send + Sync {
    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError>;

    /// Counters by name (bytewise), after `after`, beginning with `prefix`, `limit` at most.
    async fn counters(&self, page: NamePage) -> Result<Vec<Counter>, StoreError>;

    /// Statuses of items, in the order of `items`; `None` while an item was not processed.
    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError>;

    /// Collections that are defined, by name (bytewise), each with its definition.
    async fn collections(&self, page: NamePage) -> Result<Vec<(String, Collection)>, StoreError>;

    /// One document; `None` while it has not come.
    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError>;

    /// Documents that are not deleted, by descending place. The work of one call is bounded, even when the
    /// filters leave few documents.
    async fn documents(&self, page: DocumentPage) -> Result<DocumentsFound, StoreError>;

    /// Rollups of one type in a range of periods, ascending; none for an unknown type. A page ends once it
    /// holds [`PAGE_BYTES_MAX`](super::rules::points::PAGE_BYTES_MAX).
    async fn rollups(&self, range: RollupRange) -> Result<RollupPage, StoreError>;

    /// Names of the metric types that have points, bytewise.
    async fn metric_types(&self, page: NamePage) -> Result<Vec<Arc<str>>, StoreError>;

    /// Time of the store's clock, in milliseconds since 1970. Also the cheapest probe.
    async fn now_ms(&self) -> Result<i64, StoreError>;

    /// Time of the last id that lost its ledger row, in milliseconds since 1970; 0 while none was. It may
    /// lie ahead of every clock; an id at or before it is too old from the beginning.
    async fn floor_ms(&self) -> Result<i64, StoreError>;
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
