//! Days of tables that have a partition per day: the days of a batch, the names of their partitions and their
//! bounds. Pure.
use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::columns::clamp_ms;
use crate::model::id::MessageId;
use crate::model::message::{Entry, Message};
use crate::model::rollup::Resolution;
use crate::model::write::{Item, Write};
use crate::store::rules::points::MINUTES_BACK_MS_MAX;

pub const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

const DAY_MINUTES: i64 = 24 * 60;

/// Ids hold 48 bits of milliseconds.
const TIME_END_MS: i64 = 1 << 48;

/// A table that has a partition per day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Ledger,
    Points,
    Minutes,
}

/// A table and a day, counted since 1970.
pub type Day = (Table, i64);

/// Returns the days of a batch.
pub fn days_of(batch: &[&Message]) -> BTreeSet<Day> {
    let mut days = BTreeSet::new();
    for message in batch {
        days.insert((Table::Ledger, message.id.time_ms() / DAY_MS));
        for entry in &message.entries {
            let Entry::Item(Item { write: Write::Point(point), .. }) = entry else { continue };
            days.insert((Table::Points, clamp_ms(message.accepted_at_ms) / DAY_MS));
            if message.accepted_at_ms.saturating_sub(point.at_ms) <= MINUTES_BACK_MS_MAX {
                let minute = i64::from(Resolution::Minute.period_of(point.at_ms));
                days.insert((Table::Minutes, minute.div_euclid(DAY_MINUTES)));
            }
        }
    }
    days
}

/// Returns the days that will be needed until tomorrow ends.
pub fn days_ahead(now_ms: i64) -> BTreeSet<Day> {
    let today = now_ms / DAY_MS;
    let tables = [Table::Ledger, Table::Points, Table::Minutes];
    tables.into_iter().flat_map(|table| [(table, today), (table, today + 1)]).collect()
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ledger => "applied_message",
            Self::Points => "points",
            Self::Minutes => "rollups",
        }
    }

    /// Returns the prefix of the names of partitions.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Ledger => "applied_message",
            Self::Points => "points",
            Self::Minutes => "rollups_minute",
        }
    }

    /// Returns the storage settings of a partition. Half of each page is kept free where rows are updated
    /// again and again: `counters`.
    pub fn settings(self) -> &'static str {
        match self {
            Self::Ledger | Self::Points => "",
            Self::Minutes => " with (fillfactor = 50)",
        }
    }

    /// Returns the name of a partition, such as `points_20261120`, made of digits and letters only.
    pub fn partition(self, day: i64) -> String {
        let prefix = self.prefix();
        let date = OffsetDateTime::from_unix_timestamp(day * DAY_MS / 1_000).map(OffsetDateTime::date);
        match date {
            Ok(date) if date.year() >= 0 => {
                format!("{prefix}_{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
            }
            // A day that a message can name and the calendar here cannot.
            _ if day < 0 => format!("{prefix}_day_before_{}", day.unsigned_abs()),
            _ => format!("{prefix}_day_{day}"),
        }
    }

    /// Returns the bounds as SQL: the first key of the day, and the key after its last.
    pub fn bounds(self, day: i64) -> (String, String) {
        match self {
            Self::Ledger => {
                let id = |time_ms| format!("'{}'", MessageId::lowest_at(time_ms));
                let to_ms = (day + 1) * DAY_MS;
                let to = if to_ms < TIME_END_MS { id(to_ms) } else { "maxvalue".to_owned() };
                (id(day * DAY_MS), to)
            }
            Self::Points => {
                let time = |day: i64| format!("to_timestamp({})", day * DAY_MS / 1_000);
                (time(day), time(day + 1))
            }
            Self::Minutes => {
                let period = |day: i64, beyond: &str| {
                    let period = i32::try_from(day * DAY_MINUTES);
                    format!("0, {}", period.map_or_else(|_| beyond.to_owned(), |period| period.to_string()))
                };
                (period(day, "minvalue"), period(day + 1, "maxvalue"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_meet_without_a_gap_from_the_first_to_the_last() {
        let ledger = Table::Ledger;
        assert_eq!(ledger.partition(0), "applied_message_19700101");
        assert_eq!(ledger.partition(20_777), "applied_message_20261120");
        let last = (TIME_END_MS - 1) / DAY_MS;
        assert_eq!(ledger.partition(last), format!("applied_message_day_{last}"));
        assert_eq!(ledger.bounds(last).1, "maxvalue");
        let minutes = Table::Minutes;
        let [first, end] = [i32::MIN, i32::MAX].map(|minute| i64::from(minute).div_euclid(DAY_MINUTES));
        assert_eq!(minutes.partition(-1), "rollups_minute_19691231");
        assert!(minutes.partition(-1_000_000).starts_with("rollups_minute_day_before_"));
        assert_eq!(
            (minutes.bounds(first).0, minutes.bounds(end).1),
            ("0, minvalue".into(), "0, maxvalue".into())
        );
        for (table, days) in [
            (ledger, [0, 20_777, last - 1]),
            (Table::Points, [0, 20_777, 2_932_896]),
            (minutes, [first, 0, end - 1]),
        ] {
            for day in days {
                assert_eq!(table.bounds(day).1, table.bounds(day + 1).0);
            }
        }
    }
}
