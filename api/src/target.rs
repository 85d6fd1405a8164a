//! Target of a write, as answers and receipts name it.
use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use shared::model::dead_letter::DeadLetter;
use shared::model::id::{IdKeys, Kind};
use shared::model::message::{Entry, decode_stored};
use shared::model::write::{Delete, Increment, Point, Write};
use utoipa::ToSchema;

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

    /// Target of a dead-lettered item; `None` when this version cannot read the item.
    pub fn of_letter(letter: &DeadLetter, ids: &IdKeys) -> Option<Self> {
        match decode_stored(&letter.item, letter.accepted_at_ms)? {
            Entry::Item(item) => Some(Self::of(&item.write, ids)),
            Entry::Unreadable { .. } => None,
        }
    }

    /// Returns true when a write of the same request has this target, too. All writes of a request are of one
    /// kind.
    pub fn is_shared_by(&self, write: &Write) -> bool {
        match write {
            Write::Increment(increment) => self.counter.as_deref() == Some(&increment.counter),
            Write::Document(document) => self.collection.as_deref() == Some(&document.collection),
            Write::Delete(_) => false,
            Write::Point(point) => self.kind.as_deref() == Some(&point.kind),
        }
    }

    /// Path that shows the outcome of a write of that kind, up to its id.
    pub fn path(&self, kind: Kind) -> Cow<'static, str> {
        match &self.collection {
            Some(collection) if kind == Kind::Document => format!("/v1/data/{collection}/").into(),
            _ => "/v1/receipts/".into(),
        }
    }

    /// JSON as serde writes it. By hand, because it is part of every 202; names and ids need no escapes.
    pub fn to_json(&self) -> String {
        let Self { counter, collection, document, kind } = self;
        match (counter, collection, document, kind) {
            (Some(counter), ..) => [r#"{"counter":""#, counter, r#""}"#].concat(),
            (_, Some(collection), None, _) => [r#"{"collection":""#, collection, r#""}"#].concat(),
            (_, Some(collection), Some(document), _) => {
                [r#"{"collection":""#, collection, r#"","document":""#, document, r#""}"#].concat()
            }
            (.., Some(kind)) => [r#"{"type":""#, kind, r#""}"#].concat(),
            (None, None, _, None) => "{}".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::model::id::IdIssuer;
    use shared::model::write::{Document, Object};

    use super::*;

    #[test]
    fn a_target_is_written_as_serde_writes_it() {
        let ids = IdKeys::new(&["a secret"]);
        let document = IdIssuer::new(1, 1).next(5).item(Kind::Document, 0);
        let data = Object::from_json("{}").expect("an object");
        for write in [
            Write::Increment(Increment { counter: "a".into(), by: 1 }),
            Write::Document(Document { collection: "b".into(), schema_version: None, data }),
            Write::Delete(Delete { collection: "c".into(), document }),
            Write::Point(Point { kind: "d".into(), at_ms: 0, value: 1.0 }),
        ] {
            let target = Target::of(&write, &ids);
            assert_eq!(target.to_json(), serde_json::to_string(&target).expect("JSON"), "{write:?}");
        }
    }
}
