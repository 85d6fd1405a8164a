//! Messages that could not be applied as a whole: the form in which their bodies are kept among the dead
//! letters, and the decisions of a redrive about them. Pure, for both stores.
//!
//! A body is stored so that its very bytes come back: its digest is part of the ledger row. Text stays text,
//! so that a person can read it; anything else is written in base64.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::dead_letters::failed;
use super::ledger::TooOld;
use super::plan::detail_of;
use crate::model::dead_letter::{DeadLetter, DeadMessage, Redriven, reason_of};
use crate::model::id::{BodyId, MessageId};
use crate::model::message::{Message, decode};
use crate::model::outcome::Reason;

/// Bytes that are kept of a longer body.
const BEGINNING_BYTES: usize = 64 << 10;

/// Prefix of a body in base64. A text that begins with it is written in base64, too.
const BASE64_MARK: &str = "base64:";

impl DeadMessage {
    /// Returns its row among the dead letters.
    pub(crate) fn row(&self) -> DeadMessageRow {
        let (id, reason) = (self.id().as_uuid(), self.reason().name());
        if reason == Reason::TooLarge.name() {
            let (bytes, digest) = (self.body.len(), Sha256::digest(&self.body));
            let detail = format!("{}; its {bytes} bytes have the SHA-256 {digest:x}", self.detail);
            return DeadMessageRow {
                id,
                reason,
                detail: detail_of(&detail),
                item: text_of(&self.body[..BEGINNING_BYTES]),
            };
        }
        DeadMessageRow { id, reason, detail: detail_of(&self.detail), item: text_of(&self.body) }
    }
}

/// A row of `dead_letters` that holds a message.
pub(crate) struct DeadMessageRow {
    pub id: Uuid,
    pub reason: &'static str,
    pub detail: String,
    pub item: String,
}

impl DeadMessageRow {
    /// Returns the row in ASCII, for a server that refuses other characters.
    pub fn in_ascii(self) -> Self {
        let ascii = |character: char| if character.is_ascii() { character } else { '?' };
        let item = if self.item.is_ascii() { self.item } else { encode(self.item.as_bytes()) };
        Self { detail: self.detail.chars().map(ascii).collect(), item, ..self }
    }
}

/// Returns the message that a redrive tries, if this build can read it, or the reason why not.
pub(crate) fn message_of(letter: &DeadLetter) -> Result<Message, (Reason, String)> {
    let body = bytes_of(&letter.item).filter(|body| BodyId::of(body).as_uuid() == letter.id);
    let Some(body) = body else {
        return Err((Reason::TooLarge, "only its beginning was kept".into()));
    };
    decode(&body).map_err(|error| (reason_of(&error), detail_of(&error.to_string())))
}

impl DeadLetter {
    /// Returns true for a message that this build can read. Takes time with its size.
    pub fn is_readable_message(&self) -> bool {
        self.is_message() && message_of(self).is_ok()
    }
}

/// Returns true when another body was applied under the id of the message. The ledger forgets that one; this
/// row does not.
fn is_reused(letter: &DeadLetter) -> bool {
    letter.reason == Reason::DigestMismatch.name()
}

/// Returns the rule of a redrive for a letter with a message that is too old.
pub(crate) fn too_old(letter: &DeadLetter, force: bool) -> TooOld {
    if force && !is_reused(letter) { TooOld::Apply } else { TooOld::Refuse }
}

/// Returns true when the body that was applied is forgotten, so that this body cannot be compared with it.
pub(crate) fn is_reused_for_good(letter: &DeadLetter, id: MessageId, floor: Uuid) -> bool {
    is_reused(letter) && id.as_uuid() <= floor
}

/// Returns true when a message above the floor may repeat a write that was applied under a forgotten key.
/// Keys are forgotten by accept times, and an id that was issued while clocks were ahead holds a later time
/// than its request.
pub(crate) fn may_repeat(message: &Message, floor: Uuid) -> bool {
    let is_above = message.id.as_uuid() > floor;
    is_above && MessageId::from_uuid(floor).is_some_and(|floor| message.accepted_at_ms <= floor.time_ms())
}

/// Returns the outcome of a letter that stays. The reason that its id belongs to another body is never
/// overwritten.
pub(crate) fn failed_again(letter: &DeadLetter, reason: Reason, detail: String) -> Redriven {
    let reason = if is_reused(letter) { Reason::DigestMismatch } else { reason };
    failed(letter.id, reason.name(), detail)
}

fn text_of(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        // Postgres takes no NUL.
        Ok(text) if !text.contains('\0') && !text.starts_with(BASE64_MARK) => text.to_owned(),
        _ => encode(body),
    }
}

fn encode(body: &[u8]) -> String {
    let mut text = BASE64_MARK.to_owned();
    BASE64.encode_string(body, &mut text);
    text
}

fn bytes_of(item: &str) -> Option<Vec<u8>> {
    match item.strip_prefix(BASE64_MARK) {
        Some(encoded) => BASE64.decode(encoded).ok(),
        None => Some(item.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::dead_letter::{BODY_BYTES_MAX, MESSAGE_KIND, RedriveOutcome};
    use crate::model::message::Undecodable;

    fn dead(body: &[u8]) -> DeadMessage {
        let error = decode(body).expect_err("no message");
        DeadMessage::undecodable(Bytes::copy_from_slice(body), &error)
    }

    fn letter(DeadMessageRow { id, reason, detail, item }: DeadMessageRow) -> DeadLetter {
        DeadLetter {
            id,
            kind: MESSAGE_KIND.into(),
            reason: reason.into(),
            detail,
            item,
            accepted_at_ms: 1,
            set_aside_at_ms: 1,
            discarded_at_ms: None,
        }
    }

    proptest! {
        #[test]
        fn the_very_bytes_come_back(body: Vec<u8>) {
            for row in [dead(&body).row(), dead(&body).row().in_ascii()] {
                prop_assert!(!row.item.contains('\0'));
                prop_assert_eq!(bytes_of(&row.item), Some(body.clone()));
            }
            prop_assert!(dead(&body).row().in_ascii().item.is_ascii());
        }

        #[test]
        fn text_stays_readable(text in "[^\0]{0,40}") {
            let stored = text_of(text.as_bytes());
            prop_assert!(stored == text || text.starts_with(BASE64_MARK), "{}", stored);
            prop_assert_eq!(bytes_of(&stored), Some(text.into_bytes()));
        }
    }

    #[test]
    fn what_looks_like_base64_is_told_from_what_is() {
        for body in ["base64:", "base64:AAAA", "base64:\0", "base64:base64:"] {
            assert_eq!(bytes_of(&text_of(body.as_bytes())), Some(body.as_bytes().to_vec()), "{body}");
        }
        assert_eq!(bytes_of("base64:not that"), None);
    }

    #[test]
    fn a_redrive_reads_it_again_and_says_why_it_cannot() {
        let newer = r#"{"v":2,"id":"019a9c1e-7a10-8c01-9f3c-5a1d00000000","accepted_at_ms":5,"items":[]}"#;
        let later = newer.replace("\"v\":2", "\"v\":1").replace("[]", r#"[{"later":{}}]"#);
        for (body, reason) in [
            ("garbage", Reason::Undecodable),
            ("\0", Reason::Undecodable),
            (newer, Reason::UnknownVersion),
            (&later, Reason::UnknownKind),
        ] {
            let dead = dead(body.as_bytes());
            assert_eq!(dead.row().reason, reason.name(), "{body}");
            let again = message_of(&letter(dead.row())).expect_err("still no message").0;
            assert_eq!(again, reason, "{body}");
        }
        let readable = later.replace(r#""later":{}"#, r#""increment":{"counter":"a","by":1}"#);
        let dead = DeadMessage::undecodable(readable.clone().into(), &Undecodable::Version(1));
        let message = message_of(&letter(dead.row())).expect("this build reads it");
        assert_eq!(message, decode(readable.as_bytes()).expect("a message"));
    }

    #[test]
    fn that_an_id_belongs_to_another_body_is_never_overwritten() {
        let reason = |reason: Reason| {
            let letter = letter(DeadMessageRow { reason: reason.name(), ..dead(b"no message").row() });
            match failed_again(&letter, Reason::RefusedByStore, "no".into()).outcome {
                RedriveOutcome::FailedAgain { reason, .. } => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reason(Reason::DigestMismatch), "digest_mismatch");
        assert_eq!(reason(Reason::UnknownVersion), "refused_by_store");
    }

    #[test]
    fn of_a_body_beyond_the_bound_the_beginning_is_kept_and_never_applied() {
        let body = vec![b'x'; BODY_BYTES_MAX + 1];
        let row = dead(&body).row();
        assert_eq!((row.reason, row.item.len()), ("too_large", BEGINNING_BYTES));
        let digest = format!("its {} bytes have the SHA-256", body.len());
        assert!(row.detail.contains(&digest), "{}", row.detail);
        assert_eq!(message_of(&letter(row)).expect_err("cut").0, Reason::TooLarge);
        let whole = dead(&body[1..]).row();
        assert_eq!((whole.reason, whole.item.len()), ("undecodable", BODY_BYTES_MAX));
    }
}
