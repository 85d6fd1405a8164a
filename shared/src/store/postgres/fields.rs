//! The index over members of documents: rows that are written and removed with their documents,
//! and the pages in which documents that were there before a definition are indexed.
use std::collections::HashSet;
use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::collections::{self, CompiledDefinitions};
use super::failure::PgFailure;
use super::known::KnownState;
use super::session::begin;
use crate::model::collection::Checker;
use crate::store::rules::documents::FieldRow;

/// Maxima of documents and, roughly, of their bytes that one call of [`index_page`] reads.
const PAGE_DOCUMENTS_MAX: i64 = 2_000;
pub const PAGE_BYTES_MAX: i64 = 8 << 20;
/// Maximum of rows that one call of [`index_page`] removes.
const PAGE_ROWS_MAX: i64 = 10_000;
/// Maximum of fields that one call of [`prune_dropped`] looks at.
const DROPPED_MAX: i64 = 100;

/// Returns the index rows of a stored document. A document that cannot be indexed any more was stored by
/// another definition: it stays, and no filter finds it.
pub fn rows_of<'a>(collection: &'a str, place: Uuid, data: &str, checker: &Checker) -> Vec<FieldRow<'a>> {
    let values = checker.index_values(data).unwrap_or_default();
    let row = |(field, value): (&str, String)| FieldRow { collection, field: field.to_owned(), value, place };
    values.into_iter().map(row).collect()
}

/// Arrays of a statement, from rows sorted by their key.
struct Columns<'a> {
    collections: Vec<&'a str>,
    fields: Vec<&'a str>,
    values: Vec<&'a str>,
    places: Vec<Uuid>,
}

impl<'a> Columns<'a> {
    fn of(rows: impl IntoIterator<Item = &'a FieldRow<'a>>) -> Self {
        let mut columns =
            Self { collections: Vec::new(), fields: Vec::new(), values: Vec::new(), places: Vec::new() };
        for FieldRow { collection, field, value, place } in rows {
            columns.collections.push(collection);
            columns.fields.push(field);
            columns.values.push(value);
            columns.places.push(*place);
        }
        columns
    }
}

/// Inserts the rows, sorted, of documents that this transaction inserted or holds.
pub async fn insert<'a>(
    connection: &mut PgConnection,
    rows: impl IntoIterator<Item = &'a FieldRow<'a>>,
) -> Result<(), PgFailure> {
    let columns = Columns::of(rows);
    if columns.places.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into document_fields (collection, field, value, place)
         select collection, field, value, place
         from unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) as row (collection, field, value, place)
         on conflict do nothing",
        &columns.collections as &[&str],
        &columns.fields as &[&str],
        &columns.values as &[&str],
        &columns.places
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the rows of documents that this transaction holds.
pub async fn remove(connection: &mut PgConnection, rows: &[FieldRow<'_>]) -> Result<(), PgFailure> {
    if rows.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(rows);
    sqlx::query!(
        "delete from document_fields as row
         using unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) as gone (collection, field, value, place)
         where row.collection = gone.collection and row.field = gone.field
             and row.value = gone.value and row.place = gone.place",
        &columns.collections as &[&str],
        &columns.fields as &[&str],
        &columns.values as &[&str],
        &columns.places
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Indexes the next documents of a collection, from the newest to the oldest; then removes the rows of fields
/// that it does not index any more. One page in a transaction of its own; `false` when none is left.
pub async fn index_page(
    connection: &mut PgConnection,
    known: Arc<KnownState>,
    name: String,
) -> Result<bool, PgFailure> {
    let mut transaction = begin(connection).await?;
    // No transaction deletes a document between its read and the insert of its rows.
    collections::hold_for_deletes(&mut transaction).await?;
    let row = sqlx::query!("select index_before from collections where name = $1 for update", name);
    let is_unfinished = match row.fetch_optional(&mut *transaction).await? {
        None => false,
        Some(row) => match row.index_before {
            Some(before) => {
                index_before(&mut transaction, &known.compiled, &name, before).await?;
                true
            }
            None => prune_dropped(&mut transaction, Some(&name), PAGE_ROWS_MAX).await? > 0,
        },
    };
    transaction.commit().await?;
    Ok(is_unfinished)
}

/// Indexes the next documents before a place, and notes the place reached.
async fn index_before(
    connection: &mut PgConnection,
    compiled: &CompiledDefinitions,
    name: &str,
    before: Uuid,
) -> Result<(), PgFailure> {
    let found = compiled.load(connection, &[name]).await?;
    let checker = &found.checkers[name];
    let page = page(connection, name, before).await?;
    let mut rows = Vec::new();
    for (place, data) in &page {
        rows.extend(data.iter().flat_map(|data| rows_of(name, *place, data, checker)));
    }
    rows.sort_unstable();
    insert(connection, &rows).await?;
    let next = match page.last() {
        Some((last, _)) if has_documents_before(connection, name, *last).await? => Some(*last),
        _ => None,
    };
    sqlx::query!("update collections set index_before = $2 where name = $1", name, next)
        .execute(connection)
        .await?;
    Ok(())
}

/// Reads places and data, newest first; of large documents fewer, but at least one.
async fn page(
    connection: &mut PgConnection,
    name: &str,
    before: Uuid,
) -> Result<Vec<(Uuid, Option<String>)>, PgFailure> {
    let rows = sqlx::query!(
        r#"select place as "place!", data from (
               select place, data, coalesce(sum(octet_length(data)) over (
                   order by place desc rows between unbounded preceding and 1 preceding), 0) as bytes_before
               from (select place, data from documents where collection = $1 and place < $2
                     order by place desc limit $3) as next
           ) as page
           where bytes_before < $4::int8 order by place desc"#,
        name,
        before,
        PAGE_DOCUMENTS_MAX,
        PAGE_BYTES_MAX
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.place, row.data)).collect())
}

async fn has_documents_before(
    connection: &mut PgConnection,
    name: &str,
    place: Uuid,
) -> Result<bool, PgFailure> {
    let has = sqlx::query_scalar!(
        r#"select exists (select from documents where collection = $1 and place < $2) as "has!""#,
        name,
        place
    );
    Ok(has.fetch_one(connection).await?)
}

/// Deletes rows of fields that no definition indexes any more, of one collection or of all, `rows_max` at
/// most, within a transaction that holds the definitions. Fields are found by stepping through the primary
/// key from one to the next, without reading the rows between.
pub async fn prune_dropped(
    connection: &mut PgConnection,
    collection: Option<&str>,
    rows_max: i64,
) -> Result<u64, PgFailure> {
    let dropped = sqlx::query!(
        r#"with recursive pair as (
               (select collection, field from document_fields
                where collection >= coalesce($1, '') order by collection, field limit 1)
               union all
               select next.collection, next.field from pair cross join lateral (
                   select collection, field from document_fields
                   where (collection, field) > (pair.collection, pair.field)
                   order by collection, field limit 1
               ) as next
               where pair.collection = $1 or $1 is null
           )
           select pair.collection as "collection!", pair.field as "field!" from pair
           left join collections on collections.name = pair.collection
           where pair.field <> all(coalesce(collections.indexed, '{}')) and (pair.collection = $1 or $1 is null)
           limit $2"#,
        collection,
        DROPPED_MAX
    );
    let mut deleted = 0;
    for pair in dropped.fetch_all(&mut *connection).await? {
        let left = rows_max.saturating_sub_unsigned(deleted);
        if left <= 0 {
            break;
        }
        let rows = sqlx::query!(
            "delete from document_fields where ctid = any(array(
                 select ctid from document_fields where collection = $1 and field = $2 limit $3))",
            pair.collection,
            pair.field,
            left
        );
        deleted += rows.execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Returns the rows of documents among `places`.
pub fn of_places<'r, 'a>(
    rows: &'r [FieldRow<'a>],
    places: &'r HashSet<Uuid>,
) -> impl Iterator<Item = &'r FieldRow<'a>> {
    rows.iter().filter(|row| places.contains(&row.place))
}
