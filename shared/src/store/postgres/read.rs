//! Reads, one statement each.
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{self, to_ms};
use super::failure::PgFailure;
use crate::model::id::{ItemKey, MessageId};
use crate::model::outcome::{Counter, ItemStatus};
use crate::store::rules::ledger;
use crate::store::rules::page::Bounds;

/// A row of `counters`.
pub struct CounterRow {
    pub name: String,
    pub value: i64,
    pub version: i64,
    pub updated_at: OffsetDateTime,
}

impl From<CounterRow> for Counter {
    fn from(row: CounterRow) -> Self {
        let CounterRow { name, value, version, updated_at } = row;
        Self { name: name.into(), value, version, updated_at_ms: to_ms(updated_at) }
    }
}

pub async fn counter(connection: &mut PgConnection, name: String) -> Result<Option<Counter>, PgFailure> {
    let row = sqlx::query_as!(
        CounterRow,
        "select name, value, version, updated_at from counters where name = $1",
        name
    );
    Ok(row.fetch_optional(connection).await?.map(Counter::from))
}

pub async fn counters(connection: &mut PgConnection, bounds: Bounds) -> Result<Vec<Counter>, PgFailure> {
    let rows = sqlx::query_as!(
        CounterRow,
        "select name, value, version, updated_at from counters
         where name <> $1 and name >= $2 and name < $3
         order by name
         limit $4",
        bounds.after,
        bounds.from,
        bounds.below,
        bounds.limit
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(Counter::from).collect())
}

/// Names of metric types, bytewise.
pub async fn metric_types(connection: &mut PgConnection, bounds: Bounds) -> Result<Vec<Arc<str>>, PgFailure> {
    let names = sqlx::query_scalar!(
        "select name from metric_types
         where name <> $1 and name >= $2 and name < $3
         order by name
         limit $4",
        bounds.after,
        bounds.from,
        bounds.below,
        bounds.limit
    );
    Ok(names.fetch_all(connection).await?.into_iter().map(Arc::from).collect())
}

/// Reads the statuses of items in one statement, so that all tables and the floor are seen at the same
/// moment: a row per item, by its number, and a row per message that was applied. Items get a subquery each,
/// because the planner would read a whole table for a join. Messages are named as a list and by its ends,
/// because a plan that is kept prunes partitions by single values only
/// (`fates_are_looked_up_by_key_however_many_are_asked_for`).
pub async fn item_statuses(
    connection: &mut PgConnection,
    items: &[ItemKey],
) -> Result<Vec<Option<ItemStatus>>, PgFailure> {
    let ids: Vec<Uuid> = items.iter().map(|item| item.as_uuid()).collect();
    let messages: BTreeSet<MessageId> = items.iter().filter_map(|item| item.message()).collect();
    let messages: Vec<Uuid> = messages.into_iter().map(MessageId::as_uuid).collect();
    let rows = sqlx::query!(
        r#"select number as "number?", null::uuid as "message?", keyed.applied_at as "applied_at?",
                  keyed.fingerprint as "fingerprint?", dead.set_aside_at as "set_aside_at?",
                  dead.reason as "reason?", dead.detail as "detail?",
                  (select id from ledger_floor where one) as "floor?"
           from unnest($1::uuid[]) with ordinality as item (id, number)
           left join lateral (
               select set_aside_at, reason, detail from dead_letters where id = item.id limit 1
           ) as dead on true
           left join lateral (
               select applied_at, fingerprint from keyed_writes where id = item.id limit 1
           ) as keyed on true
           union all
           select null, id, applied_at, null, null, null, null, null
           from applied_message where id = any($2) and id >= $3 and id <= $4"#,
        &ids,
        &messages,
        messages.first().copied().unwrap_or_default(),
        messages.last().copied().unwrap_or_default()
    );
    let rows = rows.fetch_all(connection).await?;
    let applied: HashMap<Uuid, OffsetDateTime> =
        rows.iter().filter_map(|row| Some((row.message?, row.applied_at?))).collect();
    let mut statuses = vec![None; items.len()];
    for row in rows {
        let Some(number) = row.number.and_then(|number| usize::try_from(number - 1).ok()) else { continue };
        let message = items[number].message().and_then(|message| applied.get(&message.as_uuid()).copied());
        let fingerprint = row.fingerprint.as_deref().map(columns::fingerprint).transpose()?;
        statuses[number] = match (row.set_aside_at, row.reason, row.detail) {
            (Some(at), Some(reason), Some(detail)) => {
                Some(ItemStatus::Failed { at_ms: to_ms(at), reason, detail, fingerprint })
            }
            _ => match message.or(row.applied_at) {
                Some(at) => Some(ItemStatus::Applied { at_ms: to_ms(at), fingerprint }),
                None => ledger::is_forgotten(items[number], row.floor).then_some(ItemStatus::Forgotten),
            },
        };
    }
    Ok(statuses)
}

pub async fn now_ms(connection: &mut PgConnection) -> Result<i64, PgFailure> {
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(connection).await?;
    Ok(to_ms(now))
}
