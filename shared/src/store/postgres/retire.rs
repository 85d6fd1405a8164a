//! Takes old partitions away while writers go on.
//!
//! `drop table` of a partition waits for all transactions that have its table open, and all later ones wait
//! for it: beside three writers without a gap it never comes. So a partition is marked, detached
//! `concurrently`, which waits for transactions that had begun and lets others pass, and dropped as a table
//! by itself. Each step is committed. A partition that was left between two steps is finished by the next
//! housekeeping, or by a writer that needs the day (`partitions`).
//!
//! For the ledger the floor is raised with the mark, so that readers miss no row, and once more before the
//! drop, by the rows that were entered in between: docs/decisions/0010-floor-and-retention.md.
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::days::Table;
use super::failure::PgFailure;
use super::ledger;
use super::session::{alone, begin};

/// Comment on a partition that is to go. A detached partition with it is not kept by an owner.
pub const MARK: &str = "forebay: being dropped";

/// Time to wait for the transactions that use a table before a partition of it is detached. A detached day
/// has no place for late rows, so it must not wait for a backup.
const USERS_TIME_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// State of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionState {
    Missing,
    Attached,
    /// Being detached, or left in the middle of that.
    Pending,
    /// Detached to be dropped.
    Detached,
    /// A table of that name which is neither a partition nor marked.
    Foreign,
}

/// Outcome for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    Dropped,
    /// Others used it for longer than this waits, or retired it at the same time.
    InUse,
    /// Another process does the housekeeping.
    Elsewhere,
}

pub async fn state(
    connection: &mut PgConnection,
    table: Table,
    name: &str,
) -> Result<PartitionState, PgFailure> {
    let found = sqlx::query!(
        r#"select to_regclass($1) is not null as "is_there!", inhdetachpending as "is_pending?",
               coalesce(obj_description(to_regclass($1), 'pg_class') = $3, false) as "is_marked!"
           from (select) as one left join pg_inherits
             on inhrelid = to_regclass($1) and inhparent = to_regclass($2)"#,
        name,
        table.name(),
        MARK
    );
    let found = found.fetch_one(connection).await?;
    Ok(match found.is_pending {
        Some(true) => PartitionState::Pending,
        Some(false) => PartitionState::Attached,
        None if !found.is_there => PartitionState::Missing,
        None if found.is_marked => PartitionState::Detached,
        None => PartitionState::Foreign,
    })
}

/// Takes a partition away, from any state in which it was left.
pub async fn retire(
    connection: &mut PgConnection,
    lock: i64,
    table: Table,
    name: &str,
) -> Result<Retired, PgFailure> {
    match steps(connection, lock, table, name).await {
        Err(failure) if failure.is_conflict() || failure.is_about_partition() => Ok(Retired::InUse),
        outcome => outcome,
    }
}

async fn steps(
    connection: &mut PgConnection,
    lock: i64,
    table: Table,
    name: &str,
) -> Result<Retired, PgFailure> {
    let mut transaction = begin(connection).await?;
    if !is_mine(&mut transaction, lock).await? {
        transaction.rollback().await?;
        return Ok(Retired::Elsewhere);
    }
    let is_attached = state(&mut transaction, table, name).await? == PartitionState::Attached;
    if is_attached {
        wait_briefly(&mut transaction).await?;
        transaction.execute(AssertSqlSafe(format!("comment on table {name} is '{MARK}'"))).await?;
        raise_floor(&mut transaction, table, name).await?;
    }
    transaction.commit().await?;
    if is_attached {
        if !users_end(connection, table).await? {
            return Ok(Retired::InUse);
        }
        let detach = format!("alter table {} detach partition {name} concurrently", table.name());
        alone(connection, detach).await?;
    }
    let mut transaction = begin(connection).await?;
    if !is_mine(&mut transaction, lock).await? {
        transaction.rollback().await?;
        return Ok(Retired::Elsewhere);
    }
    let state = state(&mut transaction, table, name).await?;
    let is_left = matches!(state, PartitionState::Pending | PartitionState::Detached);
    if is_left {
        finish(&mut transaction, table, name, state).await?;
    }
    transaction.commit().await?;
    Ok(if is_left { Retired::Dropped } else { Retired::InUse })
}

/// Ends an interrupted detaching of a partition, and drops it, at the end of the transaction. No row is
/// inserted into it any more, so the last id in it stays the last.
pub async fn finish(
    connection: &mut PgConnection,
    table: Table,
    name: &str,
    state: PartitionState,
) -> Result<(), PgFailure> {
    if state == PartitionState::Pending {
        let finalize = format!("alter table {} detach partition {name} finalize", table.name());
        connection.execute(AssertSqlSafe(finalize)).await?;
    }
    wait_briefly(connection).await?;
    connection.execute(AssertSqlSafe(format!("lock table {name} in access exclusive mode"))).await?;
    raise_floor(connection, table, name).await?;
    connection.execute(AssertSqlSafe(format!("drop table {name}"))).await?;
    Ok(())
}

async fn raise_floor(connection: &mut PgConnection, table: Table, name: &str) -> Result<(), PgFailure> {
    match table {
        Table::Ledger => ledger::raise_floor(connection, name).await,
        Table::Points | Table::Minutes => Ok(()),
    }
}

async fn is_mine(connection: &mut PgConnection, lock: i64) -> Result<bool, PgFailure> {
    let is_mine = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "is!""#, lock);
    Ok(is_mine.fetch_one(connection).await?)
}

/// Limits the wait for locks: others queue behind it.
async fn wait_briefly(connection: &mut PgConnection) -> Result<(), PgFailure> {
    connection.execute("set local lock_timeout = '100ms'").await?;
    Ok(())
}

/// Waits until the transactions that use a table have ended; those that begin meanwhile do not count.
async fn users_end(connection: &mut PgConnection, table: Table) -> Result<bool, PgFailure> {
    let begun = Instant::now();
    let mut users = None;
    while begun.elapsed() < USERS_TIME_MAX {
        let mut transaction = begin(connection).await?;
        let now = sqlx::query_scalar!(
            r#"select distinct virtualtransaction as "user!" from pg_locks
               where locktype = 'relation' and relation = to_regclass($1)::oid and granted
                   and database = (select oid from pg_database where datname = current_database())"#,
            table.name()
        );
        let now = now.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let users = users.get_or_insert_with(|| now.clone());
        users.retain(|user| now.contains(user));
        if users.is_empty() {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(false)
}
