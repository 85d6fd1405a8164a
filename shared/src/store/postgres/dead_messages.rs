//! Messages that could not be applied as a whole, among the dead letters: stored there, and redriven as if
//! they came from the queue.
use std::time::Duration;

use sqlx::PgConnection;

use super::apply::{Mode, RetryPolicy, Selection, within};
use super::days::days_of;
use super::dead_letters::{keep_one, lock, take};
use super::effects::{NewlyKnown, Path};
use super::failure::PgFailure;
use super::isolate::{Refusal, Search};
use super::known::KnownState;
use super::{ledger, session};
use crate::model::dead_letter::{
    DeadLetter, DeadMessage, MESSAGE_KIND, Redrive, RedriveOutcome, Redriven, mismatch,
};
use crate::model::message::Message;
use crate::model::outcome::Reason;
use crate::store::StoreError;
use crate::store::rules::dead_letters::failed;
use crate::store::rules::dead_messages::{
    DeadMessageRow, failed_again, is_reused_for_good, may_repeat, message_of, too_old,
};

/// Time limit of a redrive's search for items that the server refuses; below `store.write_timeout_ms`.
const REDRIVE_LIMIT: Duration = Duration::from_secs(20);

/// Stores a message among the dead letters. Text that the server refuses is written in ASCII.
pub async fn bury(connection: &mut PgConnection, message: DeadMessage) -> Result<(), PgFailure> {
    match insert(connection, &message.row()).await.map_err(PgFailure::of_batch) {
        Err(PgFailure::Refused { .. }) => insert(connection, &message.row().in_ascii()).await,
        outcome => outcome,
    }
}

/// Inserts a row in a transaction of its own, which has the time of writes, because a body is large. Each
/// attempt has its own transaction: a refusal ends it.
async fn insert(connection: &mut PgConnection, row: &DeadMessageRow) -> Result<(), PgFailure> {
    let mut transaction = session::begin(connection).await?;
    match written(&mut transaction, row).await {
        Ok(()) => Ok(transaction.commit().await?),
        Err(error) => {
            transaction.rollback().await?;
            Err(error.into())
        }
    }
}

/// Writes a row. A row that is there stays as it is, except that it is marked when its id belongs to another
/// body, because `force` must not apply it. A discarded row is decided.
async fn written(connection: &mut PgConnection, row: &DeadMessageRow) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into dead_letters (id, kind, reason, detail, item, accepted_at, set_aside_at)
         values ($1, $2, $3, $4, $5, clock_timestamp(), clock_timestamp())
         on conflict do nothing",
        row.id,
        MESSAGE_KIND,
        row.reason,
        row.detail,
        row.item
    )
    .execute(&mut *connection)
    .await?;
    if row.reason == Reason::DigestMismatch.name() {
        sqlx::query!(
            "update dead_letters set reason = $2, detail = $3, set_aside_at = clock_timestamp()
             where id = $1 and reason <> $2 and discarded_at is null",
            row.id,
            row.reason,
            row.detail
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Redrives a message; no outcome when another transaction has the row. The failure of one message keeps no
/// other from being redriven, unless the server is not well.
pub async fn redrive(
    connection: &mut PgConnection,
    known: &KnownState,
    letter: &DeadLetter,
    redrive: &Redrive,
) -> Result<Vec<Redriven>, PgFailure> {
    let attempted = match message_of(letter) {
        Err(why) => Err(why),
        Ok(message) => match attempt(connection, known, letter, &message, redrive).await {
            Ok(false) => return Ok(Vec::new()),
            Ok(true) => Ok(RedriveOutcome::Applied),
            Err(PgFailure::TooOld) => Ok(RedriveOutcome::NeedsForce),
            // The letter stays as it was, because the failure speaks of the server.
            Err(PgFailure::GaveUp(why)) => return Ok(vec![failed(letter.id, &letter.reason, why)]),
            Err(failure) => Err(about_the_message(failure)?),
        },
    };
    let redriven = match attempted {
        Ok(outcome) => Redriven { id: letter.id, outcome },
        Err((reason, detail)) => failed_again(letter, reason, detail),
    };
    if !redrive.dry_run {
        keep_one(connection, &redriven).await?;
    }
    Ok(vec![redriven])
}

/// Returns the reason why a message stays, where the failure says something of it.
fn about_the_message(failure: PgFailure) -> Result<(Reason, String), PgFailure> {
    match failure {
        PgFailure::Decided(StoreError::DigestMismatch(id)) => Ok((Reason::DigestMismatch, mismatch(id))),
        PgFailure::Refused { code, message } => {
            let reason = Reason::RefusedByStore;
            Ok((reason, Refusal { reason, code, message }.detail()))
        }
        failure => Err(failure),
    }
}

/// Runs one transaction, again where that may help, and without the items that the server refuses.
async fn attempt(
    connection: &mut PgConnection,
    known: &KnownState,
    letter: &DeadLetter,
    message: &Message,
    redrive: &Redrive,
) -> Result<bool, PgFailure> {
    let mut retries = RetryPolicy::new(REDRIVE_LIMIT);
    // Messages are few: the exact path finds at once the increments that overflow.
    let mut mode = Mode {
        selection: Selection::All(Path::Exact),
        too_old: too_old(letter, redrive.force),
        limit: REDRIVE_LIMIT,
    };
    loop {
        match try_once(connection, known, letter, message, mode, redrive).await {
            Err(PgFailure::Refused { .. }) => mode.selection = Selection::Isolate(Search::Refused),
            Err(failure) => retries.prepare_retry(known, failure).await?,
            outcome => return outcome,
        }
    }
}

/// Returns true when the row was there to be taken.
async fn try_once(
    connection: &mut PgConnection,
    known: &KnownState,
    letter: &DeadLetter,
    message: &Message,
    mode: Mode<'_>,
    redrive: &Redrive,
) -> Result<bool, PgFailure> {
    known.partitions.ensure(connection, &days_of(&[message])).await?;
    let mut transaction = session::begin(connection).await?;
    match applied_and_taken(&mut transaction, known, letter, message, mode, redrive.force).await {
        Ok(newly_known) if redrive.dry_run => {
            transaction.rollback().await?;
            Ok(newly_known.is_some())
        }
        Ok(newly_known) => {
            transaction.commit().await?;
            let is_taken = newly_known.is_some();
            newly_known.unwrap_or_default().remember(known);
            Ok(is_taken)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(mode.classified(failure))
        }
    }
}

/// Runs all statements between `begin` and `commit`; `None` when another transaction has the row.
async fn applied_and_taken(
    connection: &mut PgConnection,
    known: &KnownState,
    letter: &DeadLetter,
    message: &Message,
    mode: Mode<'_>,
    force: bool,
) -> Result<Option<NewlyKnown>, PgFailure> {
    let Some(letter) = lock(connection, &[letter.id]).await?.pop() else { return Ok(None) };
    let floor = ledger::floor(connection).await?;
    if is_reused_for_good(&letter, message.id, floor) {
        return Err(StoreError::DigestMismatch(message.id).into());
    }
    if may_repeat(message, floor) && !force {
        return Err(PgFailure::TooOld);
    }
    let (_, newly_known) = within(connection, known, &[message], mode).await?;
    take(connection, &[letter.id]).await?;
    Ok(Some(newly_known))
}
