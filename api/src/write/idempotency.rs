//! The identity of writes with a key, and what this process remembers of them.
//!
//! How an identity is made is part of what is stored: see `shared::model::idempotency`. What is remembered
//! here only spares a client the way through the queue: the store decides.
use serde_json::Value;
use shared::model::api_key::Principal;
use shared::model::idempotency::{Fingerprint, Keyed, fingerprint_of, id_of};
use shared::model::write::{Delete, Document, Increment, Point, Write};

use crate::write::canonical::canonical;
use crate::write::new_write::NewWrite;
use crate::write::preferences::WritePreferences;

/// Principal of all keys where requests need no API key. Keys of different principals never collide.
const ANONYMOUS: &str = "anonymous";

/// The identity of a new write that has a key: its own, or the request's with its position in the request.
pub fn of(preferences: &WritePreferences, new_write: &NewWrite, index: usize) -> Option<Keyed> {
    let (key, index) = match (&new_write.own_key, &preferences.key) {
        (Some(own), _) => (own, 0),
        (None, Some(key)) => (key, index),
        (None, None) => return None,
    };
    let principal = preferences.principal.as_ref().map_or(ANONYMOUS, Principal::as_str);
    let id = id_of(principal, new_write.write.kind(), key, index);
    let fingerprint = new_write.fingerprint.unwrap_or_else(|| fingerprint(&new_write.write));
    Some(Keyed { id, fingerprint })
}

/// Fingerprint of the content of a write, independent of how its JSON was spelled.
pub fn fingerprint(write: &Write) -> Fingerprint {
    match write {
        Write::Increment(Increment { counter, by }) => {
            fingerprint_of("POST", counter, &format!(r#"{{"by":{by}}}"#))
        }
        Write::Document(Document { collection, data, .. }) => {
            fingerprint_of("POST", collection, &canonical(data.as_str()))
        }
        Write::Delete(Delete { collection, document }) => {
            fingerprint_of("DELETE", collection, &document.to_string())
        }
        Write::Point(Point { kind, at_ms, value }) => {
            let value = Value::from(*value);
            fingerprint_of("POST", kind, &format!(r#"{{"at_ms":{at_ms},"value":{value}}}"#))
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::model::id::Kind;
    use shared::model::write::Object;

    use super::*;

    fn increment(by: i64, own_key: Option<&str>) -> NewWrite {
        let write = Write::Increment(Increment { counter: "a".into(), by });
        NewWrite { write, own_key: own_key.map(Into::into), fingerprint: None }
    }

    fn document(data: &str) -> Write {
        let data = Object::from_json(data).expect("an object");
        Write::Document(Document { collection: "c".into(), schema_version: None, data })
    }

    #[test]
    fn an_items_own_key_wins_and_has_no_position() {
        let preferences = WritePreferences { key: Some("k".into()), ..WritePreferences::default() };
        let id = |preferences: &WritePreferences, own, index| {
            of(preferences, &increment(1, own), index).map(|keyed| keyed.id)
        };
        let of_key = |key, index| Some(id_of(ANONYMOUS, Kind::Increment, key, index));
        assert_eq!(id(&preferences, None, 3), of_key("k", 3));
        assert_eq!(id(&preferences, Some("own"), 3), of_key("own", 0));
        assert_eq!(id(&WritePreferences::default(), Some("k"), 3), of_key("k", 0));
        assert_eq!(id(&WritePreferences::default(), None, 3), None);
    }

    #[test]
    fn the_same_key_of_another_principal_is_another_key() {
        let principal = |name: &str| Principal::try_from(name.to_owned()).ok();
        let id = |principal| {
            let preferences =
                WritePreferences { key: Some("k".into()), principal, ..WritePreferences::default() };
            of(&preferences, &increment(1, None), 0).expect("keyed").id
        };
        assert_eq!(id(principal("shop")), id(principal("shop")));
        assert_ne!(id(principal("shop")), id(principal("till")));
        assert_ne!(id(principal("shop")), id(None));
        // A client that begins to use API keys may go on under the name that all requests had before.
        assert_eq!(id(principal(ANONYMOUS)), id(None));
    }

    #[test]
    fn stored_fingerprints_keep_their_meaning() {
        let document_key = id_of(ANONYMOUS, Kind::Document, "k", 0);
        let delete = Write::Delete(Delete { collection: "c".into(), document: document_key });
        let point = Write::Point(Point { kind: "t".into(), at_ms: 5, value: -1.0 });
        for (write, expected) in [
            (increment(-1, None).write, fingerprint_of("POST", "a", r#"{"by":-1}"#)),
            (document(r#"{"a":1}"#), fingerprint_of("POST", "c", r#"{"a":1}"#)),
            (delete, fingerprint_of("DELETE", "c", &document_key.to_string())),
            (point, fingerprint_of("POST", "t", r#"{"at_ms":5,"value":-1.0}"#)),
        ] {
            assert_eq!(fingerprint(&write), expected, "{write:?}");
        }
    }

    #[test]
    fn the_spelling_of_a_document_does_not_matter_and_its_content_does() {
        let base = fingerprint(&document(r#"{"b":[1,{"y":null,"x":"\u00e4"}],"a":1.5}"#));
        let same = " {\"a\" : 1.50, \"b\": [ 1, {\"x\":\"ä\", \"y\":null} ] }";
        assert_eq!(fingerprint(&document(same.trim())), base);
        for other in [
            r#"{"b":[1,{"y":null,"x":"\u00e4"}],"a":1.6}"#,
            r#"{"b":[{"y":null,"x":"\u00e4"},1],"a":1.5}"#,
            r#"{"b":[1,{"y":null,"x":"ae"}],"a":1.5}"#,
            r#"{"b":[1.0,{"y":null,"x":"\u00e4"}],"a":1.5}"#,
            r#"{"b":[1,{"y":null,"x":"\u00e4"}],"a":1.50000000000000000001}"#,
        ] {
            assert_ne!(fingerprint(&document(other)), base, "{other}");
        }
    }
}
