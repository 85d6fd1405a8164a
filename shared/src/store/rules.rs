//! Rules of the store for both implementations: the content of transactions, without SQL.
pub(super) mod checks;
pub(super) mod dead_letters;
pub(super) mod dead_messages;
pub(super) mod documents;
pub(super) mod ledger;
pub(super) mod page;
pub mod plan;
pub mod points;
pub(super) mod schema;
pub mod sums;
pub(super) mod work;
