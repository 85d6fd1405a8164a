//! Keeps the store from growing without end, beside the ingest: once a minute what is older than
//! its retention is deleted, in parts that are small enough for the ingest to get through between
//! them.
//!
//! Every consumer does it; the store takes care that they do not hinder each other. Nothing waits
//! for it, and an error only means that there is more to do later.
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use shared::backoff::Backoff;
use shared::config::Config;
use shared::shutdown::Shutdown;
use shared::store::{Housekept, Retention, Store, StoreError};

use crate::ingest::Status;
use crate::measure::metrics;

/// How often it begins anew, give or take a fifth, so that consumers do not keep in step.
const EVERY: Duration = Duration::from_mins(1);

/// Rows of each kind that one transaction deletes at most.
const ROWS_MAX: u32 = 5_000;

/// While there is more to delete, the pause is this many times as long as the part before it
/// took: the ingest keeps four fifths of the store.
const PAUSE_SHARE: u32 = 4;

const PAUSE_MIN: Duration = Duration::from_millis(20);

/// While the store is away it is tried earlier than in a minute: it may need a partition.
const FIRST_RETRY_AFTER: Duration = Duration::from_secs(1);

const HOUR_MS: i64 = 60 * 60 * 1_000;

/// What another consumer may still hold, or give back: the broker's `consumer_timeout`.
const HELD_ELSEWHERE_MS_MAX: i64 = HOUR_MS / 2;

pub struct Housekeeping {
    store: Arc<dyn Store>,
    status: Arc<Status>,
    /// But for keys, whose bound depends on what was read of the queue.
    retention: Retention,
    keys_ms: i64,
}

impl Housekeeping {
    pub fn new(config: &Config, store: Arc<dyn Store>, status: Arc<Status>) -> Self {
        let hours_ms = |hours: u32| i64::from(hours) * HOUR_MS;
        let kept = &config.retention;
        let retention = Retention {
            points_ms: hours_ms(24) * i64::from(kept.points_days),
            minutes_ms: hours_ms(kept.minutes_hours),
            hours_ms: hours_ms(24) * i64::from(kept.hours_days),
            keys_before_ms: None,
            rows_max: ROWS_MAX,
        };
        Self { store, status, retention, keys_ms: hours_ms(config.ids.remembered_for_hours) }
    }

    /// The clock alone forgets no key: after a long outage the first attempt of a client and its
    /// repetition are both in the queue, and both older than any key is kept.
    async fn step(&self) -> Result<Housekept, StoreError> {
        let mut retention = self.retention;
        if let Some(read_to_ms) = self.status.read_to_ms() {
            let now_ms = self.store.now_ms().await?;
            retention.keys_before_ms = Some(keys_before_ms(read_to_ms, now_ms, self.keys_ms));
        }
        self.store.housekeep(retention).await
    }

    /// Works until the shutdown. What is under way then is awaited: it is small.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(FIRST_RETRY_AFTER, EVERY);
        let (mut round, mut away) = (Housekept::default(), false);
        while !shutdown.is_requested() {
            let started = Instant::now();
            let pause = match self.step().await {
                Ok(part) => {
                    away = false;
                    backoff.reset();
                    round = plus(round, part);
                    if part.more {
                        (started.elapsed() * PAUSE_SHARE).max(PAUSE_MIN)
                    } else {
                        tell(std::mem::take(&mut round));
                        EVERY.mul_f64(rand::rng().random_range(0.8..=1.2))
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "housekeeping failed, it is tried again");
                    }
                    backoff.delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.requested() => break,
            }
        }
        tell(round);
    }
}

/// Keys that were entered before are of no use any more: whatever repeats them was read.
fn keys_before_ms(read_to_ms: i64, now_ms: i64, keys_ms: i64) -> i64 {
    read_to_ms.min(now_ms).saturating_sub(keys_ms).saturating_sub(HELD_ELSEWHERE_MS_MAX)
}

/// Counts a part in.
fn plus(round: Housekept, part: Housekept) -> Housekept {
    metrics().housekept_rows.inc_by(part.rows);
    metrics().housekept_partitions.inc_by(part.partitions);
    Housekept { rows: round.rows + part.rows, partitions: round.partitions + part.partitions, ..part }
}

fn tell(round: Housekept) {
    if round.rows > 0 || round.partitions > 0 {
        tracing::info!(deleted.rows = round.rows, deleted.partitions = round.partitions, "old rows deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_for_what_still_waits_in_the_queue() {
        const DAY_MS: i64 = 24 * HOUR_MS;
        let now_ms = 1_763_640_000_000;
        let usual = now_ms - DAY_MS - HELD_ELSEWHERE_MS_MAX;
        assert_eq!(keys_before_ms(now_ms, now_ms, DAY_MS), usual);
        // A clock that is ahead forgets nothing earlier.
        assert_eq!(keys_before_ms(now_ms + DAY_MS, now_ms, DAY_MS), usual);
        // Behind an outage of three days.
        assert_eq!(keys_before_ms(now_ms - 3 * DAY_MS, now_ms, DAY_MS), usual - 3 * DAY_MS);
    }
}
