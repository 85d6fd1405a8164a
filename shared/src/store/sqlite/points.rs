//! The statements for points: types, raw points by day, rollups.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, SqliteConnection};
use time::OffsetDateTime;

use super::files::SqliteFailure;
use super::values;
use super::values::json;
use crate::model::rollup::Rollup;
use crate::model::rollup::bytes::Corrupt;
use crate::model::write::Point;
use crate::store::rules::page::Bounds;
use crate::store::rules::plan::PlannedWrite;
use crate::store::rules::points::{
    Addition, PAGE_BYTES_MAX, PART_BYTES_MAX, RollupKey, merged, page, rollups,
};
use crate::store::{RollupPage, RollupRange, StoreError};

pub const TYPES: &str = "select name, id from metric_types \
    where name in (select value from json_each(?1))";

pub const ADD_TYPES: &str = "insert into metric_types (name) \
    select value from json_each(?1) where true on conflict do nothing returning name, id";

pub const NAMES: &str = "select name from metric_types \
    where name <> ?1 and name >= ?2 and name < ?3 order by name limit ?4";

/// Finds stored rollups in the order of the keys: a cross join is not reordered.
pub const FIND: &str = "select rollups.resolution, rollups.type, rollups.period, rollups.data \
    from json_each(?1) as key cross join rollups \
    on rollups.resolution = key.value ->> 0 and rollups.type = key.value ->> 1 \
    and rollups.period = key.value ->> 2";

const PUT: (&str, &str) = (
    "insert into rollups (resolution, type, period, data)",
    "on conflict (resolution, type, period) do update set data = excluded.data",
);

pub const RANGE: &str = "select period, data from rollups \
    where resolution = ?1 and type = (select id from metric_types where name = ?2) \
    and period >= ?3 and period < ?4 order by period";

type TypeNumbers = HashMap<String, i64>;

/// Key of a stored rollup: resolution, type and period.
type StoredRollupKey = (i16, i64, i32);

/// Writes types, raw points and rollups; returns the types, sorted.
pub async fn apply(
    connection: &mut SqliteConnection,
    points: &[PlannedWrite<'_, Point>],
    now_ms: i64,
) -> Result<Vec<Arc<str>>, SqliteFailure> {
    if points.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = points.iter().map(|task| &*task.write.kind).collect();
    let ids = types(connection, &names).await?;
    let mut days: BTreeMap<String, Vec<&PlannedWrite<'_, Point>>> = BTreeMap::new();
    for task in points {
        days.entry(table_of(task.message.accepted_at_ms, now_ms)).or_default().push(task);
    }
    for (table, points) in days {
        insert(connection, &table, &points, &ids).await?;
    }
    merge(connection, rollups(points), &ids).await?;
    Ok(names.into_iter().map(Arc::from).collect())
}

async fn types(
    connection: &mut SqliteConnection,
    names: &BTreeSet<&str>,
) -> Result<TypeNumbers, SqliteFailure> {
    let rows = sqlx::query_as::<_, (String, i64)>(TYPES).bind(json(names));
    let mut ids: TypeNumbers = rows.fetch_all(&mut *connection).await?.into_iter().collect();
    let new: Vec<&&str> = names.iter().filter(|name| !ids.contains_key(**name)).collect();
    if !new.is_empty() {
        let rows = sqlx::query_as::<_, (String, i64)>(ADD_TYPES).bind(json(&new));
        ids.extend(rows.fetch_all(connection).await?);
    }
    Ok(ids)
}

/// Returns the table of a day. A time ahead of the clock counts as today: no message makes a table that
/// retention would never reach.
pub fn table_of(accepted_at_ms: i64, now_ms: i64) -> String {
    let seconds = accepted_at_ms.clamp(0, now_ms.max(0)) / 1_000;
    let day = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!("points_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day())
}

/// Inserts raw points, and makes the table of the day when it is missing.
async fn insert(
    connection: &mut SqliteConnection,
    table: &str,
    points: &[&PlannedWrite<'_, Point>],
    ids: &TypeNumbers,
) -> Result<(), SqliteFailure> {
    let create = format!(
        "create table if not exists {table} (accepted_at_ms integer not null, type integer not null, \
         at_ms integer not null, value real not null) strict"
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut *connection).await?;
    let insert = format!("insert into {table} (accepted_at_ms, type, at_ms, value)");
    values::insert(connection, (&insert, ""), 4, points, |query, PlannedWrite { write, message, .. }| {
        let Point { kind, at_ms, value } = write;
        query.bind(message.accepted_at_ms).bind(ids[&**kind]).bind(*at_ms).bind(*value)
    })
    .await
}

/// Merges rollups into the stored ones in parts, by ascending key.
async fn merge(
    connection: &mut SqliteConnection,
    added: BTreeMap<RollupKey<'_>, Rollup>,
    ids: &TypeNumbers,
) -> Result<(), SqliteFailure> {
    let key = |(resolution, kind, period): RollupKey<'_>| (resolution as i16, ids[kind], period);
    let mut added: BTreeMap<StoredRollupKey, Rollup> =
        added.into_iter().map(|(name, rollup)| (key(name), rollup)).collect();
    while !added.is_empty() {
        let (mut stored, last) = stored(connection, &added).await?;
        let later = last.map_or_else(BTreeMap::new, |last| {
            let mut later = added.split_off(&last);
            added.extend(later.remove_entry(&last));
            later
        });
        let addition = |(key, added)| Addition { key, added, stored: stored.remove(&key) };
        let part = merged(added.into_iter().map(addition).collect()).await?;
        let name = |id: i64| ids.iter().find(|(_, known)| **known == id).map_or("a type", |(name, _)| name);
        let part = part.map_err(|((_, id, _), error)| unreadable(name(id), error))?;
        values::insert(connection, PUT, 4, &part, |query, ((resolution, kind, period), data)| {
            query.bind(*resolution).bind(*kind).bind(*period).bind(&data[..])
        })
        .await?;
        added = later;
    }
    Ok(())
}

/// Reads the rollups under these keys until a part is full; then also gives the last key of the part.
async fn stored(
    connection: &mut SqliteConnection,
    added: &BTreeMap<StoredRollupKey, Rollup>,
) -> Result<(HashMap<StoredRollupKey, Vec<u8>>, Option<StoredRollupKey>), SqliteFailure> {
    let keys: Vec<&StoredRollupKey> = added.keys().collect();
    let mut rows = sqlx::query_as::<_, (i16, i64, i32, Vec<u8>)>(FIND).bind(json(&keys)).fetch(connection);
    let (mut stored, mut bytes) = (HashMap::new(), 0);
    while let Some((resolution, kind, period, data)) = rows.try_next().await? {
        let key = (resolution, kind, period);
        bytes += data.len();
        stored.insert(key, data);
        if bytes >= PART_BYTES_MAX {
            return Ok((stored, Some(key)));
        }
    }
    Ok((stored, None))
}

/// Returns the error for a rollup that cannot be read. A newer build wrote it: no data is lost by waiting for
/// one.
fn unreadable(kind: &str, error: Corrupt) -> StoreError {
    StoreError::Unavailable(format!("a rollup of {kind} cannot be read: {error}").into())
}

/// Reads the rollups of a range up to the one that fills a page.
pub async fn range(
    connection: &mut SqliteConnection,
    range: RollupRange,
) -> Result<RollupPage, SqliteFailure> {
    let query = sqlx::query_as::<_, (i32, Vec<u8>)>(RANGE).bind(range.resolution as i16).bind(&*range.kind);
    let mut stream = query.bind(range.from).bind(range.below).fetch(connection);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES_MAX
        && let Some((period, data)) = stream.try_next().await?
    {
        bytes += data.len();
        rows.push((period, data));
    }
    let page = page(rows).await?;
    Ok(page.map_err(|(_, error)| unreadable(&range.kind, error))?)
}

pub async fn names(
    connection: &mut SqliteConnection,
    bounds: Bounds,
) -> Result<Vec<Arc<str>>, SqliteFailure> {
    let Bounds { after, from, below, limit } = bounds;
    let query = sqlx::query_scalar::<_, String>(NAMES).bind(after).bind(from).bind(below).bind(limit);
    Ok(query.fetch_all(connection).await?.into_iter().map(Arc::from).collect())
}
