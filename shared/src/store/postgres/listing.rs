//! Reads of documents: one by its id, and pages of a collection.
//!
//! Pages are read along an index and end at their limit. The planner must not see a chance to sort
//! or to read a table from its beginning: `pages_of_documents_are_read_along_their_keys`.
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{fingerprint, item, to_ms};
use super::failure::PgFailure;
use crate::model::id::ItemKey;
use crate::store::{Document, DocumentPage, DocumentsFound, SEARCH_STEPS_MAX, Stored};

/// A row of `documents` with what `keyed_writes` holds of it.
struct DocumentRow {
    place: Uuid,
    id: Option<Uuid>,
    data: Option<String>,
    accepted_at: OffsetDateTime,
    fingerprint: Option<Vec<u8>>,
}

impl DocumentRow {
    fn read(self) -> Result<Stored, PgFailure> {
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
    collection: String,
    id: ItemKey,
) -> Result<Option<Stored>, PgFailure> {
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
        // The row under the place of a keyed document is not found by that place.
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
pub async fn page(
    connection: &mut PgConnection,
    page: DocumentPage,
    search_time_max: Duration,
) -> Result<DocumentsFound, PgFailure> {
    if !page.filters.is_empty() {
        return search(connection, &page, search_time_max).await;
    }
    let rows = sqlx::query_as!(
        DocumentRow,
        r#"select place, document.id, data, accepted_at,
               (select fingerprint from keyed_writes where id = document.id) as fingerprint
           from documents as document
           where collection = $1 and place < $2 and place >= $4 and data is not null
           order by place desc limit $3"#,
        page.collection,
        page.before.unwrap_or(Uuid::max()),
        i64::from(page.limit),
        page.from.unwrap_or(Uuid::nil())
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let documents = rows.filter_map(|row| row.read().map(Stored::into_document).transpose());
    Ok(DocumentsFound { documents: documents.collect::<Result<_, _>>()?, stopped_at: None })
}

/// A step of the search that found a document, or at which it stopped.
struct SearchStep {
    place: Uuid,
    id: Option<Uuid>,
    data: Option<String>,
    accepted_at: Option<OffsetDateTime>,
    fingerprint: Option<Vec<u8>>,
    decided: Uuid,
    is_stopped: bool,
}

/// Leaps along the indexes of all filters at once: each step asks the next filter for its last place at or
/// before the one reached. A document is found when all filters in a row agree on a place. So the rarest
/// filter decides how many steps there are.
///
/// A search that stops has decided at least one place, which takes as many steps as there are filters.
async fn search(
    connection: &mut PgConnection,
    page: &DocumentPage,
    time_max: Duration,
) -> Result<DocumentsFound, PgFailure> {
    let (fields, values): (Vec<&str>, Vec<&str>) =
        page.filters.iter().map(|(field, value)| (&**field, &**value)).unzip();
    let steps = sqlx::query_as!(
        SearchStep,
        r#"with recursive walk as (
               select 0 as step, $4::uuid as place, cardinality($2::text[]) as agreed, 0 as found,
                      null::uuid as passed, false as is_stopped
               union all
               select walk.step + 1, next.place, agreed.filters,
                      walk.found + (agreed.filters = cardinality($2::text[]))::int4,
                      case when next.place < walk.place then walk.place else walk.passed end,
                      walk.step + 1 >= cardinality($2::text[]) and (walk.step + 1 >= $6
                          or clock_timestamp() >= statement_timestamp() + $7 * interval '1 ms')
               from walk
               cross join lateral (
                   select place from document_fields
                   where collection = $1
                       and field = ($2::text[])[walk.step % cardinality($2::text[]) + 1]
                       and value = ($3::text[])[walk.step % cardinality($2::text[]) + 1]
                       and place <= walk.place and place >= $8
                       and (place < walk.place or walk.agreed < cardinality($2::text[]))
                   order by place desc limit 1
               ) as next
               cross join lateral (
                   select case when next.place = walk.place then walk.agreed + 1 else 1 end as filters
               ) as agreed
               where not walk.is_stopped and walk.found < $5
           )
           select walk.place as "place!", document.id as "id?", document.data as "data?",
                  document.accepted_at as "accepted_at?",
                  (select fingerprint from keyed_writes where id = document.id) as "fingerprint?",
                  case when walk.agreed = cardinality($2::text[]) then walk.place else walk.passed end as "decided!",
                  walk.is_stopped as "is_stopped!"
           from walk left join lateral (
               select id, data, accepted_at from documents
               where walk.agreed = cardinality($2::text[])
                   and collection = $1 and place = walk.place and data is not null
               limit 1
           ) as document on true
           where walk.step > 0 and (walk.agreed = cardinality($2::text[]) or walk.is_stopped)"#,
        page.collection,
        &fields as &[&str],
        &values as &[&str],
        page.before.unwrap_or(Uuid::max()),
        i32::try_from(page.limit).unwrap_or(i32::MAX),
        SEARCH_STEPS_MAX,
        time_max.as_secs_f64() * 1_000.0,
        page.from.unwrap_or(Uuid::nil())
    );
    let mut found = DocumentsFound::default();
    for step in steps.fetch_all(connection).await? {
        let SearchStep { place, id, data, accepted_at, fingerprint, decided, is_stopped } = step;
        if let Some(accepted_at) = accepted_at {
            let row = DocumentRow { place, id, data, accepted_at, fingerprint };
            found.documents.extend(row.read()?.into_document());
        }
        let is_full = found.documents.len() >= page.limit as usize;
        found.stopped_at = (is_stopped && !is_full).then_some(decided);
    }
    Ok(found)
}
