//! The rows that say what became of a message: its ledger row, and a dead letter for each of its
//! items that could not be applied. Nothing here decides what that is.
use std::collections::HashSet;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::failure::Failure;
use super::read::from_ms;
use crate::message::Message;
use crate::store::{SetAside, ledger};

/// Writes the ledger rows and returns the messages that had none, in the order of the batch.
/// Another transaction that holds the same id is waited for.
pub async fn enter<'a>(
    connection: &mut PgConnection,
    batch: &[&'a Message],
) -> Result<Vec<&'a Message>, Failure> {
    let mut rows: Vec<_> = batch.iter().map(|message| (message.id.as_uuid(), &message.digest[..])).collect();
    rows.sort_unstable();
    let (ids, digests): (Vec<Uuid>, Vec<&[u8]>) = rows.into_iter().unzip();
    let inserted = sqlx::query_scalar!(
        "insert into applied_message (id, digest, applied_at)
         select id, digest, clock_timestamp() from unnest($1::uuid[], $2::bytea[]) as message (id, digest)
         on conflict do nothing
         returning id",
        &ids,
        &digests as &[&[u8]]
    );
    let inserted: HashSet<Uuid> = inserted.fetch_all(&mut *connection).await?.into_iter().collect();
    let (fresh, seen) = ledger::part(batch, &inserted);
    if !seen.is_empty() {
        let ids: Vec<Uuid> = seen.iter().map(|message| message.id.as_uuid()).collect();
        let stored = sqlx::query!("select id, digest from applied_message where id = any($1)", &ids);
        let stored = stored.fetch_all(connection).await?;
        ledger::compare(&seen, &stored.into_iter().map(|row| (row.id, row.digest)).collect())?;
    }
    Ok(fresh)
}

/// Writes dead letters. One that is there already, from a message that outlived its ledger row,
/// stays as it is.
pub async fn bury(connection: &mut PgConnection, set_aside: &[SetAside]) -> Result<(), Failure> {
    if set_aside.is_empty() {
        return Ok(());
    }
    let mut rows: Vec<&SetAside> = set_aside.iter().collect();
    rows.sort_unstable_by_key(|aside| aside.item);
    let ids: Vec<Uuid> = rows.iter().map(|aside| aside.item.as_uuid()).collect();
    let kinds: Vec<&str> = rows.iter().map(|aside| aside.item.kind().name()).collect();
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
