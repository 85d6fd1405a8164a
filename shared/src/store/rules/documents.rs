//! Effects of a batch on documents, without a database: the rows that are stored, their index entries, and
//! the documents that violate the definition of their collection. Pure, for both stores.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use uuid::Uuid;

use super::checks::{Checks, Unchecked};
use super::plan::{OwnWrites, PlannedWrite};
use crate::model::collection::{Checker, Violation};
use crate::model::id::ItemKey;
use crate::model::outcome::{ItemStatus, Reason, SetAside};
use crate::model::write::Document;

/// The definitions that the transaction found, one for each of [`collections`].
pub type Checkers<S> = HashMap<String, Arc<Checker>, S>;

/// Maximum of bytes of compiled definitions that a store keeps; beyond, all are forgotten.
pub const KNOWN_BYTES_MAX: usize = 32 << 20;

/// A row of `documents`.
#[derive(Clone, Copy, Debug)]
pub struct NewDocumentRow<'a> {
    pub collection: &'a str,
    pub place: Uuid,
    /// Id of a keyed document; the others are found by their place.
    pub id: Option<Uuid>,
    pub data: &'a str,
    pub accepted_at_ms: i64,
}

/// A row of `document_fields`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldRow<'a> {
    pub collection: &'a str,
    pub field: String,
    pub value: String,
    pub place: Uuid,
}

/// Rows that a batch writes, sorted by their keys, and the documents that need a check.
#[derive(Debug, Default)]
pub struct Rows<'a> {
    pub documents: Vec<NewDocumentRow<'a>>,
    pub fields: Vec<FieldRow<'a>>,
    pub set_aside: Vec<SetAside>,
}

/// Documents that cannot come into the collection of a deletion that finds nothing there: such a deletion
/// leaves no tombstone.
pub struct Elsewhere<'p> {
    /// Documents that this transaction stores.
    stored: HashSet<Uuid>,
    own: &'p OwnWrites,
}

impl<'p> Elsewhere<'p> {
    pub fn new(rows: &Rows<'_>, own: &'p OwnWrites) -> Self {
        Self { stored: rows.documents.iter().map(|row| row.id.unwrap_or(row.place)).collect(), own }
    }

    /// Returns true for a document that cannot come. `status` is read in the transaction. A document that was
    /// processed before is stored, was stored, or lies below the floor. A document that was set aside may be
    /// redriven.
    pub fn holds(&self, document: ItemKey, status: Option<&ItemStatus>) -> bool {
        let was_processed = matches!(status, Some(ItemStatus::Applied { .. } | ItemStatus::Forgotten));
        self.stored.contains(&document.as_uuid()) || (was_processed && !self.own.holds(document))
    }
}

/// The collections that a batch writes to, sorted, each once.
pub fn collections<'a>(documents: &[PlannedWrite<'a, Document>]) -> Vec<&'a str> {
    let distinct: BTreeSet<&str> = documents.iter().map(|task| &*task.write.collection).collect();
    distinct.into_iter().collect()
}

/// Builds the rows of a batch. Documents that the API checked by another definition, or by none, need a
/// verdict; `Err` names those without one.
pub fn rows<'a>(
    documents: &[PlannedWrite<'a, Document>],
    checkers: &Checkers<impl BuildHasher>,
    checks: &Checks,
) -> Result<Rows<'a>, Vec<Unchecked>> {
    let (mut rows, mut unchecked) = (Rows::default(), Vec::new());
    for task in documents {
        let Document { collection, schema_version, data } = task.write;
        let (collection, data) = (&**collection, data.as_str());
        let checker = &checkers[collection];
        let is_checked = *schema_version == Some(checker.version);
        if !is_checked && let Some(unusable) = checker.unusable() {
            let detail = format!("version {}: {}: {unusable}", checker.version, unusable.pointer);
            rows.set_aside.push(task.set_aside(Reason::DefinitionUnusable, &detail));
            continue;
        }
        let takes_all = is_checked || checker.takes_all();
        let known = || checks.verdict(collection, checker.version, data);
        let Some(verdict) = takes_all.then_some(Ok(())).or_else(known) else {
            let (collection, checker) = (collection.to_owned(), Arc::clone(checker));
            unchecked.push(Unchecked { collection, checker, data: data.to_owned() });
            continue;
        };
        let unindexable = |violation: Violation| (Reason::SchemaViolation, violation.to_string());
        match verdict.and_then(|()| checker.index_values(data).map_err(unindexable)) {
            Ok(values) => {
                let place = task.place();
                let id = task.is_keyed().then(|| task.item().as_uuid());
                let accepted_at_ms = task.message.accepted_at_ms;
                rows.documents.push(NewDocumentRow { collection, place, id, data, accepted_at_ms });
                let field = |(field, value): (&str, String)| FieldRow {
                    collection,
                    field: field.to_owned(),
                    value,
                    place,
                };
                rows.fields.extend(values.into_iter().map(field));
            }
            Err((reason, detail)) => rows.set_aside.push(task.set_aside(reason, &detail)),
        }
    }
    if !unchecked.is_empty() {
        return Err(unchecked);
    }
    rows.documents.sort_unstable_by_key(|row| (row.collection, row.place));
    rows.fields.sort_unstable();
    Ok(rows)
}
