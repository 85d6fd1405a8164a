//! Notes on attempts that were begun and not ended, which a message leaves behind that brings its consumer
//! down; and the probe. Each is a statement of its own, beside the transactions that apply.
use std::collections::HashMap;
use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::failure::PgFailure;
use crate::model::id::MessageId;

/// Writes the one row that every database has.
pub async fn probe(connection: &mut PgConnection) -> Result<(), PgFailure> {
    sqlx::query!("update ledger_floor set id = id where one").execute(connection).await?;
    Ok(())
}

pub async fn begin(
    connection: &mut PgConnection,
    messages: Arc<[MessageId]>,
    again: bool,
) -> Result<HashMap<MessageId, u32>, PgFailure> {
    let mut ids: Vec<Uuid> = messages.iter().map(|message| message.as_uuid()).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows = sqlx::query!(
        "insert into message_attempts as noted (message, attempts, begun_at)
         select id, 1, clock_timestamp() from unnest($1::uuid[]) as message (id)
         on conflict (message) do update set attempts = noted.attempts + 1, begun_at = excluded.begun_at
         where $2
         returning message, attempts",
        &ids,
        again
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let count = |attempts: i32| attempts.try_into().unwrap_or(u32::MAX);
    Ok(rows.filter_map(|row| Some((MessageId::from_uuid(row.message)?, count(row.attempts)))).collect())
}

/// Deletes the notes of messages, and old notes: their messages went another way.
pub async fn end(connection: &mut PgConnection, messages: Arc<[MessageId]>) -> Result<(), PgFailure> {
    let ids: Vec<Uuid> = messages.iter().map(|message| message.as_uuid()).collect();
    sqlx::query!(
        "delete from message_attempts
         where message = any($1) or begun_at < clock_timestamp() - interval '7 days'",
        &ids
    )
    .execute(connection)
    .await?;
    Ok(())
}
