//! Partitions, one per day, made by whoever first needs one: of the ledger by the time of ids, of
//! points by the time at which they were accepted, of minute rollups by their own.
//!
//! A redelivery after a long outage needs an old day, a replica with a fast clock one that has not
//! come. No message waits for a scheduled job, and none is set aside for want of a partition
//! (`a_message_of_any_day_finds_its_partition`).
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use time::OffsetDateTime;

use super::failure::Failure;
use super::keys::corrupt;
use super::read::clamp_ms;
use super::retire::{self, State};
use super::session::begin;
use crate::id::MessageId;
use crate::message::{Entry, Message};
use crate::rollup::Resolution;
use crate::store::points::MINUTES_BACK_MS_MAX;
use crate::write::{Item, Write};

pub const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
const DAY_MINUTES: i64 = 24 * 60;
/// Ids hold 48 bits of milliseconds.
const TIME_END_MS: i64 = 1 << 48;
/// Any number that nothing else uses; the same in every build.
const ADVISORY_LOCK: i64 = 0x666f_7265_6261_7901;
/// Days remembered. Batches are about today; more than a few days mean a backlog.
const KNOWN_DAYS_MAX: usize = 1_000;

/// A table that has a partition per day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Ledger,
    Points,
    Minutes,
}

/// A table and a day, counted since 1970.
pub type Day = (Table, i64);

/// The partitions that are known to exist.
#[derive(Debug, Default)]
pub struct Partitions {
    days: Mutex<BTreeSet<Day>>,
}

impl Partitions {
    /// Makes those that are missing, each in a transaction of its own.
    pub async fn ensure(&self, connection: &mut PgConnection, days: &BTreeSet<Day>) -> Result<(), Failure> {
        let missing: Vec<Day> = days.difference(&self.known()).copied().collect();
        for day in missing {
            create(connection, day).await?;
            let mut known = self.known();
            if known.len() >= KNOWN_DAYS_MAX {
                known.clear();
            }
            known.insert(day);
        }
        Ok(())
    }

    /// To be called when the server misses one: somebody dropped it.
    pub fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Day>> {
        self.days.lock().expect("no code panics while it holds this lock")
    }
}

/// What a batch needs.
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

/// What will be needed until tomorrow ends.
pub fn days_ahead(now_ms: i64) -> BTreeSet<Day> {
    let today = now_ms / DAY_MS;
    let tables = [Table::Ledger, Table::Points, Table::Minutes];
    tables.into_iter().flat_map(|table| [(table, today), (table, today + 1)]).collect()
}

/// Made apart and then attached: that takes no lock against readers and writers of the table,
/// whereas `create table … partition of` would wait for a running backup, and everybody for it
/// (`a_partition_is_made_beside_a_running_backup`). A day that is being forgotten is forgotten first.
async fn create(connection: &mut PgConnection, (table, day): Day) -> Result<(), Failure> {
    let (parent, name) = (table.name(), table.partition(day));
    let (from, to) = table.bounds(day);
    let mut transaction = begin(connection).await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", ADVISORY_LOCK).execute(&mut *transaction).await?;
    let mut state = retire::state(&mut transaction, table, &name).await?;
    if matches!(state, State::Pending | State::Detached) {
        retire::finish(&mut transaction, table, &name, state).await?;
        state = State::Missing;
    }
    if state == State::Foreign {
        // An owner may have detached it to keep it: what it holds must not come back by itself.
        let holds = AssertSqlSafe(format!("select exists (select from {name})"));
        if sqlx::query_scalar::<_, bool>(holds).fetch_one(&mut *transaction).await? {
            return Err(corrupt(&format!(
                "table {name} holds rows and is no partition of {parent}: attach it, or give it another name"
            )));
        }
    }
    if state == State::Missing {
        let create = format!("create table {name} (like {parent} including all){}", table.settings());
        transaction.execute(AssertSqlSafe(create)).await?;
    }
    if state != State::Attached {
        let attach =
            format!("alter table {parent} attach partition {name} for values from ({from}) to ({to})");
        transaction.execute(AssertSqlSafe(attach)).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Names of partitions of days before `day`, from the oldest on, `limit` at most; those that are being
/// retired with them.
pub async fn older(
    connection: &mut PgConnection,
    table: Table,
    day: i64,
    limit: usize,
) -> Result<Vec<String>, Failure> {
    // Names of one length, which ends in the date, are in the order of their days.
    let rows = sqlx::query_scalar!(
        r#"select relname::text as "name!" from pg_class left join pg_inherits on inhrelid = pg_class.oid
           where relnamespace = (select relnamespace from pg_class where oid = to_regclass($1))
               and relname ~ ('^' || $2 || '_[0-9]{8}$') and relkind = 'r'
               and relname::text collate "C" < $3
               and (inhparent = to_regclass($1)
                   or (inhparent is null and obj_description(pg_class.oid, 'pg_class') = $5))
           order by relname limit $4"#,
        table.name(),
        table.prefix(),
        table.partition(day),
        i64::try_from(limit).unwrap_or(i64::MAX),
        retire::MARK
    );
    Ok(rows.fetch_all(connection).await?)
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ledger => "applied_message",
            Self::Points => "points",
            Self::Minutes => "rollups",
        }
    }

    /// Of the names of partitions.
    fn prefix(self) -> &'static str {
        match self {
            Self::Ledger => "applied_message",
            Self::Points => "points",
            Self::Minutes => "rollups_minute",
        }
    }

    /// Half of each page is kept free where rows are updated again and again: `counters`.
    fn settings(self) -> &'static str {
        match self {
            Self::Ledger | Self::Points => "",
            Self::Minutes => " with (fillfactor = 50)",
        }
    }

    /// `points_20261120`; made of digits and letters only.
    fn partition(self, day: i64) -> String {
        let prefix = self.prefix();
        let date = OffsetDateTime::from_unix_timestamp(day * DAY_MS / 1_000).map(OffsetDateTime::date);
        match date {
            Ok(date) if date.year() >= 0 => {
                format!("{prefix}_{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
            }
            // What a message can name and the calendar here cannot.
            _ if day < 0 => format!("{prefix}_day_before_{}", day.unsigned_abs()),
            _ => format!("{prefix}_day_{day}"),
        }
    }

    /// As SQL: the first key of the day, and what follows its last.
    fn bounds(self, day: i64) -> (String, String) {
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
