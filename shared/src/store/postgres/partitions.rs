//! Partitions, one per day, made by the first process that needs one: of the ledger by the time of ids, of
//! points by the time at which they were accepted, of minute rollups by their own.
//!
//! A redelivery after a long outage needs an old day, a replica with a fast clock one that has not come. No
//! message waits for a scheduled job, and none is set aside for want of a partition
//! (`a_message_of_any_day_finds_its_partition`).
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::days::{Day, Table};
use super::failure::{PgFailure, corrupt};
use super::retire::{self, PartitionState};
use super::session::begin;

/// Any number that no other lock uses; the same in every build.
const ADVISORY_LOCK: i64 = 0x666f_7265_6261_7901;
/// Maximum of days remembered. Batches are about today; more than a few days mean a backlog.
const KNOWN_DAYS_MAX: usize = 1_000;

/// The partitions that are known to exist.
#[derive(Debug, Default)]
pub struct Partitions {
    days: Mutex<BTreeSet<Day>>,
}

impl Partitions {
    /// Makes the missing partitions, each in a transaction of its own.
    pub async fn ensure(&self, connection: &mut PgConnection, days: &BTreeSet<Day>) -> Result<(), PgFailure> {
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

    /// Forgets all partitions. Called when the server misses one, because another program dropped it.
    pub fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Day>> {
        self.days.lock().expect("no code panics while it holds this lock")
    }
}

/// Makes a partition by itself and then attaches it. That takes no lock against readers and writers of the
/// table, whereas `create table … partition of` would wait for a running backup, and all others for it
/// (`a_partition_is_made_beside_a_running_backup`). A day that is half dropped is dropped first.
async fn create(connection: &mut PgConnection, (table, day): Day) -> Result<(), PgFailure> {
    let (parent, name) = (table.name(), table.partition(day));
    let (from, to) = table.bounds(day);
    let mut transaction = begin(connection).await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", ADVISORY_LOCK).execute(&mut *transaction).await?;
    let mut state = retire::state(&mut transaction, table, &name).await?;
    if matches!(state, PartitionState::Pending | PartitionState::Detached) {
        retire::finish(&mut transaction, table, &name, state).await?;
        state = PartitionState::Missing;
    }
    if state == PartitionState::Foreign {
        // An owner may have detached it to keep it: its rows must not come back by themselves.
        let holds = AssertSqlSafe(format!("select exists (select from {name})"));
        if sqlx::query_scalar::<_, bool>(holds).fetch_one(&mut *transaction).await? {
            return Err(corrupt(&format!(
                "table {name} holds rows and is no partition of {parent}: attach it, or give it another name"
            )));
        }
    }
    if state == PartitionState::Missing {
        let create = format!("create table {name} (like {parent} including all){}", table.settings());
        transaction.execute(AssertSqlSafe(create)).await?;
    }
    if state != PartitionState::Attached {
        let attach =
            format!("alter table {parent} attach partition {name} for values from ({from}) to ({to})");
        transaction.execute(AssertSqlSafe(attach)).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Lists the names of partitions of days before `day`, from the oldest on, `limit` at most, including those
/// that are being retired.
pub async fn older(
    connection: &mut PgConnection,
    table: Table,
    day: i64,
    limit: usize,
) -> Result<Vec<String>, PgFailure> {
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
