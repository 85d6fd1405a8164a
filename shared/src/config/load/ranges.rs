//! Range of every numeric setting: the values that a program can run with at all, whatever the other
//! settings are. Pure. A value outside is refused by name, so that none overflows a duration, a counter or
//! an allocation later (`no_number_within_its_range_keeps_a_program_from_running`).
use serde_json::Value;

use crate::config::Config;
use crate::model::id::ITEMS_PER_MESSAGE_MAX;
use crate::model::write::POINT_YEARS_MAX;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const YEAR_MS: u64 = 366 * DAY_MS;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Least and greatest value, by setting.
pub const RANGES: &[(&str, u64, u64)] = &[
    ("cache.bytes_max", 0, TIB),
    ("cache.negative_ttl_ms", 0, YEAR_MS),
    ("cache.stale_ms_max", 0, YEAR_MS),
    ("cache.ttl_ms", 0, YEAR_MS),
    ("collections.check_ms_max", 1, HOUR_MS),
    ("ids.clock_skew_ms_max", 0, DAY_MS),
    ("ids.remembered_for_hours", 1, 10 * 366 * 24),
    ("ops.port", 0, 65_535),
    ("ops.stuck_ms_max", 100, DAY_MS),
    ("queue.bytes_max", 1, 1_024 * TIB),
    ("queue.confirm_timeout_ms", 1, HOUR_MS),
    ("queue.linger_ms_max", 0, MINUTE_MS),
    ("queue.merge_bytes_max", 1, GIB),
    ("queue.merge_items_max", 1, 1_000_000),
    ("queue.message_bytes_max", 1, GIB),
    ("queue.message_items_max", 1, ITEMS_PER_MESSAGE_MAX as u64),
    ("queue.messages_waiting_max", 1, 100_000),
    // Quorum queues take no more.
    ("queue.prefetch", 1, 2_000),
    ("queue.prefetch_bytes_max", 1, TIB),
    ("queue.publishes_in_flight_max", 1, 10_000),
    ("queue.settle_ms", 0, HOUR_MS),
    ("retention.discarded_days", 1, 100 * 366),
    ("retention.hours_days", 1, 100 * 366),
    ("retention.minutes_hours", 1, 100 * 366 * 24),
    ("retention.points_days", 1, 100 * 366),
    ("server.accept_timeout_ms", 1, HOUR_MS),
    ("server.answer_timeout_ms", 1, DAY_MS),
    ("server.answers_bytes_max", 1, TIB),
    ("server.bodies_bytes_max", 1, TIB),
    ("server.body_bytes_max", 1, GIB),
    ("server.body_timeout_ms", 1, DAY_MS),
    ("server.connections_max", 1, 10_000_000),
    ("server.drain_grace_ms", 0, HOUR_MS),
    ("server.half_closed_wait_ms", 0, DAY_MS),
    ("server.in_flight_max", 1, 10_000_000),
    ("server.item_bytes_max", 1, GIB),
    ("server.items_max", 1, ITEMS_PER_MESSAGE_MAX as u64),
    ("server.keep_alive_ms", 0, DAY_MS),
    ("server.page_bytes_max", 0, GIB),
    ("server.point_years_max", 1, POINT_YEARS_MAX as u64),
    ("server.port", 0, 65_535),
    ("server.short_wait_ms", 0, HOUR_MS),
    ("server.shutdown_timeout_ms", 0, HOUR_MS),
    ("server.stall_timeout_ms", 0, DAY_MS),
    ("server.wait_ms_max", 1, DAY_MS),
    ("server.waiters_max", 1, 10_000_000),
    // The HTTP library takes 512 at most.
    ("server.workers", 0, 256),
    ("store.connect_timeout_ms", 1, HOUR_MS),
    // The pool makes room for all of them at once.
    ("store.connections_max", 1, 1_000),
    ("store.list_connections_max", 1, 1_000),
    ("store.read_timeout_ms", 1, HOUR_MS),
    ("store.write_timeout_ms", 1, DAY_MS),
];

/// Range of a setting; `None` for one that is no number.
pub fn range_of(key: &str) -> Option<(u64, u64)> {
    RANGES.iter().find(|(name, ..)| *name == key).map(|(_, least, greatest)| (*least, *greatest))
}

/// Lists the settings that are outside of their range, with the reason.
pub(super) fn outside(config: &Config) -> Vec<(&'static str, String)> {
    let values = serde_json::to_value(config).expect("settings are plain values");
    let reason = |&(key, least, greatest): &(&'static str, u64, u64)| {
        let value = values.pointer(&format!("/{}", key.replace('.', "/"))).and_then(Value::as_u64)?;
        let is_within = (least..=greatest).contains(&value);
        (!is_within).then(|| (key, format!("{value} is not from {least} to {greatest}")))
    };
    RANGES.iter().filter_map(reason).collect()
}
