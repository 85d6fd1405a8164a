//! Message and item ids: how they are issued and laid out, and how a replica recognises its own.
//!
//! The batcher draws a [`MessageId`] when it opens a batch. Every item of the message gets an [`ItemId`]
//! that contains it, so that an item id alone leads to the item's status. Nothing here reads a clock or a
//! database. The layout is decided in `docs/decisions/0001-ids.md`; changing it changes what stored ids
//! mean.
//!
//! ```text
//! UUID version 8, big-endian, most significant bit first
//!   48 time       milliseconds since 1970, when the batch opened
//!    4 version    8
//!   10 counter    per batcher, never reset
//!    2 batcher    random number drawn per batcher, high bits
//!    2 variant    0b10
//!   30 batcher    low bits
//!    1 keyed      0: laid out as here · 1: derived from an Idempotency-Key (then without a time)
//!    3 kind       0 the message itself, else the kind of the item
//!   12 index      of the item in its message
//!   16 check      keyed hash over all bits above
//! ```
use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;
use uuid::Uuid;

/// Items that one message can hold at most: as many as twelve bits of index can number.
pub const ITEMS_PER_MESSAGE_MAX: usize = 1 << 12;

const VERSION_AND_VARIANT: u128 = (0x8 << 76) | (0b10 << 62);
const ITEM_BITS: u128 = 0xFFFF_FFFF;
const CHECK_BITS: u128 = 0xFFFF;
const KEYED_BIT: u128 = 1 << 31;
const COUNTER_BITS: u32 = 10;

/// Kind of an item. The number is part of every id that was ever issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An increment of a counter.
    Increment = 1,
    /// A document for a collection.
    Document = 2,
    /// The deletion of a document.
    Delete = 3,
    /// A point of a metric.
    Point = 4,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Increment, Self::Document, Self::Delete, Self::Point];

    /// Word used in messages, receipts, metrics and SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Increment => "increment",
            Self::Document => "document",
            Self::Delete => "delete",
            Self::Point => "point",
        }
    }

    /// Kind with that [`name`](Self::name), if this build knows it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == bits)
    }
}

/// Word for a kind that this build does not know.
pub const UNKNOWN_KIND: &str = "unknown";

/// Identity of one queue message: the unit of redelivery and of the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u128);

/// Identity of one item without its check, for keys, look-ups and events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey(u128);

/// Identity of a body that is no message for this build: made from its hash, so that the same body has the
/// same one whenever it comes. Laid out as a keyed item of kind 0, which no item has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyId(u128);

/// Id that a client sees: an [`ItemKey`] with the check that shows it was issued here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ItemId(u128);

impl MessageId {
    /// Key of the item at `index`, which must be below [`ITEMS_PER_MESSAGE_MAX`].
    pub fn item(self, kind: Kind, index: usize) -> ItemKey {
        debug_assert!(index < ITEMS_PER_MESSAGE_MAX);
        ItemKey(self.0 | (kind as u128) << 28 | (index as u128) << 16)
    }

    /// Time when the batch was opened, in milliseconds since 1970, by the clock of the replica.
    pub fn time_ms(self) -> i64 {
        i64::try_from(self.0 >> 80).expect("48 bits fit")
    }

    /// Lowest id that a message opened at `time_ms` can have: a bound for range partitions.
    pub fn lowest_at(time_ms: i64) -> Uuid {
        Uuid::from_u128(time_bits(time_ms))
    }

    pub fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    /// Highest key that an item without an Idempotency-Key has, here or in an earlier message.
    pub fn last_item(self) -> Uuid {
        Uuid::from_u128(self.0 | (ITEM_BITS & !KEYED_BIT & !CHECK_BITS))
    }

    /// `None` when `uuid` does not have the layout of a message id.
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        let bits = uuid.as_u128();
        let shaped = bits & ((0xF << 76) | (0b11 << 62)) == VERSION_AND_VARIANT;
        (shaped && bits & ITEM_BITS == 0).then_some(Self(bits))
    }
}

impl ItemKey {
    /// Key that does not depend on the message: made from 128 bits of a hash, of which 102 are kept.
    pub fn keyed(kind: Kind, hash: u128) -> Self {
        Self(hashed(hash) | (kind as u128) << 28)
    }

    /// `None` when `uuid` does not have the layout of an item's key, or has a check. The kind may be
    /// one that only a newer build knows.
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        let key = Self(uuid.as_u128());
        (key.has_layout() && key.0 & CHECK_BITS == 0).then_some(key)
    }

    fn has_layout(self) -> bool {
        self.0 & ((0xF << 76) | (0b11 << 62)) == VERSION_AND_VARIANT && self.kind_bits() != 0
    }

    pub fn is_keyed(self) -> bool {
        self.0 & KEYED_BIT != 0
    }

    /// Message that the item is in; `None` for a keyed item, which may come in several.
    pub fn message(self) -> Option<MessageId> {
        (!self.is_keyed()).then_some(MessageId(self.0 & !ITEM_BITS))
    }

    /// Message and index that make up the item's place. A keyed item names neither: it gets stand-ins from
    /// its hash, the same each time, as if it had come at `time_ms`.
    pub fn place_at(self, time_ms: i64) -> (MessageId, usize) {
        let index = usize::try_from((self.0 >> 16) & 0xFFF).expect("twelve bits fit");
        let message = self.message().unwrap_or_else(|| {
            let hashed = self.0 & !ITEM_BITS & !(u128::MAX << 80);
            MessageId(time_bits(time_ms) | hashed)
        });
        (message, index)
    }

    /// `None` when only a newer build knows it.
    pub fn kind(self) -> Option<Kind> {
        Kind::from_bits(self.kind_bits())
    }

    /// [`Kind::name`], or [`UNKNOWN_KIND`].
    pub fn kind_name(self) -> &'static str {
        self.kind().map_or(UNKNOWN_KIND, Kind::name)
    }

    pub fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    fn kind_bits(self) -> u8 {
        u8::try_from((self.0 >> 28) & 0b111).expect("three bits fit")
    }
}

impl BodyId {
    pub fn of(body: &[u8]) -> Self {
        let digest = Sha256::digest(body);
        let hash = <[u8; 16]>::try_from(&digest[..16]).expect("a digest has 32 bytes");
        Self(hashed(u128::from_be_bytes(hash)))
    }

    pub fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }
}

/// 102 bits of a hash at the places that an id without a time has for them.
fn hashed(hash: u128) -> u128 {
    let fixed = (0xF << 76) | (0b11 << 62) | KEYED_BIT | (0b111 << 28) | CHECK_BITS;
    hash & !fixed | VERSION_AND_VARIANT | KEYED_BIT
}

impl ItemId {
    /// Identity without the check.
    pub fn key(self) -> ItemKey {
        ItemKey(self.0 & !CHECK_BITS)
    }

    /// Canonical text, 36 characters of ASCII, without an allocation.
    pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
        Uuid::from_u128(self.0).as_hyphenated().encode_lower(buffer)
    }
}

impl FromStr for ItemId {
    type Err = NotAnId;

    /// Accepts the canonical form, in either case (RFC 9562, 4); shown in lower case.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.len() != 36 {
            return Err(NotAnId);
        }
        let bits = Uuid::try_parse(text).map_err(|_| NotAnId)?.as_u128();
        if ItemKey(bits).has_layout() { Ok(Self(bits)) } else { Err(NotAnId) }
    }
}

/// The text is not an id that Forebay could have issued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this service")]
pub struct NotAnId;

macro_rules! shown_as_uuid {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_u128(self.0).as_hyphenated().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}
shown_as_uuid!(MessageId, ItemKey, BodyId, ItemId);

/// Time up to which the ledger has forgotten ids: an id issued below it would be taken for an old message.
/// Only rises; clones share it. The store supplies the time.
#[derive(Clone, Debug, Default)]
pub struct IdFloor(Arc<AtomicI64>);

impl IdFloor {
    /// Raises the floor, which issuers follow from now on; returns true if it rose.
    pub fn raise(&self, time_ms: i64) -> bool {
        self.0.fetch_max(time_ms, Ordering::Relaxed) < time_ms
    }

    fn time_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Issuer of the message ids of one batcher: strictly increasing, whatever the clock does.
#[derive(Debug)]
pub struct IdIssuer {
    batcher: u32,
    counter: u16,
    last_time_ms: i64,
    floor: IdFloor,
}

impl IdIssuer {
    /// Issuer of a new batcher. `batcher` and `counter` are random: two batchers share an id only if they
    /// share both numbers in the same millisecond.
    pub fn new(batcher: u32, counter: u16) -> Self {
        let counter = counter % (1 << COUNTER_BITS);
        Self { batcher, counter, last_time_ms: 0, floor: IdFloor::default() }
    }

    /// Issuer whose ids lie above `floor`, wherever that rises to.
    pub fn above(self, floor: IdFloor) -> Self {
        Self { floor, ..self }
    }

    /// Draws the id of a message that is opened at `now_ms`. A clock that steps back, or lies behind the
    /// floor, is not followed, and when the counter wraps the time moves on by at least a millisecond.
    pub fn next(&mut self, now_ms: i64) -> MessageId {
        self.counter = (self.counter + 1) % (1 << COUNTER_BITS);
        let least = self.last_time_ms + i64::from(self.counter == 0);
        self.last_time_ms = now_ms.max(least).max(self.floor.time_ms() + 1);
        let counter = u128::from(self.counter) << 66;
        let high = u128::from(self.batcher >> 30) << 64;
        let low = u128::from(self.batcher & 0x3FFF_FFFF) << 32;
        MessageId(time_bits(self.last_time_ms) | VERSION_AND_VARIANT | counter | high | low)
    }
}

fn time_bits(time_ms: i64) -> u128 {
    (u128::from(time_ms.max(0).unsigned_abs()) & 0xFFFF_FFFF_FFFF) << 80
}

/// Keys that sign ids: the first signs, all of them recognise.
///
/// Sixteen bits of check separate an issued id from one that was made up or mistyped. They protect no data:
/// a client that guesses one learns `accepted` for an id that holds nothing.
#[derive(Clone)]
pub struct IdKeys {
    keys: Vec<[u8; 16]>,
}

impl IdKeys {
    /// Panics on an empty list: configuration refuses that before.
    pub fn new<S: AsRef<str>>(secrets: &[S]) -> Self {
        assert!(!secrets.is_empty(), "at least one secret");
        let key_of = |secret: &S| {
            let digest = Sha256::digest([b"forebay id check\0", secret.as_ref().as_bytes()].concat());
            <[u8; 16]>::try_from(&digest[..16]).expect("a digest has 32 bytes")
        };
        Self { keys: secrets.iter().map(key_of).collect() }
    }

    pub fn sign(&self, key: ItemKey) -> ItemId {
        ItemId(key.0 | check(&self.keys[0], key))
    }

    /// Text of a stored `id` as people see it: an item's id has its check, as its client knows it. A stored
    /// id that is no item's has none.
    pub fn shown(&self, id: Uuid) -> String {
        ItemKey::from_uuid(id).map_or_else(|| id.to_string(), |key| self.sign(key).to_string())
    }

    /// Stored id of a text as [`shown`](Self::shown); `None` for an item's that was not issued here.
    pub fn meant(&self, text: &str) -> Option<Uuid> {
        if let Ok(id) = text.parse::<ItemId>() {
            return self.recognises(id).then(|| id.key().as_uuid());
        }
        Uuid::try_parse(text).ok().filter(|_| text.len() == 36)
    }

    /// True when this installation issued `id`, under whichever secret is still listed.
    pub fn recognises(&self, id: ItemId) -> bool {
        self.keys.iter().any(|key| check(key, id.key()) == id.0 & CHECK_BITS)
    }
}

fn check(key: &[u8; 16], item: ItemKey) -> u128 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(&item.0.to_be_bytes());
    u128::from(hasher.finish()) & CHECK_BITS
}

#[cfg(test)]
mod tests;
