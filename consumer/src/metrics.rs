//! The consumer's own metrics.
use std::collections::HashSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, histogram_opts, opts};
use prometheus::{register_histogram, register_int_counter, register_int_counter_vec, register_int_gauge};
use shared::model::id::Kind;
use shared::model::message::Message;
use shared::model::outcome::{Applied, KeyedVerdict, Reason};
use shared::runtime::clock;

/// Reason why a batch is not larger. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyStopped {
    /// The next message would exceed the items of a batch.
    Items,
    /// The next message would exceed the bytes of a batch.
    Bytes,
    /// Everything that may be unacknowledged is in this batch.
    Window,
    /// No more messages were there, and there is no load to wait for.
    Drained,
    /// Waited for more as long as allowed.
    Lingered,
    /// A stop was requested.
    Stopping,
}

impl WhyStopped {
    pub const ALL: [Self; 6] =
        [Self::Items, Self::Bytes, Self::Window, Self::Drained, Self::Lingered, Self::Stopping];

    pub fn name(self) -> &'static str {
        match self {
            Self::Items => "items",
            Self::Bytes => "bytes",
            Self::Window => "window",
            Self::Drained => "drained",
            Self::Lingered => "lingered",
            Self::Stopping => "stopping",
        }
    }
}

pub struct ConsumerMetrics {
    /// Items applied, by `kind`.
    pub applied: IntCounterVec,
    /// Items set aside, by `reason`.
    pub set_aside: IntCounterVec,
    /// Messages that had been applied before and changed nothing.
    pub duplicates: IntCounter,
    /// Messages that failed alone and are held aside.
    pub suspects: IntGauge,
    /// Messages that were given up after they had failed alone too often: their items, or a part of
    /// them, are dead letters.
    pub given_up: IntCounter,
    /// Messages moved to the dead queue, by `reason`.
    pub rejected: IntCounterVec,
    /// Messages of the dead queue that were processed, by `outcome`: `applied`, or the reason why they
    /// are dead letters now.
    pub dead_messages: IntCounterVec,
    /// Messages in the dead queue at the last look.
    pub dead_waiting: IntGauge,
    /// 1 while a message of the dead queue waits for the store.
    pub dead_paused: IntGauge,
    /// Items per transaction.
    pub batch_items: Histogram,
    /// Transactions, by the reason why the batch `stopped` growing.
    pub batches: IntCounterVec,
    /// Seconds from accepting a write to its commit.
    pub accept_to_applied: Histogram,
    /// Accept time of the message seen last, in seconds since 1970.
    pub accepted_at_seen: IntGauge,
    /// 1 while consuming is stopped because the store is away.
    pub paused: IntGauge,
    /// Rows that housekeeping deleted because they were older than their retention.
    pub housekept_rows: IntCounter,
    /// Partitions that housekeeping dropped.
    pub housekept_partitions: IntCounter,
    /// Dead letters that wait for an operator, at the last count by housekeeping.
    pub dead_letters: IntGauge,
    /// Partitions that could not be dropped for more than a day.
    pub overdue_partitions: IntGauge,
}

/// Metrics, registered at first use with Prometheus' default registry.
pub fn metrics() -> &'static ConsumerMetrics {
    static METRICS: LazyLock<ConsumerMetrics> =
        LazyLock::new(|| register().expect("metric names are distinct"));
    &METRICS
}

/// Counter with one label. Each value of the label begins at 0, so that its first increase is seen.
fn counted(name: &str, help: &str, label: &str, values: &[&str]) -> prometheus::Result<IntCounterVec> {
    let counters = register_int_counter_vec!(opts!(name, help), &[label])?;
    for value in values {
        counters.with_label_values(&[value]);
    }
    Ok(counters)
}

/// Accept time of the oldest message in hand that is not applied, in milliseconds since 1970; 0 for none.
static OLDEST_MS: AtomicI64 = AtomicI64::new(0);

/// Sets the oldest message in hand that is not applied.
pub(crate) fn show_oldest(accepted_at_ms: Option<i64>) {
    OLDEST_MS.store(accepted_at_ms.unwrap_or(0), Ordering::Relaxed);
}

/// Gauge that grows between two scrapes: its value is computed at each read.
struct OldestUnapplied(Gauge);

impl Collector for OldestUnapplied {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let oldest_ms = OLDEST_MS.load(Ordering::Relaxed);
        let age_ms = if oldest_ms == 0 { 0 } else { clock::now_ms().saturating_sub(oldest_ms).max(0) };
        self.0.set(age_ms as f64 / 1_000.0);
        self.0.collect()
    }
}

fn register() -> prometheus::Result<ConsumerMetrics> {
    prometheus::register(Box::new(OldestUnapplied(Gauge::new(
        "forebay_consumer_oldest_unapplied_seconds",
        "age of the oldest message in hand that is not applied; 0 when nothing waits",
    )?)))?;
    let seconds = vec![0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0];
    let items = vec![1.0, 4.0, 16.0, 64.0, 250.0, 500.0, 1_000.0, 2_000.0, 4_000.0, 8_000.0];
    let [applied, set_aside, rejected, dead_messages, batches] = register_counted()?;
    Ok(ConsumerMetrics {
        applied,
        set_aside,
        duplicates: register_int_counter!(
            "forebay_consumer_messages_duplicate_total",
            "messages that had been applied before and changed nothing"
        )?,
        suspects: register_int_gauge!(
            "forebay_consumer_suspects",
            "messages that failed alone and are held aside, to be tried again"
        )?,
        given_up: register_int_counter!(
            "forebay_consumer_messages_given_up_total",
            "messages that failed alone too often, whose items were put into dead_letters"
        )?,
        rejected,
        dead_messages,
        dead_waiting: register_int_gauge!(
            "forebay_consumer_dead_queue_waiting",
            "messages in the dead queue when it was last looked at"
        )?,
        dead_paused: register_int_gauge!(
            "forebay_consumer_dead_queue_paused",
            "1 while a message of the dead queue waits for the store"
        )?,
        batch_items: register_histogram!(histogram_opts!(
            "forebay_consumer_batch_items",
            "items per transaction",
            items
        ))?,
        batches,
        accept_to_applied: register_histogram!(histogram_opts!(
            "forebay_consumer_accept_to_applied_seconds",
            "from accepting a message to its commit",
            seconds
        ))?,
        accepted_at_seen: register_int_gauge!(
            "forebay_consumer_accepted_at_seen_seconds",
            "accept time of the message seen last, since 1970"
        )?,
        paused: register_int_gauge!(
            "forebay_consumer_paused",
            "1 while consuming is stopped because the store is away"
        )?,
        housekept_rows: register_int_counter!(
            "forebay_consumer_housekept_rows_total",
            "rows deleted because they were older than their retention"
        )?,
        housekept_partitions: register_int_counter!(
            "forebay_consumer_housekept_partitions_total",
            "partitions dropped because they were older than their retention"
        )?,
        dead_letters: register_int_gauge!(
            "forebay_consumer_dead_letters_waiting",
            "dead letters that are not discarded, among the 10000 first by id, counted about once a minute"
        )?,
        overdue_partitions: register_int_gauge!(
            "forebay_consumer_overdue_partitions",
            "partitions that are there although they should have been dropped more than a day ago"
        )?,
    })
}

/// Registers the counters that have a label.
fn register_counted() -> prometheus::Result<[IntCounterVec; 5]> {
    Ok([
        counted(
            "forebay_consumer_items_applied_total",
            "items whose effect is committed",
            "kind",
            &Kind::ALL.map(Kind::name),
        )?,
        counted(
            "forebay_consumer_items_set_aside_total",
            "items put into dead_letters",
            "reason",
            &Reason::ALL.map(Reason::name),
        )?,
        counted(
            "forebay_consumer_messages_rejected_total",
            "messages moved to the dead queue",
            "reason",
            &["undecodable", "not_applied", "digest_mismatch"],
        )?,
        counted(
            "forebay_consumer_dead_messages_total",
            "messages of the dead queue that were applied after all, or kept as dead letters",
            "outcome",
            &["applied", "undecodable", "unknown_version", "unknown_kind", "digest_mismatch", "too_large"],
        )?,
        counted(
            "forebay_consumer_batches_total",
            "transactions by why they were not larger",
            "stopped",
            &WhyStopped::ALL.map(WhyStopped::name),
        )?,
    ])
}

/// Counts what a commit did.
pub(crate) fn count(messages: &[Message], applied: &Applied) {
    let mut fresh: HashSet<_> = applied.fresh.iter().collect();
    let set_aside: HashSet<_> = applied.set_aside.iter().map(|aside| aside.item).collect();
    let mut counts = [0; Kind::ALL.len()];
    for message in messages {
        // Removed, because a batch may hold two deliveries of one message.
        if !fresh.remove(&message.id) {
            metrics().duplicates.inc();
            continue;
        }
        let waited_ms = applied.committed_at_ms.saturating_sub(message.accepted_at_ms).max(0);
        metrics().accept_to_applied.observe(waited_ms as f64 / 1_000.0);
        for (index, entry) in message.entries.iter().enumerate() {
            let is_aside = !set_aside.is_empty() && set_aside.contains(&message.item_key(index));
            // Keyed items have verdicts.
            if entry.keyed().is_none() && !is_aside {
                counts[entry.kind() as usize - 1] += 1;
            }
        }
    }
    let applied_keyed = applied.keyed.iter().filter(|keyed| keyed.verdict == KeyedVerdict::Applied);
    for kind in applied_keyed.filter_map(|keyed| keyed.item.kind()) {
        counts[kind as usize - 1] += 1;
    }
    for (kind, count) in Kind::ALL.into_iter().zip(counts) {
        metrics().applied.with_label_values(&[kind.name()]).inc_by(count);
    }
    for set_aside in &applied.set_aside {
        metrics().set_aside.with_label_values(&[set_aside.reason.name()]).inc();
    }
}
