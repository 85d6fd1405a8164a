//! Writes with an Idempotency-Key: the properties that make two of them the same write.
//!
//! The id of such a write is derived from its key, so that a retry, whichever replica takes it and in
//! whichever message it travels, carries the same id. The fingerprint shows that it carries the same
//! payload, too. Both are part of messages and stored rows: never change how they are made
//! (`docs/decisions/0006-keyed-writes.md`).
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::model::id::{ItemKey, Kind};

/// Longest Idempotency-Key in bytes.
pub const KEY_LENGTH_MAX: usize = 255;

/// Identity of a keyed item, as it travels beside the item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyed {
    #[serde(with = "item_key")]
    pub id: ItemKey,
    pub fingerprint: Fingerprint,
}

/// Fingerprint of a keyed write: 128 bits of a hash over its request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// Id of the item at `index` of a request with `key`. `principal` keeps clients apart.
pub fn id_of(principal: &str, kind: Kind, key: &str, index: usize) -> ItemKey {
    let hash = hash("forebay keyed id", &[principal, kind.name(), key, &index.to_string()]);
    ItemKey::keyed(kind, u128::from_be_bytes(hash))
}

/// Fingerprint of one item: `target` is the name in the request's path, `item` its canonical JSON, so that
/// spaces and the order of members do not matter.
pub fn fingerprint_of(method: &str, target: &str, item: &str) -> Fingerprint {
    Fingerprint(hash("forebay fingerprint", &[method, target, item]))
}

/// Hashes the parts, each preceded by its length, so that no two lists of parts hash the same text.
fn hash(purpose: &str, parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in [&[purpose], parts].concat() {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..16].try_into().expect("a digest has 32 bytes")
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint: 32 lower-case hexadecimal digits")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(digit) {
            return Err(NotAFingerprint);
        }
        u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| NotAFingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An item's key as the text of a UUID.
pub mod item_key {
    use serde::de::Error;
    use uuid::Uuid;

    use super::{Deserialize, Deserializer, ItemKey, Serialize, Serializer};

    pub fn serialize<S: Serializer>(key: &ItemKey, serializer: S) -> Result<S::Ok, S::Error> {
        key.as_uuid().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ItemKey, D::Error> {
        let uuid = Uuid::deserialize(deserializer)?;
        ItemKey::from_uuid(uuid).ok_or_else(|| D::Error::custom("not the key of an item"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_by_earlier_builds_keeps_its_meaning() {
        let id = id_of("anonymous", Kind::Increment, "order-1", 0);
        assert_eq!(id.to_string(), PINNED_ID);
        let fingerprint = fingerprint_of("POST", "clicks", "{\"by\":1}");
        assert_eq!(fingerprint.to_string(), PINNED_FINGERPRINT);
        assert_eq!(PINNED_FINGERPRINT.parse(), Ok(fingerprint));
    }

    const PINNED_ID: &str = "d5d4734c-d926-840b-a490-938a9b200000";
    const PINNED_FINGERPRINT: &str = "b095be920985bfed0f4b6132bbc6ff58";

    #[test]
    fn every_part_makes_another_id() {
        let base = id_of("p", Kind::Increment, "k", 1);
        for other in [
            id_of("q", Kind::Increment, "k", 1),
            id_of("p", Kind::Point, "k", 1),
            id_of("p", Kind::Increment, "l", 1),
            id_of("p", Kind::Increment, "k", 0),
            id_of("", Kind::Increment, "pk", 1),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(fingerprint_of("POST", "a", "bc"), fingerprint_of("POST", "ab", "c"));
    }

    #[test]
    fn a_fingerprint_has_one_spelling() {
        for bad in ["", "A0000000000000000000000000000000", "+0000000000000000000000000000000", "0x"] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NotAFingerprint), "{bad}");
        }
    }
}
