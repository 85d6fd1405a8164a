//! Rollups: merged here, one row per resolution, type and period, written in the order of keys.
//!
//! Rows that are not known to be there are inserted first, then the others are locked, and none is
//! inserted after a lock: the other order deadlocks. A row is known when the transaction that
//! inserted it, or found it, has committed; so nobody waits for a row that he could have locked.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard};

use sqlx::PgConnection;

use super::failure::Failure;
use super::keys::corrupt;
use super::points::TypeIds;
use crate::rollup::{Resolution, Rollup};
use crate::store::RollupRange;
use crate::store::plan::Task;
use crate::store::points::rollups;
use crate::write::Point;

/// Keys remembered, of twelve bytes each. Keys beyond are inserted in vain before they are locked.
const KEYS_MAX: usize = 1 << 18;

/// Resolution, type and period.
pub type Key = (i16, i32, i32);

/// Rows that are known to be committed. One that was pruned is found out by whoever locks it.
#[derive(Debug, Default)]
pub struct KnownRollups {
    keys: Mutex<HashSet<Key>>,
}

impl KnownRollups {
    /// To be called after the commit.
    pub fn remember(&self, keys: Vec<Key>) {
        let mut known = self.known();
        if known.len() + keys.len() > KEYS_MAX {
            known.clear();
        }
        known.extend(keys.into_iter().take(KEYS_MAX));
    }

    fn forget<'k>(&self, keys: impl Iterator<Item = &'k Key>) {
        let mut known = self.known();
        for key in keys {
            known.remove(key);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.keys.lock().expect("no code panics while it holds this lock")
    }
}

/// Merges the points of a batch into their rollups; returns the keys, to be remembered after the
/// commit.
pub async fn merge(
    connection: &mut PgConnection,
    known: &KnownRollups,
    types: &TypeIds,
    points: &[Task<'_, Point>],
) -> Result<Vec<Key>, Failure> {
    let number =
        |(resolution, kind, period): (Resolution, &str, i32)| (resolution as i16, types[kind], period);
    let mut added: BTreeMap<Key, Rollup> =
        rollups(points).into_iter().map(|(key, rollup)| (number(key), rollup)).collect();
    let keys: Vec<Key> = added.keys().copied().collect();
    let unknown: Vec<Key> = {
        let known = known.known();
        keys.iter().filter(|key| !known.contains(*key)).copied().collect()
    };
    for key in insert(connection, &unknown, &added).await? {
        added.remove(&key);
    }
    if !added.is_empty() {
        lock(connection, known, &mut added).await?;
        update(connection, &added).await?;
    }
    Ok(keys)
}

/// Arrays of a statement.
fn columns<'k>(keys: impl Iterator<Item = &'k Key>) -> (Vec<i16>, Vec<i32>, Vec<i32>) {
    let (mut resolutions, mut types, mut periods) = (Vec::new(), Vec::new(), Vec::new());
    for (resolution, id, period) in keys {
        resolutions.push(*resolution);
        types.push(*id);
        periods.push(*period);
    }
    (resolutions, types, periods)
}

/// Returns the keys that had no row.
async fn insert(
    connection: &mut PgConnection,
    keys: &[Key],
    added: &BTreeMap<Key, Rollup>,
) -> Result<Vec<Key>, Failure> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (resolutions, types, periods) = columns(keys.iter());
    let data: Vec<Vec<u8>> = keys.iter().map(|key| added[key].encode()).collect();
    let inserted = sqlx::query!(
        "insert into rollups (resolution, type, period, data)
         select resolution, type, period, data
         from unnest($1::int2[], $2::int4[], $3::int4[], $4::bytea[]) as row (resolution, type, period, data)
         on conflict do nothing
         returning resolution, type, period",
        &resolutions,
        &types,
        &periods,
        &data
    );
    let inserted = inserted.fetch_all(connection).await?.into_iter();
    Ok(inserted.map(|row| (row.resolution, row.r#type, row.period)).collect())
}

/// Locks rows in the order of their keys and merges what they hold into `added`. The locks are
/// taken in a subquery per key, which the planner cannot reorder and which finds its row by the
/// primary key, however many rows there are.
async fn lock(
    connection: &mut PgConnection,
    known: &KnownRollups,
    added: &mut BTreeMap<Key, Rollup>,
) -> Result<(), Failure> {
    let (resolutions, types, periods) = columns(added.keys());
    let rows = sqlx::query!(
        r#"select key.resolution as "resolution!", key.type as "type!", key.period as "period!", row.data
           from unnest($1::int2[], $2::int4[], $3::int4[]) as key (resolution, type, period)
           cross join lateral (
               select data from rollups
               where rollups.resolution = key.resolution and rollups.type = key.type
                   and rollups.period = key.period
               for no key update
           ) as row"#,
        &resolutions,
        &types,
        &periods
    );
    let rows = rows.fetch_all(connection).await?;
    if rows.len() < added.len() {
        let found: BTreeSet<Key> = rows.iter().map(|row| (row.resolution, row.r#type, row.period)).collect();
        known.forget(added.keys().filter(|key| !found.contains(*key)));
        return Err(Failure::Vanished("a rollup"));
    }
    for row in rows {
        let key = (row.resolution, row.r#type, row.period);
        let stored = decode(key, &row.data)?;
        added.get_mut(&key).expect("it was asked for").merge(&stored);
    }
    Ok(())
}

async fn update(connection: &mut PgConnection, merged: &BTreeMap<Key, Rollup>) -> Result<(), Failure> {
    let (resolutions, types, periods) = columns(merged.keys());
    let data: Vec<Vec<u8>> = merged.values().map(Rollup::encode).collect();
    sqlx::query!(
        "update rollups set data = merged.data
         from unnest($1::int2[], $2::int4[], $3::int4[], $4::bytea[])
              as merged (resolution, type, period, data)
         where rollups.resolution = merged.resolution and rollups.type = merged.type
             and rollups.period = merged.period",
        &resolutions,
        &types,
        &periods,
        &data
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The rollups of one type in a range, ascending.
pub async fn range(
    connection: &mut PgConnection,
    range: &RollupRange,
) -> Result<Vec<(i32, Rollup)>, Failure> {
    let resolution = range.resolution as i16;
    let rows = sqlx::query!(
        "select type, period, data from rollups
         where type = (select id from metric_types where name = $1)
             and resolution = $2 and period >= $3 and period < $4
         order by period",
        range.kind,
        resolution,
        range.from,
        range.below
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    rows.map(|row| Ok((row.period, decode((resolution, row.r#type, row.period), &row.data)?))).collect()
}

/// Deletes rollups of hours before `before`, `rows_max` at most, in the order of types: one look
/// into the primary key per type, and none at what is younger. Rows that a writer holds are left
/// for the next time.
pub async fn prune_hours(connection: &mut PgConnection, before: i32, rows_max: i64) -> Result<u64, Failure> {
    let deleted = sqlx::query!(
        "with old as materialized (
             select row.type, row.period
             from (select id from metric_types order by id) as types
             cross join lateral (
                 select type, period from rollups_hour
                 where resolution = 1 and type = types.id and period < $1
                 order by period limit $2 for update skip locked
             ) as row
             limit $2
         )
         delete from rollups_hour using old
         where rollups_hour.resolution = 1 and rollups_hour.type = old.type
             and rollups_hour.period = old.period",
        before,
        rows_max
    );
    Ok(deleted.execute(connection).await?.rows_affected())
}

fn decode(key: Key, data: &[u8]) -> Result<Rollup, Failure> {
    let (resolution, id, period) = key;
    Rollup::decode(data).map_err(|error| {
        corrupt(&format!("rollup of resolution {resolution}, type {id}, period {period}: {error}"))
    })
}
