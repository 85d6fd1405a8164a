//! A month of summaries: ten thousand types with a rollup for each of the last thirty days. The
//! rows are put into the store directly: writing millions of points first would measure something
//! else.
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use shared::model::rollup::{Resolution, Rollup};
use sqlx::{Connection, Executor, PgConnection};

use crate::control::Client;
use crate::installation::Installation;
use crate::stop::Stop;
use crate::work::{SUMMARY_TYPES, summary_path, summary_type};

/// Days with rollups, today included.
const DAYS: i32 = 30;
/// Values in each rollup of a day.
const VALUES: u32 = 2_000;
/// Different rollups; each is used for many days and types.
const ROLLUPS: u32 = 200;
/// Rows per statement.
const PAGE: usize = 5_000;
/// Requests per second at most.
const RATE_MAX: f64 = 500.0;

/// Request rate: `RATE_MAX` at most, and slow enough that no type is requested twice within the run.
pub fn rate(duration: Duration) -> f64 {
    (SUMMARY_TYPES as f64 / duration.as_secs_f64()).min(RATE_MAX)
}

/// Puts the types and their rollups into the store.
pub async fn fill(store_url: &str, now_ms: i64, stop: &Stop) -> anyhow::Result<()> {
    let mut store = PgConnection::connect(store_url).await.context("no Postgres")?;
    let names: Vec<String> = (0..SUMMARY_TYPES).map(summary_type).collect();
    let types: Vec<i32> =
        sqlx::query_scalar("insert into metric_types (name) select unnest($1::text[]) returning id")
            .bind(&names)
            .fetch_all(&mut store)
            .await
            .context("inserting types")?;
    let rollups: Vec<Vec<u8>> = (0..ROLLUPS).map(|number| response_times(number).encode()).collect();
    let today = Resolution::Day.period_of(now_ms);
    // Day by day, as the consumer writes them.
    let keys: Vec<(i32, i32)> =
        (today - DAYS + 1..=today).flat_map(|day| types.iter().map(move |kind| (*kind, day))).collect();
    for (page, keys) in keys.chunks(PAGE).enumerate() {
        stop.check()?;
        let (kinds, days): (Vec<i32>, Vec<i32>) = keys.iter().copied().unzip();
        let data = (page * PAGE..).map(|at| &rollups[at * 7 % rollups.len()]);
        let data: Vec<&[u8]> = data.map(Vec::as_slice).take(keys.len()).collect();
        sqlx::query(
            "insert into rollups (resolution, type, period, data) \
             select $1, type, period, data from unnest($2::int4[], $3::int4[], $4::bytea[]) \
             as row (type, period, data)",
        )
        .bind(Resolution::Day as i16)
        .bind(kinds)
        .bind(days)
        .bind(data)
        .execute(&mut store)
        .await
        .context("inserting rollups")?;
    }
    // Autovacuum would do this after a while, but not in the middle of the measurement.
    store.execute("vacuum analyze metric_types, rollups").await?;
    store.close().await?;
    Ok(())
}

/// Checks a summary; an error when it is not made of what was filled in.
pub fn check(installation: &Installation, number: usize) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct SummaryAnswer {
        count: u64,
    }
    let answer = Client::new(installation.address).get(&summary_path(number))?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 200, "a summary: {} {text}", answer.status);
    let summary: SummaryAnswer = serde_json::from_slice(&answer.body).context("a summary")?;
    // The number of these days in this month depends on today's date.
    let days = summary.count / u64::from(VALUES);
    let is_whole = summary.count.is_multiple_of(u64::from(VALUES));
    ensure!(
        is_whole && (1..=u64::from(DAYS.unsigned_abs())).contains(&days),
        "not the filled-in days: {text}"
    );
    Ok(())
}

/// Response times in milliseconds with one decimal, most of them between 7 and 150, a few far above.
fn response_times(number: u32) -> Rollup {
    let mut rollup = Rollup::default();
    for step in 0..VALUES {
        let spread = (step * ROLLUPS + number).wrapping_mul(2_654_435_761);
        let share = f64::from(spread) / f64::from(u32::MAX);
        let tail = if step % 100 == 0 { 20.0 } else { 1.0 };
        rollup.add(((2.0 + 3.0 * share).exp() * tail * 10.0).round() / 10.0);
    }
    rollup
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_is_asked_twice_within_a_run() {
        for seconds in [1, 8, 20, 30, 600] {
            let duration = Duration::from_secs(seconds);
            let requests = rate(duration) * duration.as_secs_f64();
            assert!(requests <= SUMMARY_TYPES as f64 + 1e-6, "{seconds} s: {requests}");
            assert!(rate(duration) <= RATE_MAX);
        }
    }

    #[test]
    fn filled_in_rollups_have_thousands_of_values_in_many_bins() {
        let rollup = response_times(3);
        assert_eq!(rollup.count(), u64::from(VALUES));
        let bytes = rollup.encode().len();
        assert!((300..1_000).contains(&bytes), "{bytes}");
        assert_ne!(rollup, response_times(4));
    }
}
