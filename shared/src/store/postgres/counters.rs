//! Increments: one merged addition per counter, or one by one on locked rows.
//!
//! The second way is for batches in which a value might leave its range; the first says when that is so.
//! Counters come last in the transaction, because their rows are the hottest.
use std::collections::HashMap;

use sqlx::PgConnection;

use super::failure::PgFailure;
use super::read::CounterRow;
use crate::model::outcome::{Applied, Counter};
use crate::model::write::Increment;
use crate::store::rules::plan::PlannedWrite;
use crate::store::rules::sums::{self, CounterState, Folded};

/// Adds merged sums; [`PgFailure::Overflow`] when only the exact path can say which increments are applied.
pub async fn add_merged(
    connection: &mut PgConnection,
    increments: &[PlannedWrite<'_, Increment>],
) -> Result<Applied, PgFailure> {
    if increments.is_empty() {
        return Ok(Applied::default());
    }
    let sums = sums::sum_increments(increments).map_err(|sums::Overflow| PgFailure::Overflow)?;
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
    let rows = rows.fetch_all(connection).await.map_err(PgFailure::from);
    let rows = match rows {
        Err(failure) if failure.is_out_of_range() => return Err(PgFailure::Overflow),
        rows => rows?,
    };
    let sum_of: HashMap<&str, _> = sums.iter().map(|sum| (sum.name, sum)).collect();
    if !rows.iter().all(|row| sum_of[&*row.name].stayed_in_range(row.value)) {
        return Err(PgFailure::Overflow);
    }
    let counters: Vec<_> = rows.into_iter().map(Counter::from).collect();
    let standings = sums::counter_results(&counters, &sums, increments);
    Ok(Applied { counters, standings, ..Applied::default() })
}

/// Adds increments in their order; sets exactly those aside that overflow at their turn.
pub async fn add_one_by_one(
    connection: &mut PgConnection,
    increments: &[PlannedWrite<'_, Increment>],
) -> Result<Applied, PgFailure> {
    let names = sums::names(increments);
    // Creates missing rows and locks all of them in one sorted statement, as the merged path does: two
    // statements, one to create and one to lock, could meet it in the opposite order.
    let current = sqlx::query!(
        "insert into counters as counter (name, value, version, updated_at)
         select name, 0, 0, clock_timestamp() from unnest($1::text[]) as touched (name)
         on conflict (name) do update set value = counter.value
         returning name, value, version",
        &names as &[&str]
    );
    let current = current.fetch_all(&mut *connection).await?.into_iter();
    let current: HashMap<_, _> =
        current.map(|row| (row.name, CounterState { value: row.value, version: row.version })).collect();
    let folded = sums::fold_increments(&current, increments);
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
    let counters = rows.into_iter().map(Counter::from).collect();
    let Folded { standings, set_aside, .. } = folded;
    Ok(Applied { counters, standings, set_aside, ..Applied::default() })
}
