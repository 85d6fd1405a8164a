//! Documents that are older than their retention, and tombstones that are not needed any more: their deletion.
use sqlx::PgConnection;
use uuid::Uuid;

use super::collections::{self, CompiledDefinitions};
use super::columns::from_ms;
use super::days::DAY_MS;
use super::documents::{Live, unindex};
use super::failure::PgFailure;
use super::{fields, keys};
use crate::model::id::MessageId;

/// Maximum of documents that [`prune`] deletes at once.
const PAGE_DOCUMENTS_MAX: i64 = 2_000;

/// Returns the collections that hold documents before the place beside them. Tombstones are not looked at.
pub async fn old(
    connection: &mut PgConnection,
    bounds: Vec<(String, Uuid)>,
) -> Result<Vec<String>, PgFailure> {
    if bounds.is_empty() {
        return Ok(Vec::new());
    }
    let (names, befores): (Vec<String>, Vec<Uuid>) = bounds.into_iter().unzip();
    let rows = sqlx::query_scalar!(
        r#"select bound.collection as "collection!"
           from unnest($1::text[], $2::uuid[]) as bound (collection, before)
           cross join lateral (
               select from documents
               where collection = bound.collection and place < bound.before and data is not null
               order by place limit 1
           ) as old"#,
        &names,
        &befores
    );
    Ok(rows.fetch_all(connection).await?)
}

/// Deletes tombstones of deletes that were accepted before `before_ms`, with their keys, unless a key was
/// entered later. Each kept an insert away that the ledger would have let through; below the floor the ledger
/// lets none through any more. A dead letter of the document may still be redriven: its tombstone stays.
pub async fn prune_deleted(
    connection: &mut PgConnection,
    before_ms: i64,
    floor: MessageId,
    rows_max: i64,
) -> Result<u64, PgFailure> {
    collections::hold_for_deletes(connection).await?;
    let pruned = sqlx::query_scalar!(
        "delete from documents where ctid = any(array(
             select ctid from documents
             where data is null and accepted_at < $1 and place <= $2
                 and (select id from dead_letters
                      where dead_letters.id = coalesce(documents.id, documents.place)) is null
                 and (select id from keyed_writes
                      where keyed_writes.id = documents.id and applied_at >= $1) is null
             order by accepted_at limit $3))
         returning id",
        // An insert is hardly ever younger than its delete: few rows that must stay are walked over.
        from_ms(before_ms),
        floor.last_item(),
        rows_max
    );
    let pruned = pruned.fetch_all(&mut *connection).await?;
    keys::forget(connection, &pruned.iter().flatten().copied().collect::<Vec<_>>()).await?;
    Ok(pruned.len() as u64)
}

/// Deletes documents of a collection that are older than it keeps them, `rows_max` and a page at most, with
/// their fields and keys. Where a key was not entered before `keys_before_ms` a tombstone takes the place of
/// its document, as if a client had deleted it. Tombstones stay, and their keys with them.
pub async fn prune(
    connection: &mut PgConnection,
    compiled: &CompiledDefinitions,
    name: &str,
    now_ms: i64,
    keys_before_ms: i64,
    rows_max: i64,
) -> Result<u64, PgFailure> {
    collections::hold_for_deletes(connection).await?;
    // Only now: the retention may have been lifted while this waited.
    let Some(days) = collections::collection(connection, name.to_owned()).await?.definition.retention_days
    else {
        return Ok(0);
    };
    let before = MessageId::lowest_at(now_ms.saturating_sub(i64::from(days) * DAY_MS));
    let found = compiled.load(connection, &[name]).await?;
    let old = sqlx::query_as!(
        Live,
        r#"select collection as "collection!", place as "place!", bytes as "bytes!" from (
               select collection, place, bytes, coalesce(sum(bytes) over (
                   order by place rows between unbounded preceding and 1 preceding), 0) as bytes_before
               from (select collection, place, octet_length(data) as bytes from documents
                     where collection = $1 and place < $2 and data is not null
                     order by place limit $3) as next
           ) as page
           where bytes_before < $4::int8 order by place"#,
        name,
        before,
        rows_max.min(PAGE_DOCUMENTS_MAX),
        fields::PAGE_BYTES_MAX
    );
    let old = old.fetch_all(&mut *connection).await?;
    unindex(connection, &found, &old).await?;
    let places: Vec<Uuid> = old.iter().map(|old| old.place).collect();
    let entombed = sqlx::query!(
        "update documents set data = null,
             accepted_at = greatest(accepted_at,
                 (select applied_at from keyed_writes where keyed_writes.id = documents.id))
         where collection = $1 and place = any($2)
             and (select id from keyed_writes
                  where keyed_writes.id = documents.id and applied_at >= $3) is not null",
        name,
        &places,
        from_ms(keys_before_ms)
    );
    let entombed = entombed.execute(&mut *connection).await?.rows_affected();
    let deleted = sqlx::query_scalar!(
        "delete from documents where collection = $1 and place = any($2) and data is not null returning id",
        name,
        &places
    );
    let deleted = deleted.fetch_all(&mut *connection).await?;
    let keyed: Vec<Uuid> = deleted.iter().flatten().copied().collect();
    keys::forget(connection, &keyed).await?;
    Ok(entombed + deleted.len() as u64)
}
