//! Writes of clients: the items of a message, and the rules that make one valid.
//!
//! The API checks items with these functions before it accepts them, and the consumer checks them again,
//! because a message may come from another producer. Nothing here knows HTTP or SQL.
use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::model::id::{ItemKey, Kind};
use crate::model::idempotency::{Keyed, item_key};

/// Longest name of a counter, collection or metric type in bytes.
pub const NAME_LENGTH_MAX: usize = 128;

/// Largest magnitude of a point's value: sums of more points than anybody can send stay finite.
pub const VALUE_MAX: f64 = 1e290;

/// Year of 365.25 days, in milliseconds.
pub const YEAR_MS: i64 = 31_557_600_000;

/// Years before its accept time that a point may lie, whatever an API allows: back to 1970 and not further,
/// where questions about ranges begin.
pub const POINT_YEARS_MAX: u32 = 50;

/// [`POINT_YEARS_MAX`] in milliseconds.
pub const POINT_AGE_MS_MAX: i64 = POINT_YEARS_MAX as i64 * YEAR_MS;

/// Time after its accept time that a point may lie, in milliseconds: one hour.
pub const POINT_AHEAD_MS_MAX: i64 = 60 * 60 * 1_000;

/// Tolerance for the time of a message's point, in milliseconds: the API checks it when it reads it, and
/// `accepted_at` is when its batch was opened, which is another moment.
pub const POINT_TOLERANCE_MS: i64 = 60 * 1_000;

/// One item of a message: the request and, with an Idempotency-Key, its identity. As JSON
/// `{"increment":{…}}` or `{"increment":{…},"keyed":{…}}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub write: Write,
    pub keyed: Option<Keyed>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Increment(Increment),
    Document(Document),
    Delete(Delete),
    Point(Point),
}

/// Adds `by` to a counter, which begins at 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Increment {
    /// Shared, because a request names it once for many.
    pub counter: Arc<str>,
    pub by: i64,
}

/// Stores `data` in a collection. `schema_version` is that of the definition which the API checked it
/// against; `None` when the API could not ask: then the consumer checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub collection: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<i64>,
    pub data: Object,
}

/// Takes a document out of its collection, whether it has come or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    pub collection: Box<str>,
    /// Key of the document, without its check.
    #[serde(with = "item_key")]
    pub document: ItemKey,
}

/// Measurement. `kind` is the `type` of the API; `at_ms` is the client's time in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    #[serde(rename = "type")]
    pub kind: Box<str>,
    pub at_ms: i64,
    pub value: f64,
}

/// JSON object as the client wrote it.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Object(Box<RawValue>);

impl Object {
    /// Object of a text; `None` when the text is no JSON object.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().and_then(Self::from_raw)
    }

    /// Object of a value; `None` when the value is no object.
    pub fn from_raw(value: &RawValue) -> Option<Self> {
        value.get().starts_with('{').then(|| Self(value.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Object {}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().starts_with('{') { Ok(Self(raw)) } else { Err(D::Error::custom("not an object")) }
    }
}

impl Write {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Increment(_) => Kind::Increment,
            Self::Document(_) => Kind::Document,
            Self::Delete(_) => Kind::Delete,
            Self::Point(_) => Kind::Point,
        }
    }

    /// Approximate length as an item of a message, in bytes.
    pub fn length_hint(&self) -> usize {
        const AROUND: usize = 64;
        AROUND
            + match self {
                Self::Increment(increment) => increment.counter.len(),
                Self::Document(document) => document.collection.len() + document.data.as_str().len(),
                Self::Delete(delete) => delete.collection.len(),
                Self::Point(point) => point.kind.len(),
            }
    }
}

impl Item {
    pub fn kind(&self) -> Kind {
        self.write.kind()
    }

    /// Checks the rules that every consumer applies, whichever way the item came into a message that was
    /// accepted at that time.
    pub fn check(&self, accepted_at_ms: i64) -> Result<(), Invalid> {
        if self.keyed.is_some_and(|keyed| !keyed.id.is_keyed() || keyed.id.kind() != Some(self.kind())) {
            return Err(Invalid::Keyed);
        }
        match &self.write {
            Write::Increment(increment) => check_name(&increment.counter)?,
            Write::Document(document) => check_name(&document.collection)?,
            Write::Delete(delete) if delete.document.kind() != Some(Kind::Document) => {
                return Err(Invalid::NoDocument);
            }
            Write::Delete(delete) => check_name(&delete.collection)?,
            Write::Point(point) => {
                check_name(&point.kind)?;
                check_value(point.value)?;
                check_distance(point.at_ms, accepted_at_ms, POINT_YEARS_MAX, POINT_TOLERANCE_MS)?;
            }
        }
        Ok(())
    }
}

/// Checks a name of a counter, collection or type: `[A-Za-z0-9._:-]{1,128}`, case-sensitive.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Invalid::Name)
    }
}

/// Checks the value of a point.
pub fn check_value(value: f64) -> Result<(), Invalid> {
    // NaN compares false.
    if value.abs() <= VALUE_MAX { Ok(()) } else { Err(Invalid::Value) }
}

/// Checks the time of a point against the time when it was accepted.
pub fn check_time(at_ms: i64, accepted_at_ms: i64, years_max: u32) -> Result<(), Invalid> {
    check_distance(at_ms, accepted_at_ms, years_max, 0)
}

fn check_distance(at_ms: i64, accepted_at_ms: i64, years_max: u32, tolerance_ms: i64) -> Result<(), Invalid> {
    let ahead_ms = at_ms.saturating_sub(accepted_at_ms);
    let age_ms_max = i64::from(years_max) * YEAR_MS;
    let allowed = -age_ms_max - tolerance_ms..=POINT_AHEAD_MS_MAX + tolerance_ms;
    if allowed.contains(&ahead_ms) { Ok(()) } else { Err(Invalid::Time(years_max)) }
}

/// Reasons for which an item cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("a name has 1 to {NAME_LENGTH_MAX} characters out of A-Z a-z 0-9 . _ : -")]
    Name,
    #[error("a value is a number from -{VALUE_MAX:e} to {VALUE_MAX:e}")]
    Value,
    #[error("a timestamp lies between {0} years before and one hour after it is accepted")]
    Time(u32),
    #[error("only documents can be deleted")]
    NoDocument,
    #[error("its id is not that of a keyed item of its kind")]
    Keyed,
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + usize::from(self.keyed.is_some())))?;
        let kind = self.kind().name();
        match &self.write {
            Write::Increment(increment) => map.serialize_entry(kind, increment)?,
            Write::Document(document) => map.serialize_entry(kind, document)?,
            Write::Delete(delete) => map.serialize_entry(kind, delete)?,
            Write::Point(point) => map.serialize_entry(kind, point)?,
        }
        if let Some(keyed) = &self.keyed {
            map.serialize_entry("keyed", keyed)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

/// Reader written by hand: a derived reader of a tag beside another member would copy every item first.
struct ItemVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Member {
    Increment,
    Document,
    Delete,
    Point,
    Keyed,
}

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an item: an object with one member that is named like its kind")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let (mut write, mut keyed) = (None, None);
        while let Some(member) = map.next_key()? {
            let read = match member {
                Member::Increment => Write::Increment(map.next_value()?),
                Member::Document => Write::Document(map.next_value()?),
                Member::Delete => Write::Delete(map.next_value()?),
                Member::Point => Write::Point(map.next_value()?),
                Member::Keyed if keyed.is_none() => {
                    keyed = Some(map.next_value()?);
                    continue;
                }
                Member::Keyed => return Err(A::Error::duplicate_field("keyed")),
            };
            if write.replace(read).is_some() {
                return Err(A::Error::custom("more than one kind"));
            }
        }
        Ok(Item { write: write.ok_or_else(|| A::Error::custom("no kind"))?, keyed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::idempotency;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "A-Z.a_z:0", &"x".repeat(128)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\0", "a\n", &"x".repeat(129)] {
            assert_eq!(check_name(bad), Err(Invalid::Name), "{bad}");
        }
    }

    #[test]
    fn values_are_finite_with_room_for_sums_and_times_are_near() {
        for good in [0.0, -0.0, 1e290, -1e290, f64::MIN_POSITIVE / 2.0] {
            assert_eq!(check_value(good), Ok(()), "{good}");
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0001e290, f64::MAX] {
            assert_eq!(check_value(bad), Err(Invalid::Value), "{bad}");
        }
        let now_ms = 1_763_600_000_000;
        for good in [now_ms, now_ms - POINT_AGE_MS_MAX, now_ms + POINT_AHEAD_MS_MAX] {
            assert_eq!(check_time(good, now_ms, 50), Ok(()), "{good}");
        }
        assert_eq!(check_time(now_ms - YEAR_MS, now_ms, 1), Ok(()));
        assert_eq!(check_time(now_ms - YEAR_MS - 1, now_ms, 1), Err(Invalid::Time(1)));
        let at_the_edge = |at_ms| {
            let write = Write::Point(Point { kind: "t".into(), at_ms, value: 1.0 });
            Item { write, keyed: None }.check(now_ms)
        };
        assert_eq!(at_the_edge(now_ms + POINT_AHEAD_MS_MAX + POINT_TOLERANCE_MS), Ok(()));
        assert_eq!(at_the_edge(now_ms - POINT_AGE_MS_MAX - POINT_TOLERANCE_MS - 1), Err(Invalid::Time(50)));
        for bad in [now_ms - POINT_AGE_MS_MAX - 1, now_ms + POINT_AHEAD_MS_MAX + 1, i64::MIN, i64::MAX] {
            assert_eq!(check_time(bad, now_ms, 50), Err(Invalid::Time(50)), "{bad}");
        }
    }

    #[test]
    fn every_kind_of_item_is_read_as_it_was_written() {
        let document = idempotency::id_of("p", Kind::Document, "k", 0);
        let collection: Box<str> = "c".into();
        let data = Object::from_json(r#"{ "a" : 1.0e0, "a\u0000":[]}"#).expect("an object");
        let point = Point { kind: "t".into(), at_ms: 5, value: -0.1 };
        for write in [
            Write::Increment(Increment { counter: "a".into(), by: i64::MIN }),
            Write::Document(Document { collection: collection.clone(), schema_version: Some(3), data }),
            Write::Delete(Delete { collection, document }),
            Write::Point(point),
        ] {
            let id = idempotency::id_of("p", write.kind(), "k", 0);
            let keyed = Keyed { id, fingerprint: idempotency::fingerprint_of("POST", "a", "{}") };
            for keyed in [None, Some(keyed)] {
                let item = Item { write: write.clone(), keyed };
                let json = serde_json::to_string(&item).expect("serialises");
                assert_eq!(serde_json::from_str::<Item>(&json).expect("reads"), item, "{json}");
                assert_eq!(item.check(5), Ok(()));
            }
        }
    }

    #[test]
    fn an_item_has_exactly_one_kind_and_nothing_unknown() {
        for bad in [
            "{}",
            r#"{"later":{}}"#,
            r#"{"increment":{"counter":"a","by":1},"later":1}"#,
            r#"{"increment":{"counter":"a","by":1},"increment":{"counter":"a","by":1}}"#,
            r#"{"increment":{"counter":"a","by":1},"point":{"type":"a","at_ms":1,"value":1}}"#,
            r#"{"increment":{"counter":"a","by":1,"more":1}}"#,
            r#"{"document":{"collection":"c","data":[]}}"#,
            r#"{"delete":{"collection":"c","document":"00000000-0000-0000-0000-000000000000"}}"#,
        ] {
            assert!(serde_json::from_str::<Item>(bad).is_err(), "{bad}");
        }
        let other_kind = Keyed {
            id: idempotency::id_of("p", Kind::Point, "k", 0),
            fingerprint: idempotency::fingerprint_of("POST", "a", "{}"),
        };
        let write = Write::Increment(Increment { counter: "a".into(), by: 1 });
        assert_eq!(Item { write, keyed: Some(other_kind) }.check(0), Err(Invalid::Keyed));
    }
}
