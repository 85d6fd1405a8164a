//! Keeps the size of the store bounded, beside the ingest. Once a minute it deletes what is older than
//! its retention, in parts that are small enough for the ingest to run between them.
//!
//! Every consumer does it; the store keeps them from hindering each other. Nothing waits for it, and an
//! error only means that more is left for later.
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use shared::config::Config;
use shared::program::backend::Backend;
use shared::queue::{Lane, Queue};
use shared::runtime::backoff::Backoff;
use shared::runtime::clock;
use shared::runtime::shutdown::Shutdown;
use shared::store::{ConsumerWatermark, Housekeep, Housekept, ReportedWatermark, Retention, StoreError};

use crate::dead_letters::rescue::Rescue;
use crate::metrics::metrics;
use crate::retention::forget_before::{Watch, forget_before_ms};
use crate::status::ConsumerStatus;

/// Time between two rounds, give or take a fifth, so that consumers do not keep in step.
const EVERY: Duration = Duration::from_mins(1);

/// Maximum of rows of each kind that one transaction deletes.
const ROWS_MAX: u32 = 5_000;

/// Length of the pause after a part, in multiples of that part's time, while more is left to delete: the
/// ingest keeps four fifths of the store.
const PAUSE_SHARE: u32 = 4;

const PAUSE_MIN: Duration = Duration::from_millis(20);

/// First retry while the store is away. It is earlier than a minute, because the store may need a
/// partition.
const FIRST_RETRY_AFTER: Duration = Duration::from_secs(1);

const HOUR_MS: i64 = 60 * 60 * 1_000;

pub struct Housekeeping {
    store: Arc<dyn Housekeep>,
    queue: Arc<dyn Queue>,
    status: Arc<ConsumerStatus>,
    consumer: u64,
    /// Retention limits, without those that depend on the time and on the age of messages that may still
    /// come.
    retention: Retention,
    watch: Watch,
    /// Consumers to forget in the next round.
    silent: Vec<ReportedWatermark>,
    rescue: Rescue,
}

impl Housekeeping {
    /// Builds the task. `consumer` names this process among all consumers.
    pub fn new(config: &Config, backend: &Backend, status: Arc<ConsumerStatus>, consumer: u64) -> Self {
        let hours_ms = |hours: u32| i64::from(hours) * HOUR_MS;
        let kept = &config.retention;
        let retention = Retention {
            now_ms_max: i64::MAX,
            points_ms: hours_ms(24) * i64::from(kept.points_days),
            minutes_ms: hours_ms(kept.minutes_hours),
            hours_ms: hours_ms(24) * i64::from(kept.hours_days),
            discarded_ms: hours_ms(24) * i64::from(kept.discarded_days),
            remembered_ms: hours_ms(config.ids.remembered_for_hours),
            forget_before_ms: None,
            rows_max: ROWS_MAX,
        };
        Self {
            store: backend.store.clone(),
            queue: backend.queue.clone(),
            status,
            consumer,
            retention,
            watch: Watch::default(),
            silent: Vec::new(),
            rescue: Rescue::new(backend),
        }
    }

    async fn step(&mut self) -> Result<Housekept, StoreError> {
        let forget_before_ms = self.forget_before_ms().await?;
        let now_ms_max = clock::now_ms();
        self.store.housekeep(Retention { now_ms_max, forget_before_ms, ..self.retention }).await
    }

    /// Reports what this consumer may still be given, and derives from all reports what may be forgotten:
    /// nothing while that is not known.
    async fn forget_before_ms(&mut self) -> Result<Option<i64>, StoreError> {
        let has_dead = match self.queue.waiting(Lane::Dead).await {
            Ok(dead) => Some(!dead.is_empty()),
            Err(error) => {
                tracing::debug!(%error, "the dead queue could not be looked at, nothing is forgotten");
                None
            }
        };
        let Some(oldest_ms) = self.status.oldest_ms(has_dead, Instant::now()) else { return Ok(None) };
        let own = ConsumerWatermark { consumer: self.consumer, oldest_ms };
        let held = self.store.hold(own, std::mem::take(&mut self.silent)).await?;
        self.silent = self.watch.silent(&held, Instant::now());
        Ok(Some(forget_before_ms(oldest_ms, &held, &self.silent, self.retention.remembered_ms)))
    }

    /// Works until the shutdown, and completes the part in progress: it is small.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(FIRST_RETRY_AFTER, EVERY);
        let (mut round, mut away, mut overdue) = (Housekept::default(), false, 0);
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
                        if round.overdue > overdue {
                            tracing::warn!(
                                partitions = round.overdue,
                                "old partitions cannot be dropped, some transaction never ends"
                            );
                        }
                        overdue = round.overdue;
                        log_round(std::mem::take(&mut round));
                        if let Err(error) = self.rescue.step().await {
                            tracing::debug!(%error, "set-aside messages are looked through later");
                        }
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
            shutdown.unless_requested(tokio::time::sleep(pause)).await;
        }
        log_round(round);
    }
}

/// Adds a part to the round.
fn plus(round: Housekept, part: Housekept) -> Housekept {
    metrics().overdue_partitions.set(i64::try_from(part.overdue).unwrap_or(i64::MAX));
    metrics().dead_letters.set(i64::try_from(part.dead_letters).unwrap_or(i64::MAX));
    metrics().housekept_rows.inc_by(part.rows);
    metrics().housekept_partitions.inc_by(part.partitions);
    Housekept { rows: round.rows + part.rows, partitions: round.partitions + part.partitions, ..part }
}

fn log_round(round: Housekept) {
    if round.rows > 0 || round.partitions > 0 {
        tracing::info!(deleted.rows = round.rows, deleted.partitions = round.partitions, "old rows deleted");
    }
}
