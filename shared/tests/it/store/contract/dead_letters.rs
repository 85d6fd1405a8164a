//! The contract of both stores on dead-lettered items, and on their redrive.
use std::sync::Arc;

use shared::model::collection::Definition;
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, Redrive, RedriveOutcome, Redriven, RedrivenPage,
};
use shared::model::id::{ItemKey, Kind};
use shared::model::message::{Entry, Message};
use shared::model::outcome::{ItemStatus, KeyedVerdict};
use shared::model::rollup::Resolution;
use shared::model::write::Item;
use shared::store::{DocumentPage, Retention, RollupRange, Store, Stored};
use tokio::sync::Barrier;
use uuid::Uuid;

use crate::store::contract::housekeeping::above_the_floor;
use crate::store::sent::{delete, document, fingerprint, identity, increment, point, with_key};
use crate::store::{Messages, NOON_MS, apply, fate, standing};

on_both!(
    dead_letters_are_read_by_id_and_by_what_they_are,
    a_redriven_item_takes_effect_and_is_a_dead_letter_no_more,
    a_dry_run_tells_what_would_be_and_changes_nothing,
    every_kind_of_item_takes_effect_when_it_is_redriven,
    an_item_that_fails_again_stays_with_its_new_reason,
    a_discarded_item_is_never_applied,
    a_redriven_keyed_item_keeps_its_key,
    the_key_of_a_dead_letter_outlives_its_retention,
    a_redriven_document_that_was_deleted_stays_deleted,
    redrives_at_two_stores_at_once_apply_each_item_once,
);

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

/// Dead-letters items and returns their keys.
pub async fn set_aside(store: &Arc<dyn Store>, messages: &mut Messages, items: &[Item]) -> Vec<ItemKey> {
    let message = unread(messages.of(items));
    let keys = (0..items.len()).map(|index| message.item_key(index)).collect();
    assert_eq!(apply(store, &[message]).await.set_aside.len(), items.len());
    keys
}

pub fn everything() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

pub async fn page(
    store: &Arc<dyn Store>,
    filter: DeadLetterFilter,
    after: Option<Uuid>,
    limit: u32,
) -> Vec<DeadLetter> {
    let page = DeadLetterPage { filter, discarded: false, after, limit };
    store.dead_letters(page).await.expect("is read")
}

pub async fn all(store: &Arc<dyn Store>) -> Vec<DeadLetter> {
    page(store, everything(), None, 1_000).await
}

pub async fn redrive(store: &Arc<dyn Store>, filter: DeadLetterFilter, dry_run: bool) -> Vec<Redriven> {
    let asked = Redrive { filter, after: None, limit: 1_000, dry_run, force: false };
    store.redrive(asked).await.expect("is redriven").items
}

pub fn applied(redriven: &[Redriven]) -> Vec<Uuid> {
    let applied = redriven.iter().filter(|redriven| redriven.outcome == RedriveOutcome::Applied);
    applied.map(|redriven| redriven.id).collect()
}

/// Reason and detail of the only item, which failed again.
pub fn failed_again(redriven: &[Redriven]) -> (&str, &str) {
    let [Redriven { outcome: RedriveOutcome::FailedAgain { reason, detail }, .. }] = redriven else {
        panic!("{redriven:?}")
    };
    (reason, detail)
}

async fn dead_letters_are_read_by_id_and_by_what_they_are([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let before_ms = one.now_ms().await.expect("a time");
    apply(&one, &[messages.of(&[increment("a", i64::MAX), increment("a", 1)])]).await;
    let items = [increment("a", 5), with_key("k", document("c", r#"{"ä":1.0}"#)), point("t", NOON_MS, 1.0)];
    let keys = set_aside(&one, &mut messages, &items).await;
    let letters = all(&other).await;
    let ids: Vec<_> = letters.iter().map(|letter| letter.id).collect();
    assert!(ids.is_sorted() && ids.len() == 4, "{ids:?}");
    let unkeyed: Vec<_> = letters.iter().filter(|letter| letter.id != keys[1].as_uuid()).collect();
    let words: Vec<_> = unkeyed.iter().map(|letter| (&*letter.kind, &*letter.reason)).collect();
    let expected = [("increment", "counter_overflow"), ("increment", "unreadable"), ("point", "unreadable")];
    assert_eq!(words, expected, "in the order in which they were accepted");
    let letter = other.dead_letter(keys[1].as_uuid()).await.expect("is read").expect("is there");
    assert_eq!(serde_json::from_str::<Item>(&letter.item).expect("an item"), items[1]);
    assert_eq!((&*letter.kind, &*letter.detail, letter.accepted_at_ms), ("document", "too new", NOON_MS + 7));
    assert!((before_ms..=one.now_ms().await.expect("a time")).contains(&letter.set_aside_at_ms));
    assert!(letters.contains(&letter) && letter.discarded_at_ms.is_none());
    assert_eq!(other.dead_letter(Uuid::nil()).await.expect("is read"), None);
    // The letters are read page by page.
    let mut walked: Vec<DeadLetter> = Vec::new();
    while let [letter] = &page(&other, everything(), walked.last().map(|last| last.id), 1).await[..] {
        walked.push(letter.clone());
    }
    assert_eq!(walked, letters);
    assert_eq!(page(&other, everything(), None, 0).await, []);
    // Filters select by kind, by reason, by id, by all of them.
    let of = |kind: Option<&str>, reason: Option<&str>, id| DeadLetterFilter {
        kind: kind.map(Into::into),
        reason: reason.map(Into::into),
        id,
    };
    for (filter, count) in [
        (of(Some("increment"), None, None), 2),
        (of(None, Some("unreadable"), None), 3),
        (of(Some("increment"), Some("unreadable"), None), 1),
        (of(None, None, Some(letter.id)), 1),
        (of(Some("document"), Some("unreadable"), Some(letter.id)), 1),
        (of(Some("point"), None, Some(letter.id)), 0),
        (of(None, None, Some(Uuid::nil())), 0),
        (of(Some("point\0"), None, None), 0),
    ] {
        assert_eq!(page(&other, filter.clone(), None, 9).await.len(), count, "{filter:?}");
    }
    assert_eq!(page(&other, of(None, None, Some(letter.id)), Some(letter.id), 9).await, []);
}

async fn a_redriven_item_takes_effect_and_is_a_dead_letter_no_more([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let sent = messages.of(&[increment("a", i64::MAX), increment("a", 3), increment("b", 1)]);
    apply(&one, std::slice::from_ref(&sent)).await;
    let item = sent.item_key(1);
    assert!(matches!(fate(&other, item).await, Some(ItemStatus::Failed { .. })));
    apply(&one, &[messages.of(&[increment("a", -10)])]).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await), [item.as_uuid()]);
    assert_eq!(standing(&one, "a").await, (i64::MAX - 7, 3));
    assert!(matches!(fate(&one, item).await, Some(ItemStatus::Applied { .. })));
    assert_eq!(all(&one).await, []);
    // Neither a second redrive nor a redelivery has an effect.
    assert_eq!(redrive(&one, everything(), false).await, []);
    assert!(apply(&other, &[sent]).await.fresh.is_empty());
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((i64::MAX - 7, 3), (1, 1)));
}

async fn a_dry_run_tells_what_would_be_and_changes_nothing([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    apply(&one, &[messages.of(&[increment("full", i64::MAX)])]).await;
    let items = [
        increment("a", 1),
        increment("full", 1),
        document("c", "{}"),
        // The type and the day are not there yet.
        point("new", NOON_MS - 40 * 86_400_000, 1.0),
        with_key("k", increment("a", 2)),
    ];
    let keys = set_aside(&one, &mut messages, &items).await;
    let before = all(&other).await;
    let would = redrive(&other, everything(), true).await;
    assert_eq!(would.len(), 5);
    let full = would.iter().find(|redriven| redriven.id == keys[1].as_uuid()).expect("is reported");
    assert_eq!(failed_again(std::slice::from_ref(full)).0, "counter_overflow");
    assert_eq!(all(&other).await, before);
    assert_eq!((standing(&one, "a").await, standing(&one, "full").await), ((0, 0), (i64::MAX, 1)));
    assert_eq!(one.document("c", keys[2]).await.expect("is read"), None);
    // The redrive does as the dry run said.
    assert_eq!(redrive(&one, everything(), false).await, would);
    assert_eq!(standing(&other, "a").await, (3, 2));
    assert_eq!(all(&other).await.len(), 1);
}

async fn every_kind_of_item_takes_effect_when_it_is_redriven([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let indexed = Definition { indexed: vec!["a".into()], ..Definition::default() };
    one.define("c", indexed).await.expect("is defined");
    let kept = messages.of(&[document("c", r#"{"a":1}"#)]);
    let gone = kept.item_key(0);
    apply(&one, &[kept]).await;
    let data = r#"{ "a" : 1.0e0 }"#;
    let items = [document("c", data), point("t", NOON_MS, 4.0), delete("c", gone), increment("a", 2)];
    let keys = set_aside(&one, &mut messages, &items).await;
    let redriven = redrive(&other, everything(), false).await;
    let mut ids: Vec<_> = keys.iter().map(|key| key.as_uuid()).collect();
    ids.sort_unstable();
    assert_eq!(applied(&redriven), ids);
    let stored = other.document("c", keys[0]).await.expect("is read");
    let Some(Stored::Document(stored)) = stored else { panic!("{stored:?}") };
    assert_eq!((stored.place, &*stored.data, stored.accepted_at_ms), (keys[0].as_uuid(), data, NOON_MS + 7));
    assert_eq!(other.document("c", gone).await.expect("is read"), Some(Stored::Deleted));
    let filters = vec![("a".into(), "1".into())];
    let found = DocumentPage { collection: "c".into(), filters, from: None, before: None, limit: 9 };
    assert_eq!(other.documents(found).await.expect("is read").documents, [stored]);
    let range = RollupRange { kind: "t".into(), resolution: Resolution::Minute, from: 0, below: i32::MAX };
    assert_eq!(other.rollups(range).await.expect("is read").rollups[0].1.count(), 1);
    assert_eq!(standing(&other, "a").await, (2, 1));
    for key in keys {
        assert!(matches!(fate(&other, key).await, Some(ItemStatus::Applied { .. })), "{key}");
    }
}

async fn an_item_that_fails_again_stays_with_its_new_reason([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let require = async |member: &str| {
        let schema = Some(format!(r#"{{"required":["{member}"]}}"#));
        one.define("c", Definition { schema, ..Definition::default() }).await.expect("is defined");
    };
    require("a").await;
    let keys = set_aside(&one, &mut messages, &[document("c", "{}"), document("free", "{}")]).await;
    let first = other.dead_letter(keys[0].as_uuid()).await.expect("is read").expect("is there");
    for member in ["a", "b"] {
        require(member).await;
        let only = DeadLetterFilter { id: Some(keys[0].as_uuid()), ..everything() };
        let redriven = redrive(&other, only, false).await;
        let (reason, detail) = failed_again(&redriven);
        assert!(reason == "schema_violation" && detail.contains(&format!("\"{member}\"")), "{detail}");
        let letter = one.dead_letter(keys[0].as_uuid()).await.expect("is read").expect("is there");
        assert_eq!((&*letter.reason, &*letter.detail), (reason, detail));
        assert_eq!((&letter.item, letter.accepted_at_ms), (&first.item, first.accepted_at_ms));
        assert!(letter.set_aside_at_ms >= first.set_aside_at_ms);
        let reported = fate(&one, keys[0]).await;
        assert!(matches!(reported, Some(ItemStatus::Failed { detail: reported, .. }) if reported == detail));
    }
    // Only that one was tried; together, the good one is applied and the bad one stays.
    assert_eq!(all(&one).await.len(), 2);
    assert_eq!(applied(&redrive(&one, everything(), false).await), [keys[1].as_uuid()]);
    // Behind a cursor it is not met again.
    let behind = Redrive {
        filter: everything(),
        after: Some(keys[0].as_uuid()),
        limit: 9,
        dry_run: false,
        force: false,
    };
    assert_eq!(one.redrive(behind).await.expect("is redriven"), RedrivenPage::default());
    one.define("c", Definition::default()).await.expect("is defined");
    assert_eq!(applied(&redrive(&other, everything(), false).await), [keys[0].as_uuid()]);
}

async fn a_discarded_item_is_never_applied([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let keys = set_aside(&one, &mut messages, &[increment("a", 1), increment("a", 10)]).await;
    let id = keys[0].as_uuid();
    assert!(other.discard(id).await.expect("is discarded"));
    assert!(!other.discard(Uuid::nil()).await.expect("is asked"));
    assert_eq!(all(&one).await.iter().map(|letter| letter.id).collect::<Vec<_>>(), [keys[1].as_uuid()]);
    let discarded = DeadLetterPage { filter: everything(), discarded: true, after: None, limit: 9 };
    let letters = one.dead_letters(discarded).await.expect("is read");
    assert_eq!(letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), [id]);
    let at_ms = letters[0].discarded_at_ms.expect("a time");
    let only = DeadLetterFilter { id: Some(id), ..everything() };
    assert_eq!(redrive(&one, only, false).await, []);
    assert_eq!(applied(&redrive(&one, everything(), false).await), [keys[1].as_uuid()]);
    assert_eq!(standing(&other, "a").await, (10, 1));
    assert!(matches!(fate(&other, keys[0]).await, Some(ItemStatus::Failed { .. })));
    // A second time changes nothing.
    assert!(one.discard(id).await.expect("is discarded"));
    let letter = other.dead_letter(id).await.expect("is read").expect("is there");
    assert_eq!(letter.discarded_at_ms, Some(at_ms));
    assert!(!one.discard(keys[1].as_uuid()).await.expect("was redriven"));
}

async fn a_redriven_keyed_item_keeps_its_key([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = [with_key("k", document("c", "{}")), with_key("k", increment("a", 1))];
    let keys = set_aside(&one, &mut messages, &items).await;
    assert_eq!(keys, [identity(Kind::Document, "k", 0), identity(Kind::Increment, "k", 0)]);
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 2);
    // Its place is between those that were accepted before and after it.
    let earlier = messages.of(&[document("c", "{}")]);
    let later = messages.at(NOON_MS + 1_000, &[document("c", "{}")]);
    let ends = [&later, &earlier].map(|message| message.item_key(0));
    apply(&one, &[earlier, later]).await;
    let page =
        DocumentPage { collection: "c".into(), filters: Vec::new(), from: None, before: None, limit: 9 };
    let listed = other.documents(page).await.expect("is read").documents;
    assert_eq!(listed.iter().map(|document| document.id).collect::<Vec<_>>(), [ends[0], keys[0], ends[1]]);
    assert_eq!(listed[1].fingerprint, Some(fingerprint(&items[0])));
    // A retry under the key finds it processed, and another payload is a conflict.
    let retry = messages.of(&[items[1].clone(), with_key("k", increment("a", 2))]);
    let verdicts: Vec<_> =
        apply(&one, &[retry]).await.keyed.iter().map(|reported| reported.verdict).collect();
    assert_eq!(verdicts, [KeyedVerdict::Repeated, KeyedVerdict::Conflict]);
    assert_eq!(standing(&other, "a").await, (1, 1));
    let reported = fate(&other, keys[1]).await;
    assert!(
        matches!(reported, Some(ItemStatus::Applied { fingerprint: Some(reported), .. }) if reported == fingerprint(&items[1]))
    );
}

async fn the_key_of_a_dead_letter_outlives_its_retention([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = above_the_floor(&one, one.now_ms().await.expect("a time")).await;
    let item = with_key("k", increment("a", 1));
    set_aside(&one, &mut messages, std::slice::from_ref(&item)).await;
    let other_key = with_key("l", increment("b", 1));
    apply(&one, &[messages.of(std::slice::from_ref(&other_key))]).await;
    let year_ms = 366 * 86_400_000;
    // This time is later than all that is entered here.
    let forget_before_ms = Some(one.now_ms().await.expect("a time") + 86_400_000);
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: year_ms,
        minutes_ms: year_ms,
        hours_ms: year_ms,
        discarded_ms: year_ms,
        remembered_ms: 0,
        forget_before_ms,
        rows_max: 100,
    };
    assert_eq!(one.housekeep(retention).await.expect("is kept").rows, 1, "the key of what was applied");
    assert_eq!(apply(&other, &[messages.of(&[item])]).await.keyed[0].verdict, KeyedVerdict::Repeated);
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 1);
    assert_eq!(standing(&one, "a").await, (1, 1), "by the redrive alone");
    assert!(matches!(fate(&one, identity(Kind::Increment, "k", 0)).await, Some(ItemStatus::Applied { .. })));
    assert_eq!(one.housekeep(retention).await.expect("is kept").rows, 1, "no dead letter holds it now");
}

async fn a_redriven_document_that_was_deleted_stays_deleted([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = [document("c", "{}"), with_key("k", document("c", "{}"))];
    let keys = set_aside(&one, &mut messages, &items).await;
    apply(&one, &[messages.of(&[delete("c", keys[0]), delete("c", keys[1])])]).await;
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 2);
    for key in keys {
        assert_eq!(other.document("c", key).await.expect("is read"), Some(Stored::Deleted), "{key}");
    }
    let page =
        DocumentPage { collection: "c".into(), filters: Vec::new(), from: None, before: None, limit: 9 };
    assert_eq!(other.documents(page).await.expect("is read").documents, []);
}

async fn redrives_at_two_stores_at_once_apply_each_item_once(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: i64 = 15;
    const ITEMS: i64 = 40;
    let mut messages = Messages::new();
    let items: Vec<Item> = (0..ITEMS)
        .map(|number| increment(&format!("a{}", number % 7), 1))
        .chain((0..ITEMS).map(|number| document("c", &format!(r#"{{"n":{number}}}"#))))
        .collect();
    for round in 0..ROUNDS {
        let keys = set_aside(&stores[0], &mut messages, &items).await;
        let barrier = Arc::new(Barrier::new(3));
        let racing = stores.clone().map(|store| {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait().await;
                applied(&redrive(&store, everything(), false).await)
            })
        });
        // Another writer changes the same counters meanwhile.
        let (store, again) = (Arc::clone(&stores[1]), messages.of(&items));
        let writer = tokio::spawn(async move {
            barrier.wait().await;
            apply(&store, &[again]).await;
        });
        let mut done = Vec::new();
        for racer in racing {
            done.extend(racer.await.expect("no panic"));
        }
        writer.await.expect("no panic");
        // Rows that one redrive held are passed over by the other: neither waits, nothing is left.
        done.extend(applied(&redrive(&stores[0], everything(), false).await));
        done.sort_unstable();
        assert_eq!(done, keys.iter().map(|key| key.as_uuid()).collect::<Vec<_>>(), "round {round}");
    }
    let mut sum = 0;
    for number in 0..7 {
        sum += standing(&stores[0], &format!("a{number}")).await.0;
    }
    assert_eq!(sum, 2 * ROUNDS * ITEMS);
    assert_eq!(all(&stores[0]).await, []);
}
