//! Where writes take effect and reads come from, as a port.
//!
//! Two implementations, [`postgres`] and [`sqlite`], hold the same contract, which
//! `shared/tests/it/store.rs` runs against both:
//!
//! * `apply` is one transaction: ledger rows, effects and set-aside items of the whole batch, or
//!   nothing. `Ok` means committed. A message whose ledger row exists changes nothing.
//! * Items are applied as if one after the other, in the order of messages and items; an item
//!   that cannot be applied is set aside and the next one is applied.
mod ledger;
mod page;
pub mod postgres;
mod schema;
pub mod sqlite;
pub mod sums;

use std::sync::Arc;

use async_trait::async_trait;

use crate::id::{ItemKey, MessageId};
use crate::message::Message;

#[async_trait]
pub trait Store: Send + Sync {
    /// Applies a batch of messages with different ids.
    async fn apply(&self, batch: Arc<[Message]>) -> Result<Applied, StoreError>;

    async fn counter(&self, name: &str) -> Result<Option<Counter>, StoreError>;

    /// Counters by name (bytewise), after `after`, beginning with `prefix`, `limit` at most.
    async fn counters(&self, page: CounterPage) -> Result<Vec<Counter>, StoreError>;

    /// What became of an item; `None` while its message is not applied.
    async fn fate(&self, item: ItemKey) -> Result<Option<Fate>, StoreError>;

    /// The store's clock, in milliseconds since 1970. Also the cheapest probe.
    async fn now_ms(&self) -> Result<i64, StoreError>;

    /// Brings the schema up to what this build knows.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes connections and checkpoints files.
    async fn close(&self);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterPage {
    pub prefix: String,
    pub after: Option<String>,
    pub limit: u32,
}

/// A counter as stored. `version` counts the increments that were applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: Arc<str>,
    pub value: i64,
    pub version: i64,
    /// By the store's clock, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// What one committed `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Messages that were applied in this transaction; the others had been before.
    pub fresh: Vec<MessageId>,
    /// The changed counters with their new values.
    pub counters: Vec<Counter>,
    pub set_aside: Vec<SetAside>,
    /// By the store's clock, in milliseconds since 1970.
    pub committed_at_ms: i64,
}

/// An item that could not be applied, as it is written to `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub item: ItemKey,
    pub reason: Reason,
    pub detail: String,
    /// The item as JSON.
    pub json: String,
    pub accepted_at_ms: i64,
}

/// Why an item was set aside. The words are stored and answered: do not rename them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    CounterOverflow,
    Unreadable,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::CounterOverflow => "counter_overflow",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What became of an item whose message is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Applied { at_ms: i64 },
    Failed { at_ms: i64, reason: String, detail: String },
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed, or it is unknown whether it was; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(Arc<str>),
    /// A message with this id and another body was applied before: never acknowledge it.
    #[error("message {0} was applied with another body")]
    DigestMismatch(MessageId),
}
