//! The ledger's partitions, one per day of id time, made by whoever first needs one.
//!
//! A redelivery after a long outage needs an old day, a replica with a fast clock one that has not
//! come. No message waits for a scheduled job, and none is set aside for want of a partition
//! (`a_message_of_any_day_finds_its_partition`).
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use sqlx::{Acquire, AssertSqlSafe, Executor, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::failure::Failure;
use crate::id::MessageId;
use crate::message::Message;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
/// Ids hold 48 bits of milliseconds.
const TIME_END_MS: i64 = 1 << 48;
/// Any number that nothing else uses; the same in every build.
const ADVISORY_LOCK: i64 = 0x666f_7265_6261_7901;
/// Days remembered. Batches are about today; more than a few days mean a backlog.
const KNOWN_DAYS_MAX: usize = 1_000;

/// The days, counted since 1970, whose partition is known to exist.
#[derive(Debug, Default)]
pub struct Partitions {
    days: Mutex<BTreeSet<i64>>,
}

impl Partitions {
    /// Makes the missing partitions for `batch`, each in a transaction of its own.
    pub async fn ensure(&self, connection: &mut PgConnection, batch: &[&Message]) -> Result<(), Failure> {
        let wanted: BTreeSet<i64> = batch.iter().map(|message| message.id.time_ms() / DAY_MS).collect();
        let missing: Vec<i64> = wanted.difference(&self.known()).copied().collect();
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

    fn known(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.days.lock().expect("no code panics while it holds this lock")
    }
}

/// Made apart and then attached: that takes no lock against readers and writers of the ledger,
/// whereas `create table … partition of` would wait for a running backup, and everybody for it
/// (`a_partition_is_made_beside_a_running_backup`).
async fn create(connection: &mut PgConnection, day: i64) -> Result<(), Failure> {
    let name = name(day);
    let (from, to) = bounds(day);
    let mut transaction = connection.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", ADVISORY_LOCK).execute(&mut *transaction).await?;
    let exists = sqlx::query_scalar!(r#"select to_regclass($1) is not null as "exists!""#, name);
    if !exists.fetch_one(&mut *transaction).await? {
        let create = format!("create table {name} (like applied_message including all)");
        transaction.execute(AssertSqlSafe(create)).await?;
        let attach = format!(
            "alter table applied_message attach partition {name} for values from ('{from}') to ({to})"
        );
        transaction.execute(AssertSqlSafe(attach)).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// `applied_message_20261120`; made of digits and letters only.
fn name(day: i64) -> String {
    let date = OffsetDateTime::from_unix_timestamp(day * DAY_MS / 1_000).map(OffsetDateTime::date);
    match date {
        Ok(date) => {
            format!("applied_message_{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
        }
        // After the year 9999, which an id can name and a calendar here cannot.
        Err(_) => format!("applied_message_day_{day}"),
    }
}

/// The lowest id of the day, and as SQL what follows its highest.
fn bounds(day: i64) -> (Uuid, String) {
    let (from_ms, to_ms) = (day * DAY_MS, (day + 1) * DAY_MS);
    let to = if to_ms < TIME_END_MS {
        format!("'{}'", MessageId::lowest_at(to_ms))
    } else {
        "maxvalue".to_owned()
    };
    (MessageId::lowest_at(from_ms), to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_meet_without_a_gap_from_the_first_to_the_last() {
        assert_eq!(name(0), "applied_message_19700101");
        assert_eq!(name(20_777), "applied_message_20261120");
        let last = (TIME_END_MS - 1) / DAY_MS;
        assert_eq!(name(last), format!("applied_message_day_{last}"));
        for day in [0, 1, 20_777, last - 1] {
            assert_eq!(bounds(day).1, format!("'{}'", bounds(day + 1).0));
        }
        assert_eq!(bounds(last).1, "maxvalue");
    }
}
