//! Reads, one statement each.
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::failure::Failure;
use crate::id::ItemKey;
use crate::store::page::Bounds;
use crate::store::{Counter, Fate};

const YEAR_9999_END_MS: i64 = 253_402_300_799_999;

/// A row of `counters`.
pub struct CounterRow {
    pub name: String,
    pub value: i64,
    pub version: i64,
    pub updated_at: OffsetDateTime,
}

impl From<CounterRow> for Counter {
    fn from(row: CounterRow) -> Self {
        let CounterRow { name, value, version, updated_at } = row;
        Self { name: name.into(), value, version, updated_at_ms: to_ms(updated_at) }
    }
}

pub async fn counter(connection: &mut PgConnection, name: &str) -> Result<Option<Counter>, Failure> {
    let row = sqlx::query_as!(
        CounterRow,
        "select name, value, version, updated_at from counters where name = $1",
        name
    );
    Ok(row.fetch_optional(connection).await?.map(Counter::from))
}

pub async fn counters(connection: &mut PgConnection, bounds: &Bounds) -> Result<Vec<Counter>, Failure> {
    let rows = sqlx::query_as!(
        CounterRow,
        "select name, value, version, updated_at from counters
         where name > $1 and name >= $2 and name < $3
         order by name
         limit $4",
        bounds.after,
        bounds.from,
        bounds.below,
        bounds.limit
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(Counter::from).collect())
}

/// One statement, so that both tables are seen at the same moment.
pub async fn fate(connection: &mut PgConnection, item: ItemKey) -> Result<Option<Fate>, Failure> {
    let row = sqlx::query!(
        r#"select message.applied_at as "applied_at?", dead.set_aside_at as "set_aside_at?",
                  dead.reason as "reason?", dead.detail as "detail?"
           from (select) as one
           left join dead_letters as dead on dead.id = $1
           left join applied_message as message on message.id = $2"#,
        item.as_uuid(),
        item.message().as_uuid()
    );
    let row = row.fetch_one(connection).await?;
    if let (Some(at), Some(reason), Some(detail)) = (row.set_aside_at, row.reason, row.detail) {
        return Ok(Some(Fate::Failed { at_ms: to_ms(at), reason, detail }));
    }
    Ok(row.applied_at.map(|at| Fate::Applied { at_ms: to_ms(at) }))
}

pub async fn now_ms(connection: &mut PgConnection) -> Result<i64, Failure> {
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(connection).await?;
    Ok(to_ms(now))
}

pub fn to_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).expect("nanoseconds have 96 bits at most")
}

/// The nearest time that the server and the calendar hold: a message may carry any number.
pub fn from_ms(at_ms: i64) -> OffsetDateTime {
    let nanoseconds = i128::from(at_ms.clamp(0, YEAR_9999_END_MS)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).expect("a time from 1970 to 9999")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_becomes_a_time_and_a_usual_one_itself() {
        for (at_ms, stored) in [(-1, 0), (i64::MIN, 0), (1_763_600_000_123, 1_763_600_000_123)] {
            assert_eq!(to_ms(from_ms(at_ms)), stored);
        }
        assert_eq!(from_ms(i64::MAX).year(), 9999);
    }
}
