//! The statements for `documents` and `document_fields`: the writes of a batch, and pages.
//!
//! A deleted document stays as a row without data, so that its insert, should it come later or again, finds
//! its place taken. Only documents with data have rows in `document_fields`.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::collections::{CompiledDefinition, DefinitionCache};
use super::files::SqliteFailure;
use super::read::item_statuses;
use super::values::{fingerprint_of, json};
use super::{fields, values};
use crate::model::collection::Checker;
use crate::model::id::ItemKey;
use crate::model::outcome::SetAside;
use crate::model::write::Delete;
use crate::store::rules::documents::{self, Elsewhere, NewDocumentRow};
use crate::store::rules::plan::{Plan, PlannedWrite};
use crate::store::{Document, DocumentPage, DocumentsFound, SEARCH_STEPS_MAX, Stored};

const INSERT: (&str, &str) =
    ("insert into documents (collection, place, id, data, accepted_at_ms)", "on conflict do nothing");

/// Deletes documents. The row of a keyed document stands at its own place, that of its deletion at that of
/// the delete. The last value says that no row is made where none is.
pub const ERASE: &str = "insert into documents (collection, place, id, data, accepted_at_ms) \
    select value ->> 0, unhex(value ->> 1), unhex(value ->> 2), null, value ->> 3 \
    from json_each(?1) where not value ->> 4 \
    or exists (select 1 from documents as plain where plain.collection = value ->> 0 \
    and plain.place = unhex(value ->> 1) and plain.id is null) \
    or exists (select 1 from documents as keyed where keyed.collection = value ->> 0 \
    and keyed.id = unhex(value ->> 2)) \
    on conflict (collection, place) do update \
    set data = null, accepted_at_ms = excluded.accepted_at_ms \
    where documents.id is null and documents.data is not null \
    on conflict (collection, id) where id is not null do update \
    set data = null, accepted_at_ms = excluded.accepted_at_ms where documents.data is not null";

pub const DOOMED_PLAIN: &str = "with doomed (collection, place) as materialized \
    (select value ->> 0, unhex(value ->> 1) from json_each(?1)) \
    select documents.collection, documents.place, documents.data from doomed \
    cross join documents on documents.collection = doomed.collection \
    and documents.place = doomed.place \
    where documents.id is null and documents.data is not null";

pub const DOOMED_KEYED: &str = "with doomed (collection, id) as materialized \
    (select value ->> 0, unhex(value ->> 1) from json_each(?1)) \
    select documents.collection, documents.place, documents.data from doomed \
    cross join documents on documents.collection = doomed.collection and documents.id = doomed.id \
    where documents.data is not null";

/// Reads an unkeyed document. A keyed one may stand at the place of the delete that deleted it.
pub const PLAIN: &str = "select place, id, data, accepted_at_ms, null from documents \
    where collection = ?1 and place = ?2 and id is null";

pub const KEYED: &str = "select documents.place, documents.id, documents.data, \
    documents.accepted_at_ms, keyed.fingerprint from documents \
    left join keyed_writes as keyed on keyed.id = documents.id \
    where documents.collection = ?1 and documents.id = ?2";

pub const PAGE: &str = "select documents.place, documents.id, documents.data, \
    documents.accepted_at_ms, keyed.fingerprint from documents \
    left join keyed_writes as keyed on keyed.id = documents.id \
    where documents.collection = ?1 and documents.place < ?2 and documents.place >= ?4 \
    and documents.data is not null \
    order by documents.place desc limit ?3";

/// Leaps along the indexes of all filters at once: each step asks the next filter for its last place at or
/// before the one reached. A document is found when all filters in a row agree on a place. So the rarest
/// filter decides how many steps there are. A search that stops has decided a place.
pub const SEARCH: &str = "with recursive walk (step, place, agreed, found, passed) as ( \
    select 0, ?2, json_array_length(?4), 0, null \
    union all \
    select step + 1, next.place, iif(next.place = walk.place, agreed + 1, 1), \
    found + (iif(next.place = walk.place, agreed + 1, 1) = json_array_length(?4)), \
    iif(next.place < walk.place, walk.place, passed) \
    from walk cross join document_fields as next on next.collection = ?1 \
    and next.field = ?4 ->> ('$[' || (step % json_array_length(?4)) || '][0]') \
    and next.value = ?4 ->> ('$[' || (step % json_array_length(?4)) || '][1]') \
    and next.place = (select place from document_fields as last where last.collection = ?1 \
    and last.field = ?4 ->> ('$[' || (walk.step % json_array_length(?4)) || '][0]') \
    and last.value = ?4 ->> ('$[' || (walk.step % json_array_length(?4)) || '][1]') \
    and last.place <= walk.place and last.place >= ?6 and (last.place < walk.place or walk.agreed < json_array_length(?4)) \
    order by last.place desc limit 1) \
    where found < ?3 and step < ?5) \
    select walk.place, documents.id, documents.data, documents.accepted_at_ms, keyed.fingerprint, \
    iif(walk.agreed = json_array_length(?4), walk.place, walk.passed), walk.step >= ?5 from walk \
    left join documents on walk.agreed = json_array_length(?4) and documents.collection = ?1 \
    and documents.place = walk.place and documents.data is not null \
    left join keyed_writes as keyed on keyed.id = documents.id \
    where walk.step > 0 and (walk.agreed = json_array_length(?4) or walk.step >= ?5)";

/// Writes documents, then deletes, then fields; returns what was set aside.
pub async fn apply(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    plan: &Plan<'_>,
) -> Result<Vec<SetAside>, SqliteFailure> {
    let erased = plan.deletes.iter().map(|task| &*task.write.collection);
    let names: BTreeSet<&str> = documents::collections(&plan.documents).into_iter().chain(erased).collect();
    let known = cache.load(connection, &names.into_iter().collect::<Vec<_>>()).await?;
    let checker =
        |(name, known): (&String, &Arc<CompiledDefinition>)| (name.clone(), Arc::clone(&known.checker));
    let checkers: HashMap<String, Arc<Checker>> = known.iter().map(checker).collect();
    let rows =
        documents::rows(&plan.documents, &checkers, &cache.checks).map_err(SqliteFailure::Unchecked)?;
    values::insert(connection, INSERT, 5, &rows.documents, |query, row: &NewDocumentRow<'_>| {
        query.bind(row.collection).bind(row.place).bind(row.id).bind(row.data).bind(row.accepted_at_ms)
    })
    .await?;
    erase(connection, &known, &Elsewhere::new(&rows, &plan.own), &plan.deletes).await?;
    fields::index(connection, &rows.fields).await?;
    Ok(rows.set_aside)
}

async fn erase(
    connection: &mut SqliteConnection,
    known: &HashMap<String, Arc<CompiledDefinition>>,
    elsewhere: &Elsewhere<'_>,
    deletes: &[PlannedWrite<'_, Delete>],
) -> Result<(), SqliteFailure> {
    if deletes.is_empty() {
        return Ok(());
    }
    // Each document once, sorted.
    let doomed: BTreeMap<(&str, ItemKey), &PlannedWrite<'_, Delete>> =
        deletes.iter().map(|task| ((&*task.write.collection, task.write.document), task)).collect();
    let indexed = |keyed: bool| -> Vec<_> {
        let wanted = doomed.keys().filter(|(name, id)| known[*name].has_indexes && id.is_keyed() == keyed);
        wanted.map(|(name, id)| (*name, id.as_uuid().simple())).collect()
    };
    for (statement, doomed) in [(DOOMED_PLAIN, indexed(false)), (DOOMED_KEYED, indexed(true))] {
        if doomed.is_empty() {
            continue;
        }
        let mut fields = Vec::new();
        {
            // One after the other: all documents of a batch of deletes may be too much to hold.
            let mut rows = sqlx::query(statement).bind(json(&doomed)).fetch(&mut *connection);
            while let Some(row) = rows.try_next().await? {
                let (name, place, data) = (row.try_get::<&str, _>(0)?, row.try_get(1)?, row.try_get(2)?);
                if let Some((name, known)) = known.get_key_value(name) {
                    fields.extend(fields::fields_of(&known.checker, name, place, data));
                }
            }
        }
        fields::forget(connection, &fields).await?;
    }
    let documents: Vec<ItemKey> = doomed.keys().map(|(_, document)| *document).collect();
    let statuses = item_statuses(connection, &documents).await?;
    let rows = doomed.iter().zip(statuses).map(|(((name, id), task), status)| {
        let is_elsewhere = elsewhere.holds(*id, status.as_ref());
        let (place, id) =
            if id.is_keyed() { (task.place(), Some(id.as_uuid())) } else { (id.as_uuid(), None) };
        (*name, place.simple(), id.map(Uuid::simple), task.message.accepted_at_ms, is_elsewhere)
    });
    let rows: Vec<_> = rows.collect();
    sqlx::query(ERASE).bind(json(&rows)).execute(connection).await?;
    Ok(())
}

pub async fn one(
    connection: &mut SqliteConnection,
    collection: String,
    id: ItemKey,
) -> Result<Option<Stored>, SqliteFailure> {
    let statement = if id.is_keyed() { KEYED } else { PLAIN };
    let row = sqlx::query(statement).bind(collection).bind(id.as_uuid()).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    let is_deleted = row.try_get::<Option<&str>, _>(2)?.is_none();
    Ok(Some(if is_deleted { Stored::Deleted } else { Stored::Document(document_of(&row)?) }))
}

pub async fn page(
    connection: &mut SqliteConnection,
    page: DocumentPage,
) -> Result<DocumentsFound, SqliteFailure> {
    let (from, before) = (page.from.unwrap_or(Uuid::nil()), page.before.unwrap_or(Uuid::max()));
    if page.filters.is_empty() {
        let rows = sqlx::query(PAGE).bind(page.collection).bind(before).bind(page.limit).bind(from);
        let rows = rows.fetch_all(connection).await?;
        let documents = rows.iter().map(document_of).collect::<Result<_, _>>()?;
        return Ok(DocumentsFound { documents, stopped_at: None });
    }
    let search = sqlx::query(SEARCH).bind(page.collection).bind(before).bind(page.limit);
    let mut steps = search.bind(json(&page.filters)).bind(SEARCH_STEPS_MAX).bind(from).fetch(connection);
    let mut found = DocumentsFound::default();
    while let Some(step) = steps.try_next().await? {
        if step.try_get::<Option<&str>, _>(2)?.is_some() {
            found.documents.push(document_of(&step)?);
        }
        let is_full = found.documents.len() >= page.limit as usize;
        found.stopped_at = if step.try_get(6)? && !is_full { Some(step.try_get(5)?) } else { None };
    }
    Ok(found)
}

fn document_of(row: &SqliteRow) -> Result<Document, sqlx::Error> {
    let place: Uuid = row.try_get(0)?;
    let id = row.try_get::<Option<Uuid>, _>(1)?.unwrap_or(place);
    let unknown = || sqlx::Error::Decode(format!("{id} is not the key of an item").into());
    Ok(Document {
        id: ItemKey::from_uuid(id).ok_or_else(unknown)?,
        place,
        data: row.try_get(2)?,
        accepted_at_ms: row.try_get(3)?,
        fingerprint: row.try_get::<Option<Vec<u8>>, _>(4)?.map(fingerprint_of).transpose()?,
    })
}
