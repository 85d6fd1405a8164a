//! The statements for `keyed_writes`: the new keys of a batch.
use std::collections::{HashMap, HashSet};

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;
use uuid::fmt::Simple;

use super::files::SqliteFailure;
use super::values::{fingerprint_of, json};
use crate::model::id::ItemKey;
use crate::model::message::Message;
use crate::store::rules::ledger::PrunedKeys;
use crate::store::rules::plan::{self, Earlier, KeyEntry};

pub const ENTER: &str = "insert into keyed_writes (id, fingerprint, applied_at_ms) \
    select unhex(value ->> 0), unhex(value ->> 1), max(?2, value ->> 2) from json_each(?1) where true \
    on conflict do nothing returning id";

pub const EARLIER: &str = "select id, fingerprint from keyed_writes \
    where id in (select unhex(value) from json_each(?1))";

pub const FORGET: &str = "delete from keyed_writes where id in (select unhex(value) from json_each(?1))";

/// Renews keys when their dead letters go: from then on only their age keeps them from being pruned.
pub const RENEW: &str = "update keyed_writes set applied_at_ms = max(applied_at_ms, ?2) \
    where id in (select unhex(value) from json_each(?1))";

/// Reads keys behind a position, by age, and whether a dead letter holds them back. Keys of documents are
/// left to their documents.
pub const PAGE: &str = "select applied_at_ms, id, \
    exists (select 1 from dead_letters where dead_letters.id = keyed_writes.id) from keyed_writes \
    where (applied_at_ms, id) > (?1, ?2) and applied_at_ms < ?3 and substr(hex(id), 25, 1) <> 'A' \
    order by applied_at_ms, id limit ?4";

/// Position of a key among all, by age.
pub type SqliteKeyPosition = (i64, Uuid);

/// Looks at `rows_max` keys behind `after` that were entered before `before_ms`, and deletes them. Keys with
/// a dead letter stay and are not met again, so that each call looks at as many keys as it may, even when
/// many are held back: when its dead letter goes, a key is renewed or goes with it.
pub async fn prune(
    connection: &mut SqliteConnection,
    before_ms: i64,
    after: Option<SqliteKeyPosition>,
    rows_max: u32,
) -> Result<PrunedKeys<SqliteKeyPosition>, SqliteFailure> {
    // As on Postgres: the bound may have gone back.
    let after = after.filter(|(at_ms, _)| *at_ms < before_ms);
    let (after_ms, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
    let page = sqlx::query_as(PAGE).bind(after_ms).bind(after_id).bind(before_ms).bind(rows_max);
    let page: Vec<(i64, Uuid, bool)> = page.fetch_all(&mut *connection).await?;
    let free: Vec<Uuid> = page.iter().filter(|(.., is_held)| !is_held).map(|(_, id, _)| *id).collect();
    forget(connection, &free).await?;
    let last = page.last().map(|(at_ms, id, _)| (*at_ms, *id));
    Ok(PrunedKeys { rows: free.len() as u64, last, more: page.len() >= rows_max as usize })
}

/// Deletes the keys of items that this transaction deleted; ids without a key are passed over.
pub async fn forget(connection: &mut SqliteConnection, ids: &[Uuid]) -> Result<(), SqliteFailure> {
    if !ids.is_empty() {
        let ids: Vec<_> = ids.iter().map(|id| id.simple()).collect();
        sqlx::query(FORGET).bind(json(&ids)).execute(connection).await?;
    }
    Ok(())
}

fn row(id: ItemKey, entered: &KeyEntry) -> (Simple, String, i64) {
    (id.as_uuid().simple(), entered.fingerprint.to_string(), entered.accepted_at_ms)
}

/// Enters the keys of new messages and returns those that were there before.
pub async fn enter(
    connection: &mut SqliteConnection,
    fresh: &[&Message],
    now_ms: i64,
) -> Result<Earlier, SqliteFailure> {
    let keys = plan::keys(fresh);
    if keys.is_empty() {
        return Ok(Earlier::new());
    }
    let rows: Vec<_> = keys.iter().map(|(id, entered)| row(*id, entered)).collect();
    let entered = sqlx::query(ENTER).bind(json(&rows)).bind(now_ms).fetch_all(&mut *connection).await?;
    let entered: HashSet<Uuid> = entered.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let known: Vec<_> = keys.keys().filter(|id| !entered.contains(&id.as_uuid())).collect();
    if known.is_empty() {
        return Ok(Earlier::new());
    }
    let ids: Vec<_> = known.iter().map(|id| id.as_uuid().simple()).collect();
    let rows = sqlx::query_as::<_, (Uuid, Vec<u8>)>(EARLIER).bind(json(&ids)).fetch_all(connection).await?;
    let known_as = |(id, bytes)| Ok((id, fingerprint_of(bytes)?));
    let fingerprints = rows.into_iter().map(known_as).collect::<Result<HashMap<_, _>, sqlx::Error>>()?;
    Ok(known.into_iter().filter_map(|id| Some((*id, *fingerprints.get(&id.as_uuid())?))).collect())
}
