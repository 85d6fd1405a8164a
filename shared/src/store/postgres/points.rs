//! Points of a batch: the raw rows, and the numbers of their types.
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::from_ms;
use super::failure::PgFailure;
use crate::model::write::Point;
use crate::store::rules::plan::PlannedWrite;

/// Maximum of types remembered. Further types are read in each batch.
const TYPES_MAX: usize = 100_000;

/// Numbers of types by name.
pub type TypeIds = HashMap<Arc<str>, i32>;

/// Types with a row that is known to be committed; rows are never deleted.
#[derive(Debug, Default)]
pub struct KnownTypes {
    ids: Mutex<TypeIds>,
}

impl KnownTypes {
    /// Remembers types. To be called after the commit.
    pub fn remember(&self, types: &TypeIds) {
        let mut known = self.known();
        if types.keys().all(|name| known.contains_key(name)) {
            return;
        }
        if known.len() + types.len() > TYPES_MAX {
            known.clear();
        }
        known.extend(types.iter().take(TYPES_MAX).map(|(name, id)| (Arc::clone(name), *id)));
    }

    fn known(&self) -> MutexGuard<'_, TypeIds> {
        self.ids.lock().expect("no code panics while it holds this lock")
    }
}

/// Returns the types of a batch, with rows for new ones. Most batches ask the server for none.
pub async fn types(
    connection: &mut PgConnection,
    known: &KnownTypes,
    points: &[PlannedWrite<'_, Point>],
) -> Result<TypeIds, PgFailure> {
    let names: BTreeSet<&str> = points.iter().map(|task| &*task.write.kind).collect();
    let mut types = TypeIds::with_capacity(names.len());
    let mut unknown: Vec<&str> = Vec::new();
    {
        let known = known.known();
        for name in names {
            match known.get_key_value(name) {
                Some((name, id)) => drop(types.insert(Arc::clone(name), *id)),
                None => unknown.push(name),
            }
        }
    }
    // Read before they are inserted: each attempt to insert uses up a number.
    types.extend(stored(connection, &unknown).await?);
    unknown.retain(|name| !types.contains_key(*name));
    if unknown.is_empty() {
        return Ok(types);
    }
    sqlx::query!(
        "insert into metric_types (name) select name from unnest($1::text[]) as type (name)
         on conflict do nothing",
        &unknown as &[&str]
    )
    .execute(&mut *connection)
    .await?;
    // Also those that another transaction inserted meanwhile, for which the statement has waited.
    types.extend(stored(connection, &unknown).await?);
    if unknown.iter().any(|name| !types.contains_key(*name)) {
        return Err(PgFailure::Vanished("a metric type"));
    }
    Ok(types)
}

async fn stored(connection: &mut PgConnection, names: &[&str]) -> Result<TypeIds, PgFailure> {
    if names.is_empty() {
        return Ok(TypeIds::new());
    }
    let rows = sqlx::query!("select name, id from metric_types where name = any($1)", names as &[&str]);
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.name.into(), row.id)).collect())
}

/// Inserts the raw rows. Only the ledger keeps them from being inserted twice.
pub async fn insert(
    connection: &mut PgConnection,
    types: &TypeIds,
    points: &[PlannedWrite<'_, Point>],
) -> Result<(), PgFailure> {
    let accepted: Vec<OffsetDateTime> =
        points.iter().map(|task| from_ms(task.message.accepted_at_ms)).collect();
    let ids: Vec<i32> = points.iter().map(|task| types[&*task.write.kind]).collect();
    let times: Vec<OffsetDateTime> = points.iter().map(|task| from_ms(task.write.at_ms)).collect();
    let values: Vec<f64> = points.iter().map(|task| task.write.value).collect();
    sqlx::query!(
        "insert into points (accepted_at, type, at, value)
         select accepted_at, type, at, value
         from unnest($1::timestamptz[], $2::int4[], $3::timestamptz[], $4::float8[])
              as point (accepted_at, type, at, value)",
        &accepted,
        &ids,
        &times,
        &values
    )
    .execute(connection)
    .await?;
    Ok(())
}
