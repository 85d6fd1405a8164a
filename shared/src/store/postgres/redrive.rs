//! Redrive of dead letters; `dead_messages` redrives whole messages.
//!
//! A redrive locks rows, writes the effects of their items in the order of tables that `apply` keeps, and
//! deletes the rows last. Rows that another redrive holds are passed over; a discard waits, and finds the row
//! gone.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use uuid::Uuid;

use super::apply::RetryPolicy;
use super::days::{Day, Table, days_of};
use super::dead_letters::{keep, lock, page, take};
use super::effects::{NewlyKnown, Path, take_effect};
use super::failure::PgFailure;
use super::isolate::{PlanToIsolate, Search};
use super::known::KnownState;
use super::{dead_messages, keys, session};
use crate::model::dead_letter::{DeadLetter, Redrive, RedriveOutcome, Redriven, RedrivenPage};
use crate::model::message::Message;
use crate::model::outcome::Applied;
use crate::store::rules::dead_letters::{REDRIVE_TIME_MAX, RedriveBatch, steps};
use crate::store::rules::plan::Plan;

/// Redrives step by step, for as long as there is time. Items that the server refuses stay.
pub async fn redrive(
    connection: &mut PgConnection,
    known: Arc<KnownState>,
    redrive: Redrive,
) -> Result<RedrivenPage, PgFailure> {
    let begun = Instant::now();
    let page_asked = redrive.page();
    let mut transaction = session::begin(connection).await?;
    let letters = page(&mut transaction, &page_asked).await?;
    transaction.commit().await?;
    let mut done = RedrivenPage { items: Vec::new(), next: page_asked.next(&letters) };
    let mut reached = None;
    for step in steps(&letters) {
        if reached.is_some() && begun.elapsed() > REDRIVE_TIME_MAX {
            done.next = reached;
            break;
        }
        done.items.extend(attempt(connection, &known, step, &redrive).await?);
        reached = step.last().map(|last| last.id);
    }
    Ok(done)
}

/// Runs one transaction, again where that may help.
async fn attempt(
    connection: &mut PgConnection,
    known: &KnownState,
    letters: &[DeadLetter],
    redrive: &Redrive,
) -> Result<Vec<Redriven>, PgFailure> {
    if let [letter] = letters
        && letter.is_message()
    {
        return dead_messages::redrive(connection, known, letter, redrive).await;
    }
    let (mut retries, mut all) = (RetryPolicy::new(Duration::MAX), true);
    loop {
        match try_once(connection, known, letters, redrive, all).await {
            Err(PgFailure::Refused { .. }) if all => all = false,
            Err(failure) => retries.prepare_retry(known, failure).await?,
            redriven => return redriven,
        }
    }
}

async fn try_once(
    connection: &mut PgConnection,
    known: &KnownState,
    letters: &[DeadLetter],
    redrive: &Redrive,
    all: bool,
) -> Result<Vec<Redriven>, PgFailure> {
    // Before the transaction, which would hold its locks for longer.
    known.partitions.ensure(connection, &days(&RedriveBatch::of(letters, redrive.force).messages)).await?;
    let mut transaction = session::begin(connection).await?;
    match within(&mut transaction, known, letters, redrive.force, all).await {
        Ok((redriven, _)) if redrive.dry_run => {
            transaction.rollback().await?;
            Ok(redriven)
        }
        Ok((redriven, newly_known)) => {
            transaction.commit().await?;
            newly_known.remember(known);
            Ok(redriven)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(failure.of_batch())
        }
    }
}

/// Returns the days of a redrive, without the ledger: no ledger row is written.
fn days(messages: &[Message]) -> BTreeSet<Day> {
    let messages: Vec<&Message> = messages.iter().collect();
    days_of(&messages).into_iter().filter(|(table, _)| *table != Table::Ledger).collect()
}

/// Runs all statements between `begin` and `commit`. Unless `all` are to be taken together, it searches for
/// the items that the server refuses.
async fn within(
    connection: &mut PgConnection,
    known: &KnownState,
    letters: &[DeadLetter],
    force: bool,
    all: bool,
) -> Result<(Vec<Redriven>, NewlyKnown), PgFailure> {
    let ids: Vec<Uuid> = letters.iter().map(|letter| letter.id).collect();
    let held = lock(connection, &ids).await?;
    let mut batch = RedriveBatch::of(&held, force);
    let earlier = keys::enter(connection, &batch.messages.iter().collect::<Vec<_>>()).await?;
    batch.check_keys(&earlier);
    let mut plan = Plan::redriven(&batch.messages);
    let mut applied = Applied { set_aside: std::mem::take(&mut plan.aside), ..Applied::default() };
    // Rows are few: the exact path finds at once the increments that overflow.
    let newly_known = if all {
        take_effect(connection, known, &plan, Path::Exact, &mut applied).await?
    } else {
        let places = plan.places(&batch.messages.iter().collect::<Vec<_>>());
        let rest =
            PlanToIsolate { plan: &plan, places, search: Search::AllRefused, limit: REDRIVE_TIME_MAX * 2 };
        rest.take_effect(connection, known, &mut applied).await?
    };
    let redriven = batch.outcomes(&applied.set_aside);
    let is_applied = |redriven: &&Redriven| redriven.outcome == RedriveOutcome::Applied;
    let applied: Vec<Uuid> = redriven.iter().filter(is_applied).map(|redriven| redriven.id).collect();
    take(connection, &applied).await?;
    keys::renew(connection, &applied).await?;
    keep(connection, &redriven).await?;
    Ok((redriven, newly_known))
}
