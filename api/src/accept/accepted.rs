//! Answers to writes that are durable, and what a write is about, as they and receipts name it.
use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use shared::id::{IdKeys, Kind};
use shared::keyed::Fingerprint;
use shared::message::{Entry, decode_stored};
use shared::store::DeadLetter;
use shared::write::{Delete, Increment, Point, Write};
use utoipa::ToSchema;

use crate::problem::Rejected;

/// Answer to a single write.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// Names the write in receipts.
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d20000a41")]
    pub id: String,
    /// `accepted`, or `applied`: a retry of what is known to have taken effect.
    #[schema(example = "accepted")]
    pub status: &'static str,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    pub target: Target,
}

/// Answer to an array or NDJSON body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ManyAccepted {
    /// How many items were accepted.
    pub accepted: usize,
    /// Their ids, in the order of the request.
    pub ids: Vec<String>,
    /// Beside `ids`, where items have a key: the fingerprint of each that has one, for `?payload=` of
    /// its receipt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<Option<String>>>)]
    pub payloads: Vec<Option<Fingerprint>>,
    /// The target of all accepted items; left out where points have several types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The items that were not, by their position in the request.
    pub rejected: Vec<Rejected>,
}

/// The counter of an increment, the collection of a document, collection and document of a deletion, or the
/// type of a point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"counter": "page-views"}))]
pub struct Target {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    counter: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    collection: Option<Box<str>>,
    /// The id of the document that is to be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    kind: Option<Box<str>>,
}

impl Target {
    pub fn of(write: &Write, ids: &IdKeys) -> Self {
        let none = Self::default();
        match write {
            Write::Increment(Increment { counter, .. }) => Self { counter: Some(counter.clone()), ..none },
            Write::Document(document) => Self { collection: Some(document.collection.clone()), ..none },
            Write::Delete(Delete { collection, document }) => {
                let document = Some(ids.sign(*document).to_string());
                Self { collection: Some(collection.clone()), document, ..none }
            }
            Write::Point(Point { kind, .. }) => Self { kind: Some(kind.clone()), ..none },
        }
    }

    /// Target of an item that was set aside; `None` where this version cannot read the item.
    pub fn of_letter(letter: &DeadLetter, ids: &IdKeys) -> Option<Self> {
        match decode_stored(&letter.item, letter.accepted_at_ms)? {
            Entry::Item(item) => Some(Self::of(&item.write, ids)),
            Entry::Unreadable { .. } => None,
        }
    }

    /// Whether a write of the same request has it, too: all are of one kind.
    pub fn is_shared_by(&self, write: &Write) -> bool {
        match write {
            Write::Increment(increment) => self.counter.as_deref() == Some(&increment.counter),
            Write::Document(document) => self.collection.as_deref() == Some(&document.collection),
            Write::Delete(_) => false,
            Write::Point(point) => self.kind.as_deref() == Some(&point.kind),
        }
    }

    /// Path that shows what became of a write of that kind, up to its id.
    pub fn path(&self, kind: Kind) -> Cow<'static, str> {
        match &self.collection {
            Some(collection) if kind == Kind::Document => format!("/v1/data/{collection}/").into(),
            _ => "/v1/receipts/".into(),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names have a JSON form")
    }
}
