//! Keys of keyed writes: the keys of which this transaction is the first to process an item.
use std::collections::HashSet;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{fingerprint, from_ms, item};
use super::failure::PgFailure;
use crate::model::message::Message;
use crate::runtime::clock;
use crate::store::rules::ledger::PrunedKeys;
use crate::store::rules::plan::{self, Earlier};

/// Enters the keys of messages that are new, and returns those that were there before. Another
/// transaction that holds the same key is waited for: it may have been the first.
pub async fn enter(connection: &mut PgConnection, fresh: &[&Message]) -> Result<Earlier, PgFailure> {
    let keys = plan::keys(fresh);
    if keys.is_empty() {
        return Ok(Earlier::new());
    }
    let ids: Vec<Uuid> = keys.keys().map(|id| id.as_uuid()).collect();
    let fingerprints: Vec<&[u8]> = keys.values().map(|entered| &entered.fingerprint.0[..]).collect();
    let accepted: Vec<OffsetDateTime> =
        keys.values().map(|entered| from_ms(entered.accepted_at_ms)).collect();
    let entered = sqlx::query_scalar!(
        "insert into keyed_writes (id, fingerprint, applied_at)
         select id, fingerprint, greatest(clock_timestamp(), accepted_at)
         from unnest($1::uuid[], $2::bytea[], $3::timestamptz[]) as key (id, fingerprint, accepted_at)
         on conflict do nothing
         returning id",
        &ids,
        &fingerprints as &[&[u8]],
        &accepted
    );
    let entered: HashSet<Uuid> = entered.fetch_all(&mut *connection).await?.into_iter().collect();
    let missing: Vec<Uuid> = ids.into_iter().filter(|id| !entered.contains(id)).collect();
    if missing.is_empty() {
        return Ok(Earlier::new());
    }
    let rows = sqlx::query!("select id, fingerprint from keyed_writes where id = any($1)", &missing);
    let rows = rows.fetch_all(connection).await?;
    if rows.len() < missing.len() {
        return Err(PgFailure::Vanished("a key"));
    }
    rows.into_iter().map(|row| Ok((item(row.id)?, fingerprint(&row.fingerprint)?))).collect()
}

/// Position of a key among all, by age.
pub type PgKeyPosition = (OffsetDateTime, Uuid);

/// Looks at `rows_max` keys behind `after` that were entered before `before`, and deletes them, along an
/// index without the keys of documents, which are known by the kind in their bits. Keys with a dead letter
/// stay: it is a subquery, because a join might read all dead letters. They are not met again, so that each
/// call looks at as many keys as it may, even when many are held back: when its dead letter goes, a key
/// is renewed or goes with it.
pub async fn prune(
    connection: &mut PgConnection,
    before: OffsetDateTime,
    after: Option<PgKeyPosition>,
    rows_max: i64,
) -> Result<PrunedKeys<PgKeyPosition>, PgFailure> {
    // After clocks were put back the bound is lower, too, and keys may have been entered behind it.
    let after = after.filter(|(at, _)| *at < before);
    let (after_at, after_id) = after.unwrap_or((OffsetDateTime::UNIX_EPOCH, Uuid::nil()));
    let pruned = sqlx::query!(
        r#"with page as materialized (
               select ctid, id, applied_at from keyed_writes
               where applied_at < $1 and applied_at >= $2 and (applied_at > $2 or id > $3)
                   and get_byte(uuid_send(id), 12) >> 4 <> 10
               order by applied_at, id limit $4),
           gone as (
               delete from keyed_writes where ctid = any(array(
                   select ctid from page
                   where (select id from dead_letters where dead_letters.id = page.id) is null))
               returning id)
           select id, applied_at, (select count(*) from page) as "looked_at!", (select count(*) from gone) as "gone!"
           from page order by applied_at desc, id desc limit 1"#,
        before,
        after_at,
        after_id,
        rows_max
    );
    let Some(pruned) = pruned.fetch_optional(connection).await? else {
        return Ok(PrunedKeys { rows: 0, last: None, more: false });
    };
    Ok(PrunedKeys {
        rows: pruned.gone.unsigned_abs(),
        last: Some((pruned.applied_at, pruned.id)),
        more: pruned.looked_at >= rows_max,
    })
}

/// Renews the keys of dead letters that this transaction applied: without the dead letter only their age
/// keeps them from being pruned. The later of two clocks counts, as one may be behind. No transaction waits
/// for these rows: each belongs to a dead letter that is locked.
pub async fn renew(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), PgFailure> {
    if !ids.is_empty() {
        let renewed = sqlx::query!(
            "update keyed_writes set applied_at = greatest(applied_at, clock_timestamp(), $2) where id = any($1)",
            ids,
            from_ms(clock::now_ms())
        );
        renewed.execute(connection).await?;
    }
    Ok(())
}

/// Deletes the keys of documents that this transaction deleted.
pub async fn forget(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), PgFailure> {
    if !ids.is_empty() {
        sqlx::query!("delete from keyed_writes where id = any($1)", ids).execute(connection).await?;
    }
    Ok(())
}
