//! Deletes rows because of their age. Each step is a transaction of its own and bounded: other writes wait
//! for the step under way, and come before the next.
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};
use uuid::Uuid;

use super::collections::DefinitionCache;
use super::fields::PAGE_BYTES_MAX;
use super::files::{Files, SqliteFailure};
use super::{collections, fields, keys, points};
use crate::model::id::MessageId;
use crate::model::rollup::Resolution;
use crate::runtime::clock;
use crate::store::rules::ledger::{ForgetBounds, keys_before_ms};
use crate::store::{DEAD_LETTERS_COUNTED_MAX, Housekept, Retention, StoreError};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

pub const ROLLUPS: &str = "delete from rollups where (resolution, type, period) in \
    (select resolution, type, period from rollups where resolution = ?1 and period < ?2 \
    order by period limit ?3)";

/// Counts the dead letters that wait for a decision, among the first by id.
const DEAD_LETTERS: &str = "select count(*) from \
    (select discarded_at_ms from dead_letters order by id limit ?1) where discarded_at_ms is null";

/// Reads the collections with a retention. Owners define few collections: all are read.
const BOUNDED: &str = "select name from collections where retention_days is not null";

/// Finds old documents. Tombstones are not among them: they keep a later insert from taking effect.
pub const OLD: &str = "select place, data from documents \
    where collection = ?1 and place < ?2 and data is not null order by place limit ?3";

/// Turns old documents into tombstones when their key was entered too late to be forgotten, as if a client
/// had deleted them.
pub const ENTOMB_OLD: &str = "update documents set data = null, accepted_at_ms = max(accepted_at_ms, \
    (select applied_at_ms from keyed_writes where keyed_writes.id = documents.id)) \
    where collection = ?1 and place <= ?2 and data is not null and id is not null \
    and exists (select 1 from keyed_writes where keyed_writes.id = documents.id and applied_at_ms >= ?3)";

pub const DELETE_OLD: &str =
    "delete from documents where collection = ?1 and place <= ?2 and data is not null";

pub const DELETE_OLD_KEYS: &str = "delete from keyed_writes where id in \
    (select id from documents where collection = ?1 and place <= ?2 and data is not null and id is not null)";

/// Reads the last id that lost its ledger row.
pub const FLOOR: &str = "select id from ledger_floor where one = 1";

pub const RAISE: &str = "update ledger_floor set id = max(id, ?1) where one = 1";

pub const OLD_MESSAGES: &str = "select id from applied_message where id < ?1 order by id limit ?2";

pub const FORGET_MESSAGES: &str = "delete from applied_message where id <= ?1";

/// Deletes tombstones. Each kept an insert away that the ledger would have let through; below the floor the
/// ledger lets none through any more. A dead letter of the document may still be redriven: its tombstone
/// stays.
pub const DELETED: &str = "delete from documents where rowid in \
    (select rowid from documents where data is null and accepted_at_ms < ?1 and place <= ?2 \
    and not exists (select 1 from dead_letters where dead_letters.id = coalesce(documents.id, documents.place)) \
    and not exists (select 1 from keyed_writes where keyed_writes.id = documents.id and applied_at_ms >= ?1) \
    order by accepted_at_ms limit ?3) returning id";

/// Deletes discarded dead letters once their message is forgotten, too: without its row the item would look
/// applied. In hexadecimal a keyed id has 8 or more at that place. A key goes with its dead letter, and is as
/// young as the discard.
pub const DISCARDED: &str = "delete from dead_letters where rowid in \
    (select rowid from dead_letters where discarded_at_ms is not null and discarded_at_ms < ?1 \
    and case when substr(hex(id), 25, 1) < '8' then id <= ?2 \
    else max(accepted_at_ms, discarded_at_ms) < ?3 end \
    order by discarded_at_ms limit ?4) returning id";

/// Finds the oldest tables of points. The schema is a short list.
const TABLES: &str = "select name from sqlite_schema \
    where type = 'table' and name glob 'points_[0-9]*' and name < ?1 order by name limit 2";

/// The last key that was looked at for pruning, for as long as this process runs: keys before it have dead
/// letters.
pub type LastKey = Mutex<Option<keys::SqliteKeyPosition>>;

enum SqliteStep {
    /// Points of the oldest day before the day of this table.
    Points {
        first_kept: String,
    },
    Rollups {
        resolution: Resolution,
        below: i32,
    },
    Messages {
        before_ms: i64,
    },
    Keys(ForgetBounds),
    Tombstones(ForgetBounds),
    Discarded {
        discarded_before_ms: i64,
        forget: ForgetBounds,
    },
    Documents {
        collection: String,
        now_ms: i64,
        forget: Option<ForgetBounds>,
    },
}

/// Runs one call: every step once.
pub async fn housekeep(
    files: &Files,
    cache: &Arc<DefinitionCache>,
    last_key: &LastKey,
    retention: Retention,
) -> Result<Housekept, StoreError> {
    const LOCKED: &str = "no code panics while it holds this lock";
    let mut kept = Housekept::default();
    for step in steps(files, &retention).await? {
        let (cache, rows_max) = (Arc::clone(cache), retention.rows_max);
        let after = *last_key.lock().expect(LOCKED);
        let done = files.write("housekeep", move |connection| {
            Box::pin(async move { run(connection, &cache, &step, after, rows_max).await })
        });
        // Remembered only after the commit.
        let (done, last) = done.await?;
        if last.is_some() {
            *last_key.lock().expect(LOCKED) = last;
        }
        kept.rows += done.rows;
        kept.partitions += done.partitions;
        kept.more |= done.more;
    }
    let waiting: i64 = files
        .read("housekeep", |connection| {
            let query = sqlx::query_scalar(DEAD_LETTERS).bind(DEAD_LETTERS_COUNTED_MAX);
            Box::pin(async move { Ok(query.fetch_one(connection).await?) })
        })
        .await?;
    kept.dead_letters = u64::try_from(waiting).unwrap_or(0);
    Ok(kept)
}

async fn steps(files: &Files, retention: &Retention) -> Result<Vec<SqliteStep>, StoreError> {
    let bounded = files.read("housekeep", |connection| {
        Box::pin(async move { Ok(sqlx::query_scalar(BOUNDED).fetch_all(connection).await?) })
    });
    let now_ms = clock::now_ms().min(retention.now_ms_max);
    let mut steps = vec![SqliteStep::Points {
        first_kept: points::table_of(now_ms.saturating_sub(retention.points_ms), now_ms),
    }];
    for (resolution, age_ms) in
        [(Resolution::Minute, retention.minutes_ms), (Resolution::Hour, retention.hours_ms)]
    {
        steps.push(SqliteStep::Rollups {
            resolution,
            below: resolution.period_of(now_ms.saturating_sub(age_ms)),
        });
    }
    // Messages before the watermark can come no more from the queue.
    let remembered_ms = retention.remembered_ms;
    let forget = retention.forget_before_ms.map(|before_ms| ForgetBounds { before_ms, remembered_ms });
    if let Some(forget) = forget {
        let discarded_before_ms = now_ms.saturating_sub(retention.discarded_ms);
        steps.extend([
            SqliteStep::Messages { before_ms: forget.before_ms },
            SqliteStep::Keys(forget),
            SqliteStep::Tombstones(forget),
            SqliteStep::Discarded { discarded_before_ms, forget },
        ]);
    }
    let bounded: Vec<String> = bounded.await?;
    steps.extend(bounded.into_iter().map(|collection| SqliteStep::Documents { collection, now_ms, forget }));
    Ok(steps)
}

/// Runs a step inside a transaction that holds the write lock.
async fn run(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    step: &SqliteStep,
    after: Option<keys::SqliteKeyPosition>,
    rows_max: u32,
) -> Result<(Housekept, Option<keys::SqliteKeyPosition>), SqliteFailure> {
    let rows = match step {
        SqliteStep::Points { first_kept } => {
            return Ok((drop_points(connection, first_kept, rows_max).await?, None));
        }
        SqliteStep::Documents { collection, now_ms, forget } => {
            // Read under the lock: it may have been lifted since the step was made.
            let definition = collections::read(connection, collection).await?.collection.definition;
            let Some(days) = definition.retention_days else { return Ok((Housekept::default(), None)) };
            let below = MessageId::lowest_at(now_ms.saturating_sub(i64::from(days) * DAY_MS));
            // No key is old enough while nothing may be forgotten.
            let mut keys_before_ms = i64::MIN;
            if let Some(forget) = forget {
                let known = floor_and_keys(connection, forget).await?;
                keys_before_ms = known.map_or(i64::MIN, |(_, before_ms)| before_ms);
            }
            let old = (collection.as_str(), below, keys_before_ms);
            return Ok((delete_documents(connection, cache, old, rows_max).await?, None));
        }
        SqliteStep::Keys(forget) => {
            let Some((_, before_ms)) = floor_and_keys(connection, forget).await? else {
                return Ok((Housekept::default(), None));
            };
            let pruned = keys::prune(connection, before_ms, after, rows_max).await?;
            return Ok((
                Housekept { rows: pruned.rows, more: pruned.more, ..Housekept::default() },
                pruned.last,
            ));
        }
        SqliteStep::Rollups { resolution, below } => {
            let query = sqlx::query(ROLLUPS).bind(*resolution as i16).bind(*below).bind(rows_max);
            query.execute(connection).await?.rows_affected()
        }
        SqliteStep::Messages { before_ms } => forget_messages(connection, *before_ms, rows_max).await?,
        SqliteStep::Tombstones(forget) => forget_tombstones(connection, forget, rows_max).await?,
        SqliteStep::Discarded { discarded_before_ms, forget } => {
            forget_discarded(connection, *discarded_before_ms, forget, rows_max).await?
        }
    };
    Ok((Housekept { rows, more: rows >= u64::from(rows_max), ..Housekept::default() }, None))
}

/// Deletes ledger rows, and raises the floor in the same transaction.
async fn forget_messages(
    connection: &mut SqliteConnection,
    before_ms: i64,
    rows_max: u32,
) -> Result<u64, SqliteFailure> {
    let below = MessageId::lowest_at(before_ms);
    let query = sqlx::query_scalar(OLD_MESSAGES).bind(below).bind(rows_max);
    let messages: Vec<Uuid> = query.fetch_all(&mut *connection).await?;
    if let Some(last) = messages.last() {
        sqlx::query(RAISE).bind(last).execute(&mut *connection).await?;
        sqlx::query(FORGET_MESSAGES).bind(last).execute(connection).await?;
    }
    Ok(messages.len() as u64)
}

async fn forget_tombstones(
    connection: &mut SqliteConnection,
    forget: &ForgetBounds,
    rows_max: u32,
) -> Result<u64, SqliteFailure> {
    let Some((floor, before_ms)) = floor_and_keys(connection, forget).await? else { return Ok(0) };
    // An insert is hardly ever younger than its delete: few rows that must stay are walked over.
    let query = sqlx::query_scalar(DELETED).bind(before_ms);
    let query = query.bind(floor.last_item()).bind(rows_max);
    let deleted: Vec<Option<Uuid>> = query.fetch_all(&mut *connection).await?;
    keys::forget(connection, &deleted.iter().flatten().copied().collect::<Vec<_>>()).await?;
    Ok(deleted.len() as u64)
}

async fn forget_discarded(
    connection: &mut SqliteConnection,
    discarded_before_ms: i64,
    forget: &ForgetBounds,
    rows_max: u32,
) -> Result<u64, SqliteFailure> {
    let Some((floor, keys_before_ms)) = floor_and_keys(connection, forget).await? else { return Ok(0) };
    let query = sqlx::query_scalar(DISCARDED).bind(discarded_before_ms).bind(floor.last_item());
    let discarded: Vec<Uuid> = query.bind(keys_before_ms).bind(rows_max).fetch_all(&mut *connection).await?;
    keys::forget(connection, &discarded).await?;
    Ok(discarded.len() as u64)
}

/// Returns the floor, and the time before which keys may be forgotten; `None` while no ledger row was
/// deleted.
async fn floor_and_keys(
    connection: &mut SqliteConnection,
    forget: &ForgetBounds,
) -> Result<Option<(MessageId, i64)>, SqliteFailure> {
    let floor = floor(connection).await?;
    Ok(floor.map(|floor| (floor, keys_before_ms(forget.before_ms, floor, forget.remembered_ms))))
}

/// Reads the floor; `None` while no ledger row was deleted.
pub async fn floor(connection: &mut SqliteConnection) -> Result<Option<MessageId>, SqliteFailure> {
    Ok(MessageId::from_uuid(sqlx::query_scalar(FLOOR).fetch_one(connection).await?))
}

/// Empties the oldest day if its last point is too old, and drops its table once it is empty: the time to
/// drop a full table grows with its pages.
async fn drop_points(
    connection: &mut SqliteConnection,
    first_kept: &str,
    rows_max: u32,
) -> Result<Housekept, SqliteFailure> {
    let tables: Vec<String> = sqlx::query_scalar(TABLES).bind(first_kept).fetch_all(&mut *connection).await?;
    let [oldest, others @ ..] = &tables[..] else { return Ok(Housekept::default()) };
    let delete = format!(
        "delete from {oldest} where rowid in (select rowid from {oldest} order by rowid limit {rows_max})"
    );
    let rows = sqlx::query(AssertSqlSafe(delete)).execute(&mut *connection).await?.rows_affected();
    if rows >= u64::from(rows_max) {
        return Ok(Housekept { rows, more: true, ..Housekept::default() });
    }
    sqlx::query(AssertSqlSafe(format!("drop table {oldest}"))).execute(connection).await?;
    Ok(Housekept { rows, partitions: 1, more: !others.is_empty(), ..Housekept::default() })
}

async fn delete_documents(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    (collection, below, keys_before_ms): (&str, Uuid, i64),
    rows_max: u32,
) -> Result<Housekept, SqliteFailure> {
    let known = cache.load(connection, &[collection]).await?;
    let checker = &known[collection].checker;
    let (mut last, mut fields, mut rows, mut bytes) = (None, Vec::new(), 0, 0);
    {
        let mut old = sqlx::query(OLD).bind(collection).bind(below).bind(rows_max).fetch(&mut *connection);
        while bytes < PAGE_BYTES_MAX
            && let Some(row) = old.try_next().await?
        {
            let place: Uuid = row.try_get(0)?;
            (last, rows) = (Some(place), rows + 1);
            let data: &str = row.try_get(1)?;
            bytes += data.len();
            fields.extend(fields::fields_of(checker, collection, place, data));
        }
    }
    fields::forget(connection, &fields).await?;
    if let Some(last) = last {
        let entomb = sqlx::query(ENTOMB_OLD).bind(collection).bind(last).bind(keys_before_ms);
        entomb.execute(&mut *connection).await?;
        sqlx::query(DELETE_OLD_KEYS).bind(collection).bind(last).execute(&mut *connection).await?;
        sqlx::query(DELETE_OLD).bind(collection).bind(last).execute(&mut *connection).await?;
    }
    let more = rows == rows_max || bytes >= PAGE_BYTES_MAX;
    Ok(Housekept { rows: u64::from(rows), more, ..Housekept::default() })
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;

    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn documents_stay_whose_retention_was_lifted_since_the_step_was_made() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("opens");
        sqlx::migrate!("./migrations/sqlite").run(&mut connection).await.expect("migrates");
        let old = "insert into documents (collection, place, data, accepted_at_ms) values ('orders', x'00000000000000000000000000000001', '{}', 0)";
        sqlx::raw_sql(old).execute(&mut connection).await.expect("inserts");
        let cache = DefinitionCache::new(&Config::default().collections);
        let step =
            SqliteStep::Documents { collection: "orders".into(), now_ms: clock::now_ms(), forget: None };
        for (days, deleted) in [("null", 0), ("1", 1)] {
            let define = format!(
                "insert or replace into collections (name, version, is_defined, indexed, retention_days) \
                values ('orders', random(), true, '[]', {days})"
            );
            sqlx::raw_sql(AssertSqlSafe(define)).execute(&mut connection).await.expect("defines");
            let (kept, _) = run(&mut connection, &cache, &step, None, 10).await.expect("runs");
            assert_eq!(kept.rows, deleted, "{days}");
        }
    }
}
