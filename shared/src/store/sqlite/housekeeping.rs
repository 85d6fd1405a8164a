//! What is deleted because of its age, a bounded part of it per call: other writes wait meanwhile.
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};
use uuid::Uuid;

use super::collections::{Cache, PAGE_BYTES_MAX};
use super::files::Failure;
use super::{documents, keys, points};
use crate::clock;
use crate::id::MessageId;
use crate::rollup::Resolution;
use crate::store::{Housekept, Retention};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// The keys of documents are left to their documents.
pub const KEYS: &str = "delete from keyed_writes where id in \
    (select id from keyed_writes where applied_at_ms < ?1 and substr(hex(id), 25, 1) <> 'A' \
    and not exists (select 1 from dead_letters where dead_letters.id = keyed_writes.id) \
    order by applied_at_ms limit ?2)";

pub const ROLLUPS: &str = "delete from rollups where (resolution, type, period) in \
    (select resolution, type, period from rollups where resolution = ?1 and period < ?2 \
    order by period limit ?3)";

/// Owners define few collections: all are read.
const BOUNDED: &str = "select name, retention_days from collections where retention_days is not null";

/// Not what was deleted: that keeps an insert which comes later from taking effect.
pub const OLD: &str = "select place, data from documents \
    where collection = ?1 and place < ?2 and data is not null order by place limit ?3";

pub const DELETE_OLD: &str =
    "delete from documents where collection = ?1 and place <= ?2 and data is not null";

pub const DELETE_OLD_KEYS: &str = "delete from keyed_writes where id in \
    (select id from documents where collection = ?1 and place <= ?2 and data is not null and id is not null)";

/// The last id whose ledger row was deleted.
pub const FLOOR: &str = "select id from ledger_floor where one = 1";

pub const RAISE: &str = "update ledger_floor set id = max(id, ?1) where one = 1";

pub const OLD_MESSAGES: &str = "select id from applied_message where id < ?1 order by id limit ?2";

pub const FORGET_MESSAGES: &str = "delete from applied_message where id <= ?1";

/// Each kept an insert away that the ledger would have let through; what lies below the floor it lets
/// through no more. A dead letter of the document may still be redriven: its tombstone stays.
pub const DELETED: &str = "delete from documents where rowid in \
    (select rowid from documents where data is null and accepted_at_ms < ?1 and place <= ?2 \
    and not exists (select 1 from dead_letters where dead_letters.id = coalesce(documents.id, documents.place)) \
    order by accepted_at_ms limit ?3) returning id";

/// Once its message is forgotten, too: without its row the item would look applied. In hexadecimal a
/// keyed id has 8 or more at that place.
pub const DISCARDED: &str = "delete from dead_letters where rowid in \
    (select rowid from dead_letters where discarded_at_ms is not null and discarded_at_ms < ?1 \
    and case when substr(hex(id), 25, 1) < '8' then id <= ?2 else accepted_at_ms < ?3 end \
    order by discarded_at_ms limit ?4) returning id";

/// The schema is a short list.
const TABLES: &str = "select name from sqlite_schema \
    where type = 'table' and name glob 'points_[0-9]*' and name < ?1 order by name limit 2";

/// Inside a transaction that holds the write lock.
pub async fn housekeep(
    connection: &mut SqliteConnection,
    cache: &Cache,
    retention: Retention,
) -> Result<Housekept, Failure> {
    let now_ms = clock::now_ms();
    let mut kept = Housekept::default();
    drop_points(connection, now_ms, retention.points_ms, &mut kept).await?;
    for (resolution, age_ms) in
        [(Resolution::Minute, retention.minutes_ms), (Resolution::Hour, retention.hours_ms)]
    {
        let below = resolution.period_of(now_ms.saturating_sub(age_ms));
        let query = sqlx::query(ROLLUPS).bind(resolution as i16).bind(below).bind(retention.rows_max);
        count(&mut kept, query.execute(&mut *connection).await?.rows_affected(), retention.rows_max);
    }
    if let Some(before_ms) = retention.forget_before_ms {
        forget(connection, before_ms, now_ms, &retention, &mut kept).await?;
    }
    delete_documents(connection, cache, now_ms, retention.rows_max, &mut kept).await?;
    Ok(kept)
}

fn count(kept: &mut Housekept, rows: u64, rows_max: u32) {
    kept.rows += rows;
    kept.more |= rows >= u64::from(rows_max);
}

/// What nothing asks for any more that may still come of the queue.
async fn forget(
    connection: &mut SqliteConnection,
    before_ms: i64,
    now_ms: i64,
    retention: &Retention,
    kept: &mut Housekept,
) -> Result<(), Failure> {
    let rows_max = retention.rows_max;
    let below = MessageId::lowest_at(before_ms);
    let messages: Vec<Uuid> =
        sqlx::query_scalar(OLD_MESSAGES).bind(below).bind(rows_max).fetch_all(&mut *connection).await?;
    if let Some(last) = messages.last() {
        sqlx::query(RAISE).bind(last).execute(&mut *connection).await?;
        sqlx::query(FORGET_MESSAGES).bind(last).execute(&mut *connection).await?;
        count(kept, messages.len() as u64, rows_max);
    }
    let keys = sqlx::query(KEYS).bind(before_ms).bind(rows_max).execute(&mut *connection).await?;
    count(kept, keys.rows_affected(), rows_max);
    let floor = sqlx::query_scalar(FLOOR).fetch_one(&mut *connection).await?;
    let Some(floor) = MessageId::from_uuid(floor) else { return Ok(()) };
    let deleted: Vec<Option<Uuid>> = sqlx::query_scalar(DELETED)
        // An insert is hardly ever younger than its delete: little is walked over that must stay.
        .bind(before_ms.min(floor.time_ms()))
        .bind(floor.last_item())
        .bind(rows_max)
        .fetch_all(&mut *connection)
        .await?;
    keys::forget(connection, &deleted.iter().flatten().copied().collect::<Vec<_>>()).await?;
    count(kept, deleted.len() as u64, rows_max);
    let discarded: Vec<Uuid> = sqlx::query_scalar(DISCARDED)
        .bind(now_ms.saturating_sub(retention.discarded_ms))
        .bind(floor.last_item())
        .bind(before_ms)
        .bind(rows_max)
        .fetch_all(&mut *connection)
        .await?;
    keys::forget(connection, &discarded).await?;
    count(kept, discarded.len() as u64, rows_max);
    Ok(())
}

/// Drops the oldest day whose last point is too old.
async fn drop_points(
    connection: &mut SqliteConnection,
    now_ms: i64,
    age_ms: i64,
    kept: &mut Housekept,
) -> Result<(), Failure> {
    let first_kept = points::table_of(now_ms.saturating_sub(age_ms), now_ms);
    let tables: Vec<String> = sqlx::query_scalar(TABLES).bind(first_kept).fetch_all(&mut *connection).await?;
    if let [oldest, more @ ..] = &tables[..] {
        sqlx::query(AssertSqlSafe(format!("drop table {oldest}"))).execute(connection).await?;
        kept.partitions += 1;
        kept.more |= !more.is_empty();
    }
    Ok(())
}

async fn delete_documents(
    connection: &mut SqliteConnection,
    cache: &Cache,
    now_ms: i64,
    rows_max: u32,
    kept: &mut Housekept,
) -> Result<(), Failure> {
    let bounded = sqlx::query_as::<_, (String, u32)>(BOUNDED).fetch_all(&mut *connection).await?;
    let mut rows_left = rows_max;
    for (name, days) in bounded {
        let below = MessageId::lowest_at(now_ms.saturating_sub(i64::from(days) * DAY_MS));
        let known = cache.load(connection, &[&name]).await?;
        let checker = &known[&name].checker;
        let (mut last, mut fields, mut rows, mut bytes) = (None, Vec::new(), 0, 0);
        {
            let mut old = sqlx::query(OLD).bind(&name).bind(below).bind(rows_left).fetch(&mut *connection);
            while bytes < PAGE_BYTES_MAX
                && let Some(row) = old.try_next().await?
            {
                let place: Uuid = row.try_get(0)?;
                (last, rows) = (Some(place), rows + 1);
                let data: &str = row.try_get(1)?;
                bytes += data.len();
                fields.extend(documents::fields_of(checker, &name, place, data));
            }
        }
        documents::forget(connection, &fields).await?;
        if let Some(last) = last {
            sqlx::query(DELETE_OLD_KEYS).bind(&name).bind(last).execute(&mut *connection).await?;
            sqlx::query(DELETE_OLD).bind(&name).bind(last).execute(&mut *connection).await?;
        }
        kept.rows += u64::from(rows);
        rows_left -= rows;
        if rows_left == 0 || bytes >= PAGE_BYTES_MAX {
            kept.more = true;
            break;
        }
    }
    Ok(())
}
