//! The contract of both stores on writes with an Idempotency-Key, and on items that a client awaits.
use std::sync::Arc;

use shared::model::id::Kind;
use shared::model::message::Message;
use shared::model::outcome::KeyedVerdict::{self, Applied, Conflict, Repeated};
use shared::model::outcome::{self, ItemStatus, Reason};
use shared::model::write::Item;
use shared::store::{RollupRange, Store, Stored};
use tokio::sync::Barrier;

use crate::store::sent::{delete, document, fingerprint, identity, increment, point, with_key, with_key_at};
use crate::store::{Messages, NOON_MS, apply, fate, message, standing};

on_both!(
    a_key_takes_effect_once_wherever_it_comes,
    another_payload_under_a_key_is_a_conflict_in_either_order,
    a_key_that_comes_to_two_stores_at_once_takes_effect_once,
    a_keyed_item_that_was_set_aside_was_processed,
    a_keyed_item_that_cannot_be_read_was_processed,
    fates_come_in_the_order_in_which_they_are_asked_for,
    every_index_and_every_kind_has_its_own_key,
    awaited_increments_learn_what_they_came_to,
);

fn verdicts(applied: &outcome::Applied) -> Vec<KeyedVerdict> {
    applied.keyed.iter().map(|outcome| outcome.verdict).collect()
}

async fn a_key_takes_effect_once_wherever_it_comes([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let item = with_key("k", increment("a", 1));
    let [id, next] = [identity(Kind::Increment, "k", 0), identity(Kind::Increment, "k", 1)];
    let batch = [messages.of(&[item.clone(), item.clone()]), messages.of(std::slice::from_ref(&item))];
    let first = apply(&one, &batch).await;
    assert_eq!(first.fresh.len(), 2);
    assert_eq!(verdicts(&first), [Applied, Repeated, Repeated]);
    for outcome in &first.keyed {
        assert_eq!((outcome.item, outcome.fingerprint), (id, fingerprint(&item)));
    }
    // A retry comes in a message of its own, also to another store, beside an item without a key.
    for store in [&one, &other] {
        let retry = messages.of(&[increment("a", 10), item.clone()]);
        let again = apply(store, std::slice::from_ref(&retry)).await;
        assert_eq!((again.fresh.as_slice(), verdicts(&again)), ([retry.id].as_slice(), vec![Repeated]));
    }
    // The outcome of a redelivered message has nothing about its keys: the store knows them.
    assert_eq!(verdicts(&apply(&other, &batch).await), []);
    assert_eq!(standing(&other, "a").await, (21, 3));
    let reported = fate(&other, id).await;
    let Some(ItemStatus::Applied { at_ms, fingerprint: reported }) = reported else { panic!("{reported:?}") };
    assert_eq!(reported, Some(fingerprint(&item)));
    assert!(at_ms <= first.committed_at_ms, "{at_ms}");
    assert_eq!(fate(&one, next).await, None);
}

async fn another_payload_under_a_key_is_a_conflict_in_either_order([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    for (round, (first, second)) in [(1, 2), (2, 1)].into_iter().enumerate() {
        let key = |name: &str| format!("{name}{round}");
        let pair = |name: &str| [first, second].map(|by| with_key(&key(name), increment(&key(name), by)));
        // The pair comes in one message, in one transaction, in two transactions.
        let [a, b] = pair("message");
        let applied = apply(&one, &[messages.of(&[a.clone(), b, a])]).await;
        assert_eq!(verdicts(&applied), [Applied, Conflict, Repeated]);
        let [a, b] = pair("transaction");
        let applied = apply(&one, &[messages.of(&[a]), messages.of(&[b])]).await;
        assert_eq!(verdicts(&applied), [Applied, Conflict]);
        let [a, b] = pair("later");
        assert_eq!(verdicts(&apply(&one, &[messages.of(std::slice::from_ref(&a))]).await), [Applied]);
        let applied = apply(&other, &[messages.of(&[b.clone(), a.clone(), b.clone()])]).await;
        assert_eq!(verdicts(&applied), [Conflict, Repeated, Conflict]);
        // An outcome has the payload that is in conflict; the store has the one that counts.
        let reported: Vec<_> = applied.keyed.iter().map(|outcome| outcome.fingerprint).collect();
        assert_eq!(reported, [&b, &a, &b].map(fingerprint));
        let reported = fate(&other, identity(Kind::Increment, &key("later"), 0)).await;
        assert!(
            matches!(reported, Some(ItemStatus::Applied { fingerprint: Some(reported), .. }) if reported == fingerprint(&a))
        );
        for name in ["message", "transaction", "later"] {
            assert_eq!(standing(&other, &key(name)).await, (first, 1), "{name}");
        }
    }
}

async fn a_key_that_comes_to_two_stores_at_once_takes_effect_once(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: usize = 20;
    const KEYS: usize = 30;
    for round in 0..ROUNDS {
        // Every third key comes with two payloads. One store gets them in the opposite order.
        let by = |number: usize, side: usize| if number.is_multiple_of(3) && side == 1 { 100 } else { 1 };
        let item = |number: usize, side: usize| {
            let name = format!("{round}-{number}");
            with_key(&name, increment(&name, by(number, side)))
        };
        let mut batches = [0, 1].map(|side| (0..KEYS).map(|n| item(n, side)).collect::<Vec<Item>>());
        batches[1].reverse();
        let barrier = Arc::new(Barrier::new(2));
        let racing = [0, 1].map(|side| {
            let (store, barrier) = (Arc::clone(&stores[side]), Arc::clone(&barrier));
            let mut messages = Messages::new();
            let batch: Vec<Message> = batches[side].chunks(7).map(|chunk| messages.of(chunk)).collect();
            tokio::spawn(async move {
                barrier.wait().await;
                let applied = apply(&store, &batch).await;
                applied.keyed.iter().map(|outcome| (outcome.item, outcome.verdict)).collect::<Vec<_>>()
            })
        });
        let mut outcomes = Vec::new();
        for racer in racing {
            outcomes.extend(racer.await.expect("no panic"));
        }
        for number in 0..KEYS {
            let name = format!("{round}-{number}");
            let id = identity(Kind::Increment, &name, 0);
            let of_key = outcomes.iter().filter(|(item, _)| *item == id).map(|(_, verdict)| *verdict);
            let loser = if number.is_multiple_of(3) { Conflict } else { Repeated };
            let mut of_key: Vec<_> = of_key.collect();
            of_key.sort_unstable_by_key(|verdict| *verdict != Applied);
            assert_eq!(of_key, [Applied, loser], "{name}");
            let (value, version) = standing(&stores[0], &name).await;
            assert!(version == 1 && (value == by(number, 0) || value == by(number, 1)), "{name}: {value}");
        }
    }
}

async fn a_keyed_item_that_was_set_aside_was_processed([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let (bad, other_payload) = (with_key("k", increment("a", 5)), with_key("k", increment("a", 6)));
    let batch = [messages.of(&[increment("a", i64::MAX), bad.clone(), bad.clone(), other_payload.clone()])];
    let applied = apply(&one, &batch).await;
    assert_eq!(applied.set_aside.len(), 1);
    assert_eq!(applied.set_aside[0].item, identity(Kind::Increment, "k", 0));
    assert_eq!(applied.set_aside[0].fingerprint, Some(fingerprint(&bad)));
    // A dead-lettered item has no outcome as applied, but its repetitions have one.
    assert_eq!(verdicts(&applied), [Repeated, Conflict]);
    // Now it would fit; but the first that was processed counts.
    let room = messages.of(&[increment("a", -1_000)]);
    let retries = [room, messages.of(&[bad.clone(), other_payload])];
    assert_eq!(verdicts(&apply(&other, &retries).await), [Repeated, Conflict]);
    assert_eq!(standing(&one, "a").await, (i64::MAX - 1_000, 2));
    let reported = fate(&other, identity(Kind::Increment, "k", 0)).await;
    let Some(ItemStatus::Failed { reason, fingerprint: reported, .. }) = reported else {
        panic!("{reported:?}")
    };
    assert_eq!((&*reason, reported), ("counter_overflow", Some(fingerprint(&bad))));
}

async fn a_keyed_item_that_cannot_be_read_was_processed([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let good = with_key("k", increment("a", 1));
    let keyed = serde_json::to_string(&good.keyed).expect("serialises");
    let bad = format!(r#"{{"increment":{{"counter":"a b","by":1}},"keyed":{keyed}}}"#);
    let applied = apply(&one, &[message(messages.id(), &[bad])]).await;
    assert_eq!(applied.set_aside[0].reason, Reason::Unreadable);
    assert_eq!(verdicts(&apply(&other, &[messages.of(std::slice::from_ref(&good))]).await), [Repeated]);
    assert_eq!(standing(&one, "a").await, (0, 0));
    let reported = fate(&other, identity(Kind::Increment, "k", 0)).await;
    assert!(
        matches!(reported, Some(ItemStatus::Failed { fingerprint: Some(reported), .. }) if reported == fingerprint(&good))
    );
}

async fn fates_come_in_the_order_in_which_they_are_asked_for([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = [
        increment("a", i64::MAX),
        with_key("aside", increment("a", 1)),
        increment("a", 2),
        with_key("good", increment("b", 1)),
    ];
    let sent = messages.of(&items);
    apply(&one, std::slice::from_ref(&sent)).await;
    let unknown = [messages.id().item(Kind::Increment, 0), identity(Kind::Increment, "unknown", 0)];
    let [plain, aside_keyed, aside, keyed] = [0, 1, 2, 3].map(|index| sent.item_key(index));
    let asked = [keyed, unknown[0], aside, plain, unknown[1], aside_keyed, keyed, aside];
    let fates = other.item_statuses(asked.into()).await.expect("is read");
    let short = |fate: &Option<ItemStatus>| match fate {
        None => ("none", None),
        Some(ItemStatus::Applied { fingerprint, .. }) => ("applied", *fingerprint),
        Some(ItemStatus::Failed { fingerprint, .. }) => ("failed", *fingerprint),
        Some(ItemStatus::Forgotten) => ("forgotten", None),
    };
    let good = ("applied", Some(fingerprint(&items[3])));
    let bad = ("failed", Some(fingerprint(&items[1])));
    let expected = [
        good,
        ("none", None),
        ("failed", None),
        ("applied", None),
        ("none", None),
        bad,
        good,
        ("failed", None),
    ];
    assert_eq!(fates.iter().map(short).collect::<Vec<_>>(), expected);
    assert_eq!(other.item_statuses([].into()).await.expect("is read"), []);
}

async fn every_index_and_every_kind_has_its_own_key([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items: Vec<Item> = (0..3).map(|index| with_key_at("k", index, increment("a", 1))).collect();
    apply(&one, &[messages.of(&items[1..2])]).await;
    assert_eq!(verdicts(&apply(&one, &[messages.of(&items)]).await), [Applied, Repeated, Applied]);
    assert_eq!(standing(&one, "a").await, (3, 3));
    // The same key is used for every kind of write, and again.
    let document_id = identity(Kind::Document, "k", 0);
    let items = [
        with_key("k", document("c", "{}")),
        with_key("k", point("t", NOON_MS, 4.0)),
        with_key("k", delete("c", identity(Kind::Document, "another", 0))),
    ];
    assert_eq!(verdicts(&apply(&one, &[messages.of(&items)]).await), [Applied; 3]);
    assert_eq!(verdicts(&apply(&other, &[messages.of(&items)]).await), [Repeated; 3]);
    let stored = other.document("c", document_id).await.expect("is read");
    assert!(matches!(stored, Some(Stored::Document(_))), "{stored:?}");
    let day = shared::model::rollup::Resolution::Day;
    let range = RollupRange { kind: "t".into(), resolution: day, from: 0, below: i32::MAX };
    let rollups = other.rollups(range).await.expect("is read").rollups;
    assert_eq!(rollups.iter().map(|(_, rollup)| rollup.count()).collect::<Vec<_>>(), [1]);
    for kind in Kind::ALL {
        assert!(
            matches!(fate(&other, identity(kind, "k", 0)).await, Some(ItemStatus::Applied { .. })),
            "{kind:?}"
        );
    }
}

async fn awaited_increments_learn_what_they_came_to([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    apply(&one, &[messages.of(&[increment("a", 100), with_key("old", increment("a", 0))])]).await;
    let items = [
        increment("a", 1),
        with_key("new", increment("a", 2)),
        with_key("old", increment("a", 0)),
        increment("b", -7),
        increment("a", 4),
    ];
    let batch = [messages.awaited(&items, |index| index != 3), messages.awaited(&items[3..], |_| true)];
    let reported = |applied: &outcome::Applied| -> Vec<_> {
        applied.standings.iter().map(|standing| (standing.item, standing.value, standing.version)).collect()
    };
    let applied = apply(&other, &batch).await;
    let keys =
        |message: &Message| (0..message.entries.len()).map(|i| message.item_key(i)).collect::<Vec<_>>();
    let [first, second] = [keys(&batch[0]), keys(&batch[1])];
    let expected = [
        (first[0], 101, 3),
        (first[1], 103, 4),
        // There is no result for the repetition, and none for items that no client awaits.
        (first[4], 107, 5),
        (second[0], -14, 2),
        (second[1], 111, 6),
    ];
    assert_eq!(reported(&applied), expected);
    assert_eq!(reported(&apply(&one, &batch).await), []);
    // Where an increment overflows the others get the same results.
    let items = [increment("a", i64::MAX), increment("a", 1), increment("b", 2), increment("a", -1)];
    let batch = [messages.awaited(&items, |_| true)];
    let applied = apply(&one, &batch).await;
    let first = keys(&batch[0]);
    assert_eq!(reported(&applied), [(first[1], 112, 7), (first[2], -12, 3), (first[3], 111, 8)]);
    assert_eq!(applied.set_aside.len(), 1);
}
