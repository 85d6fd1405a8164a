//! Rollups: merged here, one row per resolution, type and period, written in the order of keys, in
//! parts of [`PART_BYTES_MAX`] bytes of stored rollups.
//!
//! Rows that are not known to be there are inserted first, then the others are locked, and none is inserted
//! after a lock: the other order deadlocks. A row is known when the transaction that inserted it, or found
//! it, has committed; so no transaction waits for a row that it could have locked.
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use sqlx::PgConnection;

use super::failure::{PgFailure, corrupt};
use super::points::TypeIds;
use crate::model::rollup::bytes::Corrupt;
use crate::model::rollup::{Resolution, Rollup};
use crate::model::write::Point;
use crate::store::rules::plan::PlannedWrite;
use crate::store::rules::points::{Addition, PAGE_BYTES_MAX, PART_BYTES_MAX, merged, page, rollups};
use crate::store::{RollupPage, RollupRange};

/// Maximum of keys remembered, of twelve bytes each. Keys beyond are inserted in vain before they are locked.
const KEYS_MAX: usize = 1 << 18;

/// Key of a row: resolution, type and period.
pub type RollupRowKey = (i16, i32, i32);

/// Rows that are known to be committed. A lock finds out that one was pruned.
#[derive(Debug, Default)]
pub struct KnownRollups {
    keys: Mutex<HashSet<RollupRowKey>>,
}

impl KnownRollups {
    /// Remembers keys. To be called after the commit.
    pub fn remember(&self, keys: Vec<RollupRowKey>) {
        let mut known = self.known();
        if known.len() + keys.len() > KEYS_MAX {
            known.clear();
        }
        known.extend(keys.into_iter().take(KEYS_MAX));
    }

    fn forget<'k>(&self, keys: impl Iterator<Item = &'k RollupRowKey>) {
        let mut known = self.known();
        for key in keys {
            known.remove(key);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<RollupRowKey>> {
        self.keys.lock().expect("no code panics while it holds this lock")
    }
}

/// Merges the points of a batch into their rollups; returns the keys, to be remembered after the
/// commit.
pub async fn merge(
    connection: &mut PgConnection,
    known: &KnownRollups,
    types: &TypeIds,
    points: &[PlannedWrite<'_, Point>],
) -> Result<Vec<RollupRowKey>, PgFailure> {
    let number =
        |(resolution, kind, period): (Resolution, &str, i32)| (resolution as i16, types[kind], period);
    let mut added: BTreeMap<RollupRowKey, Rollup> =
        rollups(points).into_iter().map(|(key, rollup)| (number(key), rollup)).collect();
    let keys: Vec<RollupRowKey> = added.keys().copied().collect();
    let unknown: Vec<RollupRowKey> = {
        let known = known.known();
        keys.iter().filter(|key| !known.contains(*key)).copied().collect()
    };
    for key in insert(connection, &unknown, &added).await? {
        added.remove(&key);
    }
    if !added.is_empty() {
        merge_into_stored(connection, known, added).await?;
    }
    Ok(keys)
}

/// Locks all rows, then merges one part after the other. The data of the first part comes with the locks;
/// most batches have no other.
async fn merge_into_stored(
    connection: &mut PgConnection,
    known: &KnownRollups,
    mut added: BTreeMap<RollupRowKey, Rollup>,
) -> Result<(), PgFailure> {
    let keys: Vec<RollupRowKey> = added.keys().copied().collect();
    let mut rows = lock(connection, &keys).await?;
    if rows.len() < keys.len() {
        let found: HashSet<RollupRowKey> = rows.iter().map(|row| row.key).collect();
        known.forget(keys.iter().filter(|key| !found.contains(*key)));
        return Err(PgFailure::Vanished("a rollup"));
    }
    loop {
        let later = rows.split_off(part_length(&rows));
        let addition = |Locked { key, data, .. }| Addition {
            key,
            added: added.remove(&key).expect("it was asked for, once"),
            stored: data,
        };
        let part = merged(rows.into_iter().map(addition).collect()).await?;
        update(connection, &part.map_err(|(key, error)| unreadable(key, error))?).await?;
        if later.is_empty() {
            return Ok(());
        }
        let part: Vec<RollupRowKey> = later[..part_length(&later)].iter().map(|row| row.key).collect();
        // Locked already, so unchanged: this reads their data.
        rows = lock(connection, &part).await?;
        rows.extend(later.into_iter().skip(part.len()));
    }
}

/// A row that is locked. Its data stays in the store when others before it fill a part.
struct Locked {
    key: RollupRowKey,
    bytes: usize,
    data: Option<Vec<u8>>,
}

/// Returns how many rows are in the next part: the rows of which the statement of [`lock`] gives data.
fn part_length(rows: &[Locked]) -> usize {
    let mut before = 0;
    let is_within = |row: &&Locked| {
        let is_within = before < PART_BYTES_MAX;
        before += row.bytes;
        is_within
    };
    rows.iter().take_while(is_within).count()
}

/// Returns the arrays of a statement.
fn columns<'k>(keys: impl Iterator<Item = &'k RollupRowKey>) -> (Vec<i16>, Vec<i32>, Vec<i32>) {
    let (mut resolutions, mut types, mut periods) = (Vec::new(), Vec::new(), Vec::new());
    for (resolution, id, period) in keys {
        resolutions.push(*resolution);
        types.push(*id);
        periods.push(*period);
    }
    (resolutions, types, periods)
}

/// Inserts rows; returns the keys that had no row.
async fn insert(
    connection: &mut PgConnection,
    keys: &[RollupRowKey],
    added: &BTreeMap<RollupRowKey, Rollup>,
) -> Result<Vec<RollupRowKey>, PgFailure> {
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

/// Locks rows in the order of their keys. The locks are taken in a subquery per key, which the
/// planner cannot reorder and which finds its row by the primary key, however many rows there are.
async fn lock(connection: &mut PgConnection, keys: &[RollupRowKey]) -> Result<Vec<Locked>, PgFailure> {
    let (resolutions, types, periods) = columns(keys.iter());
    let rows = sqlx::query!(
        r#"select key.resolution as "resolution!", key.type as "type!", key.period as "period!",
               row.bytes as "bytes!",
               case when coalesce(
                   sum(row.bytes) over (rows between unbounded preceding and 1 preceding), 0
               ) < $4 then row.data end as "data?"
           from unnest($1::int2[], $2::int4[], $3::int4[]) as key (resolution, type, period)
           cross join lateral (
               select octet_length(data) as bytes, data from rollups
               where rollups.resolution = key.resolution and rollups.type = key.type
                   and rollups.period = key.period
               for no key update
           ) as row"#,
        &resolutions,
        &types,
        &periods,
        i64::try_from(PART_BYTES_MAX).unwrap_or(i64::MAX)
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let locked = rows.map(|row| Locked {
        key: (row.resolution, row.r#type, row.period),
        bytes: usize::try_from(row.bytes).unwrap_or(0),
        data: row.data,
    });
    Ok(locked.collect())
}

async fn update(connection: &mut PgConnection, merged: &[(RollupRowKey, Vec<u8>)]) -> Result<(), PgFailure> {
    let (resolutions, types, periods) = columns(merged.iter().map(|(key, _)| key));
    let data: Vec<&[u8]> = merged.iter().map(|(_, data)| &data[..]).collect();
    sqlx::query!(
        "update rollups set data = merged.data
         from unnest($1::int2[], $2::int4[], $3::int4[], $4::bytea[])
              as merged (resolution, type, period, data)
         where rollups.resolution = merged.resolution and rollups.type = merged.type
             and rollups.period = merged.period",
        &resolutions,
        &types,
        &periods,
        &data as &[&[u8]]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads the rollups of one type in a range, ascending, up to the one that fills a page.
pub async fn range(connection: &mut PgConnection, range: RollupRange) -> Result<RollupPage, PgFailure> {
    let resolution = range.resolution as i16;
    let rows = sqlx::query!(
        "select type, period, data from (
             select type, period, data, sum(octet_length(data)) over (
                 order by period rows between unbounded preceding and 1 preceding
             ) as before
             from rollups
             where type = (select id from metric_types where name = $1)
                 and resolution = $2 and period >= $3 and period < $4
         ) as row
         where coalesce(before, 0) < $5
         order by period",
        range.kind,
        resolution,
        range.from,
        range.below,
        i64::try_from(PAGE_BYTES_MAX).unwrap_or(i64::MAX)
    );
    let rows = rows.fetch_all(connection).await?;
    let kind = rows.first().map_or(0, |row| row.r#type);
    let page = page(rows.into_iter().map(|row| (row.period, row.data)).collect()).await?;
    page.map_err(|(period, error)| unreadable((resolution, kind, period), error))
}

/// Deletes rollups of hours before `before`, `rows_max` at most, in the order of types: one look-up in the
/// primary key per type, and none at younger rows. Rows that a writer holds are left for the next time.
pub async fn prune_hours(
    connection: &mut PgConnection,
    before: i32,
    rows_max: i64,
) -> Result<u64, PgFailure> {
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

fn unreadable((resolution, id, period): RollupRowKey, error: Corrupt) -> PgFailure {
    corrupt(&format!("rollup of resolution {resolution}, type {id}, period {period}: {error}"))
}
