//! The statements for `dead_letters`: reads, messages that are stored there, and their redrive.
use std::sync::Arc;
use std::time::Instant;

use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use super::collections::DefinitionCache;
use super::files::SqliteFailure;
use super::values::json;
use super::{apply, housekeeping, keys};
use crate::model::dead_letter::{
    DeadLetter, DeadLetterPage, DeadMessage, MESSAGE_KIND, PAGE_BYTES_MAX, Redrive, RedriveOutcome, Redriven,
    RedrivenPage, bytes, mismatch,
};
use crate::model::message::Message;
use crate::model::outcome::{Applied, Reason};
use crate::runtime::clock;
use crate::store::StoreError;
use crate::store::rules::dead_letters::{REDRIVE_TIME_MAX, RedriveBatch, steps};
use crate::store::rules::dead_messages::{failed_again, is_reused_for_good, may_repeat, message_of, too_old};
use crate::store::rules::plan::Plan;

pub const PAGE: &str = "select id, kind, reason, detail, item, accepted_at_ms, set_aside_at_ms, \
    discarded_at_ms from dead_letters where id > ?1 and id <= ?2 and (discarded_at_ms is not null) = ?3 \
    and (?4 is null or kind = ?4) and (?5 is null or reason = ?5) order by id limit ?6";

pub const ONE: &str = "select id, kind, reason, detail, item, accepted_at_ms, set_aside_at_ms, \
    discarded_at_ms from dead_letters where id = ?1";

pub const DISCARD: &str = "update dead_letters set discarded_at_ms = coalesce(discarded_at_ms, ?2) \
    where id = ?1";

pub const BURY: &str = "insert into dead_letters \
    (id, kind, reason, detail, item, accepted_at_ms, set_aside_at_ms) values (?1, ?2, ?3, ?4, ?5, ?6, ?6) \
    on conflict do nothing";

/// Marks a row if its id belongs to another body, because `force` must not apply it. A discarded row is
/// decided and stays as it is.
pub const MARK_REUSED: &str = "update dead_letters set reason = ?2, detail = ?3, set_aside_at_ms = ?4 \
    where id = ?1 and reason <> ?2 and discarded_at_ms is null";

pub const TAKE: &str = "delete from dead_letters where id in (select unhex(value) from json_each(?1))";

pub const KEEP: &str = "update dead_letters set reason = ?2, detail = ?3, set_aside_at_ms = ?4 where id = ?1";

pub async fn page(
    connection: &mut SqliteConnection,
    page: &DeadLetterPage,
) -> Result<Vec<DeadLetter>, SqliteFailure> {
    let (after, last) = page.filter.bounds(page.after);
    let query = sqlx::query(PAGE).bind(after).bind(last).bind(page.discarded);
    let query = query.bind(page.filter.kind.as_deref()).bind(page.filter.reason.as_deref()).bind(page.limit);
    let mut rows = query.fetch(connection);
    let mut letters: Vec<DeadLetter> = Vec::new();
    // Rows are read as they are needed.
    while bytes(letters.as_slice()) < PAGE_BYTES_MAX
        && let Some(row) = rows.try_next().await?
    {
        letters.push(letter_of(&row)?);
    }
    Ok(letters)
}

pub async fn one(connection: &mut SqliteConnection, id: Uuid) -> Result<Option<DeadLetter>, SqliteFailure> {
    let row = sqlx::query(ONE).bind(id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(letter_of).transpose()?)
}

pub async fn discard(connection: &mut SqliteConnection, id: Uuid) -> Result<bool, SqliteFailure> {
    let discarded = sqlx::query(DISCARD).bind(id).bind(clock::now_ms()).execute(connection).await?;
    Ok(discarded.rows_affected() > 0)
}

pub async fn bury(connection: &mut SqliteConnection, message: DeadMessage) -> Result<(), SqliteFailure> {
    let row = message.row();
    let query = sqlx::query(BURY).bind(row.id).bind(MESSAGE_KIND).bind(row.reason).bind(row.detail);
    query.bind(row.item).bind(clock::now_ms()).execute(&mut *connection).await?;
    if row.reason == Reason::DigestMismatch.name() {
        let query = sqlx::query(MARK_REUSED).bind(row.id).bind(row.reason).bind(message.row().detail);
        query.bind(clock::now_ms()).execute(connection).await?;
    }
    Ok(())
}

/// Redrives a page inside a transaction that holds the write lock. A dry run is rolled back to where it
/// began.
pub async fn redrive(
    connection: &mut SqliteConnection,
    cache: Arc<DefinitionCache>,
    redrive: Redrive,
) -> Result<RedrivenPage, SqliteFailure> {
    let asked = redrive.page();
    let letters = page(connection, &asked).await?;
    let next = asked.next(&letters);
    if !redrive.dry_run {
        return step_by_step(connection, &cache, &letters, next, redrive.force).await;
    }
    let mut trial = connection.begin().await?;
    let done = step_by_step(&mut trial, &cache, &letters, next, redrive.force).await?;
    trial.rollback().await?;
    Ok(done)
}

/// Redrives step by step, for as long as there is time.
async fn step_by_step(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    letters: &[DeadLetter],
    next: Option<Uuid>,
    force: bool,
) -> Result<RedrivenPage, SqliteFailure> {
    let begun = Instant::now();
    let mut done = RedrivenPage { items: Vec::new(), next };
    let mut reached = None;
    for step in steps(letters) {
        if reached.is_some() && begun.elapsed() > REDRIVE_TIME_MAX {
            done.next = reached;
            break;
        }
        match step {
            [letter] if letter.is_message() => {
                done.items.push(message(connection, cache, letter, force).await?);
            }
            items => done.items.extend(within(connection, cache, items, force).await?),
        }
        reached = step.last().map(|last| last.id);
    }
    Ok(done)
}

/// Redrives a whole message, as if it came from the queue.
async fn message(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    letter: &DeadLetter,
    force: bool,
) -> Result<Redriven, SqliteFailure> {
    let attempted = match message_of(letter) {
        Err(why) => Err(why),
        Ok(message) => match attempt(connection, cache, letter, message, force).await {
            Ok(()) => Ok(RedriveOutcome::Applied),
            Err(SqliteFailure::TooOld) => Ok(RedriveOutcome::NeedsForce),
            Err(SqliteFailure::Decided(StoreError::DigestMismatch(id))) => {
                Err((Reason::DigestMismatch, mismatch(id)))
            }
            Err(failure) => return Err(failure),
        },
    };
    let redriven = match attempted {
        Ok(outcome) => Redriven { id: letter.id, outcome },
        Err((reason, detail)) => failed_again(letter, reason, detail),
    };
    record_outcomes(connection, std::slice::from_ref(&redriven), clock::now_ms()).await?;
    Ok(redriven)
}

/// Applies a message. A failed attempt leaves no change.
async fn attempt(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    letter: &DeadLetter,
    message: Message,
    force: bool,
) -> Result<(), SqliteFailure> {
    let floor: Uuid = sqlx::query_scalar(housekeeping::FLOOR).fetch_one(&mut *connection).await?;
    if is_reused_for_good(letter, message.id, floor) {
        return Err(StoreError::DigestMismatch(message.id).into());
    }
    if may_repeat(&message, floor) && !force {
        return Err(SqliteFailure::TooOld);
    }
    let mut attempt = connection.begin().await?;
    match apply::apply(&mut attempt, cache, &[message], too_old(letter, force)).await {
        Ok(_) => Ok(attempt.commit().await?),
        Err(decided @ (SqliteFailure::TooOld | SqliteFailure::Decided(_))) => {
            attempt.rollback().await?;
            Err(decided)
        }
        // The whole transaction ends, if it has not yet.
        Err(failure) => Err(failure),
    }
}

async fn within(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    letters: &[DeadLetter],
    force: bool,
) -> Result<Vec<Redriven>, SqliteFailure> {
    let now_ms = clock::now_ms();
    let mut batch = RedriveBatch::of(letters, force);
    let messages: Vec<_> = batch.messages.iter().collect();
    let earlier = keys::enter(connection, &messages, now_ms).await?;
    batch.check_keys(&earlier);
    let mut plan = Plan::redriven(&batch.messages);
    let set_aside = std::mem::take(&mut plan.aside);
    let mut applied = Applied { set_aside, ..Applied::default() };
    apply::take_effect(connection, cache, &plan, now_ms, &mut applied).await?;
    let redriven = batch.outcomes(&applied.set_aside);
    record_outcomes(connection, &redriven, now_ms).await?;
    Ok(redriven)
}

/// Deletes the row of an applied item, and renews its key to that time; notes the reason of one that failed
/// again.
async fn record_outcomes(
    connection: &mut SqliteConnection,
    redriven: &[Redriven],
    now_ms: i64,
) -> Result<(), SqliteFailure> {
    let mut applied = Vec::new();
    for Redriven { id, outcome } in redriven {
        match outcome {
            RedriveOutcome::Applied => applied.push(id.simple()),
            RedriveOutcome::FailedAgain { reason, detail } => {
                let query = sqlx::query(KEEP).bind(*id).bind(&**reason).bind(&**detail).bind(now_ms);
                query.execute(&mut *connection).await?;
            }
            RedriveOutcome::NeedsForce => {}
        }
    }
    let applied = json(&applied);
    sqlx::query(TAKE).bind(&applied).execute(&mut *connection).await?;
    sqlx::query(keys::RENEW).bind(&applied).bind(now_ms).execute(connection).await?;
    Ok(())
}

fn letter_of(row: &SqliteRow) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter {
        id: row.try_get(0)?,
        kind: row.try_get(1)?,
        reason: row.try_get(2)?,
        detail: row.try_get(3)?,
        item: row.try_get(4)?,
        accepted_at_ms: row.try_get(5)?,
        set_aside_at_ms: row.try_get(6)?,
        discarded_at_ms: row.try_get(7)?,
    })
}
