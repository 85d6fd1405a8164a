//! Queue message: many items of many requests in one body, versioned.
//!
//! The API's batcher builds messages, the consumer decodes them. `docs/messages.md` describes the format
//! for other programs; a change that an older consumer would misread needs a new version.
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::model::id::{ITEMS_PER_MESSAGE_MAX, ItemKey, Kind, MessageId};
use crate::model::idempotency::Keyed;
use crate::model::trace::{TraceParent, Traces};
use crate::model::write::{Item, check_name};

/// Version of the format that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Bytes of a message around its items, at most.
pub const ENVELOPE_BYTES_MAX: usize = 128;

/// Bytes that each awaited item adds to the envelope, at most.
pub const AWAITED_BYTES_MAX: usize = 5;

/// Message as it travels: its id beside the body that repeats it.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub id: MessageId,
    pub body: Bytes,
    /// [`Traces`] of its requests, which travel beside the body.
    pub traces: Option<Arc<str>>,
    pub items: usize,
}

/// Body under construction. Items are JSON, already encoded by the requests they belong to.
#[derive(Debug)]
pub struct Builder {
    id: MessageId,
    accepted_at_ms: i64,
    body: Vec<u8>,
    items: usize,
    awaited: Vec<usize>,
    traces: Traces,
}

impl Builder {
    pub fn new(id: MessageId, accepted_at_ms: i64) -> Self {
        let header = format!(r#"{{"v":{VERSION},"id":"{id}","accepted_at_ms":{accepted_at_ms},"items":["#);
        Self {
            id,
            accepted_at_ms,
            body: header.into_bytes(),
            items: 0,
            awaited: Vec::new(),
            traces: Traces::default(),
        }
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

    /// Notes that a request waits for the outcome of the item pushed last, which was pushed alone.
    pub fn await_last(&mut self) {
        self.awaited.push(self.items - 1);
    }

    /// Notes the trace of a request whose `items` begin at `first`; `false` when there is no room.
    pub fn trace(&mut self, first: usize, items: usize, parent: TraceParent) -> bool {
        self.traces.add(first, items, parent)
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
        self.body.len() + self.awaited.len() * AWAITED_BYTES_MAX
    }

    pub fn finish(mut self) -> Outgoing {
        self.body.push(b']');
        if !self.awaited.is_empty() {
            self.body.extend_from_slice(br#","awaited":"#);
            serde_json::to_writer(&mut self.body, &self.awaited).expect("numbers have a JSON form");
        }
        self.body.push(b'}');
        let traces = self.traces.encode();
        Outgoing { id: self.id, body: self.body.into(), traces, items: self.items }
    }
}

/// Appends an item of any kind.
pub fn encode(out: &mut Vec<u8>, item: &Item) {
    serde_json::to_writer(out, item).expect("an item has a JSON form");
}

/// Appends `{"increment":{"counter":…,"by":…}}`. Written by hand, because it is the hottest item. The name
/// must be valid, which makes it its own JSON spelling.
pub fn encode_increment(out: &mut Vec<u8>, counter: &str, by: i64) {
    debug_assert!(check_name(counter).is_ok());
    out.extend_from_slice(br#"{"increment":{"counter":""#);
    out.extend_from_slice(counter.as_bytes());
    out.extend_from_slice(br#"","by":"#);
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(by).as_bytes());
    out.extend_from_slice(b"}}");
}

/// Decoded message. `digest` is over the whole body: the same id with another digest is a bug.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub id: MessageId,
    pub digest: [u8; 16],
    pub accepted_at_ms: i64,
    pub entries: Vec<Entry>,
    /// Indexes of items whose outcome a request waits for, ascending.
    pub awaited: Vec<usize>,
    /// Index that the first entry has in ids: 0, but for an item that comes alone a second time.
    pub first: usize,
}

/// Content at one index of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Item(Item),
    /// Item that this build cannot apply, whatever the store says; dead-lettered as it came.
    Unreadable {
        kind: Kind,
        keyed: Option<Keyed>,
        json: Box<str>,
        detail: String,
    },
}

impl Entry {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Item(item) => item.kind(),
            Self::Unreadable { kind, .. } => *kind,
        }
    }

    pub fn keyed(&self) -> Option<Keyed> {
        match self {
            Self::Item(item) => item.keyed,
            Self::Unreadable { keyed, .. } => *keyed,
        }
    }
}

impl Message {
    /// Identity of the item at `index`.
    pub fn item_key(&self, index: usize) -> ItemKey {
        self.entries[index].keyed().map_or_else(|| self.place(index), |keyed| keyed.id)
    }

    /// Place of the item at `index`, which orders items by time also when they are keyed.
    pub fn place(&self, index: usize) -> ItemKey {
        self.id.item(self.entries[index].kind(), self.first + index)
    }

    pub fn is_awaited(&self, index: usize) -> bool {
        self.awaited.binary_search(&index).is_ok()
    }
}

/// Reasons for which a body is no message for this build. It goes to the dead queue, where a newer consumer
/// or an operator can look at it.
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
    #[serde(default)]
    awaited: Vec<usize>,
}

/// Reads a body. One bad item does not spoil its message: the whole is read again item by item, and an item
/// that cannot be read becomes [`Entry::Unreadable`].
pub fn decode(body: &[u8]) -> Result<Message, Undecodable> {
    let envelope = match serde_json::from_slice::<Envelope<Item>>(body) {
        Ok(envelope) if envelope.items.iter().all(|item| item.check(envelope.accepted_at_ms).is_ok()) => {
            Envelope {
                v: envelope.v,
                id: envelope.id,
                accepted_at_ms: envelope.accepted_at_ms,
                items: envelope.items.into_iter().map(Entry::Item).collect(),
                awaited: envelope.awaited,
            }
        }
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
    let Envelope { accepted_at_ms, items: entries, mut awaited, .. } = envelope;
    awaited.sort_unstable();
    Ok(Message { id, digest, accepted_at_ms, entries, awaited, first: 0 })
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
            .map(|(index, raw)| decode_item(raw, envelope.accepted_at_ms).ok_or(Undecodable::Kind(index)))
            .collect::<Result<_, _>>()?,
        awaited: envelope.awaited,
    })
}

/// Reads a dead-lettered item by itself. `None` when this build does not know its kind.
pub fn decode_stored(json: &str, accepted_at_ms: i64) -> Option<Entry> {
    decode_item(serde_json::from_str(json).ok()?, accepted_at_ms)
}

/// Reads one item. `None` when the kind is unknown: then only a newer build knows its meaning.
fn decode_item(raw: &RawValue, accepted_at_ms: i64) -> Option<Entry> {
    let members = serde_json::from_str::<HashMap<String, &RawValue>>(raw.get()).ok()?;
    let kind = Kind::ALL.into_iter().find(|kind| members.contains_key(kind.name()))?;
    let read = serde_json::from_str::<Item>(raw.get()).map_err(|error| error.to_string());
    let checked = read.and_then(|item| match item.check(accepted_at_ms) {
        Ok(()) => Ok(item),
        Err(error) => Err(error.to_string()),
    });
    Some(checked.map_or_else(
        |detail| {
            let keyed = members.get("keyed").and_then(|raw| serde_json::from_str::<Keyed>(raw.get()).ok());
            let keyed = keyed.filter(|keyed| keyed.id.is_keyed() && keyed.id.kind() == Some(kind));
            Entry::Unreadable { kind, keyed, json: raw.get().into(), detail }
        },
        Entry::Item,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::id::IdIssuer;
    use crate::model::idempotency;
    use crate::model::write::{Increment, Write};

    fn increment(counter: &str, by: i64) -> Entry {
        let write = Write::Increment(Increment { counter: counter.into(), by });
        Entry::Item(Item { write, keyed: None })
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
    fn a_keyed_item_keeps_its_identity_even_when_it_cannot_be_read() {
        let id = idempotency::id_of("p", Kind::Increment, "k", 0);
        let fingerprint = idempotency::fingerprint_of("POST", "a", "{}");
        let item = |by: &str| {
            format!(
                r#"{{"increment":{{"counter":"a","by":{by}}},"keyed":{{"id":"{id}","fingerprint":"{fingerprint}"}}}}"#
            )
        };
        let items = [item("1"), item("\"x\""), r#"{"increment":{"counter":"a","by":1}}"#.into()].join(",");
        let message = decode(body(&items).as_bytes()).expect("decodes");
        assert!(matches!(&message.entries[1], Entry::Unreadable { keyed: Some(_), .. }));
        assert_eq!((message.item_key(0), message.item_key(1)), (id, id));
        assert_eq!(message.item_key(2), message.id.item(Kind::Increment, 2));
        assert_eq!(message.place(1), message.id.item(Kind::Increment, 1));
    }

    #[test]
    fn awaited_items_are_named_by_their_index() {
        let mut builder = Builder::new(IdIssuer::new(1, 1).next(1_763_600_000_000), 5);
        for index in 0..3 {
            let mut encoded = Vec::new();
            encode_increment(&mut encoded, "a", 1);
            builder.push(&encoded, 1);
            if index != 1 {
                builder.await_last();
            }
        }
        let (bytes, outgoing) = (builder.bytes(), builder.finish());
        assert!(outgoing.body.len() <= bytes + ENVELOPE_BYTES_MAX);
        let message = decode(&outgoing.body).expect("decodes");
        assert_eq!([0, 1, 2].map(|index| message.is_awaited(index)), [true, false, true]);
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
