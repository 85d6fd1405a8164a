//! Documents of a batch: inserts and deletes.
//!
//! A delete leaves a tombstone, even before its document has come, and an insert does nothing where a row is:
//! so both orders end the same (`a_delete_that_overtakes_its_insert_wins`).
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::collections::{self, LoadedDefinitions};
use super::columns::from_ms;
use super::failure::PgFailure;
use super::known::KnownState;
use super::{fields, ledger, read};
use crate::model::id::ItemKey;
use crate::model::outcome::Applied;
use crate::model::write::Delete;
use crate::store::rules::documents::{self, Elsewhere, FieldRow, NewDocumentRow};
use crate::store::rules::plan::{Plan, PlannedWrite};

/// Writes documents and deletes; returns what was set aside and what was deleted.
pub async fn write(
    connection: &mut PgConnection,
    known: &KnownState,
    plan: &Plan<'_>,
) -> Result<Applied, PgFailure> {
    let names: BTreeSet<&str> = documents::collections(&plan.documents)
        .into_iter()
        .chain(plan.deletes.iter().map(|task| &*task.write.collection))
        .collect();
    if names.is_empty() {
        return Ok(Applied::default());
    }
    if plan.deletes.is_empty() {
        collections::hold(connection).await?;
    } else {
        collections::hold_for_deletes(connection).await?;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let found = known.compiled.load(connection, &names).await?;
    let rows =
        documents::rows(&plan.documents, &found.checkers, &known.checks).map_err(PgFailure::Unchecked)?;
    ledger::insert_dead_letters(connection, &rows.set_aside).await?;
    let inserted = insert(connection, &rows.documents).await?;
    fields::insert(connection, fields::of_places(&rows.fields, &inserted)).await?;
    let elsewhere = Elsewhere::new(&rows, &plan.own);
    let deleted = delete(connection, &found, &elsewhere, &plan.deletes).await?;
    Ok(Applied { set_aside: rows.set_aside, deleted, ..Applied::default() })
}

/// Inserts documents; returns the places of those that had no row and no tombstone. First unkeyed documents,
/// by their place, then keyed documents, by their id, each in sorted order, as [`delete`] does.
async fn insert(
    connection: &mut PgConnection,
    rows: &[NewDocumentRow<'_>],
) -> Result<HashSet<Uuid>, PgFailure> {
    let (mut keyed, unkeyed): (Vec<&NewDocumentRow<'_>>, Vec<&NewDocumentRow<'_>>) =
        rows.iter().partition(|row| row.id.is_some());
    keyed.sort_unstable_by_key(|row| (row.collection, row.id));
    let mut inserted = HashSet::with_capacity(rows.len());
    for rows in [unkeyed, keyed].iter().filter(|rows| !rows.is_empty()) {
        let collections: Vec<&str> = rows.iter().map(|row| row.collection).collect();
        let places: Vec<Uuid> = rows.iter().map(|row| row.place).collect();
        let ids: Vec<Option<Uuid>> = rows.iter().map(|row| row.id).collect();
        let data: Vec<&str> = rows.iter().map(|row| row.data).collect();
        let accepted: Vec<OffsetDateTime> = rows.iter().map(|row| from_ms(row.accepted_at_ms)).collect();
        // No conflict is named: any row under the place or the id wins.
        let places = sqlx::query_scalar!(
            "insert into documents (collection, place, id, data, accepted_at)
             select collection, place, id, data, accepted_at
             from unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[])
                  as row (collection, place, id, data, accepted_at)
             on conflict do nothing
             returning place",
            &collections as &[&str],
            &places,
            &ids as &[Option<Uuid>],
            &data as &[&str],
            &accepted
        );
        inserted.extend(places.fetch_all(&mut *connection).await?);
    }
    Ok(inserted)
}

/// Tombstones to insert, from deletes sorted by the place or id of their documents.
#[derive(Default)]
struct Tombstones<'a> {
    collections: Vec<&'a str>,
    places: Vec<Uuid>,
    ids: Vec<Uuid>,
    accepted: Vec<OffsetDateTime>,
}

impl<'a> Tombstones<'a> {
    fn of<'t>(deletes: impl Iterator<Item = &'t PlannedWrite<'a, Delete>>) -> Self
    where
        'a: 't,
    {
        let mut tombstones = Self::default();
        for task in deletes {
            let id = task.write.document.as_uuid();
            tombstones.collections.push(&task.write.collection);
            tombstones.places.push(if task.write.document.is_keyed() { task.place() } else { id });
            tombstones.ids.push(id);
            tombstones.accepted.push(from_ms(task.message.accepted_at_ms));
        }
        tombstones
    }
}

/// A document that is about to lose its data.
pub struct Live {
    pub collection: String,
    pub place: Uuid,
    pub bytes: i32,
}

/// A tombstone that was inserted, as no row was there.
struct Fresh {
    collection: String,
    place: Uuid,
    document: ItemKey,
}

/// Rows that deletions found or inserted.
#[derive(Default)]
struct Entombed {
    live: Vec<Live>,
    fresh: Vec<Fresh>,
}

/// A row that was locked or inserted: collection, place, and the length of its data.
type Touched = (String, Uuid, Option<i32>);

impl Entombed {
    fn absorb(&mut self, tombstones: &Tombstones<'_>, touched: Vec<Touched>) {
        let ids: HashMap<(&str, Uuid), Uuid> = tombstones
            .collections
            .iter()
            .zip(&tombstones.places)
            .zip(&tombstones.ids)
            .map(|((collection, place), id)| ((*collection, *place), *id))
            .collect();
        for (collection, place, bytes) in touched {
            if let Some(bytes) = bytes {
                self.live.push(Live { collection, place, bytes });
            } else if let Some(document) =
                ids.get(&(&*collection, place)).copied().and_then(ItemKey::from_uuid)
            {
                self.fresh.push(Fresh { collection, place, document });
            }
        }
    }
}

/// Takes back the tombstones of documents that cannot come any more. A transaction that inserts one of them
/// waits for the tombstone, and so is not committed when their statuses are read.
async fn withdraw(
    connection: &mut PgConnection,
    elsewhere: &Elsewhere<'_>,
    fresh: Vec<Fresh>,
) -> Result<(), PgFailure> {
    if fresh.is_empty() {
        return Ok(());
    }
    let documents: Vec<ItemKey> = fresh.iter().map(|fresh| fresh.document).collect();
    let statuses = read::item_statuses(connection, &documents).await?;
    let (mut collections, mut places) = (Vec::new(), Vec::new());
    for (fresh, status) in fresh.into_iter().zip(statuses) {
        if elsewhere.holds(fresh.document, status.as_ref()) {
            collections.push(fresh.collection);
            places.push(fresh.place);
        }
    }
    if !places.is_empty() {
        let gone = sqlx::query!(
            "delete from documents as document using unnest($1::text[], $2::uuid[]) as gone (collection, place)
             where document.collection = gone.collection and document.place = gone.place
                 and document.data is null",
            &collections,
            &places
        );
        gone.execute(connection).await?;
    }
    Ok(())
}

/// Deletes documents; returns their keys, each once.
async fn delete(
    connection: &mut PgConnection,
    found: &LoadedDefinitions,
    elsewhere: &Elsewhere<'_>,
    deletes: &[PlannedWrite<'_, Delete>],
) -> Result<Vec<ItemKey>, PgFailure> {
    let mut first: BTreeMap<(&str, ItemKey), &PlannedWrite<'_, Delete>> = BTreeMap::new();
    for task in deletes {
        first.entry((&task.write.collection, task.write.document)).or_insert(task);
    }
    let (keyed, unkeyed): (Vec<_>, Vec<_>) = first.values().partition(|task| task.write.document.is_keyed());
    let mut entombed = Entombed::default();
    if !unkeyed.is_empty() {
        let tombstones = Tombstones::of(unkeyed.into_iter().copied());
        entombed.absorb(&tombstones, entomb(connection, &tombstones).await?);
    }
    if !keyed.is_empty() {
        let tombstones = Tombstones::of(keyed.into_iter().copied());
        entombed.absorb(&tombstones, entomb_keyed(connection, &tombstones).await?);
    }
    withdraw(connection, elsewhere, entombed.fresh).await?;
    clear(connection, found, &entombed.live).await?;
    let gone: BTreeSet<ItemKey> = first.keys().map(|(_, document)| *document).collect();
    Ok(gone.into_iter().collect())
}

/// Inserts tombstones, and locks the documents that have data; returns both. The row of a keyed document is
/// no document under its place.
async fn entomb(
    connection: &mut PgConnection,
    tombstones: &Tombstones<'_>,
) -> Result<Vec<Touched>, PgFailure> {
    let rows = sqlx::query!(
        r#"insert into documents as document (collection, place, accepted_at)
           select collection, place, accepted_at
           from unnest($1::text[], $2::uuid[], $3::timestamptz[]) as tombstone (collection, place, accepted_at)
           on conflict (collection, place) do update set accepted_at = excluded.accepted_at
           where document.data is not null and document.id is null
           returning collection, place, octet_length(data) as "bytes?""#,
        &tombstones.collections as &[&str],
        &tombstones.places,
        &tombstones.accepted
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows.map(|row| (row.collection, row.place, row.bytes)).collect())
}

/// Inserts and locks as [`entomb`] does, by the ids of keyed documents. The place of a tombstone that finds
/// no document is that of its delete, which no document has.
async fn entomb_keyed(
    connection: &mut PgConnection,
    tombstones: &Tombstones<'_>,
) -> Result<Vec<Touched>, PgFailure> {
    let rows = sqlx::query!(
        r#"insert into documents as document (collection, place, id, accepted_at)
           select collection, place, id, accepted_at
           from unnest($1::text[], $2::uuid[], $3::uuid[], $4::timestamptz[])
                as tombstone (collection, place, id, accepted_at)
           on conflict (collection, id) where id is not null do update set accepted_at = excluded.accepted_at
           where document.data is not null
           returning collection, place, octet_length(data) as "bytes?""#,
        &tombstones.collections as &[&str],
        &tombstones.places,
        &tombstones.ids,
        &tombstones.accepted
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows.map(|row| (row.collection, row.place, row.bytes)).collect())
}

/// Takes data and fields from documents that this transaction has locked.
async fn clear(
    connection: &mut PgConnection,
    found: &LoadedDefinitions,
    live: &[Live],
) -> Result<(), PgFailure> {
    if live.is_empty() {
        return Ok(());
    }
    unindex(connection, found, live).await?;
    let collections: Vec<&str> = live.iter().map(|live| &*live.collection).collect();
    let places: Vec<Uuid> = live.iter().map(|live| live.place).collect();
    sqlx::query!(
        "update documents as document set data = null
         from unnest($1::text[], $2::uuid[]) as gone (collection, place)
         where document.collection = gone.collection and document.place = gone.place",
        &collections as &[&str],
        &places
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the fields of documents that this transaction has locked; reads a bounded part of their
/// data at once.
pub async fn unindex(
    connection: &mut PgConnection,
    found: &LoadedDefinitions,
    live: &[Live],
) -> Result<(), PgFailure> {
    let mut rest: Vec<&Live> = live.iter().filter(|live| found.indexed.contains(&live.collection)).collect();
    while !rest.is_empty() {
        let part = rest.split_off(rest.len() - within_page(&rest));
        let collections: Vec<&str> = part.iter().map(|live| &*live.collection).collect();
        let places: Vec<Uuid> = part.iter().map(|live| live.place).collect();
        let read = sqlx::query!(
            r#"select document.collection, document.place, document.data as "data!"
               from unnest($1::text[], $2::uuid[]) as live (collection, place)
               join documents as document
                 on document.collection = live.collection and document.place = live.place
               where document.data is not null"#,
            &collections as &[&str],
            &places
        );
        let read = read.fetch_all(&mut *connection).await?;
        let mut rows: Vec<FieldRow<'_>> = Vec::new();
        for row in &read {
            rows.extend(fields::rows_of(
                &row.collection,
                row.place,
                &row.data,
                &found.checkers[&row.collection],
            ));
        }
        rows.sort_unstable();
        fields::remove(connection, &rows).await?;
    }
    Ok(())
}

/// Returns how many of the last documents are read at once: at least one.
fn within_page(live: &[&Live]) -> usize {
    let mut bytes = 0;
    let fits = |live: &&&Live| {
        let is_first = bytes == 0;
        bytes += i64::from(live.bytes).max(1);
        is_first || bytes <= fields::PAGE_BYTES_MAX
    };
    live.iter().rev().take_while(fits).count()
}
