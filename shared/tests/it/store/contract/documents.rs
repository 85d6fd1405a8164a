//! The contract of both stores on documents and their deletion.
use std::sync::Arc;

use shared::model::collection::Definition;
use shared::model::dead_letter::DeadLetterFilter;
use shared::model::id::{ItemKey, Kind};
use shared::model::outcome::{ItemStatus, Reason};
use shared::model::write::Item;
use shared::store::{Document, DocumentPage, Store, Stored};
use tokio::sync::Barrier;
use uuid::Uuid;

use super::dead_letters::{applied, everything, failed_again, redrive};
use crate::store::sent::{checked_document, delete, document, fingerprint, identity, increment, with_key};
use crate::store::{Messages, NOON_MS, apply, fate};

on_both!(
    a_document_is_read_by_its_id_as_it_was_written,
    pages_are_newest_first_whatever_is_deleted_meanwhile,
    a_delete_wins_whenever_it_comes,
    a_delete_that_names_another_collection_leaves_no_trace,
    documents_and_their_deletes_at_two_stores_at_once_end_deleted,
    a_document_that_was_checked_by_the_stored_definition_is_not_checked_again,
    a_document_that_does_not_hold_the_schema_is_set_aside,
    a_definition_that_cannot_be_used_stops_nothing_else,
    documents_whose_check_costs_too_much_are_set_aside_alone,
);

async fn stored(store: &Arc<dyn Store>, collection: &str, id: ItemKey) -> Option<Stored> {
    store.document(collection, id).await.expect("is read")
}

/// Reads all documents of a collection, in pages of this size.
async fn walk(store: &Arc<dyn Store>, collection: &str, limit: u32) -> Vec<Document> {
    let mut all: Vec<Document> = Vec::new();
    loop {
        let before = all.last().map(|document| document.place);
        let page =
            DocumentPage { collection: collection.into(), filters: Vec::new(), from: None, before, limit };
        let documents = store.documents(page).await.expect("is read").documents;
        if documents.is_empty() {
            return all;
        }
        assert!(documents.len() <= limit as usize);
        all.extend(documents);
    }
}

async fn ids(store: &Arc<dyn Store>, collection: &str) -> Vec<ItemKey> {
    walk(store, collection, 100).await.into_iter().map(|document| document.id).collect()
}

async fn a_document_is_read_by_its_id_as_it_was_written([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let data = r#"{ "a" : 1.0e0,"z":"\u0000\ud83d\ude00 é\"\\", "a":[[]],"n":12345678901234567890123 }"#;
    let keyed = with_key("k", document("c", "{}"));
    let sent = messages.of(&[increment("n", 1), document("c", data), keyed.clone()]);
    let [counter, plain, id] = [0, 1, 2].map(|index| sent.item_key(index));
    assert_eq!(stored(&other, "c", plain).await, None);
    let applied = apply(&one, std::slice::from_ref(&sent)).await;
    assert!(applied.set_aside.is_empty() && applied.deleted.is_empty());
    let expected = Document {
        id: plain,
        place: plain.as_uuid(),
        data: data.into(),
        accepted_at_ms: NOON_MS + 7,
        fingerprint: None,
    };
    assert_eq!(stored(&other, "c", plain).await, Some(Stored::Document(expected.clone())));
    let place = sent.place(2);
    let keyed = Document {
        id,
        place: place.as_uuid(),
        data: "{}".into(),
        fingerprint: Some(fingerprint(&keyed)),
        ..expected.clone()
    };
    assert_eq!(stored(&other, "c", id).await, Some(Stored::Document(keyed.clone())));
    assert_eq!(walk(&other, "c", 10).await, [keyed, expected]);
    // There is no document in another collection, under the id of another kind of item, or at the
    // place of a keyed one.
    for (collection, id) in [("C", plain), ("", plain), ("c\0", plain), ("c", counter), ("c", place)] {
        assert_eq!(stored(&other, collection, id).await, None, "{collection} {id}");
    }
    assert_eq!(walk(&other, "c\0", 10).await, []);
}

async fn pages_are_newest_first_whatever_is_deleted_meanwhile([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let item = |number: usize| {
        let item = document("c", &format!(r#"{{"n":{number}}}"#));
        if number.is_multiple_of(3) { with_key(&number.to_string(), item) } else { item }
    };
    let batch: Vec<_> = (0..4)
        .map(|round| messages.of(&(0..5).map(|index| item(round * 5 + index)).collect::<Vec<Item>>()))
        .collect();
    // They are applied in another order than they were accepted in.
    for index in [2, 0, 3, 1] {
        apply(&one, &[batch[index].clone(), messages.of(&[document("other", "{}")])]).await;
    }
    let mut expected: Vec<ItemKey> =
        batch.iter().flat_map(|message| (0..5).map(|index| message.item_key(index))).collect();
    expected.reverse();
    for limit in [1, 3, 20, 100] {
        let walked: Vec<_> = walk(&other, "c", limit).await.into_iter().map(|document| document.id).collect();
        assert_eq!(walked, expected, "{limit}");
    }
    let page = async |before: Option<Uuid>, limit| {
        let page = DocumentPage { collection: "c".into(), filters: Vec::new(), from: None, before, limit };
        other.documents(page).await.expect("is read").documents
    };
    let first = page(None, 6).await;
    assert_eq!(first.len(), 6);
    // The ids are the last of the page that was read, and some of the next, keyed and not.
    let gone = [expected[5], expected[6], expected[8], expected[9], expected[10]];
    apply(&one, &[messages.of(&gone.map(|id| delete("c", id)))]).await;
    let next: Vec<_> = page(Some(first[5].place), 4).await.into_iter().map(|document| document.id).collect();
    assert_eq!(next, [expected[7], expected[11], expected[12], expected[13]]);
    assert_eq!(page(Some(Uuid::nil()), 4).await, []);
    assert_eq!(page(None, 0).await, []);
}

async fn a_delete_wins_whenever_it_comes([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    for (round, keyed) in [("plain", false), ("keyed", true)] {
        let document = |name: &str| {
            let item = document(round, r#"{"a":1}"#);
            if keyed { with_key(&format!("{round}-{name}"), item) } else { item }
        };
        // The deletion comes before its document, in an earlier transaction.
        let late = messages.of(&[document("late")]);
        let applied = apply(&one, &[messages.of(&[delete(round, late.item_key(0))])]).await;
        assert_eq!(applied.deleted, [late.item_key(0)]);
        assert_eq!(stored(&other, round, late.item_key(0)).await, Some(Stored::Deleted));
        apply(&other, std::slice::from_ref(&late)).await;
        // The deletion comes after it.
        let early = messages.of(&[document("early")]);
        apply(&other, std::slice::from_ref(&early)).await;
        let erase = messages.of(&[delete(round, early.item_key(0))]);
        assert_eq!(apply(&one, std::slice::from_ref(&erase)).await.deleted, [early.item_key(0)]);
        // Deletions come in one transaction, before and after, and twice.
        let both = [messages.of(&[document("x"), document("y")]), messages.of(&[document("stays")])];
        let [x, y] = [both[0].item_key(0), both[0].item_key(1)];
        let erasing = [messages.of(&[delete(round, x)]), messages.of(&[delete(round, y), delete(round, x)])];
        let batch = [erasing[0].clone(), both[0].clone(), both[1].clone(), erasing[1].clone()];
        let mut deleted = apply(&one, &batch).await.deleted;
        deleted.sort_unstable();
        let mut expected = [x, y];
        expected.sort_unstable();
        assert_eq!(deleted, expected);
        // A redelivery brings nothing back, and neither does a retry in another message.
        apply(&other, &[vec![early.clone(), late.clone()], batch.to_vec()].concat()).await;
        if keyed {
            apply(&other, &[messages.of(&[document("early"), document("late"), document("x")])]).await;
        }
        apply(&other, &[messages.of(&[delete(round, x)])]).await;
        for id in [late.item_key(0), early.item_key(0), x, y] {
            assert_eq!(stored(&other, round, id).await, Some(Stored::Deleted), "{round}");
            assert!(matches!(fate(&other, id).await, Some(ItemStatus::Applied { .. })));
        }
        assert_eq!(ids(&other, round).await, [both[1].item_key(0)]);
    }
    // The same id in another collection is another document.
    let sent = messages.of(&[document("here", "{}")]);
    let elsewhere = messages.of(&[delete("there", sent.item_key(0))]);
    apply(&one, &[elsewhere, sent.clone()]).await;
    assert_eq!(ids(&other, "here").await, [sent.item_key(0)]);
    // The id of a delete is no document.
    assert_eq!(stored(&other, "here", messages.id().item(Kind::Delete, 0)).await, None);
    let erase = messages.of(&[delete("here", identity(Kind::Document, "never", 0))]);
    apply(&one, std::slice::from_ref(&erase)).await;
    assert_eq!(stored(&other, "here", erase.item_key(0)).await, None);
}

async fn a_delete_that_names_another_collection_leaves_no_trace([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let sent = messages.of(&[document("a", "{}"), with_key("elsewhere", document("a", "{}"))]);
    let ids = [sent.item_key(0), sent.item_key(1)];
    // Deletions come in the same transaction and in a later one, repeated, and beside one that was deleted.
    let early = messages.of(&ids.map(|id| delete("b", id)));
    apply(&one, &[early, sent]).await;
    for _ in 0..2 {
        apply(&other, &[messages.of(&ids.map(|id| delete("b", id)))]).await;
    }
    for id in ids {
        assert_eq!(stored(&one, "b", id).await, None, "{id}");
        assert!(matches!(stored(&one, "a", id).await, Some(Stored::Document(_))), "{id}");
    }
    apply(&one, &[messages.of(&ids.map(|id| delete("a", id)))]).await;
    apply(&other, &[messages.of(&ids.map(|id| delete("b", id)))]).await;
    for id in ids {
        assert_eq!(stored(&other, "a", id).await, Some(Stored::Deleted), "{id}");
        assert_eq!(stored(&other, "b", id).await, None, "{id}");
    }
    // A dead-lettered document may be redriven, so its deletion stays, also in one transaction.
    let schema = Definition { schema: Some(r#"{"required":["n"]}"#.into()), ..Definition::default() };
    one.define("strict", schema).await.expect("is defined");
    let bad = messages.of(&[document("strict", "{}"), with_key("bad", document("strict", "{}"))]);
    let later = messages.of(&[document("strict", "{}")]);
    let [plain, keyed, late] = [bad.item_key(0), bad.item_key(1), later.item_key(0)];
    apply(&one, std::slice::from_ref(&later)).await;
    let erase = messages.of(&[plain, keyed, late].map(|id| delete("strict", id)));
    assert_eq!(apply(&one, &[bad, erase]).await.set_aside.len(), 2);
    for id in [plain, keyed, late] {
        assert_eq!(stored(&other, "strict", id).await, Some(Stored::Deleted), "{id}");
    }
}

async fn documents_and_their_deletes_at_two_stores_at_once_end_deleted(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: usize = 20;
    let indexed = Definition { indexed: vec!["n".into()], ..Definition::default() };
    stores[0].define("c", indexed).await.expect("is defined");
    let mut messages = Messages::new();
    for round in 0..ROUNDS {
        let item = |number: usize| {
            let item = document("c", &format!(r#"{{"n":{number}}}"#));
            if number.is_multiple_of(2) { with_key(&format!("{round}-{number}"), item) } else { item }
        };
        let items: Vec<Item> = (0..20).map(item).collect();
        let sent: Vec<_> = items.chunks(4).map(|chunk| messages.of(chunk)).collect();
        let keys: Vec<_> = sent.iter().flat_map(|sent| (0..4).map(|index| sent.item_key(index))).collect();
        let deletes: Vec<Item> = keys.iter().rev().map(|id| delete("c", *id)).collect();
        let deletes: Vec<_> = deletes.chunks(4).map(|chunk| messages.of(chunk)).collect();
        let barrier = Arc::new(Barrier::new(2));
        let racing = [(0, sent), (1, deletes)].map(|(side, batch)| {
            let (store, barrier) = (Arc::clone(&stores[side]), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                apply(&store, &batch).await.fresh.len()
            })
        });
        for racer in racing {
            assert_eq!(racer.await.expect("no panic"), 5);
        }
        for id in keys {
            assert_eq!(stored(&stores[0], "c", id).await, Some(Stored::Deleted), "{round}");
        }
    }
    assert_eq!(ids(&stores[1], "c").await, []);
    for number in 0..20 {
        let filters = vec![("n".to_owned(), number.to_string())];
        let page = DocumentPage { collection: "c".into(), filters, from: None, before: None, limit: 100 };
        assert_eq!(stores[1].documents(page).await.expect("is read").documents, []);
    }
}

/// Makes a definition that takes objects with a member `a`.
fn strict() -> Definition {
    let schema = Some(r#"{"type":"object","required":["a"]}"#.into());
    Definition { schema, ..Definition::default() }
}

async fn a_document_that_was_checked_by_the_stored_definition_is_not_checked_again(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    let version = one.define("c", strict()).await.expect("is defined").version;
    // The document is against the rules, which shows whether it was checked.
    let sent = messages.of(&[checked_document("c", Some(version), r#"{"b":1}"#)]);
    let applied = apply(&other, std::slice::from_ref(&sent)).await;
    assert!(applied.set_aside.is_empty());
    assert_eq!(ids(&one, "c").await, [sent.item_key(0)]);
}

async fn a_document_that_does_not_hold_the_schema_is_set_aside([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let good = checked_document("c", Some(0), r#"{"a":null}"#);
    let early = messages.of(&[document("c", "{}")]);
    apply(&one, std::slice::from_ref(&early)).await;
    let version = one.define("c", strict()).await.expect("is defined").version;
    // These were not checked, or by another version.
    let bad = [None, Some(version - 1), Some(version + 1)].map(|v| checked_document("c", v, r#"{"b":1}"#));
    let keyed = with_key("k", document("c", r#"{"b":2}"#));
    let items = [&bad[..], &[keyed.clone(), good, document("free", "{}")]].concat();
    let sent = messages.of(&items);
    let applied = apply(&other, std::slice::from_ref(&sent)).await;
    let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
    let expected = [0, 1, 2, 3].map(|index| (sent.item_key(index), Reason::SchemaViolation));
    assert_eq!(aside, expected);
    assert!(applied.keyed.is_empty());
    for index in 0..4 {
        let reported = fate(&one, sent.item_key(index)).await;
        let Some(ItemStatus::Failed { reason, detail, .. }) = reported else { panic!("{reported:?}") };
        assert_eq!((&*reason, &detail), ("schema_violation", &applied.set_aside[index].detail));
        assert_eq!(stored(&one, "c", sent.item_key(index)).await, None);
    }
    assert_eq!(ids(&one, "c").await, [sent.item_key(4), early.item_key(0)]);
    assert_eq!(ids(&one, "free").await, [sent.item_key(5)]);
    // The new definition is known at once to every store.
    one.define("c", Definition::default()).await.expect("is removed");
    let sent = messages.of(&[bad[1].clone(), keyed]);
    let applied = apply(&other, std::slice::from_ref(&sent)).await;
    assert!(applied.set_aside.is_empty());
    // The key was processed.
    assert_eq!(stored(&one, "c", sent.item_key(1)).await, None);
    assert_eq!(ids(&one, "c").await.len(), 3);
}

/// Another build may store such a definition. It affects the documents of that collection, not the
/// counters beside them.
async fn a_definition_that_cannot_be_used_stops_nothing_else([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let before = messages.of(&[document("c", r#"{"f":"x"}"#), document("c", r#"{"f":"x"}"#)]);
    apply(&one, std::slice::from_ref(&before)).await;
    let unusable = Definition { schema: Some(r#"{"type":"nothing"}"#.into()), ..Definition::default() };
    let version = one.define("c", Definition { indexed: vec!["f".into()], ..unusable }).await;
    let version = version.expect("is stored").version;
    let items = [
        increment("a", 1),
        document("c", "{}"),
        with_key("k", document("c", "{}")),
        checked_document("c", Some(version), r#"{"f":"x"}"#),
        document("free", "{}"),
        delete("c", before.item_key(0)),
    ];
    let sent = messages.of(&items);
    let applied = apply(&other, std::slice::from_ref(&sent)).await;
    let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
    assert_eq!(aside, [1, 2].map(|index| (sent.item_key(index), Reason::DefinitionUnusable)));
    assert!(applied.set_aside[0].detail.contains("/schema/type"), "{}", applied.set_aside[0].detail);
    let reported = fate(&one, sent.item_key(1)).await;
    assert!(matches!(reported, Some(ItemStatus::Failed { reason, .. }) if reason == "definition_unusable"));
    assert_eq!(applied.counters.len(), 1);
    // A build that can use it has checked the one that names its version.
    assert_eq!(ids(&one, "c").await, [sent.item_key(3), before.item_key(1)]);
    assert_eq!(ids(&one, "free").await, [sent.item_key(4)]);
    while one.index_page("c").await.expect("is indexed") {}
}

async fn documents_whose_check_costs_too_much_are_set_aside_alone([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    let letters: String = (0..100_000).map(letter).collect();
    let dear = |number| document("c", &format!(r#"{{"log":"{letters}","n":{number}}}"#));
    let schema = Some(r#"{"properties":{"log":{"pattern":"a[ab]{9000}c"}}}"#.into());
    one.define("c", Definition { schema, ..Definition::default() }).await.expect("is defined");
    // The documents take more time than a batch has: the last of them are not even begun.
    let mut items: Vec<Item> = (0..15).map(dear).collect();
    items.extend([document("c", r#"{"n":1}"#), document("free", "{}"), increment("a", 1)]);
    items.rotate_right(3);
    let sent = messages.of(&items);
    let outcome = apply(&other, std::slice::from_ref(&sent)).await;
    let aside: Vec<_> = outcome.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
    let expected: Vec<_> = (3..18).map(|index| (sent.item_key(index), Reason::CheckOverrun)).collect();
    assert_eq!(aside, expected);
    assert!(outcome.set_aside[0].detail.contains("collections.check_ms_max"));
    assert!(outcome.set_aside[14].detail.contains("others of its collection"));
    assert_eq!(outcome.counters.len(), 1);
    assert_eq!(ids(&one, "c").await, [sent.item_key(0)]);
    assert_eq!(ids(&one, "free").await, [sent.item_key(1)]);
    let first = DeadLetterFilter { id: Some(sent.item_key(3).as_uuid()), ..everything() };
    assert_eq!(failed_again(&redrive(&one, first, false).await).0, "check_overrun");
    one.define("c", Definition::default()).await.expect("is removed");
    assert_eq!(applied(&redrive(&other, everything(), false).await).len(), 15);
}
