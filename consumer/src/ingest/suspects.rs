//! Messages that failed alone while the store answered. They are held aside, tried again one by one
//! beside everything else, and given up after [`STRIKES_MAX`] failures.
//!
//! A strike is a failure of the message alone that the store blames on nothing else
//! ([`StoreError::Failed`]), between two small writes of the store's own that succeed promptly, and with
//! commits of other messages since the failure before. A lost connection, a conflict, or a full, slow or
//! stopping server is no strike, so an outage gives nothing up, and neither does a queue that holds
//! nothing else. [`Suspects`] holds deliveries for a session and settles none.
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::id::MessageId;
use shared::model::message::Message;
use shared::model::outcome::Applied;
use shared::queue::Delivery;
use shared::store::{Apply, GiveUp, StoreError};
use tokio::task::JoinSet;

use crate::metrics::metrics;
use crate::status::ConsumerStatus;

/// Default of the longest time that a message waits in hand for the store. A broker takes a message away
/// from a consumer that holds it for 30 minutes, so it is given back well before.
pub const PROBE_HELD_MAX: Duration = Duration::from_mins(15);

/// Failures after which a message is given up, and processes that it may bring down.
pub const STRIKES_MAX: u32 = 5;

/// Maximum of messages that one session holds aside.
const SUSPECTS_MAX: usize = 32;

/// Maximum of the bytes of their bodies.
const SUSPECTS_BYTES_MAX: usize = 64 << 20;

/// Default of the trials that run at once, beside the batches.
const TRIALS_MAX: usize = 4;

/// Longest time of a probe write that counts as an answer.
const PROMPT: Duration = Duration::from_secs(1);

/// Time limits of messages.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time of a transaction before its messages are tried one by one. A batch that turns out to be slow
    /// as a whole gets more; a suspect gets twice as much with each failure, and at last as much as the
    /// store allows.
    pub batch_time_max: Duration,
    /// Pause before a suspect is tried again, doubled each time.
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// Longest time that a suspect is held: a broker takes a message away from a consumer that holds it
    /// for 30 minutes.
    pub held_max: Duration,
    /// Maximum of suspects that are tried at once.
    pub trials_max: usize,
}

impl Pace {
    /// Limits that leave connections to everything else; `None` is a store with a single writer.
    pub fn with_connections(connections_max: Option<u32>) -> Self {
        let trials_max = connections_max.map_or(1, |max| max.saturating_sub(2) as usize / 4);
        Self { trials_max: trials_max.clamp(1, TRIALS_MAX), ..Self::default() }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            batch_time_max: Duration::from_secs(1),
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            held_max: PROBE_HELD_MAX,
            trials_max: TRIALS_MAX,
        }
    }
}

/// Tests whether the store commits a write of its own promptly.
pub async fn answers(store: &Arc<dyn Apply>) -> bool {
    tokio::time::timeout(PROMPT, store.probe()).await.is_ok_and(|probed| probed.is_ok())
}

/// Next step with a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrialStep {
    Try,
    /// Apply the message without the items that fail alone.
    Search,
    /// Give it up without another try, but not before other messages were committed.
    GiveUp,
}

/// Message that was delivered and is not applied.
#[derive(Debug)]
pub struct Suspect {
    pub delivery: Delivery,
    pub message: Message,
    pub why: Arc<str>,
    number: u64,
    step: TrialStep,
    strikes: u32,
    failures: u32,
    /// Commits of other messages at its last failure.
    commits: u64,
    due: Instant,
    since: Instant,
    is_running: bool,
}

impl Suspect {
    /// Decides the next step after a failure; `false` when nothing is left to try.
    fn strike(&mut self, commits: u64) -> bool {
        match self.step {
            TrialStep::Try => {
                self.strikes += u32::from(commits > self.commits);
                self.commits = commits;
                if self.strikes >= STRIKES_MAX {
                    self.step = TrialStep::Search;
                }
                true
            }
            TrialStep::Search => {
                self.step = TrialStep::GiveUp;
                true
            }
            TrialStep::GiveUp => false,
        }
    }

    fn is_due(&self, now: Instant, commits: u64) -> bool {
        !self.is_running && self.due <= now && (self.step != TrialStep::GiveUp || commits > self.commits)
    }
}

/// End of a suspect.
#[derive(Debug)]
pub enum SuspectEnd {
    /// Applied wholly or in part; `given_up` after it failed too often.
    Applied { suspect: Suspect, applied: Box<Applied>, given_up: bool },
    /// The store takes not even its dead letters, or its id belongs to another body.
    Rejected(Suspect, Option<MessageId>),
    /// Held for too long.
    GivenBack(Suspect),
}

impl SuspectEnd {
    pub fn message(&self) -> MessageId {
        match self {
            Self::Applied { suspect, .. } | Self::Rejected(suspect, _) | Self::GivenBack(suspect) => {
                suspect.message.id
            }
        }
    }
}

/// Outcome of one trial.
enum TrialOutcome {
    Applied(Box<Applied>),
    Reused(MessageId),
    Failed(Arc<str>),
    /// The store may be the cause.
    Unclear(Arc<str>),
}

pub struct Suspects {
    store: Arc<dyn Apply>,
    pace: Pace,
    held: Vec<Suspect>,
    trials: JoinSet<(u64, TrialOutcome)>,
    next_number: u64,
}

impl Suspects {
    pub fn new(store: Arc<dyn Apply>, pace: Pace) -> Self {
        Self { store, pace, held: Vec::new(), trials: JoinSet::new(), next_number: 0 }
    }

    /// Accept time of the oldest message that is held.
    pub fn oldest_ms(&self) -> Option<i64> {
        self.held.iter().map(|suspect| suspect.message.accepted_at_ms).min()
    }

    pub fn is_full(&self) -> bool {
        let bytes: usize = self.held.iter().map(|suspect| suspect.delivery.body.len()).sum();
        self.held.len() >= SUSPECTS_MAX || bytes >= SUSPECTS_BYTES_MAX
    }

    /// Adds a message that failed alone. `commits` are those of other messages until then.
    pub fn add(&mut self, delivery: Delivery, message: Message, error: &StoreError, commits: u64) {
        let strikes = u32::from(matches!(error, StoreError::Failed(_)));
        let due = Instant::now() + self.pace.pause_min;
        self.hold(delivery, message, error.to_string().into(), (TrialStep::Try, strikes), (commits, due));
    }

    /// Adds a message that brought down too many processes.
    pub fn add_crashed(&mut self, delivery: Delivery, message: Message, commits: u64) {
        let why = "its consumer ended each time it was tried".into();
        self.hold(delivery, message, why, (TrialStep::GiveUp, STRIKES_MAX), (commits, Instant::now()));
    }

    fn hold(
        &mut self,
        delivery: Delivery,
        message: Message,
        why: Arc<str>,
        (step, strikes): (TrialStep, u32),
        (commits, due): (u64, Instant),
    ) {
        tracing::warn!(
            message.id = %message.id,
            message.items = message.entries.len(),
            message.bytes = delivery.body.len(),
            error = &*why,
            "message failed alone and is held aside"
        );
        metrics().suspects.inc();
        let (number, since) = (self.next_number, Instant::now());
        self.next_number += 1;
        let (failures, is_running) = (1, false);
        self.held.push(Suspect {
            delivery,
            message,
            why,
            number,
            step,
            strikes,
            failures,
            commits,
            due,
            since,
            is_running,
        });
    }

    /// Takes all suspects. A running trial is left to its end or dropped: the ledger knows.
    pub fn take_all(&mut self) -> Vec<Suspect> {
        self.trials.abort_all();
        metrics().suspects.sub(i64::try_from(self.held.len()).unwrap_or(0));
        std::mem::take(&mut self.held)
    }

    fn remove(&mut self, index: usize) -> Suspect {
        metrics().suspects.dec();
        self.held.remove(index)
    }

    /// Waits for the end of a suspect and starts trials as they fall due. Pending while there are none.
    /// Safe to cancel. `status` counts the commits of other messages.
    pub async fn ended(&mut self, status: &ConsumerStatus) -> SuspectEnd {
        loop {
            let (now, commits) = (Instant::now(), status.commits());
            let is_old = |suspect: &Suspect| {
                !suspect.is_running && now.duration_since(suspect.since) > self.pace.held_max
            };
            if let Some(index) = self.held.iter().position(is_old) {
                return SuspectEnd::GivenBack(self.remove(index));
            }
            self.begin_trials(now, commits);
            let next_due = self.held.iter().filter(|suspect| !suspect.is_running).map(|suspect| {
                if suspect.is_due(now, commits) || suspect.due <= now { now + PROMPT } else { suspect.due }
            });
            let next_due = next_due.min();
            let joined = tokio::select! {
                joined = self.trials.join_next(), if !self.trials.is_empty() => joined,
                () = tokio::time::sleep_until(next_due.unwrap_or(now).into()), if next_due.is_some() => continue,
                else => std::future::pending().await,
            };
            let (number, outcome) = match joined {
                Some(Ok(trial)) => trial,
                // A defect: the error does not name its trial, so all of them begin again.
                Some(Err(error)) => {
                    tracing::error!(%error, "a trial failed");
                    self.trials = JoinSet::new();
                    self.held.iter_mut().for_each(|suspect| suspect.is_running = false);
                    tokio::time::sleep(self.pace.pause_min).await;
                    continue;
                }
                None => continue,
            };
            if let Some(ended) = self.on_outcome(number, outcome, status.commits()) {
                return ended;
            }
        }
    }

    fn begin_trials(&mut self, now: Instant, commits: u64) {
        for suspect in &mut self.held {
            if self.trials.len() >= self.pace.trials_max {
                break;
            }
            if suspect.is_due(now, commits) {
                suspect.is_running = true;
                let (number, step, store) = (suspect.number, suspect.step, Arc::clone(&self.store));
                let (message, why) = (suspect.message.clone(), Arc::clone(&suspect.why));
                let limit = if suspect.strikes + 1 >= STRIKES_MAX {
                    Duration::MAX
                } else {
                    self.pace.batch_time_max.saturating_mul(1 << suspect.failures.min(16))
                };
                self.trials
                    .spawn(async move { (number, run_trial(&store, message, step, why, limit).await) });
            }
        }
    }

    fn on_outcome(&mut self, number: u64, outcome: TrialOutcome, commits: u64) -> Option<SuspectEnd> {
        let index = self.held.iter().position(|suspect| suspect.number == number)?;
        let suspect = &mut self.held[index];
        suspect.is_running = false;
        match outcome {
            TrialOutcome::Applied(applied) => {
                let given_up = suspect.step != TrialStep::Try;
                return Some(SuspectEnd::Applied { suspect: self.remove(index), applied, given_up });
            }
            TrialOutcome::Reused(id) => return Some(SuspectEnd::Rejected(self.remove(index), Some(id))),
            TrialOutcome::Failed(why) => {
                tracing::info!(message.id = %suspect.message.id, error = &*why, "message failed alone again");
                if suspect.step == TrialStep::Try {
                    suspect.why = why;
                }
                if !suspect.strike(commits) {
                    return Some(SuspectEnd::Rejected(self.remove(index), None));
                }
            }
            TrialOutcome::Unclear(why) => {
                tracing::debug!(message.id = %suspect.message.id, error = &*why, "a trial says nothing");
            }
        }
        let pause = self.pace.pause_min * (1 << suspect.failures.min(16));
        suspect.failures += 1;
        suspect.due = Instant::now() + pause.min(self.pace.pause_max);
        None
    }
}

impl Drop for Suspects {
    fn drop(&mut self) {
        self.take_all();
    }
}

/// Runs one trial, between two probe writes.
async fn run_trial(
    store: &Arc<dyn Apply>,
    message: Message,
    step: TrialStep,
    why: Arc<str>,
    limit: Duration,
) -> TrialOutcome {
    // A slow store may take the message all the same.
    let answered_before = answers(store).await;
    if step != TrialStep::Try && !answered_before {
        return TrialOutcome::Unclear("the store does not answer promptly".into());
    }
    let applied = match step {
        TrialStep::Try => store.apply_within([message].into(), limit).await,
        TrialStep::Search => store.give_up_on(message, GiveUp { why, search: true }).await,
        TrialStep::GiveUp => store.give_up_on(message, GiveUp { why, search: false }).await,
    };
    match applied {
        Ok(applied) => TrialOutcome::Applied(applied.into()),
        Err(StoreError::DigestMismatch(id)) => TrialOutcome::Reused(id),
        Err(StoreError::Failed(why)) if answered_before && answers(store).await => TrialOutcome::Failed(why),
        Err(StoreError::Unavailable(why) | StoreError::Busy(why) | StoreError::Failed(why)) => {
            TrialOutcome::Unclear(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_leave_connections_to_everything_else() {
        let trials = |connections_max| Pace::with_connections(connections_max).trials_max;
        assert_eq!([None, Some(1), Some(8), Some(10), Some(100)].map(trials), [1, 1, 1, 2, 4]);
    }
}
