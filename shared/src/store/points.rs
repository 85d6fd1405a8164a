//! What a batch of points adds to rollups, without a database. Pure, for both stores.
use std::collections::BTreeMap;

use super::plan::Task;
use crate::rollup::{Resolution, Rollup};
use crate::write::Point;

/// Points that are older than this when they are accepted write no rollup of their minute: two days.
pub const MINUTES_BACK_MS_MAX: i64 = 48 * 60 * 60 * 1_000;

/// Which rollup: resolution, type, period; sorted as the tables are.
pub type RollupKey<'a> = (Resolution, &'a str, i32);

/// The points of a batch by the rollups that they go into. Each is added once, to its minute; hours and
/// days are merged from minutes, which costs less than adding and is as exact.
pub fn rollups<'a>(points: &[Task<'a, Point>]) -> BTreeMap<RollupKey<'a>, Rollup> {
    let mut minutes = BTreeMap::new();
    let mut rollups: BTreeMap<RollupKey<'a>, Rollup> = BTreeMap::new();
    for Task { write: Point { kind, at_ms, value }, message, .. } in points {
        let age_ms = message.accepted_at_ms.saturating_sub(*at_ms);
        let has_minute = age_ms <= MINUTES_BACK_MS_MAX;
        let key = (&**kind, Resolution::Minute.period_of(*at_ms), has_minute);
        minutes.entry(key).or_insert_with(Rollup::default).add(*value);
    }
    for ((kind, minute, has_minute), rollup) in minutes {
        let at_ms = i64::from(minute) * Resolution::Minute.period_ms();
        for resolution in [Resolution::Hour, Resolution::Day] {
            let key = (resolution, kind, resolution.period_of(at_ms));
            rollups.entry(key).or_default().merge(&rollup);
        }
        if has_minute {
            rollups.insert((Resolution::Minute, kind, minute), rollup);
        }
    }
    rollups
}
