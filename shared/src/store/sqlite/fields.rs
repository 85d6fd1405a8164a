//! The index over members of documents: rows that are written and removed with their documents, and the rows
//! of documents that were there before their definition.
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::collections::{DefinitionCache, read};
use super::files::SqliteFailure;
use super::values::json;
use crate::model::collection::Checker;
use crate::store::rules::documents::FieldRow;

pub const NEXT: &str = "select place, data from documents \
    where collection = ?1 and place < ?2 order by place desc limit ?3";

pub const INDEXED_TO: &str = "update collections set index_before = ?2 where name = ?1";

/// Maximum of documents that one call indexes: other writes wait meanwhile.
const PAGE_ROWS_MAX: u32 = 500;

/// Bytes of documents after which a call of [`index_page`] ends.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// Indexes the next documents, by descending place; `false` when there are no more.
pub async fn index_page(
    connection: &mut SqliteConnection,
    cache: Arc<DefinitionCache>,
    name: String,
) -> Result<bool, SqliteFailure> {
    let Some(before) = read(connection, &name).await?.index_before else { return Ok(false) };
    let known = cache.load(connection, &[&name]).await?;
    let checker = &known[&name].checker;
    let (mut last, mut fields) = (None, Vec::new());
    let (mut rows, mut bytes) = (0, 0);
    {
        let mut documents =
            sqlx::query(NEXT).bind(&name).bind(before).bind(PAGE_ROWS_MAX).fetch(&mut *connection);
        while bytes < PAGE_BYTES_MAX
            && let Some(row) = documents.try_next().await?
        {
            let place: Uuid = row.try_get(0)?;
            (last, rows) = (Some(place), rows + 1);
            if let Some(data) = row.try_get::<Option<&str>, _>(1)? {
                bytes += data.len();
                fields.extend(fields_of(checker, &name, place, data));
            }
        }
    }
    index(connection, &fields).await?;
    let index_before = last.filter(|_| rows == PAGE_ROWS_MAX || bytes >= PAGE_BYTES_MAX);
    sqlx::query(INDEXED_TO).bind(&name).bind(index_before).execute(connection).await?;
    Ok(index_before.is_some())
}

/// Inserts index rows of documents that are there, and were not deleted in the same transaction.
pub const INDEX: &str = "insert into document_fields (collection, field, value, place) \
    with entry (collection, field, value, place) as materialized \
    (select value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3) from json_each(?1)) \
    select entry.collection, entry.field, entry.value, entry.place from entry \
    cross join documents on documents.collection = entry.collection \
    and documents.place = entry.place \
    where documents.data is not null on conflict do nothing";

pub const FORGET: &str = "delete from document_fields where (collection, field, value, place) in \
    (select value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3) from json_each(?1))";

/// Returns the index rows of a stored document; none for a document that cannot be read.
pub fn fields_of<'a>(checker: &Checker, name: &'a str, place: Uuid, data: &str) -> Vec<FieldRow<'a>> {
    let values = checker.index_values(data).unwrap_or_default();
    let row =
        |(field, value): (&str, String)| FieldRow { collection: name, field: field.to_owned(), value, place };
    values.into_iter().map(row).collect()
}

fn field_json(fields: &[FieldRow<'_>]) -> String {
    let row = |row: &FieldRow<'_>| {
        serde_json::json!([row.collection, row.field, row.value, row.place.simple().to_string()])
    };
    json(&fields.iter().map(row).collect::<Vec<_>>())
}

pub async fn index(connection: &mut SqliteConnection, fields: &[FieldRow<'_>]) -> Result<(), SqliteFailure> {
    if !fields.is_empty() {
        sqlx::query(INDEX).bind(field_json(fields)).execute(connection).await?;
    }
    Ok(())
}

pub async fn forget(connection: &mut SqliteConnection, fields: &[FieldRow<'_>]) -> Result<(), SqliteFailure> {
    if !fields.is_empty() {
        sqlx::query(FORGET).bind(field_json(fields)).execute(connection).await?;
    }
    Ok(())
}
