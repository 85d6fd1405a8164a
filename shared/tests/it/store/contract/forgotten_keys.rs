//! The contract of both stores on the removal of keys: a key stays until nothing can come under it
//! that would take effect once more.
use std::sync::Arc;

use shared::model::collection::Definition;
use shared::model::dead_letter::{DeadMessage, RedriveOutcome};
use shared::model::id::Kind;
use shared::model::message::{Message, Undecodable};
use shared::model::outcome::{ItemStatus, KeyedVerdict};
use shared::model::write::Item;
use shared::store::{DocumentPage, Housekept, Retention, Store, Stored};

use crate::store::contract::dead_letters::{applied, everything, redrive, set_aside};
use crate::store::contract::dead_messages::bury;
use crate::store::contract::housekeeping::{DAY_MS, LONG, above_the_floor, housekeep_all, next_ms};
use crate::store::sent::{delete, document, identity, increment, with_key};
use crate::store::{Messages, apply, fate, standing};

on_both!(
    a_key_lives_for_its_retention_after_the_redrive,
    a_key_lives_for_its_retention_after_the_discard,
    a_key_stays_until_the_floor_guards_what_waits_among_the_dead_letters,
    a_retry_among_the_dead_letters_is_guarded_as_long_as_any,
    a_retry_whose_id_is_ahead_of_its_request_is_guarded_by_when_it_was_accepted,
    a_deleted_document_stays_deleted_beside_a_retry_among_the_dead_letters,
    a_document_that_retention_took_is_no_new_one_while_its_key_is_promised,
    a_tombstone_stays_while_a_key_is_promised_that_was_entered_after_the_delete,
    a_key_that_a_clock_behind_entered_lives_as_long_as_any,
    pruning_looks_at_so_many_keys_at_a_time_and_at_none_twice,
);

async fn forget(store: &Arc<dyn Store>, before_ms: i64) {
    housekeep_all(store, Retention { forget_before_ms: Some(before_ms), ..LONG }).await;
}

async fn is_applied(store: &Arc<dyn Store>, key: &str) -> bool {
    matches!(fate(store, identity(Kind::Increment, key, 0)).await, Some(ItemStatus::Applied { .. }))
}

async fn verdict(store: &Arc<dyn Store>, message: Message) -> KeyedVerdict {
    apply(store, &[message]).await.keyed[0].verdict
}

/// Dead-letters a message that only a newer build reads.
async fn dead_letter_unread(store: &Arc<dyn Store>, messages: &mut Messages, at_ms: i64, items: &[Item]) {
    let body = messages.body_at(at_ms, items);
    bury(store, &DeadMessage::undecodable(body, &Undecodable::Version(9))).await;
}

/// Its age does not count from the time at which the item was dead-lettered: the client may not
/// know of it yet.
async fn a_key_lives_for_its_retention_after_the_redrive([one, other]: [Arc<dyn Store>; 2]) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = above_the_floor(&one, now_ms).await;
    let item = with_key("k", increment("a", 1));
    set_aside(&one, &mut messages, std::slice::from_ref(&item)).await;
    // This time is later than the dead-lettering, and earlier than the redrive.
    let between_ms = next_ms(&one).await;
    next_ms(&one).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 1);
    forget(&one, between_ms).await;
    assert!(is_applied(&one, "k").await);
    assert_eq!(verdict(&other, messages.of(&[item])).await, KeyedVerdict::Repeated);
    assert_eq!(standing(&one, "a").await, (1, 1), "by the redrive alone");
}

/// The key does not depend on the retention of discarded letters, however short that is.
async fn a_key_lives_for_its_retention_after_the_discard([one, other]: [Arc<dyn Store>; 2]) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = above_the_floor(&one, now_ms).await;
    let item = with_key("k", increment("a", 1));
    let id = set_aside(&one, &mut messages, std::slice::from_ref(&item)).await[0];
    let between_ms = next_ms(&one).await;
    next_ms(&one).await;
    assert!(one.discard(id.as_uuid()).await.expect("is discarded"));
    let at_once = |before_ms| Retention { discarded_ms: -DAY_MS, forget_before_ms: Some(before_ms), ..LONG };
    housekeep_all(&other, at_once(between_ms)).await;
    assert_eq!(verdict(&one, messages.of(std::slice::from_ref(&item))).await, KeyedVerdict::Repeated);
    let long = Retention { remembered_ms: 3 * DAY_MS, ..at_once(now_ms + DAY_MS) };
    housekeep_all(&other, long).await;
    assert_eq!(verdict(&one, messages.of(std::slice::from_ref(&item))).await, KeyedVerdict::Repeated);
    assert_eq!(standing(&one, "a").await, (0, 0), "it is never applied");
    // From here on it is a new key.
    housekeep_all(&other, at_once(now_ms + DAY_MS)).await;
    assert_eq!(verdict(&one, messages.of(&[item])).await, KeyedVerdict::Applied);
}

/// The ledger may be behind: by whole days on Postgres, by what one call deletes on SQLite.
async fn a_key_stays_until_the_floor_guards_what_waits_among_the_dead_letters(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = Messages::new();
    let item = with_key("k", increment("a", 1));
    apply(&one, &[messages.at(now_ms, &[increment("first", 1)])]).await;
    dead_letter_unread(&one, &mut messages, now_ms, std::slice::from_ref(&item)).await;
    apply(&one, &[messages.at(now_ms, &[item])]).await;
    let behind = Retention { forget_before_ms: Some(next_ms(&one).await), rows_max: 1, ..LONG };
    one.housekeep(behind).await.expect("is kept");
    redrive(&other, everything(), false).await;
    assert_eq!(standing(&one, "a").await, (1, 1));
}

/// It came within the time for which keys are promised, which may be on another day.
async fn a_retry_among_the_dead_letters_is_guarded_as_long_as_any([one, other]: [Arc<dyn Store>; 2]) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = Messages::new();
    let item = with_key("k", increment("a", 1));
    apply(&one, &[messages.of(std::slice::from_ref(&item))]).await;
    apply(&one, &[messages.at(now_ms + DAY_MS, &[increment("passing", 1)])]).await;
    dead_letter_unread(&one, &mut messages, now_ms + DAY_MS + 1_000, std::slice::from_ref(&item)).await;
    let kept = |before_ms| Retention { remembered_ms: 2 * DAY_MS, forget_before_ms: Some(before_ms), ..LONG };
    housekeep_all(&one, kept(now_ms + 2 * DAY_MS)).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 1, "it is not too old");
    assert_eq!(standing(&one, "a").await, (1, 1));
    // Once the floor is that far, its message would be too old.
    apply(&one, &[messages.at(now_ms + 4 * DAY_MS, &[increment("passing", 1)])]).await;
    housekeep_all(&one, kept(now_ms + 6 * DAY_MS)).await;
    assert!(!is_applied(&one, "k").await);
}

/// The floor is ahead where clocks were ahead for days, and ids stay above it while requests have
/// the true time.
async fn a_retry_whose_id_is_ahead_of_its_request_is_guarded_by_when_it_was_accepted(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = above_the_floor(&one, now_ms).await;
    let item = with_key("k", increment("a", 1));
    apply(&one, &[messages.at(now_ms, std::slice::from_ref(&item))]).await;
    dead_letter_unread(&one, &mut messages, now_ms, &[item]).await;
    forget(&one, now_ms + DAY_MS).await;
    assert!(!is_applied(&one, "k").await);
    let redriven = redrive(&other, everything(), false).await;
    assert_eq!(redriven[0].outcome, RedriveOutcome::NeedsForce);
    assert_eq!(standing(&one, "a").await, (1, 1));
}

async fn a_deleted_document_stays_deleted_beside_a_retry_among_the_dead_letters(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = Messages::new();
    let item = with_key("k", document("c", "{}"));
    let id = identity(Kind::Document, "k", 0);
    apply(&one, &[messages.of(std::slice::from_ref(&item)), messages.of(&[delete("c", id)])]).await;
    apply(&one, &[messages.at(now_ms + DAY_MS, &[increment("passing", 1)])]).await;
    dead_letter_unread(&one, &mut messages, now_ms + DAY_MS + 1_000, &[item]).await;
    // It was deleted long ago, by the time of its message.
    let remembered_ms = now_ms - crate::store::NOON_MS + 2 * DAY_MS;
    let kept = Retention { remembered_ms, forget_before_ms: Some(now_ms + 2 * DAY_MS), ..LONG };
    housekeep_all(&one, kept).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 1, "it is not too old");
    assert_eq!(one.document("c", id).await.expect("is read"), Some(Stored::Deleted));
}

/// Retention may be shorter than the time for which keys are promised, or the document may have waited.
async fn a_document_that_retention_took_is_no_new_one_while_its_key_is_promised(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = Messages::new();
    let brief = Definition { indexed: vec!["f".into()], retention_days: Some(1), schema: None };
    one.define("brief", brief).await.expect("is defined");
    let item = with_key("k", document("brief", r#"{"f":"x"}"#));
    let id = identity(Kind::Document, "k", 0);
    let first = messages.at(now_ms - 2 * DAY_MS, &[item.clone(), document("brief", "{}")]);
    apply(&one, std::slice::from_ref(&first)).await;
    // This holds before anything may be removed, and after the ledger row was.
    housekeep_all(&other, LONG).await;
    apply(&one, &[messages.at(now_ms + DAY_MS, &[increment("passing", 1)])]).await;
    let kept = |before_ms| Retention { remembered_ms: 2 * DAY_MS, forget_before_ms: Some(before_ms), ..LONG };
    for _ in 0..2 {
        let reported = fate(&other, id).await;
        assert!(matches!(reported, Some(ItemStatus::Applied { fingerprint: Some(_), .. })), "{reported:?}");
        assert_eq!(one.document("brief", id).await.expect("is read"), Some(Stored::Deleted));
        assert_eq!(one.document("brief", first.item_key(1)).await.expect("is read"), None, "it has no key");
        let retry = messages.of(std::slice::from_ref(&item));
        assert_eq!(verdict(&one, retry).await, KeyedVerdict::Repeated);
        let page =
            DocumentPage { collection: "brief".into(), filters: vec![], from: None, before: None, limit: 10 };
        assert_eq!(one.documents(page).await.expect("is read").documents, []);
        housekeep_all(&other, kept(now_ms + 2 * DAY_MS)).await;
    }
    // From here on it is a new one, and the message that brought it is known to be removed.
    apply(&one, &[messages.at(now_ms + 4 * DAY_MS, &[increment("passing", 1)])]).await;
    housekeep_all(&one, kept(now_ms + 6 * DAY_MS)).await;
    assert_eq!(other.document("brief", id).await.expect("is read"), None);
    let fates = other.item_statuses([id, first.item_key(1)].into()).await.expect("is read");
    assert_eq!(fates, [None, Some(ItemStatus::Forgotten)]);
    messages.at(now_ms + 5 * DAY_MS, &[increment("never sent", 1)]);
    assert_eq!(verdict(&one, messages.of(&[item])).await, KeyedVerdict::Applied);
}

/// Document and deletion waited for the store for days.
async fn a_tombstone_stays_while_a_key_is_promised_that_was_entered_after_the_delete(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = Messages::new();
    let item = with_key("k", document("c", "{}"));
    let id = identity(Kind::Document, "k", 0);
    let waited =
        [messages.at(now_ms - 3 * DAY_MS, std::slice::from_ref(&item)), messages.of(&[delete("c", id)])];
    apply(&one, &waited).await;
    apply(&one, &[messages.at(now_ms - DAY_MS, &[increment("passing", 1)])]).await;
    forget(&other, now_ms - DAY_MS / 2).await;
    assert_eq!(verdict(&one, messages.of(std::slice::from_ref(&item))).await, KeyedVerdict::Repeated);
    assert_eq!(one.document("c", id).await.expect("is read"), Some(Stored::Deleted));
    // Once the key is old, both go.
    apply(&one, &[messages.at(now_ms + DAY_MS, &[increment("passing", 1)])]).await;
    forget(&other, now_ms + 2 * DAY_MS).await;
    assert_eq!(one.document("c", id).await.expect("is read"), None);
    assert_eq!(fate(&one, id).await, None);
}

/// The store's clock was behind when the key was entered: its message has a later time.
async fn a_key_that_a_clock_behind_entered_lives_as_long_as_any([one, other]: [Arc<dyn Store>; 2]) {
    let now_ms = one.now_ms().await.expect("a time");
    above_the_floor(&one, now_ms).await;
    let mut messages = Messages::new();
    messages.at(now_ms + 5 * DAY_MS, &[increment("never sent", 1)]);
    let item = with_key("k", increment("a", 1));
    apply(&one, &[messages.at(now_ms + DAY_MS, std::slice::from_ref(&item))]).await;
    forget(&one, now_ms + DAY_MS / 2).await;
    assert_eq!(verdict(&other, messages.of(std::slice::from_ref(&item))).await, KeyedVerdict::Repeated);
    forget(&one, now_ms + DAY_MS + 3_600_000).await;
    assert_eq!(verdict(&other, messages.of(&[item])).await, KeyedVerdict::Applied);
}

/// Keys that dead letters hold back are many where many items were dead-lettered.
async fn pruning_looks_at_so_many_keys_at_a_time_and_at_none_twice([one, _]: [Arc<dyn Store>; 2]) {
    let now_ms = one.now_ms().await.expect("a time");
    let mut messages = above_the_floor(&one, now_ms).await;
    let keyed = |name: &str| with_key(name, increment("a", 1));
    let held: Vec<Item> = (0..30).map(|number| keyed(&format!("held{number}"))).collect();
    set_aside(&one, &mut messages, &held).await;
    next_ms(&one).await;
    let free: Vec<Item> = (0..5).map(|number| keyed(&format!("free{number}"))).collect();
    apply(&one, &[messages.of(&free)]).await;
    let few = Retention { forget_before_ms: Some(now_ms + DAY_MS), rows_max: 10, ..LONG };
    let housekeep = async || {
        let Housekept { rows, more, .. } = one.housekeep(few).await.expect("is kept");
        (rows, more)
    };
    for expected in [(0, true), (0, true), (0, true), (5, false), (0, false)] {
        assert_eq!(housekeep().await, expected);
    }
    next_ms(&one).await;
    apply(&one, &[messages.of(&[keyed("later")])]).await;
    assert_eq!(housekeep().await, (1, false));
    assert!(!is_applied(&one, "later").await && !is_applied(&one, "free0").await);
    // The redriven keys are as old as their redrive, and come behind those.
    let redriven = redrive(&one, everything(), false).await.len();
    assert_eq!(redriven, 30);
    housekeep_all(&one, few).await;
    assert!(!is_applied(&one, "held7").await);
}
