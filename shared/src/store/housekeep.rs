//! Retention: rows that are older than it are deleted, where no consumer may still be given their messages.
use async_trait::async_trait;

use super::error::StoreError;

#[async_trait]
pub trait Housekeep: Send + Sync {
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
