//! The statements for points: types, raw points by day, rollups.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqliteConnection};
use time::OffsetDateTime;

use super::files::Failure;
use super::{json, values};
use crate::rollup::{Corrupt, Rollup};
use crate::store::page::Bounds;
use crate::store::plan::Task;
use crate::store::points::{RollupKey, rollups};
use crate::store::{RollupRange, StoreError};
use crate::write::Point;

pub const TYPES: &str = "select name, id from metric_types \
    where name in (select value from json_each(?1))";

pub const ADD_TYPES: &str = "insert into metric_types (name) \
    select value from json_each(?1) where true on conflict do nothing returning name, id";

pub const NAMES: &str = "select name from metric_types \
    where name <> ?1 and name >= ?2 and name < ?3 order by name limit ?4";

pub const FIND: &str = "select resolution, type, period, data from rollups \
    where (resolution, type, period) in \
    (select value ->> 0, value ->> 1, value ->> 2 from json_each(?1))";

const PUT: (&str, &str) = (
    "insert into rollups (resolution, type, period, data)",
    "on conflict (resolution, type, period) do update set data = excluded.data",
);

pub const RANGE: &str = "select period, data from rollups \
    where resolution = ?1 and type = (select id from metric_types where name = ?2) \
    and period >= ?3 and period < ?4 order by period";

type Ids = HashMap<String, i64>;

/// Writes types, raw points and rollups; returns the types, sorted.
pub async fn apply(
    connection: &mut SqliteConnection,
    points: &[Task<'_, Point>],
    now_ms: i64,
) -> Result<Vec<Arc<str>>, Failure> {
    if points.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = points.iter().map(|task| &*task.write.kind).collect();
    let ids = types(connection, &names).await?;
    let mut days: BTreeMap<String, Vec<&Task<'_, Point>>> = BTreeMap::new();
    for task in points {
        days.entry(table_of(task.message.accepted_at_ms, now_ms)).or_default().push(task);
    }
    for (table, points) in days {
        insert(connection, &table, &points, &ids).await?;
    }
    merge(connection, &rollups(points), &ids).await?;
    Ok(names.into_iter().map(Arc::from).collect())
}

async fn types(connection: &mut SqliteConnection, names: &BTreeSet<&str>) -> Result<Ids, Failure> {
    let rows = sqlx::query_as::<_, (String, i64)>(TYPES).bind(json(names));
    let mut ids: Ids = rows.fetch_all(&mut *connection).await?.into_iter().collect();
    let new: Vec<&&str> = names.iter().filter(|name| !ids.contains_key(**name)).collect();
    if !new.is_empty() {
        let rows = sqlx::query_as::<_, (String, i64)>(ADD_TYPES).bind(json(&new));
        ids.extend(rows.fetch_all(connection).await?);
    }
    Ok(ids)
}

/// The table of a day. A time ahead of the clock counts as today: no message makes a table that
/// retention would never reach.
pub fn table_of(accepted_at_ms: i64, now_ms: i64) -> String {
    let seconds = accepted_at_ms.clamp(0, now_ms.max(0)) / 1_000;
    let day = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!("points_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day())
}

/// Makes the table of the day when it is missing.
async fn insert(
    connection: &mut SqliteConnection,
    table: &str,
    points: &[&Task<'_, Point>],
    ids: &Ids,
) -> Result<(), Failure> {
    let create = format!(
        "create table if not exists {table} (accepted_at_ms integer not null, type integer not null, \
         at_ms integer not null, value real not null) strict"
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut *connection).await?;
    let insert = format!("insert into {table} (accepted_at_ms, type, at_ms, value)");
    values::insert(connection, (&insert, ""), 4, points, |query, Task { write, message, .. }| {
        let Point { kind, at_ms, value } = write;
        query.bind(message.accepted_at_ms).bind(ids[&**kind]).bind(*at_ms).bind(*value)
    })
    .await
}

async fn merge(
    connection: &mut SqliteConnection,
    added: &BTreeMap<RollupKey<'_>, Rollup>,
    ids: &Ids,
) -> Result<(), Failure> {
    let key = |(resolution, kind, period): &RollupKey<'_>| (*resolution as i16, ids[*kind], *period);
    let keys: Vec<_> = added.keys().map(key).collect();
    let rows = sqlx::query_as::<_, (i16, i64, i32, Vec<u8>)>(FIND).bind(json(&keys));
    let rows = rows.fetch_all(&mut *connection).await?.into_iter();
    let stored: HashMap<_, _> =
        rows.map(|(resolution, kind, period, data)| ((resolution, kind, period), data)).collect();
    let mut merged = Vec::with_capacity(added.len());
    for (name, added) in added {
        let key = key(name);
        let data = match stored.get(&key) {
            None => added.encode(),
            Some(data) => {
                let mut rollup = decode(name.1, data)?;
                rollup.merge(added);
                rollup.encode()
            }
        };
        merged.push((key, data));
    }
    merged.sort_unstable_by_key(|(key, _)| *key);
    values::insert(connection, PUT, 4, &merged, |query, ((resolution, kind, period), data)| {
        query.bind(*resolution).bind(*kind).bind(*period).bind(&data[..])
    })
    .await
}

/// What cannot be read was written by a newer build: nothing is lost by waiting for one.
fn decode(kind: &str, data: &[u8]) -> Result<Rollup, StoreError> {
    let unreadable = |error: Corrupt| {
        StoreError::Unavailable(format!("a rollup of {kind} cannot be read: {error}").into())
    };
    Rollup::decode(data).map_err(unreadable)
}

pub async fn range(
    connection: &mut SqliteConnection,
    range: RollupRange,
) -> Result<Vec<(i32, Rollup)>, Failure> {
    let query = sqlx::query_as::<_, (i32, Vec<u8>)>(RANGE).bind(range.resolution as i16).bind(&*range.kind);
    let rows = query.bind(range.from).bind(range.below).fetch_all(connection).await?;
    rows.into_iter().map(|(period, data)| Ok((period, decode(&range.kind, &data)?))).collect()
}

pub async fn names(connection: &mut SqliteConnection, bounds: Bounds) -> Result<Vec<Arc<str>>, Failure> {
    let Bounds { after, from, below, limit } = bounds;
    let query = sqlx::query_scalar::<_, String>(NAMES).bind(after).bind(from).bind(below).bind(limit);
    Ok(query.fetch_all(connection).await?.into_iter().map(Arc::from).collect())
}
