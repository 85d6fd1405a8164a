//! Rollups of a batch of points, and their merge into stored ones, without a database. For both stores.
use std::collections::BTreeMap;
use std::panic::resume_unwind;

use super::plan::PlannedWrite;
use crate::model::rollup::bytes::Corrupt;
use crate::model::rollup::{Resolution, Rollup};
use crate::model::write::Point;
use crate::store::{RollupPage, StoreError};

/// Points that are older than this when they are accepted write no rollup of their minute: two days.
pub const MINUTES_BACK_MS_MAX: i64 = 48 * 60 * 60 * 1_000;

/// Points that are older than this when they are accepted write no rollup of their hour: 90 days.
pub const HOURS_BACK_MS_MAX: i64 = 90 * 24 * 60 * 60 * 1_000;

/// Bytes of stored rollups that a transaction has in memory at once, plus one more rollup: it merges the
/// rollups of a batch part by part.
pub const PART_BYTES_MAX: usize = 2 << 20;

/// Bytes of stored rollups that one read takes, plus one more rollup.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// Key of a rollup: resolution, type, period; sorted as the tables are.
pub type RollupKey<'a> = (Resolution, &'a str, i32);

/// The points of a batch by the rollups that they go into. Each is added once, to its minute; hours and
/// days are merged from minutes, which costs less than adding and is as exact.
pub fn rollups<'a>(points: &[PlannedWrite<'a, Point>]) -> BTreeMap<RollupKey<'a>, Rollup> {
    let mut minutes = BTreeMap::new();
    let mut rollups: BTreeMap<RollupKey<'a>, Rollup> = BTreeMap::new();
    for PlannedWrite { write: Point { kind, at_ms, value }, message, .. } in points {
        let age_ms = message.accepted_at_ms.saturating_sub(*at_ms);
        let key = (&**kind, Resolution::Minute.period_of(*at_ms), finest(age_ms));
        minutes.entry(key).or_insert_with(Rollup::default).add(*value);
    }
    for ((kind, minute, finest), rollup) in minutes {
        let at_ms = i64::from(minute) * Resolution::Minute.period_ms();
        for resolution in [Resolution::Hour, Resolution::Day] {
            if resolution >= finest {
                let key = (resolution, kind, resolution.period_of(at_ms));
                rollups.entry(key).or_default().merge(&rollup);
            }
        }
        if finest == Resolution::Minute {
            rollups.insert((Resolution::Minute, kind, minute), rollup);
        }
    }
    rollups
}

/// Returns the shortest period in which a point of this age is kept.
fn finest(age_ms: i64) -> Resolution {
    if age_ms <= MINUTES_BACK_MS_MAX {
        Resolution::Minute
    } else if age_ms <= HOURS_BACK_MS_MAX {
        Resolution::Hour
    } else {
        Resolution::Day
    }
}

/// Addition of a batch to one rollup, beside that rollup as it is stored; `None` when it is new.
pub struct Addition<K> {
    pub key: K,
    pub added: Rollup,
    pub stored: Option<Vec<u8>>,
}

/// Merges a part and encodes it, or returns the first key with an unreadable rollup. One part takes some
/// tens of milliseconds, on a thread for blocking work.
pub async fn merged<K: Send + 'static>(
    part: Vec<Addition<K>>,
) -> Result<Result<Vec<(K, Vec<u8>)>, (K, Corrupt)>, StoreError> {
    let merge = |Addition { key, mut added, stored }: Addition<K>| {
        // The stored one is the larger one, mostly by far: it takes up the other.
        match stored.map(|stored| Rollup::decode(&stored)).transpose() {
            Ok(None) => {}
            Ok(Some(mut stored)) => {
                stored.merge(&added);
                added = stored;
            }
            Err(error) => return Err((key, error)),
        }
        Ok((key, added.encode()))
    };
    blocking(move || part.into_iter().map(merge).collect()).await
}

/// Decodes the rows of a page, or returns the first period with an unreadable rollup. A page of
/// [`PAGE_BYTES_MAX`] or more has a next one.
pub async fn page(rows: Vec<(i32, Vec<u8>)>) -> Result<Result<RollupPage, (i32, Corrupt)>, StoreError> {
    let bytes: usize = rows.iter().map(|(_, data)| data.len()).sum();
    let next = rows.last().filter(|_| bytes >= PAGE_BYTES_MAX).map(|(period, _)| period.saturating_add(1));
    let decode = |(period, data): (i32, Vec<u8>)| match Rollup::decode(&data) {
        Ok(rollup) => Ok((period, rollup)),
        Err(error) => Err((period, error)),
    };
    blocking(move || {
        let rollups = rows.into_iter().map(decode).collect::<Result<_, _>>()?;
        Ok(RollupPage { rollups, next })
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => StoreError::Unavailable("the runtime of the store has ended".into()),
    })
}
