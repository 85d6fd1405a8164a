//! The transaction that applies a batch: ledger, set-aside items, counters, in this order, with
//! ids and names sorted, so that writers wait for each other and never in a circle.
//!
//! Usually counters get one merged addition each. Where a value might leave its range the
//! transaction is rolled back and the batch applied increment by increment on locked rows. Any
//! error of a statement ends the transaction: the client library calls the commit of an aborted
//! one a success (`a_batch_whose_statement_failed_is_never_reported_as_applied`).
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::failure::Failure;
use super::partitions::Partitions;
use super::read::{CounterRow, from_ms};
use crate::backoff::Backoff;
use crate::message::Message;
use crate::store::sums::{self, Standing};
use crate::store::{Applied, Counter, SetAside, ledger};

/// Attempts after a deadlock, a lock that did not come, or a partition that went.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// One addition per counter.
    Merged,
    /// Increment by increment.
    Exact,
}

pub async fn apply(
    connection: &mut PgConnection,
    partitions: &Partitions,
    batch: &[Message],
) -> Result<Applied, Failure> {
    let batch = ledger::distinct(batch)?;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let (mut path, mut attempt) = (Path::Merged, 1);
    loop {
        let outcome = try_once(connection, partitions, &batch, path).await;
        match outcome {
            Err(Failure::Overflow) if path == Path::Merged => path = Path::Exact,
            Err(failure) if attempt < ATTEMPTS_MAX && failure.is_missing_partition() => {
                partitions.forget();
                attempt += 1;
            }
            Err(failure) if attempt < ATTEMPTS_MAX && failure.is_conflict() => {
                tokio::time::sleep(backoff.delay()).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn try_once(
    connection: &mut PgConnection,
    partitions: &Partitions,
    batch: &[&Message],
    path: Path,
) -> Result<Applied, Failure> {
    partitions.ensure(connection, batch).await?;
    // Stricter levels, should they be a default somewhere, would only fail more often.
    let mut transaction = connection.begin_with("begin isolation level read committed").await?;
    match within(&mut transaction, batch, path).await {
        Ok(applied) => {
            transaction.commit().await?;
            Ok(applied)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(failure)
        }
    }
}

/// All statements between `begin` and `commit`.
async fn within(connection: &mut PgConnection, batch: &[&Message], path: Path) -> Result<Applied, Failure> {
    let fresh = enter(connection, batch).await?;
    let (counters, set_aside) = match path {
        Path::Merged => {
            let set_aside = sums::unreadable(&fresh);
            bury(connection, &set_aside).await?;
            (add_merged(connection, &fresh).await?, set_aside)
        }
        Path::Exact => add_one_by_one(connection, &fresh).await?,
    };
    let committed_at_ms = match counters.iter().map(|counter| counter.updated_at_ms).max() {
        Some(last) => last,
        None => super::read::now_ms(connection).await?,
    };
    let fresh = fresh.iter().map(|message| message.id).collect();
    Ok(Applied { fresh, counters, set_aside, committed_at_ms })
}

/// Writes the ledger rows and returns the messages that had none, in the order of the batch.
/// Another transaction that holds the same id is waited for.
async fn enter<'a>(
    connection: &mut PgConnection,
    batch: &[&'a Message],
) -> Result<Vec<&'a Message>, Failure> {
    let mut rows: Vec<_> = batch.iter().map(|message| (message.id.as_uuid(), &message.digest[..])).collect();
    rows.sort_unstable();
    let (ids, digests): (Vec<Uuid>, Vec<&[u8]>) = rows.into_iter().unzip();
    let inserted = sqlx::query_scalar!(
        "insert into applied_message (id, digest, applied_at)
         select id, digest, clock_timestamp() from unnest($1::uuid[], $2::bytea[]) as message (id, digest)
         on conflict do nothing
         returning id",
        &ids,
        &digests as &[&[u8]]
    );
    let inserted: HashSet<Uuid> = inserted.fetch_all(&mut *connection).await?.into_iter().collect();
    let (fresh, seen) = ledger::part(batch, &inserted);
    if !seen.is_empty() {
        let ids: Vec<Uuid> = seen.iter().map(|message| message.id.as_uuid()).collect();
        let stored = sqlx::query!("select id, digest from applied_message where id = any($1)", &ids);
        let stored = stored.fetch_all(connection).await?;
        ledger::compare(&seen, &stored.into_iter().map(|row| (row.id, row.digest)).collect())?;
    }
    Ok(fresh)
}

async fn add_merged(connection: &mut PgConnection, fresh: &[&Message]) -> Result<Vec<Counter>, Failure> {
    let sums = sums::sum_increments(fresh).map_err(|sums::Overflow| Failure::Overflow)?;
    let names: Vec<&str> = sums.iter().map(|sum| sum.name).collect();
    let deltas: Vec<i64> = sums.iter().map(|sum| sum.delta).collect();
    let counts: Vec<i64> = sums.iter().map(|sum| sum.count).collect();
    let rows = sqlx::query_as!(
        CounterRow,
        "insert into counters as counter (name, value, version, updated_at)
         select name, delta, count, clock_timestamp()
         from unnest($1::text[], $2::int8[], $3::int8[]) as sum (name, delta, count)
         on conflict (name) do update
         set value = counter.value + excluded.value,
             version = counter.version + excluded.version,
             updated_at = clock_timestamp()
         returning name, value, version, updated_at",
        &names as &[&str],
        &deltas,
        &counts
    );
    let rows = rows.fetch_all(connection).await.map_err(Failure::from);
    let rows = match rows {
        Err(failure) if failure.is_out_of_range() => return Err(Failure::Overflow),
        rows => rows?,
    };
    let sum_of: HashMap<&str, _> = sums.iter().map(|sum| (sum.name, sum)).collect();
    if !rows.iter().all(|row| sum_of[&*row.name].stayed_in_range(row.value)) {
        return Err(Failure::Overflow);
    }
    Ok(rows.into_iter().map(Counter::from).collect())
}

async fn add_one_by_one(
    connection: &mut PgConnection,
    fresh: &[&Message],
) -> Result<(Vec<Counter>, Vec<SetAside>), Failure> {
    let names = sums::names(fresh);
    // Creates what is missing and locks all of it in one sorted statement, as the merged path
    // does: two statements, one to create and one to lock, could meet it in the opposite order.
    let current = sqlx::query!(
        "insert into counters as counter (name, value, version, updated_at)
         select name, 0, 0, clock_timestamp() from unnest($1::text[]) as touched (name)
         on conflict (name) do update set value = counter.value
         returning name, value, version",
        &names as &[&str]
    );
    let current = current.fetch_all(&mut *connection).await?.into_iter();
    let current: HashMap<_, _> =
        current.map(|row| (row.name, Standing { value: row.value, version: row.version })).collect();
    let folded = sums::fold_increments(&current, fresh);
    bury(connection, &folded.set_aside).await?;
    let names: Vec<&str> = folded.counters.iter().map(|(name, _)| *name).collect();
    let values: Vec<i64> = folded.counters.iter().map(|(_, standing)| standing.value).collect();
    let versions: Vec<i64> = folded.counters.iter().map(|(_, standing)| standing.version).collect();
    let rows = sqlx::query_as!(
        CounterRow,
        "update counters as counter
         set value = folded.value, version = folded.version, updated_at = clock_timestamp()
         from unnest($1::text[], $2::int8[], $3::int8[]) as folded (name, value, version)
         where counter.name = folded.name
         returning counter.name, counter.value, counter.version, counter.updated_at",
        &names as &[&str],
        &values,
        &versions
    );
    let mut rows = rows.fetch_all(connection).await?;
    rows.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok((rows.into_iter().map(Counter::from).collect(), folded.set_aside))
}

/// Writes dead letters. One that is there already, from a message that outlived its ledger row,
/// stays as it is.
async fn bury(connection: &mut PgConnection, set_aside: &[SetAside]) -> Result<(), Failure> {
    if set_aside.is_empty() {
        return Ok(());
    }
    let mut rows: Vec<&SetAside> = set_aside.iter().collect();
    rows.sort_unstable_by_key(|aside| aside.item);
    let ids: Vec<Uuid> = rows.iter().map(|aside| aside.item.as_uuid()).collect();
    let kinds: Vec<&str> = rows.iter().map(|aside| aside.item.kind().name()).collect();
    let reasons: Vec<&str> = rows.iter().map(|aside| aside.reason.name()).collect();
    let details: Vec<&str> = rows.iter().map(|aside| &*aside.detail).collect();
    let items: Vec<&str> = rows.iter().map(|aside| &*aside.json).collect();
    let accepted: Vec<OffsetDateTime> = rows.iter().map(|aside| from_ms(aside.accepted_at_ms)).collect();
    sqlx::query!(
        "insert into dead_letters (id, kind, reason, detail, item, accepted_at, set_aside_at)
         select id, kind, reason, detail, item, accepted_at, clock_timestamp()
         from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
              as aside (id, kind, reason, detail, item, accepted_at)
         on conflict do nothing",
        &ids,
        &kinds as &[&str],
        &reasons as &[&str],
        &details as &[&str],
        &items as &[&str],
        &accepted
    )
    .execute(connection)
    .await?;
    Ok(())
}
