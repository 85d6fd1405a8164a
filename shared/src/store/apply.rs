//! Messages of the queue: applied, or ended in another way, and the attempts at them.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::error::StoreError;
use crate::model::dead_letter::DeadMessage;
use crate::model::id::MessageId;
use crate::model::message::Message;
use crate::model::outcome::Applied;

#[async_trait]
pub trait Apply: Send + Sync {
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

    /// Stores a message that cannot be applied among the dead letters, under the id of its body. A row that
    /// is there already, discarded or not, stays as it is.
    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError>;

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
