//! Test data for a store: items of every kind, keyed or not, and messages of them.
use bytes::Bytes;
use shared::model::id::{ItemKey, Kind};
use shared::model::idempotency::{self, Fingerprint, Keyed};
use shared::model::message::{Builder, Message, decode, encode};
use shared::model::write::{Delete, Document, Increment, Item, Object, Point, Write};

use super::{Messages, NOON_MS};

pub fn increment(counter: &str, by: i64) -> Item {
    unkeyed(Write::Increment(Increment { counter: counter.into(), by }))
}

/// Makes a document that was not checked.
pub fn document(collection: &str, data: &str) -> Item {
    checked_document(collection, None, data)
}

pub fn checked_document(collection: &str, schema_version: Option<i64>, data: &str) -> Item {
    let data = Object::from_json(data).expect("an object");
    unkeyed(Write::Document(Document { collection: collection.into(), schema_version, data }))
}

pub fn delete(collection: &str, document: ItemKey) -> Item {
    unkeyed(Write::Delete(Delete { collection: collection.into(), document }))
}

pub fn point(kind: &str, at_ms: i64, value: f64) -> Item {
    unkeyed(Write::Point(Point { kind: kind.into(), at_ms, value }))
}

fn unkeyed(write: Write) -> Item {
    Item { write, keyed: None }
}

/// Makes the identity of an item at `index` of a request with `key`.
pub fn identity(kind: Kind, key: &str, index: usize) -> ItemKey {
    idempotency::id_of("tester", kind, key, index)
}

/// Returns the same item as the first of a request with `key`.
pub fn with_key(key: &str, item: Item) -> Item {
    with_key_at(key, 0, item)
}

pub fn with_key_at(key: &str, index: usize, item: Item) -> Item {
    let fingerprint = fingerprint(&item);
    let keyed = Keyed { id: identity(item.kind(), key, index), fingerprint };
    Item { keyed: Some(keyed), ..item }
}

/// Fingerprint of the payload of an item.
pub fn fingerprint(item: &Item) -> Fingerprint {
    let bare = Item { write: item.write.clone(), keyed: None };
    let json = serde_json::to_string(&bare).expect("an item has a JSON form");
    idempotency::fingerprint_of("POST", "test", &json)
}

impl Messages {
    /// Makes a message around noon.
    pub fn of(&mut self, items: &[Item]) -> Message {
        self.at(NOON_MS, items)
    }

    /// Makes a message that was opened at this time and accepted 7 ms later. Ids never go back:
    /// later calls should not name an earlier time.
    pub fn at(&mut self, time_ms: i64, items: &[Item]) -> Message {
        self.build(time_ms, items, |_| false)
    }

    /// Makes a message in which a client awaits some items.
    pub fn awaited(&mut self, items: &[Item], is_awaited: impl Fn(usize) -> bool) -> Message {
        self.build(NOON_MS, items, is_awaited)
    }

    /// Makes a message through the wire format, as the consumer gets it.
    fn build(&mut self, time_ms: i64, items: &[Item], is_awaited: impl Fn(usize) -> bool) -> Message {
        decode(&self.encoded(time_ms, items, is_awaited)).expect("a message")
    }

    /// Makes a message in the wire format.
    pub fn body_at(&mut self, time_ms: i64, items: &[Item]) -> Bytes {
        self.encoded(time_ms, items, |_| false)
    }

    fn encoded(&mut self, time_ms: i64, items: &[Item], is_awaited: impl Fn(usize) -> bool) -> Bytes {
        let mut builder = Builder::new(self.0.next(time_ms), time_ms + 7);
        for (index, item) in items.iter().enumerate() {
            let mut encoded = Vec::new();
            encode(&mut encoded, item);
            builder.push(&encoded, 1);
            if is_awaited(index) {
                builder.await_last();
            }
        }
        builder.finish().body
    }
}
