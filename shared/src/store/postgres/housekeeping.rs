//! Deletes rows that are older than their retention, a bounded part at a time, and makes the partitions of
//! tomorrow.
//!
//! Each step is a short transaction. One process at a time runs steps; the others do not wait. This file
//! holds the order of the steps; the statements that find and delete rows are in the files of their tables.
//! The ledger, keys and tombstones make a write happen once: they are deleted by the low watermark of the
//! queue, never by the clock.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::columns::from_ms;
use super::days::{DAY_MS, Table, days_ahead};
use super::failure::PgFailure;
use super::known::KnownState;
use super::read::now_ms;
use super::retire::{Retired, retire};
use super::session::begin;
use super::{collections, dead_letters, expired_documents, fields, keys, ledger, partitions, rollups};
use crate::model::id::MessageId;
use crate::model::rollup::Resolution;
use crate::store::rules::ledger::{ForgetBounds, keys_before_ms};
use crate::store::{DEAD_LETTERS_COUNTED_MAX, Housekept, Retention, StoreError};

/// Any number that no other lock uses; the same in every build.
const ADVISORY_LOCK: i64 = 0x666f_7265_6261_7904;
/// Maximum of partitions of each table that one call drops.
const PARTITIONS_MAX: usize = 10;
/// Days past its retention after which a partition is overdue: a whole one is in use anyway.
const OVERDUE_DAYS: i64 = 1;
/// Maximum of overdue partitions of each table that are counted.
const OVERDUE_MAX: usize = 1_000;

/// Failures of steps in a call that runs the other steps.
#[derive(Default)]
struct Failed {
    texts: Vec<String>,
    is_schema_skew: bool,
}

impl Failed {
    /// Notes a failure and goes on without the step's result.
    fn note<T>(&mut self, what: &str, outcome: Result<T, PgFailure>) -> Option<T> {
        let failure = match outcome {
            Ok(done) => return Some(done),
            Err(failure) => failure,
        };
        self.is_schema_skew |= failure.is_schema_skew();
        let text = match StoreError::from(failure) {
            StoreError::Unavailable(text) | StoreError::Busy(text) | StoreError::Failed(text) => {
                text.to_string()
            }
            other @ StoreError::DigestMismatch(_) => other.to_string(),
        };
        self.texts.push(format!("{what}: {text}"));
        None
    }

    fn into_result<T>(self, done: T) -> Result<T, PgFailure> {
        if self.texts.is_empty() {
            return Ok(done);
        }
        Err(PgFailure::Steps { text: self.texts.join("; "), is_schema_skew: self.is_schema_skew })
    }
}

/// Runs one call, which begins no step after `limit`. A failed step keeps no other from being run.
pub async fn housekeep(
    connection: &mut PgConnection,
    known: Arc<KnownState>,
    retention: Retention,
    limit: Duration,
) -> Result<Housekept, PgFailure> {
    let begun = Instant::now();
    let now_ms = {
        let mut transaction = begin(connection).await?;
        let now_ms = now_ms(&mut transaction).await?;
        transaction.commit().await?;
        now_ms
    };
    let mut failed = Failed::default();
    for day in days_ahead(now_ms) {
        failed.note("partitions", known.partitions.ensure(connection, &BTreeSet::from([day])).await);
    }
    let now_ms = now_ms.min(retention.now_ms_max);
    let mut kept = Housekept::default();
    let rows_max = i64::from(retention.rows_max);
    let mut documents_left = rows_max;
    let (mut many, mut in_use) = (false, BTreeSet::new());
    for step in steps(connection, now_ms, &retention, &mut many, &mut failed).await {
        let is_documents = matches!(step, PgStep::Documents { .. });
        if begun.elapsed() > limit || (is_documents && documents_left == 0) {
            kept.more = true;
            break;
        }
        if let PgStep::Partition { table, name } = &step {
            // A transaction that uses one partition of a table keeps the others, too.
            if !in_use.contains(table) {
                let retired = retire(connection, ADVISORY_LOCK, *table, name).await;
                match failed.note(name, retired) {
                    Some(Retired::Dropped) => kept.partitions += 1,
                    Some(Retired::InUse) => {
                        in_use.insert(*table);
                    }
                    Some(Retired::Elsewhere) => break,
                    None => {}
                }
                // Other processes notice it by the refusal of the server.
                known.partitions.forget();
            }
            continue;
        }
        let rows_max = if is_documents { documents_left } else { rows_max };
        let Some(done) = failed.note(step.name(), run(connection, &known, &step, rows_max).await) else {
            continue;
        };
        // Another process does the housekeeping.
        let Some(done) = done else { break };
        if is_documents {
            documents_left = documents_left.saturating_sub_unsigned(done.rows).max(0);
        }
        kept.rows += done.rows;
        kept.more |= done.more;
    }
    kept.more |= many && kept.partitions > 0;
    kept.overdue =
        failed.note("overdue partitions", overdue(connection, now_ms, &retention).await).unwrap_or(0);
    kept.dead_letters = failed.note("dead letters", dead_letters(connection).await).unwrap_or(0);
    failed.into_result(kept)
}

/// Counts the dead letters that wait for a decision, among the first by id.
async fn dead_letters(connection: &mut PgConnection) -> Result<u64, PgFailure> {
    let mut transaction = begin(connection).await?;
    let waiting = sqlx::query_scalar!(
        r#"select count(*) as "count!" from
           (select discarded_at from dead_letters order by id limit $1) first where discarded_at is null"#,
        DEAD_LETTERS_COUNTED_MAX,
    );
    let waiting = waiting.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(u64::try_from(waiting).unwrap_or(0))
}

enum PgStep {
    Partition { table: Table, name: String },
    Hours { before: i32 },
    Keys(ForgetBounds),
    Deleted(ForgetBounds),
    Discarded { before_ms: i64, forget: ForgetBounds },
    Fields,
    Documents { collection: String, now_ms: i64, forget: Option<ForgetBounds> },
}

impl PgStep {
    fn name(&self) -> &str {
        match self {
            Self::Partition { name, .. } => name,
            Self::Hours { .. } => "rollups of hours",
            Self::Keys(_) => "keys",
            Self::Deleted(_) => "deleted documents",
            Self::Discarded { .. } => "discarded dead letters",
            Self::Fields => "fields of documents",
            Self::Documents { collection, .. } => collection,
        }
    }
}

/// Returns the day before which partitions are old, for each table that has some.
fn days(now_ms: i64, retention: &Retention) -> impl Iterator<Item = (Table, i64)> + use<> {
    let points_ms = now_ms.saturating_sub(retention.points_ms);
    let minutes_ms = now_ms.saturating_sub(retention.minutes_ms);
    let tables = [
        (Table::Points, Some(points_ms)),
        (Table::Minutes, Some(minutes_ms)),
        (Table::Ledger, retention.forget_before_ms),
    ];
    tables.into_iter().filter_map(|(table, before_ms)| Some((table, before_ms?.max(0) / DAY_MS)))
}

/// Counts the partitions that should have gone [`OVERDUE_DAYS`] ago.
async fn overdue(
    connection: &mut PgConnection,
    now_ms: i64,
    retention: &Retention,
) -> Result<u64, PgFailure> {
    let mut transaction = begin(connection).await?;
    let mut overdue = 0;
    for (table, day) in days(now_ms, retention) {
        let names = partitions::older(&mut transaction, table, day - OVERDUE_DAYS, OVERDUE_MAX).await?;
        overdue += names.len() as u64;
    }
    transaction.commit().await?;
    Ok(overdue)
}

/// Returns the steps of a call.
async fn steps(
    connection: &mut PgConnection,
    now_ms: i64,
    retention: &Retention,
    many: &mut bool,
    failed: &mut Failed,
) -> Vec<PgStep> {
    let mut steps = Vec::new();
    let partitions = failed.note("old partitions", old_partitions(connection, now_ms, retention).await);
    for (table, names) in partitions.unwrap_or_default() {
        *many |= names.len() >= PARTITIONS_MAX;
        steps.extend(names.into_iter().map(|name| PgStep::Partition { table, name }));
    }
    steps.push(PgStep::Hours {
        before: Resolution::Hour.period_of(now_ms.saturating_sub(retention.hours_ms)),
    });
    let remembered_ms = retention.remembered_ms;
    let forget = retention.forget_before_ms.map(|before_ms| ForgetBounds { before_ms, remembered_ms });
    if let Some(forget) = forget {
        let discarded_before_ms = now_ms.saturating_sub(retention.discarded_ms);
        steps.push(PgStep::Keys(forget));
        steps.push(PgStep::Deleted(forget));
        steps.push(PgStep::Discarded { before_ms: discarded_before_ms, forget });
    }
    steps.push(PgStep::Fields);
    let old = failed.note("old documents", old_documents(connection, now_ms).await).unwrap_or_default();
    steps.extend(old.into_iter().map(|collection| PgStep::Documents { collection, now_ms, forget }));
    steps
}

async fn old_partitions(
    connection: &mut PgConnection,
    now_ms: i64,
    retention: &Retention,
) -> Result<Vec<(Table, Vec<String>)>, PgFailure> {
    let mut transaction = begin(connection).await?;
    let mut old = Vec::new();
    for (table, day) in days(now_ms, retention) {
        old.push((table, partitions::older(&mut transaction, table, day, PARTITIONS_MAX).await?));
    }
    transaction.commit().await?;
    Ok(old)
}

/// Returns the collections that hold documents which are too old.
async fn old_documents(connection: &mut PgConnection, now_ms: i64) -> Result<Vec<String>, PgFailure> {
    let mut transaction = begin(connection).await?;
    let bounds = collections::retentions(&mut transaction).await?.into_iter().map(|(collection, days)| {
        let before_ms = now_ms.saturating_sub(i64::from(days) * DAY_MS);
        (collection, MessageId::lowest_at(before_ms))
    });
    let old = expired_documents::old(&mut transaction, bounds.collect()).await?;
    transaction.commit().await?;
    Ok(old)
}

/// Runs one step in a transaction. Returns its result and the key to remember; `None` when another process
/// does the housekeeping.
async fn run(
    connection: &mut PgConnection,
    known: &KnownState,
    step: &PgStep,
    rows_max: i64,
) -> Result<Option<Housekept>, PgFailure> {
    let mut transaction = begin(connection).await?;
    let is_mine = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "is!""#, ADVISORY_LOCK);
    if !is_mine.fetch_one(&mut *transaction).await? {
        transaction.rollback().await?;
        return Ok(None);
    }
    let (done, last_key) = match within(&mut transaction, known, step, rows_max).await {
        Ok(done) => done,
        // In use: the next call tries again.
        Err(failure) if failure.is_conflict() => {
            transaction.rollback().await?;
            return Ok(Some(Housekept::default()));
        }
        Err(failure) => {
            transaction.rollback().await?;
            return Err(failure);
        }
    };
    transaction.commit().await?;
    match step {
        PgStep::Hours { before } if !done.more => known.hours_pruned_before.store(*before, Ordering::Relaxed),
        PgStep::Keys(_) => known.looked_at_keys(last_key),
        _ => {}
    }
    Ok(Some(done))
}

async fn within(
    connection: &mut PgConnection,
    known: &KnownState,
    step: &PgStep,
    rows_max: i64,
) -> Result<(Housekept, Option<keys::PgKeyPosition>), PgFailure> {
    let nothing = Housekept::default();
    let rows = match step {
        // Not within a transaction.
        PgStep::Partition { .. } => return Ok((nothing, None)),
        PgStep::Keys(forget) => {
            let Some((_, before_ms)) = floor_and_keys(connection, forget).await? else {
                return Ok((nothing, None));
            };
            let pruned = keys::prune(connection, from_ms(before_ms), known.last_key(), rows_max).await?;
            let done = Housekept { rows: pruned.rows, more: pruned.more, ..nothing };
            return Ok((done, pruned.last));
        }
        // Hours grow old once in an hour, and a search for them costs a look-up per type.
        PgStep::Hours { before } if known.hours_pruned_before.load(Ordering::Relaxed) == *before => 0,
        PgStep::Hours { before } => rollups::prune_hours(connection, *before, rows_max).await?,
        PgStep::Deleted(forget) => {
            let Some((floor, before_ms)) = floor_and_keys(connection, forget).await? else {
                return Ok((nothing, None));
            };
            expired_documents::prune_deleted(connection, before_ms, floor, rows_max).await?
        }
        PgStep::Discarded { before_ms, forget } => {
            let Some((floor, keys_ms)) = floor_and_keys(connection, forget).await? else {
                return Ok((nothing, None));
            };
            let (before, keys_before) = (from_ms(*before_ms), from_ms(keys_ms));
            dead_letters::prune_discarded(connection, before, floor, keys_before, rows_max).await?
        }
        PgStep::Fields => {
            collections::hold_for_deletes(connection).await?;
            fields::prune_dropped(connection, None, rows_max).await?
        }
        PgStep::Documents { collection, now_ms, forget } => {
            // No key is old enough while nothing may be forgotten.
            let mut keys_before_ms = 0;
            if let Some(forget) = forget {
                keys_before_ms =
                    floor_and_keys(connection, forget).await?.map_or(0, |(_, before_ms)| before_ms);
            }
            let (compiled, now_ms) = (&known.compiled, *now_ms);
            expired_documents::prune(connection, compiled, collection, now_ms, keys_before_ms, rows_max)
                .await?
        }
    };
    // Documents go by pages, of which only an empty one is the last.
    let is_full = rows >= rows_max.unsigned_abs() || matches!(step, PgStep::Documents { .. });
    Ok((Housekept { rows, more: rows > 0 && is_full, ..nothing }, None))
}

/// Returns the floor, and the time before which keys may be forgotten; `None` while no ledger row was
/// dropped.
async fn floor_and_keys(
    connection: &mut PgConnection,
    forget: &ForgetBounds,
) -> Result<Option<(MessageId, i64)>, PgFailure> {
    let Some(floor) = MessageId::from_uuid(ledger::floor(connection).await?) else { return Ok(None) };
    Ok(Some((floor, keys_before_ms(forget.before_ms, floor, forget.remembered_ms))))
}
