//! The write ceiling of Postgres: rows of a plain event table by UNNEST, one connection, 2 000 rows
//! and one transaction per statement. The bulk row of the table is measured against it.
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::stop::Stop;

const ROWS: usize = 2_000;

/// Measures rows per second, in a database that exists for this measurement only.
pub async fn unnest_rows_per_second(duration: Duration, stop: &Stop) -> anyhow::Result<f64> {
    let name = testkit::unique("compare_unnest");
    let url = testkit::create_database(&name).await?;
    let figure = measure(&url, duration, stop).await;
    testkit::drop_database(&name).await?;
    figure
}

async fn measure(url: &str, duration: Duration, stop: &Stop) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(url).await.context("no Postgres")?;
    let table = "create table event (id uuid not null, name text not null, by int8 not null, \
                 accepted_at timestamptz not null)";
    connection.execute(AssertSqlSafe(table.to_owned())).await?;
    let ids: Vec<Uuid> = (0..ROWS as u128).map(Uuid::from_u128).collect();
    let names: Vec<String> = (0..ROWS).map(|number| format!("counter-{:04}", number % 1_000)).collect();
    let by = vec![1_i64; ROWS];
    let (mut rows, began) = (0, Instant::now());
    while began.elapsed() < duration {
        stop.check()?;
        let insert = sqlx::query(
            "insert into event select id, name, by, now() \
             from unnest($1::uuid[], $2::text[], $3::int8[]) as row (id, name, by)",
        );
        insert.bind(&ids).bind(&names).bind(&by).execute(&mut connection).await?;
        rows += ROWS;
    }
    let figure = rows as f64 / began.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(figure)
}
