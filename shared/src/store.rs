//! Port of the store: it applies writes and answers reads. Each file below holds a part of it, with its
//! types; a caller takes the part that it uses.
//!
//! The two implementations, [`postgres`] and [`sqlite`], hold the same contract, which
//! `shared/tests/it/store.rs` runs against both:
//!
//! * `apply` is one transaction: ledger rows, effects and set-aside items of the whole batch, or
//!   nothing. `Ok` means committed. A message that has a ledger row changes nothing. A message
//!   that is so old that its row may have been dropped is set aside whole.
//! * Items are applied as if one after the other, in the order of messages and items; an item
//!   that cannot be applied is set aside and the next one is applied.
mod apply;
mod dead_letters;
mod define;
mod error;
mod housekeep;
pub mod postgres;
mod reads;
pub mod rules;
pub mod sqlite;

use async_trait::async_trait;

pub use self::apply::{Apply, GiveUp};
pub use self::dead_letters::DeadLetters;
pub use self::define::Define;
pub use self::error::StoreError;
pub use self::housekeep::{
    ConsumerWatermark, DEAD_LETTERS_COUNTED_MAX, Housekeep, Housekept, ReportedWatermark, Retention,
    Watermarks,
};
pub use self::reads::{
    Document, DocumentPage, DocumentsFound, NamePage, Reads, RollupPage, RollupRange, SEARCH_STEPS_MAX,
    Stored,
};

/// The whole store.
#[async_trait]
pub trait Store: Apply + Reads + Define + DeadLetters + Housekeep {
    /// Brings the schema up to the version of this build.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes connections and checkpoints files.
    async fn close(&self);
}
