//! Notes on attempts that were begun and not ended, which a message leaves behind that brings its process
//! down; and the probe.
use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::files::SqliteFailure;
use super::values::json;
use crate::model::id::MessageId;
use crate::runtime::clock;

/// Writes the one row that every file has.
pub const PROBE: &str = "update ledger_floor set id = id where one = 1";

/// Notes attempts. `where true` tells the parser that `on` begins no join.
pub const BEGIN: &str = "insert into message_attempts (message, attempts, begun_at_ms) \
    select unhex(value), 1, ?2 from json_each(?1) where true \
    on conflict (message) do update set attempts = attempts + 1, begun_at_ms = excluded.begun_at_ms \
    where ?3 returning message, attempts";

pub const END: &str =
    "delete from message_attempts where message in (select unhex(value) from json_each(?1))";

/// Deletes old notes. There are few rows at any time.
const END_OLD: &str = "delete from message_attempts where begun_at_ms < ?1";

const KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

pub async fn probe(connection: &mut SqliteConnection) -> Result<(), SqliteFailure> {
    sqlx::query(PROBE).execute(connection).await?;
    Ok(())
}

pub async fn begin(
    connection: &mut SqliteConnection,
    messages: Arc<[MessageId]>,
    again: bool,
) -> Result<HashMap<MessageId, u32>, SqliteFailure> {
    let rows = sqlx::query(BEGIN).bind(ids(&messages)).bind(clock::now_ms()).bind(again);
    let mut counts = HashMap::new();
    for row in rows.fetch_all(connection).await? {
        let message: Uuid = row.try_get(0)?;
        counts.extend(MessageId::from_uuid(message).map(|message| (message, row.get(1))));
    }
    Ok(counts)
}

/// Deletes the notes of messages, and old notes: their messages went another way.
pub async fn end(connection: &mut SqliteConnection, messages: Arc<[MessageId]>) -> Result<(), SqliteFailure> {
    sqlx::query(END).bind(ids(&messages)).execute(&mut *connection).await?;
    sqlx::query(END_OLD).bind(clock::now_ms() - KEPT_MS).execute(connection).await?;
    Ok(())
}

fn ids(messages: &[MessageId]) -> String {
    let mut ids: Vec<_> = messages.iter().map(|message| message.as_uuid().simple()).collect();
    ids.sort_unstable();
    ids.dedup();
    json(&ids)
}
