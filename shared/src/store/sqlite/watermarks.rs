//! Reports of each consumer on the oldest message that it holds or may be given. There is one consumer, but
//! reports of processes before it may stand here for a while.
use sqlx::{Row, SqliteConnection};

use super::files::SqliteFailure;
use crate::runtime::clock;
use crate::store::{ConsumerWatermark, ReportedWatermark, Watermarks};

pub const LEAVE: &str = "delete from ledger_holders where consumer = ?1 and told_at_ms <= ?2";

pub const REPORT: &str = "insert into ledger_holders (consumer, oldest_ms, told_at_ms) values (?1, ?2, ?3) \
    on conflict (consumer) do update set oldest_ms = excluded.oldest_ms, told_at_ms = excluded.told_at_ms";

/// Reads the other reports: one for each process that was started within the last hour.
const OTHERS: &str = "select consumer, oldest_ms, told_at_ms from ledger_holders where consumer <> ?1";

/// Exchanges reports inside a transaction that holds the write lock.
pub async fn hold(
    connection: &mut SqliteConnection,
    own: ConsumerWatermark,
    silent: Vec<ReportedWatermark>,
) -> Result<Watermarks, SqliteFailure> {
    let (now_ms, consumer) = (clock::now_ms(), own.consumer.cast_signed());
    for ReportedWatermark { hold, told_at_ms } in &silent {
        let leave = sqlx::query(LEAVE).bind(hold.consumer.cast_signed()).bind(told_at_ms);
        leave.execute(&mut *connection).await?;
    }
    sqlx::query(REPORT).bind(consumer).bind(own.oldest_ms).bind(now_ms).execute(&mut *connection).await?;
    let rows = sqlx::query(OTHERS).bind(consumer).fetch_all(connection).await?;
    let holder = |row: &sqlx::sqlite::SqliteRow| {
        let hold = ConsumerWatermark {
            consumer: row.try_get::<i64, _>(0)?.cast_unsigned(),
            oldest_ms: row.try_get(1)?,
        };
        Ok(ReportedWatermark { hold, told_at_ms: row.try_get(2)? })
    };
    Ok(Watermarks { others: rows.iter().map(holder).collect::<Result<_, sqlx::Error>>()?, now_ms })
}
