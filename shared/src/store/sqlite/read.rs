//! Statements that only read: counters, and the statuses of items.
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::files::SqliteFailure;
use super::values::{fingerprint_of, json};
use crate::model::id::ItemKey;
use crate::model::outcome::{Counter, ItemStatus};
use crate::store::rules::page::Bounds;

pub const COUNTER: &str = "select name, value, version, updated_at_ms from counters where name = ?1";

pub const COUNTERS: &str = "select name, value, version, updated_at_ms from counters \
    where name <> ?1 and name >= ?2 and name < ?3 order by name limit ?4";

pub const FATES: &str = "with item (number, id, message) as materialized \
    (select key, unhex(value ->> 0), unhex(value ->> 1) from json_each(?1)) \
    select coalesce(message.applied_at_ms, keyed.applied_at_ms), keyed.fingerprint, \
    dead.set_aside_at_ms, dead.reason, dead.detail, item.number, \
    item.message <= (select id from ledger_floor where one = 1) from item \
    left join dead_letters as dead on dead.id = item.id \
    left join keyed_writes as keyed on keyed.id = item.id \
    left join applied_message as message on message.id = item.message";

pub async fn counter(
    connection: &mut SqliteConnection,
    name: String,
) -> Result<Option<Counter>, SqliteFailure> {
    let row = sqlx::query(COUNTER).bind(name).fetch_optional(connection).await?;
    Ok(row.as_ref().map(counter_of).transpose()?)
}

pub async fn counters(
    connection: &mut SqliteConnection,
    Bounds { after, from, below, limit }: Bounds,
) -> Result<Vec<Counter>, SqliteFailure> {
    let query = sqlx::query(COUNTERS).bind(after).bind(from).bind(below).bind(limit);
    let rows = query.fetch_all(connection).await?;
    Ok(rows.iter().map(counter_of).collect::<Result<_, _>>()?)
}

fn counter_of(row: &SqliteRow) -> Result<Counter, sqlx::Error> {
    Ok(Counter {
        name: row.try_get::<&str, _>(0)?.into(),
        value: row.try_get(1)?,
        version: row.try_get(2)?,
        updated_at_ms: row.try_get(3)?,
    })
}

/// Reads the statuses of items, in the order of `items`.
pub async fn item_statuses(
    connection: &mut SqliteConnection,
    items: &[ItemKey],
) -> Result<Vec<Option<ItemStatus>>, SqliteFailure> {
    let row = |item: &ItemKey| {
        let message = item.message().map(|message| message.as_uuid().simple());
        (item.as_uuid().simple(), message)
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let mut rows = sqlx::query(FATES).bind(json(&rows)).fetch_all(connection).await?;
    rows.sort_unstable_by_key(|row| row.get::<i64, _>(5));
    Ok(rows.iter().map(status_of).collect::<Result<_, _>>()?)
}

fn status_of(row: &SqliteRow) -> Result<Option<ItemStatus>, sqlx::Error> {
    let applied: Option<i64> = row.try_get(0)?;
    let fingerprint = row.try_get::<Option<Vec<u8>>, _>(1)?.map(fingerprint_of).transpose()?;
    let set_aside: Option<i64> = row.try_get(2)?;
    Ok(match set_aside {
        Some(at_ms) => {
            Some(ItemStatus::Failed { at_ms, reason: row.try_get(3)?, detail: row.try_get(4)?, fingerprint })
        }
        None => match applied {
            Some(at_ms) => Some(ItemStatus::Applied { at_ms, fingerprint }),
            None => row.try_get::<Option<bool>, _>(6)?.unwrap_or(false).then_some(ItemStatus::Forgotten),
        },
    })
}
