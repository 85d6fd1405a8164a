//! Reads of documents: one by its id, and pages of a collection.
//!
//! Pages are read along an index and end at their limit. The planner must not see a chance to sort
//! or to read a table from its beginning: `pages_of_documents_are_read_along_their_keys`.
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::failure::Failure;
use super::keys::{fingerprint, item};
use super::read::to_ms;
use crate::id::ItemKey;
use crate::store::{Document, DocumentPage, Stored};

/// A row of `documents` with what `keyed_writes` holds of it.
struct DocumentRow {
    place: Uuid,
    id: Option<Uuid>,
    data: Option<String>,
    accepted_at: OffsetDateTime,
    fingerprint: Option<Vec<u8>>,
}

impl DocumentRow {
    fn read(self) -> Result<Stored, Failure> {
        let Some(data) = self.data else { return Ok(Stored::Deleted) };
        Ok(Stored::Document(Document {
            id: item(self.id.unwrap_or(self.place))?,
            place: self.place,
            data,
            accepted_at_ms: to_ms(self.accepted_at),
            fingerprint: self.fingerprint.map(|bytes| fingerprint(&bytes)).transpose()?,
        }))
    }
}

pub async fn document(
    connection: &mut PgConnection,
    collection: &str,
    id: ItemKey,
) -> Result<Option<Stored>, Failure> {
    let row = if id.is_keyed() {
        let row = sqlx::query_as!(
            DocumentRow,
            r#"select place, document.id, data, accepted_at, fingerprint as "fingerprint?"
               from documents as document left join keyed_writes on keyed_writes.id = document.id
               where collection = $1 and document.id = $2"#,
            collection,
            id.as_uuid()
        );
        row.fetch_optional(connection).await?
    } else {
        // What stands under the place of a keyed document is not found by that.
        let row = sqlx::query_as!(
            DocumentRow,
            r#"select place, id, data, accepted_at, null::bytea as "fingerprint?"
               from documents where collection = $1 and place = $2 and id is null"#,
            collection,
            id.as_uuid()
        );
        row.fetch_optional(connection).await?
    };
    row.map(DocumentRow::read).transpose()
}

/// Documents that are not deleted, newest first.
pub async fn page(connection: &mut PgConnection, page: &DocumentPage) -> Result<Vec<Document>, Failure> {
    let before = page.before.unwrap_or(Uuid::max());
    let limit = i64::from(page.limit);
    let rows = match &page.filters[..] {
        [] => {
            let rows = sqlx::query_as!(
                DocumentRow,
                r#"select place, document.id, data, accepted_at,
                       (select fingerprint from keyed_writes where id = document.id) as fingerprint
                   from documents as document
                   where collection = $1 and place < $2 and data is not null
                   order by place desc limit $3"#,
                page.collection,
                before,
                limit
            );
            rows.fetch_all(connection).await?
        }
        [(field, value), others @ ..] => {
            let (fields, values): (Vec<&str>, Vec<&str>) =
                others.iter().map(|(field, value)| (&**field, &**value)).unzip();
            // Subqueries instead of joins: they are looked up row by row, in the order of the first.
            let rows = sqlx::query_as!(
                DocumentRow,
                r#"select document.place, document.id, document.data, document.accepted_at,
                       (select fingerprint from keyed_writes where id = document.id) as fingerprint
                   from document_fields as first
                   cross join lateral (
                       select place, id, data, accepted_at from documents
                       where collection = first.collection and place = first.place and data is not null
                       limit 1
                   ) as document
                   where first.collection = $1 and first.field = $2 and first.value = $3 and first.place < $4
                       and coalesce((
                           select bool_and(exists (
                               select from document_fields as other
                               where other.collection = $1 and other.field = filter.field
                                   and other.value = filter.value and other.place = first.place
                           )) from unnest($5::text[], $6::text[]) as filter (field, value)
                       ), true)
                   order by first.place desc limit $7"#,
                page.collection,
                field,
                value,
                before,
                &fields as &[&str],
                &values as &[&str],
                limit
            );
            rows.fetch_all(connection).await?
        }
    };
    let read = |row: DocumentRow| match row.read() {
        Ok(Stored::Document(document)) => Some(Ok(document)),
        Ok(Stored::Deleted) => None,
        Err(failure) => Some(Err(failure)),
    };
    rows.into_iter().filter_map(read).collect()
}
