//! The contract of both stores on messages that are older than the records of the ledger.
use std::sync::Arc;

use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadMessage, Redrive, RedriveOutcome, Redriven,
};
use shared::model::id::{IdFloor, IdIssuer, ItemKey, Kind};
use shared::model::message::{Entry, Message};
use shared::model::outcome::{ItemStatus, Reason};
use shared::store::{ConsumerWatermark, ReportedWatermark, Retention, Store, Stored};

use crate::store::contract::dead_messages::{another, body, bury, read, too_new};
use crate::store::contract::housekeeping::{DAY_MS, LONG, above_the_floor, housekeep_all};
use crate::store::sent::{delete, document, identity, increment, with_key};
use crate::store::{Messages, NOON_MS, apply, fate, items, message, standing};

on_both!(
    what_was_forgotten_is_told_at_every_store_and_never_applied_again,
    a_message_that_never_came_is_set_aside_when_it_is_too_old_and_applied_by_force_only,
    a_buried_message_that_is_too_old_is_applied_by_force_only,
    a_body_under_a_reused_id_stays_when_the_original_is_forgotten,
    a_key_tells_what_the_ledger_has_forgotten,
    a_dead_letter_is_applied_once_after_its_message_was_forgotten,
    a_clock_that_was_ahead_makes_nothing_too_old_that_comes_after_it,
    a_floor_that_lies_ahead_of_the_clock_is_known_to_who_issues_ids,
    a_replica_that_is_two_days_behind_is_applied_until_its_days_are_forgotten,
    the_floor_never_goes_back,
    a_tombstone_goes_with_the_ledger_unless_a_dead_letter_has_its_id,
    a_discarded_dead_letter_goes_after_its_time_and_not_before_its_message,
    what_consumers_hold_is_told_to_the_others,
);

async fn forget(store: &Arc<dyn Store>, before_ms: i64) {
    housekeep_all(store, Retention { forget_before_ms: Some(before_ms), ..LONG }).await;
}

fn is_applied(fate: Option<&ItemStatus>) -> bool {
    matches!(fate, Some(ItemStatus::Applied { .. }))
}

fn reason(fate: Option<ItemStatus>) -> String {
    match fate {
        Some(ItemStatus::Failed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// Redrives everything, or only the letter with this id.
async fn redrive(store: &Arc<dyn Store>, id: Option<ItemKey>, dry_run: bool, force: bool) -> Vec<Redriven> {
    let filter = DeadLetterFilter { id: id.map(ItemKey::as_uuid), ..DeadLetterFilter::default() };
    let asked = Redrive { filter, after: None, limit: 100, dry_run, force };
    store.redrive(asked).await.expect("is redriven").items
}

async fn letter(store: &Arc<dyn Store>, id: ItemKey) -> Option<DeadLetter> {
    store.dead_letter(id.as_uuid()).await.expect("is read")
}

/// Turns a message into the form that a build gets that cannot read its items.
fn unread(mut message: Message) -> Message {
    for entry in &mut message.entries {
        let Entry::Item(item) = &*entry else { panic!("{entry:?}") };
        let json = serde_json::to_string(item).expect("serialises").into();
        let (kind, keyed) = (item.kind(), item.keyed);
        *entry = Entry::Unreadable { kind, keyed, json, detail: "too new".into() };
    }
    message
}

/// A consumer that stopped, or a broker that was away, brings an old message.
async fn what_was_forgotten_is_told_at_every_store_and_never_applied_again(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    let old = messages.of(&[increment("a", 5), increment("b", 1)]);
    let new = messages.at(NOON_MS + 3 * DAY_MS, &[increment("a", 10)]);
    let coming = messages.at(NOON_MS + 3 * DAY_MS, &[increment("a", 100)]);
    apply(&one, &[old.clone(), new.clone()]).await;
    forget(&other, NOON_MS + 2 * DAY_MS).await;
    for store in [&one, &other] {
        assert_eq!(fate(store, old.item_key(1)).await, Some(ItemStatus::Forgotten));
        assert!(is_applied(fate(store, new.item_key(0)).await.as_ref()));
        assert_eq!(fate(store, coming.item_key(0)).await, None);
    }
    // It comes beside a new one, and at another time.
    let applied = apply(&one, &[old.clone(), coming.clone(), new.clone()]).await;
    let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
    assert_eq!(aside, [0, 1].map(|index| (old.item_key(index), Reason::TooOld)));
    assert!(is_applied(fate(&other, coming.item_key(0)).await.as_ref()));
    apply(&other, std::slice::from_ref(&old)).await;
    forget(&other, NOON_MS + 2 * DAY_MS).await;
    apply(&other, std::slice::from_ref(&old)).await;
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((115, 3), (1, 1)));
    for store in [&one, &other] {
        assert_eq!(reason(fate(store, old.item_key(0)).await), "too_old");
    }
}

async fn a_message_that_never_came_is_set_aside_when_it_is_too_old_and_applied_by_force_only(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let late = Messages::new().of(&[increment("a", 1), document("c", "{}")]);
    apply(&one, &[Messages::new().at(NOON_MS + 1, &[increment("b", 1)])]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    assert_eq!(apply(&other, std::slice::from_ref(&late)).await.set_aside.len(), 2);
    let before = letter(&one, late.item_key(0)).await.expect("is set aside");
    assert_eq!((&*before.reason, before.accepted_at_ms), ("too_old", NOON_MS + 7));
    for dry_run in [true, false] {
        let reported = redrive(&one, None, dry_run, false).await;
        assert_eq!(reported.len(), 2);
        assert!(
            reported.iter().all(|reported| reported.outcome == RedriveOutcome::NeedsForce),
            "{reported:?}"
        );
    }
    assert_eq!(letter(&other, late.item_key(0)).await, Some(before));
    assert_eq!(standing(&one, "a").await, (0, 0));
    let reported = redrive(&one, None, true, true).await;
    assert!(reported.iter().all(|reported| reported.outcome == RedriveOutcome::Applied), "{reported:?}");
    assert_eq!(redrive(&other, None, false, true).await, reported);
    assert_eq!(standing(&one, "a").await, (1, 1));
    let stored = one.document("c", late.item_key(1)).await.expect("is read");
    assert!(matches!(stored, Some(Stored::Document(_))), "{stored:?}");
    assert_eq!(redrive(&one, None, false, true).await, []);
}

async fn a_buried_message_that_is_too_old_is_applied_by_force_only([one, other]: [Arc<dyn Store>; 2]) {
    let late = body(&mut Messages::new(), &[("a", 1), ("b", 2)]);
    let id = bury(&one, &too_new(&late)).await;
    apply(&one, &[Messages::new().at(NOON_MS + 1, &[increment("z", 1)])]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    let before = one.dead_letter(id).await.expect("is read");
    for dry_run in [true, false] {
        let reported = redrive(&other, None, dry_run, false).await;
        assert_eq!(reported, [Redriven { id, outcome: RedriveOutcome::NeedsForce }]);
    }
    assert_eq!(one.dead_letter(id).await.expect("is read"), before);
    assert_eq!(
        fate(&one, read(&late).item_key(0)).await,
        Some(ItemStatus::Forgotten),
        "nothing is left of it"
    );
    for dry_run in [true, false] {
        assert_eq!(standing(&one, "a").await, (0, 0));
        let reported = redrive(&other, None, dry_run, true).await;
        assert_eq!(reported, [Redriven { id, outcome: RedriveOutcome::Applied }]);
    }
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((1, 1), (2, 1)));
    assert_eq!(
        (one.dead_letter(id).await.expect("is read"), redrive(&one, None, false, true).await),
        (None, vec![])
    );
    // From here on the ledger knows it.
    bury(&one, &too_new(&late)).await;
    assert_eq!(redrive(&other, None, false, false).await[0].outcome, RedriveOutcome::Applied);
    assert_eq!(standing(&one, "a").await, (1, 1));
}

/// It cannot be compared any more with the one that was applied.
async fn a_body_under_a_reused_id_stays_when_the_original_is_forgotten([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let first = body(&mut messages, &[("a", 1)]);
    let reused = another(&first);
    apply(&one, &[read(&first)]).await;
    let id = bury(&one, &DeadMessage::reused(reused.clone(), read(&first).id)).await;
    let letter = async || one.dead_letter(id).await.expect("is read").expect("stays");
    let before = letter().await;
    apply(&one, &[messages.at(NOON_MS + 1, &[increment("z", 1)])]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    let stays = async || {
        let only = DeadLetterFilter { id: Some(id), ..DeadLetterFilter::default() };
        for (dry_run, force) in [(true, false), (false, false), (true, true), (false, true)] {
            let asked = Redrive { filter: only.clone(), after: None, limit: 9, dry_run, force };
            let reported = other.redrive(asked).await.expect("is redriven").items;
            let [Redriven { outcome: RedriveOutcome::FailedAgain { reason, .. }, .. }] = &reported[..] else {
                panic!("{reported:?}")
            };
            assert_eq!(reason, "digest_mismatch");
        }
        let after = letter().await;
        assert_eq!((&after.reason, &after.item), (&before.reason, &before.item));
    };
    stays().await;
    // Nor is it when the queue brought it again, and the ledger knows no other body by now.
    assert_eq!(apply(&one, &[read(&reused)]).await.set_aside.len(), 1);
    stays().await;
    assert_eq!(standing(&one, "a").await, (1, 1));
}

async fn a_key_tells_what_the_ledger_has_forgotten([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let known = with_key("known", increment("a", 1));
    let old = messages.of(&[known.clone(), with_key("lost", increment("a", 10)), increment("a", 100)]);
    let other_payload = with_key("known", increment("a", 2));
    let early = Messages::new().at(NOON_MS - 5, &[with_key("early", increment("b", 1)), other_payload]);
    // This is entered now, so that nothing of the days of these messages takes the keys.
    apply(&one, &[messages.of(&[known])]).await;
    apply(&one, &[messages.of(&[increment("z", 1)])]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    let applied = apply(&other, &[early.clone(), old.clone()]).await;
    let reported: Vec<_> = applied.keyed.iter().map(|reported| (reported.item, reported.verdict)).collect();
    let expected = [
        (early.item_key(1), shared::model::outcome::KeyedVerdict::Conflict),
        (old.item_key(0), shared::model::outcome::KeyedVerdict::Repeated),
    ];
    assert_eq!(reported, expected);
    assert_eq!(applied.set_aside.len(), 3);
    assert!(is_applied(fate(&one, identity(Kind::Increment, "known", 0)).await.as_ref()));
    assert_eq!(reason(fate(&one, identity(Kind::Increment, "lost", 0)).await), "too_old");
    // A client's repetition in a new message finds that.
    let again = messages.at(NOON_MS + 3 * DAY_MS, &[with_key("lost", increment("a", 10))]);
    assert!(apply(&one, &[again]).await.set_aside.is_empty());
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((1, 1), (0, 0)));
    assert_eq!(fate(&one, identity(Kind::Increment, "never", 0)).await, None, "a keyed id has no time");
}

async fn a_dead_letter_is_applied_once_after_its_message_was_forgotten([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let sent = messages.of(&[increment("a", i64::MAX), increment("a", 3)]);
    apply(&one, std::slice::from_ref(&sent)).await;
    apply(&one, &[messages.at(NOON_MS + 3 * DAY_MS, &[increment("a", -10)])]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    let item = sent.item_key(1);
    assert_eq!(
        reason(fate(&other, item).await),
        "counter_overflow",
        "a dead letter stays until it is decided"
    );
    let reported = redrive(&other, Some(item), false, false).await;
    assert_eq!(reported, [Redriven { id: item.as_uuid(), outcome: RedriveOutcome::Applied }]);
    assert_eq!(standing(&one, "a").await, (i64::MAX - 7, 3));
    assert_eq!(redrive(&one, Some(item), false, true).await, []);
    assert_eq!(fate(&one, item).await, Some(ItemStatus::Forgotten));
    // Nor does its message apply it, should it come again.
    assert_eq!(apply(&other, &[sent]).await.set_aside.len(), 2);
    assert_eq!(standing(&one, "a").await, (i64::MAX - 7, 3));
}

/// The clock was ahead for so long that days in the future were removed, and then it was put right.
async fn a_floor_that_lies_ahead_of_the_clock_is_known_to_who_issues_ids([one, other]: [Arc<dyn Store>; 2]) {
    assert_eq!(other.floor_ms().await.expect("is read"), 0);
    let ahead = Messages::new().at(NOON_MS + 30 * DAY_MS, &[increment("a", 1)]);
    apply(&one, std::slice::from_ref(&ahead)).await;
    forget(&one, NOON_MS + 32 * DAY_MS).await;
    assert_eq!(other.floor_ms().await.expect("is read"), ahead.id.time_ms());
    let floor = IdFloor::default();
    let mut issuer = IdIssuer::new(0, 0).above(floor.clone());
    let mut write = || message(issuer.next(NOON_MS), &items(&[("a", 10)]));
    assert_eq!(apply(&one, &[write()]).await.set_aside[0].reason, Reason::TooOld);
    floor.raise(other.floor_ms().await.expect("is read"));
    assert_eq!(apply(&one, &[write()]).await.set_aside, []);
    // A write with such an id is not removed before its time.
    forget(&other, NOON_MS + 2 * DAY_MS).await;
    assert_eq!(apply(&other, &[write()]).await.set_aside, []);
    assert_eq!((standing(&one, "a").await, other.floor_ms().await.ok()), ((21, 3), Some(ahead.id.time_ms())));
}

/// A whole month that never was is removed, and nothing that came afterwards at its own time.
async fn a_clock_that_was_ahead_makes_nothing_too_old_that_comes_after_it([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let before = messages.of(&[increment("a", 1)]);
    let after = messages.at(NOON_MS + 5, &[increment("a", 10)]);
    let ahead = Messages::new().at(NOON_MS + 31 * DAY_MS, &[increment("a", 100)]);
    apply(&one, &[before.clone(), ahead.clone()]).await;
    forget(&one, NOON_MS + 30 * DAY_MS).await;
    assert!(apply(&other, &[after.clone(), ahead]).await.set_aside.is_empty());
    assert!(is_applied(fate(&one, after.item_key(0)).await.as_ref()));
    assert_eq!(apply(&one, &[before]).await.set_aside.len(), 1);
    assert_eq!(standing(&other, "a").await, (111, 3));
}

async fn a_replica_that_is_two_days_behind_is_applied_until_its_days_are_forgotten(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let (mut on_time, mut behind) = (Messages::new(), Messages::new());
    for hour in 0..3 {
        let at_ms = NOON_MS + hour * 3_600_000;
        let late = behind.at(at_ms - 2 * DAY_MS, &[increment("a", 1)]);
        let applied = apply(&one, &[late, on_time.at(at_ms, &[increment("a", 1)])]).await;
        assert!(applied.set_aside.is_empty());
        // Messages that consumers hold, and may still get, are as old as those that this replica sends.
        forget(&other, at_ms - 3 * DAY_MS).await;
    }
    let next = behind.at(NOON_MS - 2 * DAY_MS + 4 * 3_600_000, &[increment("a", 1)]);
    let mut never_seen = Messages::new();
    let unseen = never_seen.at(NOON_MS - 2 * DAY_MS, &[increment("a", 1)]);
    // The replica of this message was thought to be gone.
    forget(&other, NOON_MS).await;
    assert_eq!(apply(&one, &[unseen]).await.set_aside.len(), 1);
    // No row of its later messages can have been dropped.
    assert!(apply(&one, &[next]).await.set_aside.is_empty());
    assert_eq!(standing(&other, "a").await, (7, 7));
}

async fn the_floor_never_goes_back([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let first = messages.of(&[increment("a", 1)]);
    let last = messages.at(NOON_MS + 9, &[increment("a", 1)]);
    apply(&one, &[first.clone(), last.clone()]).await;
    forget(&one, NOON_MS + 2 * DAY_MS).await;
    // A row older than the last one that was dropped is dropped later.
    apply(&one, std::slice::from_ref(&first)).await;
    forget(&other, NOON_MS + 2 * DAY_MS).await;
    forget(&other, 0).await;
    assert_eq!(fate(&one, last.item_key(0)).await, Some(ItemStatus::Forgotten));
    assert_eq!(apply(&one, &[last]).await.set_aside.len(), 1);
    assert_eq!(standing(&one, "a").await, (2, 2));
}

async fn a_tombstone_goes_with_the_ledger_unless_a_dead_letter_has_its_id([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    // Keys count from when they are entered, by the store's clock.
    let now_ms = one.now_ms().await.expect("is read");
    let plain =
        messages.at(now_ms, &[document("c", "{}"), with_key("k", document("c", "{}")), document("c", "{}")]);
    let aside = unread(messages.at(now_ms, &[document("c", "{}"), with_key("l", document("c", "{}"))]));
    apply(&one, &[plain.clone(), aside.clone()]).await;
    let gone = [plain.item_key(0), plain.item_key(1)];
    let kept = [aside.item_key(0), aside.item_key(1)];
    let deletes: Vec<_> = gone.into_iter().chain(kept).map(|document| delete("c", document)).collect();
    apply(&one, &[messages.at(now_ms + 1_000, &deletes)]).await;
    // It is deleted long after it came.
    let lately = plain.item_key(2);
    apply(&one, &[messages.at(now_ms + 10_000, &[increment("a", 1)])]).await;
    apply(&one, &[messages.at(now_ms + 3 * DAY_MS, &[delete("c", lately)])]).await;
    let stored = async |id| other.document("c", id).await.expect("is read");
    forget(&other, now_ms - 2 * DAY_MS).await;
    for id in gone.into_iter().chain(kept).chain([lately]) {
        assert_eq!(stored(id).await, Some(Stored::Deleted), "{id}");
    }
    forget(&other, now_ms + 2 * DAY_MS).await;
    for id in gone {
        assert_eq!(stored(id).await, None, "{id}");
    }
    assert_eq!(fate(&one, gone[0]).await, Some(ItemStatus::Forgotten));
    assert_eq!(fate(&one, gone[1]).await, None, "its key went with its tombstone");
    for id in kept.into_iter().chain([lately]) {
        assert_eq!(stored(id).await, Some(Stored::Deleted), "{id}");
    }
    // The inserts come once more: by the queue, and by a redrive.
    apply(&one, &[plain]).await;
    for id in kept {
        assert_eq!(redrive(&one, Some(id), false, false).await[0].outcome, RedriveOutcome::Applied);
        assert_eq!(stored(id).await, Some(Stored::Deleted), "{id}");
    }
    for id in gone {
        assert_eq!(stored(id).await, None, "{id}");
    }
    forget(&other, now_ms + 2 * DAY_MS).await;
    for id in kept {
        assert_eq!(stored(id).await, None, "no dead letter holds it now");
    }
}

async fn a_discarded_dead_letter_goes_after_its_time_and_not_before_its_message(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    let sent = unread(messages.of(&[
        increment("a", 1),
        increment("a", 1),
        with_key("k", increment("a", 1)),
        with_key("l", increment("a", 1)),
    ]));
    apply(&one, std::slice::from_ref(&sent)).await;
    let (kept, discarded) = ([1, 3].map(|at| sent.item_key(at)), [0, 2].map(|at| sent.item_key(at)));
    for id in discarded {
        assert!(one.discard(id.as_uuid()).await.expect("is discarded"));
    }
    let until = async |before_ms: i64, discarded_ms: i64| {
        let retention = Retention { forget_before_ms: Some(before_ms), discarded_ms, ..LONG };
        housekeep_all(&other, retention).await;
    };
    // Its message may still come, or its time is not over.
    until(NOON_MS - 2 * DAY_MS, -DAY_MS).await;
    until(NOON_MS + 2 * DAY_MS, DAY_MS).await;
    for id in discarded {
        assert_eq!(reason(fate(&one, id).await), "unreadable", "{id}");
    }
    until(NOON_MS + 2 * DAY_MS, -DAY_MS).await;
    assert_eq!(fate(&one, discarded[0]).await, Some(ItemStatus::Forgotten));
    assert_eq!(reason(fate(&one, discarded[1]).await), "unreadable", "its key is as young as the discard");
    let now_ms = one.now_ms().await.expect("a time");
    above_the_floor(&one, now_ms).await;
    until(now_ms + DAY_MS, -DAY_MS).await;
    assert_eq!(fate(&one, discarded[1]).await, None, "not applied: its key went, too");
    for id in kept {
        assert_eq!(reason(fate(&one, id).await), "unreadable", "{id}");
    }
    assert_eq!(standing(&one, "a").await, (0, 0));
}

async fn what_consumers_hold_is_told_to_the_others([one, other]: [Arc<dyn Store>; 2]) {
    let tell = async |store: &Arc<dyn Store>, consumer, oldest_ms, silent: &[ReportedWatermark]| {
        store.hold(ConsumerWatermark { consumer, oldest_ms }, silent.to_vec()).await.expect("is reported")
    };
    let before_ms = one.now_ms().await.expect("a time");
    assert_eq!(tell(&one, u64::MAX, NOON_MS, &[]).await.others, []);
    let held = tell(&other, 7, NOON_MS + 1, &[]).await;
    let [first] = held.others[..] else { panic!("{held:?}") };
    assert_eq!(first.hold, ConsumerWatermark { consumer: u64::MAX, oldest_ms: NOON_MS });
    assert!((before_ms..=held.now_ms).contains(&first.told_at_ms), "{held:?}");
    // It has reported since, if only a millisecond later: it is not silent.
    while one.now_ms().await.expect("a time") <= first.told_at_ms {}
    tell(&one, u64::MAX, NOON_MS + 2, &[]).await;
    tell(&other, 7, NOON_MS + 1, &[first]).await;
    let held = tell(&other, 7, NOON_MS + 1, &[]).await;
    let [second] = held.others[..] else { panic!("{held:?}") };
    assert_eq!(second.hold.oldest_ms, NOON_MS + 2);
    assert_eq!(tell(&other, 7, NOON_MS + 1, &[second]).await.others, []);
    assert_eq!(tell(&other, 7, NOON_MS + 1, &[]).await.others, []);
}
