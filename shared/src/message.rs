//! The queue message: many items of many requests in one body, versioned.
//!
//! The API's batcher builds messages, the consumer decodes them. `docs/messages.md` describes the
//! format for other programs; a change that an older consumer would misread needs a new version.
use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::id::{ITEMS_PER_MESSAGE_MAX, ItemKey, Kind, MessageId};
use crate::write::Item;

/// The version of the format that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Bytes of a message around its items, at most.
pub const ENVELOPE_BYTES_MAX: usize = 128;

/// A message as it travels: its id beside the body that repeats it.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub id: MessageId,
    pub body: Bytes,
    pub items: usize,
}

/// A body under construction. Items are JSON, already encoded by the requests they belong to.
#[derive(Debug)]
pub struct Builder {
    id: MessageId,
    accepted_at_ms: i64,
    body: Vec<u8>,
    items: usize,
}

impl Builder {
    pub fn new(id: MessageId, accepted_at_ms: i64) -> Self {
        let header = format!(r#"{{"v":{VERSION},"id":"{id}","accepted_at_ms":{accepted_at_ms},"items":["#);
        Self { id, accepted_at_ms, body: header.into_bytes(), items: 0 }
    }

    /// Appends `count` items, encoded and separated by commas; returns the index of the first.
    pub fn push(&mut self, encoded: &[u8], count: usize) -> usize {
        debug_assert!(count > 0 && self.items + count <= ITEMS_PER_MESSAGE_MAX);
        if self.items > 0 {
            self.body.push(b',');
        }
        self.body.extend_from_slice(encoded);
        let first = self.items;
        self.items += count;
        first
    }

    pub fn id(&self) -> MessageId {
        self.id
    }

    pub fn accepted_at_ms(&self) -> i64 {
        self.accepted_at_ms
    }

    pub fn items(&self) -> usize {
        self.items
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    pub fn finish(mut self) -> Outgoing {
        self.body.extend_from_slice(b"]}");
        Outgoing { id: self.id, body: self.body.into(), items: self.items }
    }
}

/// Appends `{"increment":{"counter":…,"by":…}}`. The name must be valid, which makes it its own
/// JSON spelling.
pub fn encode_increment(out: &mut Vec<u8>, counter: &str, by: i64) {
    debug_assert!(crate::write::check_name(counter).is_ok());
    out.extend_from_slice(br#"{"increment":{"counter":""#);
    out.extend_from_slice(counter.as_bytes());
    out.extend_from_slice(br#"","by":"#);
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(by).as_bytes());
    out.extend_from_slice(b"}}");
}

/// A decoded message. `digest` is over the whole body: the same id with another digest is a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    pub digest: [u8; 16],
    pub accepted_at_ms: i64,
    pub entries: Vec<Entry>,
}

/// What stands at one index of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Item(Item),
    /// Cannot be applied by this build, whatever the store says; set aside as it came.
    Unreadable {
        kind: Kind,
        json: Box<str>,
        detail: String,
    },
}

impl Message {
    /// The key of the item at `index`.
    pub fn item_key(&self, index: usize) -> ItemKey {
        let kind = match &self.entries[index] {
            Entry::Item(item) => item.kind(),
            Entry::Unreadable { kind, .. } => *kind,
        };
        self.id.item(kind, index)
    }
}

/// Why a body is no message for this build. It goes to the dead queue, where a newer consumer or
/// a person can look at it.
#[derive(Debug, thiserror::Error)]
pub enum Undecodable {
    #[error("not a message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("version {0} is newer than {VERSION}")]
    Version(u32),
    #[error("{0} is not a message id")]
    Id(Uuid),
    #[error("item {0} has a kind that this build does not know")]
    Kind(usize),
    #[error("{0} items are more than {ITEMS_PER_MESSAGE_MAX}, or none")]
    Items(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    v: u32,
    id: Uuid,
    accepted_at_ms: i64,
    items: Vec<T>,
}

/// Reads a body. One bad item does not spoil its message: the whole is read again item by item,
/// and what cannot be read becomes [`Entry::Unreadable`].
pub fn decode(body: &[u8]) -> Result<Message, Undecodable> {
    let envelope = match serde_json::from_slice::<Envelope<Item>>(body) {
        Ok(envelope) if envelope.items.iter().all(|item| item.check().is_ok()) => Envelope {
            v: envelope.v,
            id: envelope.id,
            accepted_at_ms: envelope.accepted_at_ms,
            items: envelope.items.into_iter().map(Entry::Item).collect(),
        },
        _ => decode_item_by_item(body)?,
    };
    if envelope.v != VERSION {
        return Err(Undecodable::Version(envelope.v));
    }
    if envelope.items.is_empty() || envelope.items.len() > ITEMS_PER_MESSAGE_MAX {
        return Err(Undecodable::Items(envelope.items.len()));
    }
    let id = MessageId::from_uuid(envelope.id).ok_or(Undecodable::Id(envelope.id))?;
    let digest = Sha256::digest(body)[..16].try_into().expect("a digest has 32 bytes");
    Ok(Message { id, digest, accepted_at_ms: envelope.accepted_at_ms, entries: envelope.items })
}

fn decode_item_by_item(body: &[u8]) -> Result<Envelope<Entry>, Undecodable> {
    let envelope = serde_json::from_slice::<Envelope<&RawValue>>(body)?;
    Ok(Envelope {
        v: envelope.v,
        id: envelope.id,
        accepted_at_ms: envelope.accepted_at_ms,
        items: envelope
            .items
            .into_iter()
            .enumerate()
            .map(|(index, raw)| decode_item(raw).ok_or(Undecodable::Kind(index)))
            .collect::<Result<_, _>>()?,
    })
}

/// `None` when the kind is unknown: then only a newer build can say what the item means.
fn decode_item(raw: &RawValue) -> Option<Entry> {
    let tagged = serde_json::from_str::<HashMap<String, &RawValue>>(raw.get()).ok()?;
    let kind = Kind::from_name(tagged.keys().next()?)?;
    let read = serde_json::from_str::<Item>(raw.get()).map_err(|error| error.to_string());
    let checked = read.and_then(|item| match item.check() {
        Ok(()) => Ok(item),
        Err(error) => Err(error.to_string()),
    });
    Some(
        checked.map_or_else(|detail| Entry::Unreadable { kind, json: raw.get().into(), detail }, Entry::Item),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::IdIssuer;
    use crate::write::Increment;

    fn increment(counter: &str, by: i64) -> Entry {
        Entry::Item(Item::Increment(Increment { counter: counter.into(), by }))
    }

    fn body(items: &str) -> String {
        let id = IdIssuer::new(1, 1).next(1_763_600_000_000);
        format!(r#"{{"v":1,"id":"{id}","accepted_at_ms":5,"items":[{items}]}}"#)
    }

    proptest! {
        #[test]
        fn what_is_built_is_decoded_again(
            items in proptest::collection::vec(("[A-Za-z0-9._:-]{1,128}", any::<i64>()), 1..50),
        ) {
            let id = IdIssuer::new(1, 1).next(1_763_600_000_000);
            let mut builder = Builder::new(id, 1_763_600_000_001);
            let around = builder.bytes() + 2;
            prop_assert!(around <= ENVELOPE_BYTES_MAX);
            for (index, (counter, by)) in items.iter().enumerate() {
                let mut encoded = Vec::new();
                encode_increment(&mut encoded, counter, *by);
                prop_assert_eq!(builder.push(&encoded, 1), index);
            }
            let message = decode(&builder.finish().body).expect("decodes");
            prop_assert_eq!(message.id, id);
            prop_assert_eq!(message.accepted_at_ms, 1_763_600_000_001);
            let expected: Vec<_> = items.iter().map(|(counter, by)| increment(counter, *by)).collect();
            prop_assert_eq!(message.entries, expected);
        }
    }

    #[test]
    fn one_unreadable_item_does_not_spoil_its_message() {
        let items = r#"{"increment":{"counter":"a","by":1}},{"increment":[1]},
            {"increment":{"counter":"a\u0000","by":1}},{"increment":{"counter":"b","by":9223372036854775808}},
            {"increment":{"counter":"b","by":2}}"#;
        let message = decode(body(items).as_bytes()).expect("decodes");
        assert_eq!(message.entries[0], increment("a", 1));
        assert_eq!(message.entries[4], increment("b", 2));
        for index in 1..4 {
            assert!(matches!(message.entries[index], Entry::Unreadable { .. }), "{index}");
        }
    }

    #[test]
    fn a_body_that_is_no_message_for_this_build_is_told_apart() {
        let good = body(r#"{"increment":{"counter":"a","by":1}}"#);
        assert!(decode(good.as_bytes()).is_ok());
        let newer = good.replace("\"v\":1", "\"v\":2");
        assert!(matches!(decode(newer.as_bytes()), Err(Undecodable::Version(2))));
        assert!(matches!(decode(body("").as_bytes()), Err(Undecodable::Items(0))));
        assert!(matches!(decode(body(r#"{"later":{}}"#).as_bytes()), Err(Undecodable::Kind(0))));
        assert!(matches!(decode(body("5").as_bytes()), Err(Undecodable::Kind(0))));
        for bad in
            ["", "null", "{}", "[1]", &good[..good.len() - 1], &good.replace("\"v\"", "\"new\":1,\"v\"")]
        {
            assert!(matches!(decode(bad.as_bytes()), Err(Undecodable::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn another_body_has_another_digest() {
        let one = decode(body(r#"{"increment":{"counter":"a","by":1}}"#).as_bytes()).expect("decodes");
        let two = decode(body(r#"{"increment":{"counter":"a","by":2}}"#).as_bytes()).expect("decodes");
        assert_eq!(one.id, two.id);
        assert_ne!(one.digest, two.digest);
    }
}
