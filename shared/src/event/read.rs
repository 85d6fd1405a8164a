//! Reads events, also those of newer versions. Kinds, entries, members and bodies that this build does
//! not know are skipped one by one, so that a rolling upgrade empties no cache.
//!
//! Nothing is skipped that would make an answer wrong. An item with an unreadable entry is
//! [`Committed::unclear`], so that no later entry about its message settles it. A known counter whose new
//! value cannot be read makes the event unreadable.
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Body, Committed, Event};
use crate::model::id::ItemKey;
use crate::model::idempotency::item_key;

type JsonMembers<'j> = HashMap<String, &'j RawValue>;

impl Event {
    /// Reads an event of any version. An error means that something may have been missed.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        // Events of this version are read in one pass: the second way costs twice as much.
        serde_json::from_slice(json).or_else(|_| read_known_parts(json))
    }
}

#[derive(Deserialize)]
struct KnownEnvelope<'j> {
    publisher: u64,
    number: u64,
    store_time_ms: Option<i64>,
    #[serde(borrow)]
    body: &'j RawValue,
}

fn read_known_parts(json: &[u8]) -> Result<Event, serde_json::Error> {
    let KnownEnvelope { publisher, number, store_time_ms, body } = serde_json::from_slice(json)?;
    Ok(Event { publisher, number, store_time_ms, body: body_of(body)? })
}

fn body_of(json: &RawValue) -> Result<Body, serde_json::Error> {
    if let Ok(body) = serde_json::from_str(json.get()) {
        return Ok(body);
    }
    let Ok(tagged) = serde_json::from_str::<JsonMembers<'_>>(json.get()) else { return Ok(Body::Unknown) };
    if let Some(committed) = tagged.get("committed") {
        return Ok(Body::Committed(committed_of(&serde_json::from_str(committed.get())?)?));
    }
    Ok(if let Some(heartbeat) = tagged.get("heartbeat") {
        Body::Heartbeat { store_away: says_store_away(heartbeat) }
    } else if tagged.contains_key("goodbye") {
        Body::Goodbye
    } else {
        Body::Unknown
    })
}

/// Reads `store_away`; `false` when it cannot be read, so that requests wait, if in vain.
fn says_store_away(heartbeat: &RawValue) -> bool {
    let members = serde_json::from_str::<JsonMembers<'_>>(heartbeat.get()).unwrap_or_default();
    members.get("store_away").is_some_and(|away| away.get() == "true")
}

fn committed_of(members: &JsonMembers<'_>) -> Result<Committed, serde_json::Error> {
    // A member that is no list holds something unknown to this build: the whole event counts as missed.
    let entries = |name: &str| -> Result<Vec<&RawValue>, serde_json::Error> {
        members.get(name).map_or(Ok(Vec::new()), |list| serde_json::from_str(list.get()))
    };
    let mut committed = Committed {
        types: known(&entries("types")?),
        deleted: known(&entries("deleted")?),
        standings: known(&entries("standings")?),
        messages: known(&entries("messages")?),
        ..Committed::default()
    };
    for entry in entries("counters")? {
        match serde_json::from_str(entry.get()) {
            Ok(counter) => committed.counters.push(counter),
            Err(error) if names_counter(entry) => return Err(error),
            Err(_) => {}
        }
    }
    for entry in entries("failed")? {
        match serde_json::from_str(entry.get()) {
            Ok(failed) => committed.failed.push(failed),
            Err(_) => committed.unclear.extend(item_of(entry)),
        }
    }
    for entry in entries("keyed")? {
        match serde_json::from_str(entry.get()) {
            Ok(keyed) => committed.keyed.push(keyed),
            Err(_) => committed.unclear.extend(item_of(entry)),
        }
    }
    Ok(committed)
}

/// The entries that this build can read.
fn known<T: DeserializeOwned>(entries: &[&RawValue]) -> Vec<T> {
    entries.iter().filter_map(|entry| serde_json::from_str(entry.get()).ok()).collect()
}

fn names_counter(entry: &RawValue) -> bool {
    serde_json::from_str::<JsonMembers<'_>>(entry.get()).is_ok_and(|members| members.contains_key("name"))
}

/// Item that an entry is about. `None` is no item that a client of this build waits for.
fn item_of(entry: &RawValue) -> Option<ItemKey> {
    #[derive(Deserialize)]
    struct About {
        #[serde(with = "item_key")]
        item: ItemKey,
    }
    serde_json::from_str::<About>(entry.get()).ok().map(|about| about.item)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::model::id::{IdIssuer, Kind, MessageId};
    use crate::model::outcome::KeyedVerdict;

    fn message() -> MessageId {
        IdIssuer::new(1, 1).next(1_763_600_000_000)
    }

    /// Third item of the message, of a kind that this build does not know.
    fn later_kind() -> Uuid {
        let known = message().item(Kind::Increment, 2).as_uuid().as_u128();
        Uuid::from_u128(known & !(0b111 << 28) | 7 << 28)
    }

    fn event(body: &Value) -> Value {
        json!({"publisher": 1, "number": 3, "store_time_ms": null, "body": body})
    }

    fn read(event: &Value) -> Result<Event, serde_json::Error> {
        Event::read(event.to_string().as_bytes())
    }

    fn committed(members: &Value) -> Committed {
        match read(&event(&json!({"committed": members}))).expect("readable").body {
            Body::Committed(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn items_of_a_later_kind_are_read_beside_the_others() {
        let (item, print) =
            (message().item(Kind::Increment, 0).as_uuid(), "00112233445566778899aabbccddeeff");
        let later = later_kind();
        let read = committed(&json!({
            "keyed": [{"item": later, "fingerprint": print, "verdict": "applied"},
                {"item": item, "fingerprint": print, "verdict": "applied"}],
            "standings": [{"item": later, "value": 1, "version": 1}, {"item": item, "value": 1, "version": 1}],
            "failed": [{"item": later, "reason": "later", "detail": ""}, {"item": item, "reason": "r", "detail": ""}],
            "messages": [message().as_uuid()],
        }));
        let counts = (read.keyed.len(), read.standings.len(), read.failed.len(), read.messages.len());
        assert_eq!(counts, (2, 2, 2, 1));
        assert_eq!(read.keyed[1].verdict, KeyedVerdict::Applied);
        assert_eq!(read.unclear, []);
    }

    #[test]
    fn what_is_not_known_is_skipped_entry_by_entry_and_the_rest_is_used() {
        let item = message().item(Kind::Increment, 0);
        let counter = json!({"name": "a", "value": 5, "version": 2, "updated_at_ms": 9, "unit": "new"});
        let read = committed(&json!({
            "counters": [{"gauge": "g", "value": 1.5}, 7, counter],
            "types": [{"later": 1}, "t"],
            "deleted": ["later", item.as_uuid()],
            "standings": [{"later": 1}],
            "failed": [{"item": "later:1", "reason": "r"}, {"item": item.as_uuid(), "because": "new"}],
            "keyed": [{"item": item.as_uuid(), "verdict": {"delayed": 5}}],
            "messages": [5, message().as_uuid()],
            "jobs": [{"job": 1}],
        }));
        assert_eq!((read.counters.len(), read.counters[0].value), (1, 5));
        assert_eq!((read.types.len(), read.deleted.len(), read.messages.len()), (1, 1, 1));
        assert_eq!((read.standings.len(), read.failed.len(), read.keyed.len()), (0, 0, 0));
        assert_eq!(read.unclear, [item, item]);
    }

    #[test]
    fn a_later_body_is_known_as_such_and_members_beside_it_are_skipped() {
        for body in [json!({"checkpoint": {"a": 1}}), json!("rested"), json!(["a"])] {
            assert_eq!(read(&event(&body)).expect("readable").body, Body::Unknown, "{body}");
        }
        let mut later = event(&json!({"heartbeat": {"store_away": true, "load": 5}, "later": 1}));
        later["region"] = json!("eu");
        assert_eq!(read(&later).expect("readable").body, Body::Heartbeat { store_away: true });
        let changed = event(&json!({"heartbeat": {"store": "perhaps"}}));
        assert_eq!(read(&changed).expect("readable").body, Body::Heartbeat { store_away: false });
        let reasoned = event(&json!({"goodbye": {"because": "update"}}));
        assert_eq!(read(&reasoned).expect("readable").body, Body::Goodbye);
    }

    #[test]
    fn what_would_make_an_answer_wrong_is_not_skipped() {
        let counter = json!({"committed": {"counters": [{"name": "a", "value": "5e99"}]}});
        let no_lists = ["counters", "types", "deleted", "standings", "failed", "keyed", "messages"]
            .map(|member| event(&json!({"committed": {member: {"a": 1}}})));
        for event in [event(&counter), json!({"body": "goodbye"}), json!(5)].into_iter().chain(no_lists) {
            assert!(read(&event).is_err(), "{event}");
        }
    }
}
