//! Items that were set aside: the messages that a redrive makes of them, and its outcomes. Pure, for both
//! stores.
//!
//! A redriven item becomes a message of its own, which never reaches the ledger: the message that
//! brought it stands there already. The item keeps its id, its place and its accept time.
use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::plan::Earlier;
use crate::model::dead_letter::{DeadLetter, RedriveOutcome, Redriven};
use crate::model::id::ItemKey;
use crate::model::message::{Message, decode_stored};
use crate::model::outcome::{Reason, SetAside};

/// Time after which a redrive begins no further step; well below `store.write_timeout_ms`.
pub(crate) const REDRIVE_TIME_MAX: Duration = Duration::from_secs(5);

/// Reason: another payload was processed under the item's key meanwhile.
const KEY_REUSED: &str = "key_reused";

/// Splits letters by transaction, in this order: neighbouring items together, and each message alone.
pub(crate) fn steps(letters: &[DeadLetter]) -> impl Iterator<Item = &[DeadLetter]> {
    letters.chunk_by(|one, other| !one.is_message() && !other.is_message())
}

/// The letters of one transaction.
#[derive(Debug, Default)]
pub(crate) struct RedriveBatch {
    /// Messages of one item each.
    pub messages: Vec<Message>,
    /// Outcomes of letters that give no message.
    failed: Vec<Redriven>,
}

impl RedriveBatch {
    pub fn of<'l>(letters: impl IntoIterator<Item = &'l DeadLetter>, force: bool) -> Self {
        let mut batch = Self::default();
        for letter in letters {
            if letter.reason == Reason::TooOld.name() && !force {
                batch.failed.push(Redriven { id: letter.id, outcome: RedriveOutcome::NeedsForce });
                continue;
            }
            match message_of(letter) {
                Ok(message) => batch.messages.push(message),
                Err(detail) => batch.failed.push(failed(letter.id, Reason::Unreadable.name(), detail)),
            }
        }
        batch
    }

    /// Drops items when their key has another payload: a key never applies to two.
    pub fn check_keys(&mut self, earlier: &Earlier) {
        let Self { messages, failed: gone } = self;
        messages.retain(|message| {
            let keyed = message.entries[0].keyed();
            let reused = keyed.is_some_and(|own| {
                earlier.get(&own.id).is_some_and(|processed| *processed != own.fingerprint)
            });
            if reused {
                let detail = "another payload was processed under its key".to_owned();
                gone.push(failed(message.item_key(0).as_uuid(), KEY_REUSED, detail));
            }
            !reused
        });
    }

    /// Returns the outcome of each letter, by ascending id; `set_aside` holds those that failed again.
    pub fn outcomes(self, set_aside: &[SetAside]) -> Vec<Redriven> {
        let aside: HashMap<ItemKey, &SetAside> = set_aside.iter().map(|aside| (aside.item, aside)).collect();
        let mut outcomes = self.failed;
        outcomes.extend(self.messages.iter().map(|message| {
            let item = message.item_key(0);
            match aside.get(&item) {
                None => Redriven { id: item.as_uuid(), outcome: RedriveOutcome::Applied },
                Some(aside) => failed(item.as_uuid(), aside.reason.name(), aside.detail.clone()),
            }
        }));
        outcomes.sort_unstable_by_key(|redriven| redriven.id);
        outcomes
    }
}

pub(crate) fn failed(id: Uuid, reason: &str, detail: String) -> Redriven {
    Redriven { id, outcome: RedriveOutcome::FailedAgain { reason: reason.into(), detail } }
}

/// Returns a message that holds the one item, at the place that it had.
fn message_of(letter: &DeadLetter) -> Result<Message, String> {
    let unknown = || "this build does not know its kind".to_owned();
    let key = ItemKey::from_uuid(letter.id).ok_or_else(unknown)?;
    let entry = decode_stored(&letter.item, letter.accepted_at_ms).ok_or_else(unknown)?;
    let (id, first) = key.place_at(letter.accepted_at_ms);
    let message = Message {
        id,
        digest: [0; 16],
        accepted_at_ms: letter.accepted_at_ms,
        entries: vec![entry],
        awaited: Vec::new(),
        first,
    };
    if message.item_key(0) == key { Ok(message) } else { Err("its id belongs to another item".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{IdIssuer, Kind};
    use crate::model::idempotency::{fingerprint_of, id_of};
    use crate::store::rules::plan::Plan;

    fn letter(id: ItemKey, item: String) -> DeadLetter {
        DeadLetter {
            id: id.as_uuid(),
            kind: id.kind_name().into(),
            reason: "unreadable".into(),
            detail: String::new(),
            item,
            accepted_at_ms: 7,
            set_aside_at_ms: 8,
            discarded_at_ms: None,
        }
    }

    #[test]
    fn an_item_keeps_its_id_and_its_place() {
        let id = IdIssuer::new(1, 1).next(5).item(Kind::Document, 4_095);
        let document = r#"{"document":{"collection":"c","data":{}}}"#;
        let batch = RedriveBatch::of(&[letter(id, document.into())], false);
        let plan = Plan::redriven(&batch.messages);
        assert_eq!((plan.documents[0].item(), plan.documents[0].place()), (id, id.as_uuid()));
        assert!(!plan.documents[0].is_keyed());
        let keyed = id_of("p", Kind::Document, "k", 0);
        let fingerprint = fingerprint_of("POST", "c", "{}");
        let item = format!(
            r#"{{"document":{{"collection":"c","data":{{}}}},"keyed":{{"id":"{keyed}","fingerprint":"{fingerprint}"}}}}"#
        );
        let places = [0, 1].map(|_| {
            let batch = RedriveBatch::of(&[letter(keyed, item.clone())], false);
            let plan = Plan::redriven(&batch.messages);
            assert_eq!(plan.documents[0].item(), keyed);
            let place = ItemKey::from_uuid(plan.documents[0].place()).expect("a place");
            assert_eq!(place.message().expect("of a message").time_ms(), 7);
            place
        });
        assert_eq!(places[0], places[1]);
    }

    #[test]
    fn items_share_a_step_and_a_message_has_its_own() {
        let of = |kind: &str| {
            let id = IdIssuer::new(1, 1).next(5).item(Kind::Point, 0);
            DeadLetter { kind: kind.into(), ..letter(id, String::new()) }
        };
        let kinds = ["point", "later", "message", "message", "point"].map(of);
        assert_eq!(steps(&kinds).map(<[_]>::len).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert_eq!(steps(&[]).count(), 0);
    }

    #[test]
    fn what_cannot_be_applied_is_told_without_a_plan() {
        let id = IdIssuer::new(1, 1).next(5).item(Kind::Increment, 0);
        let point = r#"{"point":{"type":"t","at_ms":7,"value":1}}"#;
        for item in [r#"{"later":{}}"#, "no JSON", "", point] {
            let batch = RedriveBatch::of(&[letter(id, item.into())], false);
            assert!(batch.messages.is_empty(), "{item}");
            let [Redriven { id: failed_id, outcome: RedriveOutcome::FailedAgain { reason, .. } }] =
                &batch.outcomes(&[])[..]
            else {
                panic!("{item}")
            };
            assert_eq!((*failed_id, &**reason), (id.as_uuid(), "unreadable"), "{item}");
        }
        let bad = RedriveBatch::of(&[letter(id, r#"{"increment":{"counter":"a b","by":1}}"#.into())], false);
        assert_eq!(Plan::redriven(&bad.messages).aside[0].item, id);
    }

    #[test]
    fn what_is_too_old_is_tried_by_force_only() {
        let id = IdIssuer::new(1, 1).next(5).item(Kind::Increment, 0);
        let item = r#"{"increment":{"counter":"a","by":1}}"#;
        let old = DeadLetter { reason: "too_old".into(), ..letter(id, item.into()) };
        assert_eq!(RedriveBatch::of(std::slice::from_ref(&old), true).messages.len(), 1);
        let batch = RedriveBatch::of(&[old], false);
        assert!(batch.messages.is_empty());
        let expected = Redriven { id: id.as_uuid(), outcome: RedriveOutcome::NeedsForce };
        assert_eq!(batch.outcomes(&[]), [expected]);
    }

    #[test]
    fn a_key_that_has_another_payload_by_now_is_heeded() {
        let id = id_of("p", Kind::Increment, "k", 0);
        let own = fingerprint_of("POST", "a", "1");
        let item = format!(
            r#"{{"increment":{{"counter":"a","by":1}},"keyed":{{"id":"{id}","fingerprint":"{own}"}}}}"#
        );
        for (processed, applied) in [(own, 1), (fingerprint_of("POST", "a", "2"), 0)] {
            let mut batch = RedriveBatch::of(&[letter(id, item.clone())], false);
            batch.check_keys(&Earlier::from([(id, processed)]));
            assert_eq!(batch.messages.len(), applied);
            assert_eq!(batch.outcomes(&[]).len(), 1);
        }
    }
}
