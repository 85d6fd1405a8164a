//! The transaction that applies a batch, and how often it is tried.
//!
//! Tables are written in one order, and each with sorted keys, so that writers wait for each other
//! and never in a circle: ledger, keys, dead letters, documents and their fields, metric types,
//! points, rollups, counters. What is hot comes last and is locked for the shortest time.
//!
//! Usually counters get one merged addition each. Where a value might leave its range the
//! transaction is rolled back and the batch applied increment by increment on locked rows. Any
//! error of a statement ends the transaction: the client library calls the commit of an aborted
//! one a success (`a_batch_whose_statement_failed_is_never_reported_as_applied`).
//!
//! What the server refuses for what an item holds is searched for by `sift`, which tries parts of
//! the batch here; then the batch is applied without it.
use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;

use super::counters::{add_merged, add_one_by_one};
use super::failure::Failure;
use super::known::Known;
use super::partitions::days_of;
use super::points::TypeIds;
use super::sift::{self, Refused};
use super::{documents, keys, ledger, points, read, rollups, session};
use crate::backoff::Backoff;
use crate::id::ItemKey;
use crate::message::Message;
use crate::store::ledger::{TooOld, distinct};
use crate::store::plan::Plan;
use crate::store::{Applied, SetAside};

/// Attempts after a deadlock, a lock that did not come, or a partition that went.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// One addition per counter.
    Merged,
    /// Increment by increment.
    Exact,
}

/// Which items of a batch a transaction applies; they are named by their places.
#[derive(Clone, Copy)]
pub enum Choice<'c> {
    All,
    /// Rolled back in any case: a look at whether the server takes them.
    Only(&'c HashSet<ItemKey>),
    /// Those are set aside.
    Without(&'c Refused),
}

impl Choice<'_> {
    /// Narrows a plan, and says what is set aside by that and by itself.
    fn narrow(self, plan: &mut Plan<'_>) -> Vec<SetAside> {
        let mut aside = std::mem::take(&mut plan.aside);
        match self {
            Choice::All => {}
            Choice::Only(places) => {
                // The server may refuse these texts, which says nothing of the items that are tried.
                aside.clear();
                plan.retain(|message, index| places.contains(&message.place(index)));
            }
            Choice::Without(refused) => {
                aside.iter_mut().for_each(sift::spell_in_ascii);
                plan.retain(|message, index| {
                    let refusal = refused.get(&message.place(index));
                    aside.extend(refusal.map(|refusal| refusal.set_aside(message, index)));
                    refusal.is_none()
                });
            }
        }
        aside
    }
}

pub async fn apply(
    connection: &mut PgConnection,
    known: &Known,
    batch: &[Message],
) -> Result<Applied, Failure> {
    let batch = distinct(batch)?;
    match attempt(connection, known, &batch, Choice::All, TooOld::SetAside).await {
        Err(Failure::Refused { .. }) => {
            let refused = sift::refused(connection, known, &batch, TooOld::SetAside).await?;
            attempt(connection, known, &batch, Choice::Without(&refused), TooOld::SetAside).await
        }
        outcome => outcome,
    }
}

/// One transaction, tried again where that may help.
pub async fn attempt(
    connection: &mut PgConnection,
    known: &Known,
    batch: &[&Message],
    choice: Choice<'_>,
    too_old: TooOld,
) -> Result<Applied, Failure> {
    let mut patience = Patience::new();
    let mut path = Path::Merged;
    loop {
        let outcome = try_once(connection, known, batch, path, choice, too_old).await;
        match outcome {
            Err(Failure::Overflow) if path == Path::Merged => path = Path::Exact,
            Err(failure) => patience.bear(known, failure).await?,
            applied => return applied,
        }
    }
}

/// How often a transaction is tried again.
pub struct Patience {
    backoff: Backoff,
    attempts: u32,
}

impl Patience {
    pub fn new() -> Self {
        Self { backoff: Backoff::new(RETRY_FIRST, RETRY_MAX), attempts: 1 }
    }

    /// Returns when another attempt may help, and the failure when none will.
    pub async fn bear(&mut self, known: &Known, failure: Failure) -> Result<(), Failure> {
        if self.attempts >= ATTEMPTS_MAX {
            return Err(failure);
        }
        self.attempts += 1;
        if let Failure::Unchecked(documents) = failure {
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
    known: &Known,
    batch: &[&Message],
    path: Path,
    choice: Choice<'_>,
    too_old: TooOld,
) -> Result<Applied, Failure> {
    known.partitions.ensure(connection, &days_of(batch)).await?;
    let mut transaction = session::begin(connection).await?;
    match within(&mut transaction, known, batch, path, choice, too_old).await {
        Ok((applied, _)) if matches!(choice, Choice::Only(_)) => {
            transaction.rollback().await?;
            Ok(applied)
        }
        Ok((applied, learned)) => {
            transaction.commit().await?;
            learned.remember(known);
            Ok(applied)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(failure.of_batch())
        }
    }
}

/// What is worth remembering once the transaction is committed.
#[derive(Default)]
pub struct Learned {
    types: TypeIds,
    rollups: Vec<rollups::Key>,
}

impl Learned {
    pub fn remember(self, known: &Known) {
        known.types.remember(&self.types);
        known.rollups.remember(self.rollups);
    }
}

/// All statements between `begin` and `commit`.
pub async fn within(
    connection: &mut PgConnection,
    known: &Known,
    batch: &[&Message],
    path: Path,
    choice: Choice<'_>,
    too_old: TooOld,
) -> Result<(Applied, Learned), Failure> {
    let (fresh, old) = ledger::enter(connection, batch).await?;
    let old = too_old.set_aside(old).ok_or(Failure::TooOld)?;
    let earlier = keys::enter(connection, &fresh).await?;
    let mut plan = Plan::of(&fresh, &old, &earlier);
    let mut applied = Applied { set_aside: choice.narrow(&mut plan), ..Applied::default() };
    ledger::bury(connection, &applied.set_aside).await?;
    let learned = take_effect(connection, known, &plan, path, &mut applied).await?;
    applied.committed_at_ms = match applied.counters.iter().map(|counter| counter.updated_at_ms).max() {
        Some(last) => last,
        None => read::now_ms(connection).await?,
    };
    applied.fresh = fresh.iter().map(|message| message.id).collect();
    applied.keyed = plan.keyed_outcomes(&applied.set_aside);
    Ok((applied, learned))
}

/// Writes everything that a plan asks for, but ledger and keys. What cannot be applied is added to
/// the items that are set aside.
pub async fn take_effect(
    connection: &mut PgConnection,
    known: &Known,
    plan: &Plan<'_>,
    path: Path,
    applied: &mut Applied,
) -> Result<Learned, Failure> {
    let written = documents::write(connection, known, plan).await?;
    applied.set_aside.extend(written.set_aside);
    applied.deleted = written.deleted;
    let mut learned = Learned::default();
    if !plan.points.is_empty() {
        learned.types = points::types(connection, &known.types, &plan.points).await?;
        points::insert(connection, &learned.types, &plan.points).await?;
        learned.rollups = rollups::merge(connection, &known.rollups, &learned.types, &plan.points).await?;
        applied.types = learned.types.keys().cloned().collect();
        applied.types.sort_unstable();
    }
    let counted = match path {
        Path::Merged => add_merged(connection, &plan.increments).await?,
        Path::Exact => add_one_by_one(connection, &plan.increments).await?,
    };
    // Only now is it known what overflows. Nobody waits for these rows: who writes the same ones
    // has waited for the ledger or for the keys.
    ledger::bury(connection, &counted.set_aside).await?;
    applied.set_aside.extend(counted.set_aside);
    applied.standings = counted.standings;
    applied.counters = counted.counters;
    Ok(learned)
}
