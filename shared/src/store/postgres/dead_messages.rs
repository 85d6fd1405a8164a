//! Messages that could not be applied as a whole, among the dead letters: buried, and redriven as if
//! they came from the queue.
use sqlx::PgConnection;

use super::apply::{Choice, Learned, Path, Patience, within};
use super::dead_letters::{keep, lock, take};
use super::failure::Failure;
use super::known::Known;
use super::partitions::days_of;
use super::session;
use super::sift::{self, Refused};
use crate::message::Message;
use crate::store::bodies::{Row, message_of, mismatch};
use crate::store::dead_letters::failed;
use crate::store::{DeadLetter, DeadMessage, MESSAGE_KIND, Reason, RedriveOutcome, Redriven, StoreError};

/// Text that the server refuses is written in ASCII.
pub async fn bury(connection: &mut PgConnection, message: &DeadMessage) -> Result<(), Failure> {
    match insert(connection, &message.row()).await.map_err(Failure::of_batch) {
        Err(Failure::Refused { .. }) => insert(connection, &message.row().in_ascii()).await,
        outcome => outcome,
    }
}

async fn insert(connection: &mut PgConnection, row: &Row) -> Result<(), Failure> {
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
    .execute(connection)
    .await?;
    Ok(())
}

/// Nothing comes of it when somebody else has the row.
pub async fn redrive(
    connection: &mut PgConnection,
    known: &Known,
    letter: &DeadLetter,
    dry_run: bool,
) -> Result<Vec<Redriven>, Failure> {
    let fails = match message_of(letter) {
        Err(why) => Some(why),
        Ok(message) => match attempt(connection, known, letter, &message, dry_run).await {
            Ok(is_applied) => {
                let applied = Redriven { id: letter.id, outcome: RedriveOutcome::Applied };
                return Ok(is_applied.then_some(applied).into_iter().collect());
            }
            Err(Failure::Told(StoreError::DigestMismatch(id))) => {
                Some((Reason::DigestMismatch, mismatch(id)))
            }
            Err(failure) => return Err(failure),
        },
    };
    let failed: Vec<_> =
        fails.map(|(reason, detail)| failed(letter.id, reason.name(), detail)).into_iter().collect();
    if !dry_run {
        keep(connection, &failed).await?;
    }
    Ok(failed)
}

/// One transaction, tried again where that may help, and without the items that the server refuses.
async fn attempt(
    connection: &mut PgConnection,
    known: &Known,
    letter: &DeadLetter,
    message: &Message,
    dry_run: bool,
) -> Result<bool, Failure> {
    let (mut patience, mut refused) = (Patience::new(), None);
    loop {
        match try_once(connection, known, letter, message, refused.as_ref(), dry_run).await {
            Err(Failure::Refused { .. }) if refused.is_none() => {
                refused = Some(sift::refused(connection, known, &[message]).await?);
            }
            Err(failure) => patience.bear(known, failure).await?,
            outcome => return outcome,
        }
    }
}

/// Whether the row was there to be taken.
async fn try_once(
    connection: &mut PgConnection,
    known: &Known,
    letter: &DeadLetter,
    message: &Message,
    refused: Option<&Refused>,
    dry_run: bool,
) -> Result<bool, Failure> {
    known.partitions.ensure(connection, &days_of(&[message])).await?;
    let mut transaction = session::begin(connection).await?;
    match applied_and_taken(&mut transaction, known, letter, message, refused).await {
        Ok(learned) if dry_run => {
            transaction.rollback().await?;
            Ok(learned.is_some())
        }
        Ok(learned) => {
            transaction.commit().await?;
            let is_taken = learned.is_some();
            learned.unwrap_or_default().remember(known);
            Ok(is_taken)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(failure.of_batch())
        }
    }
}

/// All statements between `begin` and `commit`; `None` when somebody else has the row.
async fn applied_and_taken(
    connection: &mut PgConnection,
    known: &Known,
    letter: &DeadLetter,
    message: &Message,
    refused: Option<&Refused>,
) -> Result<Option<Learned>, Failure> {
    if lock(connection, &[letter.id]).await?.is_empty() {
        return Ok(None);
    }
    let choice = refused.map_or(Choice::All, Choice::Without);
    // Messages are few: the exact path knows at once what overflows.
    let (_, learned) = within(connection, known, &[message], Path::Exact, choice).await?;
    take(connection, &[letter.id]).await?;
    Ok(Some(learned))
}
