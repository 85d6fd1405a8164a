//! The transaction that applies a batch, and its retries.
//!
//! Tables are written in one order, and each with sorted keys, so that writers wait for each other and never
//! in a circle: ledger, keys, dead letters, documents and their fields, metric types, points, rollups,
//! counters. The hottest rows come last and are locked for the shortest time.
//!
//! Usually counters get one merged addition each. Where a value might leave its range the transaction is
//! rolled back and the batch applied increment by increment on locked rows. Any error of a statement ends the
//! transaction: the client library calls the commit of an aborted one a success
//! (`a_batch_whose_statement_failed_is_never_reported_as_applied`).
//!
//! `isolate` searches, inside the same transaction, for the items that the server refuses for their content.
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::days::days_of;
use super::effects::{NewlyKnown, Path, take_effect};
use super::failure::PgFailure;
use super::isolate::{self, PlanToIsolate, Search};
use super::known::KnownState;
use super::{keys, ledger, read, session};
use crate::model::message::Message;
use crate::model::outcome::{Applied, Reason};
use crate::runtime::backoff::Backoff;
use crate::store::GiveUp;
use crate::store::rules::ledger::{TooOld, distinct};
use crate::store::rules::plan::Plan;

/// Maximum of attempts after a deadlock, a lock that did not come, or a partition that went.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// Items of a batch that a transaction applies.
#[derive(Clone, Copy)]
pub enum Selection<'c> {
    /// All or nothing.
    All(Path),
    /// All but those that the server does not take, which are set aside.
    Isolate(Search),
    /// None: all are set aside, with this detail.
    None(&'c str),
}

/// Selection, age rule and time limit of a transaction.
#[derive(Clone, Copy)]
pub struct Mode<'c> {
    pub selection: Selection<'c>,
    pub too_old: TooOld,
    /// Limit of the whole transaction and of each of its statements.
    pub limit: Duration,
}

impl Mode<'_> {
    fn with(self, selection: Selection<'_>) -> Mode<'_> {
        Mode { selection, ..self }
    }

    /// Returns the time that each statement has.
    pub fn statement_limit(self) -> Duration {
        match self.selection {
            Selection::Isolate(search) => search.part_limit(self.limit),
            Selection::All(_) | Selection::None(_) => self.limit,
        }
    }

    /// Classifies a failure: a refusal without an item as its reason speaks of the server.
    pub fn classified(self, failure: PgFailure) -> PgFailure {
        match (failure.of_batch(), self.selection) {
            (PgFailure::Refused { code, message }, Selection::Isolate(_) | Selection::None(_)) => {
                isolate::give_up(&format!("it refuses any batch: {message} ({code})"))
            }
            (failure, _) => failure,
        }
    }
}

pub async fn apply(
    connection: &mut PgConnection,
    known: Arc<KnownState>,
    batch: Arc<[Message]>,
    limit: Duration,
) -> Result<Applied, PgFailure> {
    let batch = distinct(&batch)?;
    let mode = Mode { selection: Selection::All(Path::Merged), too_old: TooOld::SetAside, limit };
    let applied = match attempt(connection, &known, &batch, mode).await {
        Err(PgFailure::Refused { .. }) => {
            attempt(connection, &known, &batch, mode.with(Selection::Isolate(Search::Refused))).await
        }
        outcome => outcome,
    };
    applied.map_err(PgFailure::of_transaction)
}

/// Ends a message that failed alone, time and again: without the items that fail alone, or without all of
/// them.
pub async fn give_up_on(
    connection: &mut PgConnection,
    known: Arc<KnownState>,
    message: Message,
    give_up: GiveUp,
    limit: Duration,
) -> Result<Applied, PgFailure> {
    let selection =
        if give_up.search { Selection::Isolate(Search::Failing) } else { Selection::None(&give_up.why) };
    let mode = Mode { selection, too_old: TooOld::SetAside, limit };
    attempt(connection, &known, &[&message], mode).await.map_err(PgFailure::of_transaction)
}

/// Runs one transaction, again where that may help.
async fn attempt(
    connection: &mut PgConnection,
    known: &KnownState,
    batch: &[&Message],
    mut mode: Mode<'_>,
) -> Result<Applied, PgFailure> {
    let mut retries = RetryPolicy::new(mode.limit);
    loop {
        match try_once(connection, known, batch, mode).await {
            Err(PgFailure::Overflow) => mode.selection = Selection::All(Path::Exact),
            Err(failure) => retries.prepare_retry(known, failure).await?,
            applied => return applied,
        }
    }
}

/// Policy for the retries of a transaction.
pub struct RetryPolicy {
    backoff: Backoff,
    attempts: u32,
    begun: Instant,
    limit: Duration,
}

impl RetryPolicy {
    /// Begins the first attempt. No other attempt begins in the second half of `limit`: it might not come to
    /// its end, and a transaction that waited for a lock is not to be taken for a slow one.
    pub fn new(limit: Duration) -> Self {
        Self { backoff: Backoff::new(RETRY_FIRST, RETRY_MAX), attempts: 1, begun: Instant::now(), limit }
    }

    /// Prepares another attempt where one may help, and returns the failure where none will.
    pub async fn prepare_retry(&mut self, known: &KnownState, failure: PgFailure) -> Result<(), PgFailure> {
        if self.attempts >= ATTEMPTS_MAX || self.begun.elapsed() >= self.limit / 2 {
            return Err(failure);
        }
        self.attempts += 1;
        if let PgFailure::Unchecked(documents) = failure {
            known.checks.check(documents).await;
        } else if failure.is_missing_partition() {
            known.partitions.forget();
        } else if failure.is_conflict() {
            tokio::time::sleep(self.backoff.delay()).await;
        } else {
            return Err(failure);
        }
        Ok(())
    }
}

async fn try_once(
    connection: &mut PgConnection,
    known: &KnownState,
    batch: &[&Message],
    mode: Mode<'_>,
) -> Result<Applied, PgFailure> {
    known.partitions.ensure(connection, &days_of(batch)).await?;
    let mut transaction = session::begin_for(connection, mode.statement_limit()).await?;
    match within(&mut transaction, known, batch, mode).await {
        Ok((applied, newly_known)) => {
            transaction.commit().await?;
            newly_known.remember(known);
            Ok(applied)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(mode.classified(failure))
        }
    }
}

/// Runs all statements between `begin` and `commit`.
pub async fn within(
    connection: &mut PgConnection,
    known: &KnownState,
    batch: &[&Message],
    mode: Mode<'_>,
) -> Result<(Applied, NewlyKnown), PgFailure> {
    let (fresh, old) = ledger::enter(connection, batch).await?;
    let old = mode.too_old.set_aside(old).ok_or(PgFailure::TooOld)?;
    let earlier = keys::enter(connection, &fresh).await?;
    let mut plan = Plan::of(&fresh, &old, &earlier);
    let mut applied = Applied { set_aside: std::mem::take(&mut plan.aside), ..Applied::default() };
    if let Selection::None(why) = mode.selection {
        let aside = plan.places(&fresh).into_iter();
        applied.set_aside.extend(aside.map(|place| place.set_aside(Reason::NotApplied, why)));
    }
    if !matches!(mode.selection, Selection::All(_)) {
        // The server may refuse other texts.
        applied.set_aside.iter_mut().for_each(isolate::spell_in_ascii);
    }
    ledger::insert_dead_letters(connection, &applied.set_aside).await?;
    let newly_known = match mode.selection {
        Selection::All(path) => take_effect(connection, known, &plan, path, &mut applied).await?,
        Selection::Isolate(search) => {
            let rest = PlanToIsolate { plan: &plan, places: plan.places(&fresh), search, limit: mode.limit };
            rest.take_effect(connection, known, &mut applied).await?
        }
        Selection::None(_) => NewlyKnown::default(),
    };
    applied.committed_at_ms = match applied.counters.iter().map(|counter| counter.updated_at_ms).max() {
        Some(last) => last,
        None => read::now_ms(connection).await?,
    };
    applied.fresh = fresh.iter().map(|message| message.id).collect();
    applied.keyed = plan.keyed_outcomes(&applied.set_aside);
    Ok((applied, newly_known))
}
