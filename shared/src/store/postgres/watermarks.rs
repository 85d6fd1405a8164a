//! Reports of each consumer on the oldest message that it holds or may be given.
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::{from_ms, to_ms};
use super::failure::PgFailure;
use crate::store::{ConsumerWatermark, ReportedWatermark, Watermarks};

/// Exchanges reports in one statement. Silent reports stay if they changed since they were read.
pub async fn hold(
    connection: &mut PgConnection,
    own: ConsumerWatermark,
    silent: Vec<ReportedWatermark>,
) -> Result<Watermarks, PgFailure> {
    let gone: Vec<i64> = silent.iter().map(|holder| holder.hold.consumer.cast_signed()).collect();
    // Times are reported in milliseconds and stored in microseconds.
    let before: Vec<OffsetDateTime> =
        silent.iter().map(|holder| from_ms(holder.told_at_ms.saturating_add(1))).collect();
    let rows = sqlx::query!(
        r#"with gone as (
               delete from ledger_holders as holder
               using unnest($3::int8[], $4::timestamptz[]) as silent (consumer, before)
               where holder.consumer = silent.consumer and holder.told_at < silent.before
               returning holder.consumer
           ), told as (
               insert into ledger_holders (consumer, oldest, told_at) values ($1, $2, clock_timestamp())
               on conflict (consumer) do update set oldest = excluded.oldest, told_at = excluded.told_at
           )
           select clock_timestamp() as "now!", consumer as "consumer?", oldest as "oldest?", told_at as "told_at?"
           from (select) as one left join ledger_holders
             on consumer <> $1 and consumer not in (select consumer from gone)"#,
        own.consumer.cast_signed(),
        from_ms(own.oldest_ms),
        &gone,
        &before
    );
    let rows = rows.fetch_all(connection).await?;
    let now_ms = rows.first().map_or(0, |row| to_ms(row.now));
    let holder = |(consumer, oldest, told_at): (Option<i64>, Option<_>, Option<_>)| {
        let hold = ConsumerWatermark { consumer: consumer?.cast_unsigned(), oldest_ms: to_ms(oldest?) };
        Some(ReportedWatermark { hold, told_at_ms: to_ms(told_at?) })
    };
    let others = rows.into_iter().filter_map(|row| holder((row.consumer, row.oldest, row.told_at))).collect();
    Ok(Watermarks { others, now_ms })
}
