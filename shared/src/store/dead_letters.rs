//! Dead letters: read, redriven and discarded.
use async_trait::async_trait;
use uuid::Uuid;

use super::error::StoreError;
use crate::model::dead_letter::{DeadLetter, DeadLetterPage, Redrive, RedrivenPage};

#[async_trait]
pub trait DeadLetters: Send + Sync {
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
}
