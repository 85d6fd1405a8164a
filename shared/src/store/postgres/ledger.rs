//! Rows that record the outcome of a message: its ledger row, and a dead letter for each of its items that
//! could not be applied; and the floor, below which ledger rows were dropped. The outcome itself is decided
//! elsewhere.
use std::collections::HashSet;

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::from_ms;
use super::failure::PgFailure;
use crate::model::id::MessageId;
use crate::model::message::Message;
use crate::model::outcome::SetAside;
use crate::store::rules::ledger;

/// Writes the ledger rows. Returns the messages that had none, in the order of the batch, and the ids
/// among them at or below the floor. Another transaction that holds the same id is waited for.
///
/// The floor is read by the statement that inserts. A partition is detached before it is dropped, which waits
/// for the transactions that may still insert into it, and only then is the floor raised for the last time.
/// Either the row that this inserts is there when that is done, or there is no partition for it. The next
/// partition for that day is made after the drop, and a transaction that inserts there sees the floor raised
/// (`a_message_that_comes_while_its_day_is_dropped_is_applied_once_or_set_aside`).
pub async fn enter<'a>(
    connection: &mut PgConnection,
    batch: &[&'a Message],
) -> Result<(Vec<&'a Message>, HashSet<MessageId>), PgFailure> {
    let mut rows: Vec<_> = batch.iter().map(|message| (message.id.as_uuid(), &message.digest[..])).collect();
    rows.sort_unstable();
    let (ids, digests): (Vec<Uuid>, Vec<&[u8]>) = rows.into_iter().unzip();
    let inserted = sqlx::query!(
        r#"insert into applied_message (id, digest, applied_at)
         select id, digest, clock_timestamp() from unnest($1::uuid[], $2::bytea[]) as message (id, digest)
         on conflict do nothing
         returning id, id <= (select floor.id from ledger_floor as floor where floor.one) as "is_too_old!""#,
        &ids,
        &digests as &[&[u8]]
    );
    let rows = inserted.fetch_all(&mut *connection).await?;
    let too_old = rows.iter().filter(|row| row.is_too_old).filter_map(|row| MessageId::from_uuid(row.id));
    let too_old = too_old.collect();
    let inserted: HashSet<Uuid> = rows.into_iter().map(|row| row.id).collect();
    let (fresh, seen) = ledger::part(batch, &inserted);
    if !seen.is_empty() {
        let ids: Vec<Uuid> = seen.iter().map(|message| message.id.as_uuid()).collect();
        let stored = sqlx::query!("select id, digest from applied_message where id = any($1)", &ids);
        let stored = stored.fetch_all(connection).await?;
        ledger::compare(&seen, &stored.into_iter().map(|row| (row.id, row.digest)).collect())?;
    }
    Ok((fresh, too_old))
}

/// Reads the last id that lost its row; nil while none was.
pub async fn floor(connection: &mut PgConnection) -> Result<Uuid, PgFailure> {
    Ok(sqlx::query_scalar!("select id from ledger_floor where one").fetch_one(connection).await?)
}

/// Reads the time of the [`floor`]; 0 while there is none.
pub async fn floor_ms(connection: &mut PgConnection) -> Result<i64, PgFailure> {
    Ok(MessageId::from_uuid(floor(connection).await?).map_or(0, MessageId::time_ms))
}

/// Raises the floor to the last id in a partition of the ledger.
pub async fn raise_floor(connection: &mut PgConnection, partition: &str) -> Result<(), PgFailure> {
    let raise = format!(
        "update ledger_floor set id = greatest(ledger_floor.id, last.id)
         from (select id from {partition} order by id desc limit 1) as last where one and ledger_floor.id < last.id"
    );
    connection.execute(AssertSqlSafe(raise)).await?;
    Ok(())
}

/// Writes dead letters. A dead letter that is there already, from a message that outlived its ledger row,
/// stays as it is.
pub async fn insert_dead_letters(
    connection: &mut PgConnection,
    set_aside: &[SetAside],
) -> Result<(), PgFailure> {
    if set_aside.is_empty() {
        return Ok(());
    }
    let mut rows: Vec<&SetAside> = set_aside.iter().collect();
    rows.sort_unstable_by_key(|aside| aside.item);
    let ids: Vec<Uuid> = rows.iter().map(|aside| aside.item.as_uuid()).collect();
    let kinds: Vec<&str> = rows.iter().map(|aside| aside.item.kind_name()).collect();
    let reasons: Vec<&str> = rows.iter().map(|aside| aside.reason.name()).collect();
    let details: Vec<&str> = rows.iter().map(|aside| &*aside.detail).collect();
    let items: Vec<&str> = rows.iter().map(|aside| &*aside.json).collect();
    let accepted: Vec<OffsetDateTime> = rows.iter().map(|aside| from_ms(aside.accepted_at_ms)).collect();
    sqlx::query!(
        "insert into dead_letters (id, kind, reason, detail, item, accepted_at, set_aside_at)
         select id, kind, reason, detail, item, accepted_at, clock_timestamp()
         from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
              as aside (id, kind, reason, detail, item, accepted_at)
         on conflict do nothing",
        &ids,
        &kinds as &[&str],
        &reasons as &[&str],
        &details as &[&str],
        &items as &[&str],
        &accepted
    )
    .execute(connection)
    .await?;
    Ok(())
}
