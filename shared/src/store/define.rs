//! Definitions of collections, one at a time.
use async_trait::async_trait;

use super::error::StoreError;
use crate::model::collection::{Collection, Definition};

#[async_trait]
pub trait Define: Send + Sync {
    /// The definition of a collection; the default one when it was never registered.
    async fn collection(&self, name: &str) -> Result<Collection, StoreError>;

    /// Replaces a definition. Each call makes a new version, even of an equal definition. Afterwards every
    /// document that is applied is checked and indexed by it. Documents that were there before are indexed by
    /// [`index_page`](Self::index_page).
    async fn define(&self, name: &str, definition: Definition) -> Result<Collection, StoreError>;

    /// Indexes the next page of the documents that a collection held before its definition. `false` when all
    /// are indexed; the collection's `is_indexed` then says so.
    async fn index_page(&self, name: &str) -> Result<bool, StoreError>;
}
