//! The contract of both stores on definitions of collections, and on filters by indexed members.
use std::sync::Arc;

use serde_json::{Value, json};
use shared::model::collection::{Collection, Definition, index_value};
use shared::model::id::{ItemKey, MessageId};
use shared::model::json_rules::Tree;
use shared::model::write::Item;
use shared::store::{DocumentPage, NamePage, Store};
use tokio::sync::Barrier;
use uuid::Uuid;

use crate::store::sent::{delete, document, with_key};
use crate::store::{Messages, NOON_MS, apply};

on_both!(
    a_definition_is_replaced_and_no_version_comes_twice,
    two_definitions_at_once_get_two_versions,
    filters_find_documents_by_the_values_of_their_members,
    documents_from_before_a_definition_are_indexed_page_by_page,
    a_redefinition_forgets_what_it_does_not_index,
    a_definition_that_comes_among_documents_misses_none,
    collections_that_are_defined_are_listed_by_name,
    a_listing_between_two_times_is_that_part_of_the_whole,
);

fn indexed(fields: &[&str]) -> Definition {
    let indexed = fields.iter().map(|field| (*field).to_owned()).collect();
    Definition { indexed, ..Definition::default() }
}

async fn define(store: &Arc<dyn Store>, name: &str, definition: Definition) -> Collection {
    store.define(name, definition).await.expect("is defined")
}

async fn collection(store: &Arc<dyn Store>, name: &str) -> Collection {
    store.collection(name).await.expect("is read")
}

async fn index_all(store: &Arc<dyn Store>, name: &str) {
    while store.index_page(name).await.expect("is indexed") {}
}

/// Finds the ids of the documents of `c` that match all of these.
async fn find(store: &Arc<dyn Store>, filters: &[(&str, Value)]) -> Vec<ItemKey> {
    find_page(store, filters, None, 10_000).await.into_iter().map(|(id, _)| id).collect()
}

async fn find_page(
    store: &Arc<dyn Store>,
    filters: &[(&str, Value)],
    before: Option<Uuid>,
    limit: u32,
) -> Vec<(ItemKey, Uuid)> {
    let indexed = |value: &Value| index_value(&Tree::read(&value.to_string()).expect("JSON"));
    let filter = |(field, value): &(&str, Value)| ((*field).to_owned(), indexed(value).expect("is indexed"));
    let filters = filters.iter().map(filter).collect();
    let page = DocumentPage { collection: "c".into(), filters, from: None, before, limit };
    let documents = store.documents(page).await.expect("is read").documents;
    documents.into_iter().map(|document| (document.id, document.place)).collect()
}

async fn a_definition_is_replaced_and_no_version_comes_twice([one, other]: [Arc<dyn Store>; 2]) {
    assert_eq!(collection(&one, "c").await, Collection::default());
    assert!(!one.index_page("c").await.expect("is indexed"));
    let full = Definition {
        schema: Some(r#"{ "type": "object" }"#.into()),
        indexed: vec!["b".into(), "ä \"'\\%_".into()],
        retention_days: Some(30),
    };
    let mut last = 0;
    for definition in [full.clone(), indexed(&["a"]), Definition::default(), full.clone(), full] {
        let is_defined = definition != Definition::default();
        let defined = define(&one, "c", definition.clone()).await;
        assert_eq!((&defined.definition, defined.is_defined), (&definition, is_defined));
        assert!(defined.version > last, "{} after {last}", defined.version);
        last = defined.version;
        index_all(&other, "c").await;
        assert_eq!(collection(&other, "c").await, Collection { is_indexed: true, ..defined });
        // A page without work left changes nothing.
        assert!(!one.index_page("c").await.expect("is indexed"));
    }
    for stranger in ["C", "c\0", ""] {
        assert_eq!(collection(&other, stranger).await, Collection::default());
    }
}

async fn two_definitions_at_once_get_two_versions(stores: [Arc<dyn Store>; 2]) {
    for round in 0..10 {
        let barrier = Arc::new(Barrier::new(2));
        let racing = [("a", 0), ("b", 1)].map(|(field, side)| {
            let (store, barrier) = (Arc::clone(&stores[side]), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                // In every other round the row is there already.
                define(&store, &format!("c{}", round / 2), indexed(&[field])).await
            })
        });
        let mut defined = Vec::new();
        for racer in racing {
            defined.push(racer.await.expect("no panic"));
        }
        defined.sort_unstable_by_key(|collection| collection.version);
        assert!(defined[0].version < defined[1].version);
        let found = collection(&stores[0], &format!("c{}", round / 2)).await;
        assert_eq!((found.version, found.definition), (defined[1].version, defined[1].definition.clone()));
    }
}

async fn filters_find_documents_by_the_values_of_their_members([one, other]: [Arc<dyn Store>; 2]) {
    define(&one, "c", indexed(&["f", "g"])).await;
    let long = "é".repeat(1_000);
    let values = [
        json!("x"),
        json!(5),
        json!(5.0),
        json!(-0.25),
        json!(true),
        json!(null),
        json!(long),
        json!(format!("{long}y")),
        json!("a\0b"),
        json!(""),
        json!([1]),
        json!({"a": 1}),
    ];
    let data = |(number, value): (usize, &Value)| {
        let data = json!({"g": number % 2, "f": value, "h": 1}).to_string();
        // The rule holds for keyed documents, too.
        let item = document("c", &data);
        if number % 3 == 0 { with_key(&number.to_string(), item) } else { item }
    };
    let mut items: Vec<Item> = values.iter().enumerate().map(data).collect();
    items.push(document("c", r#"{"h":1}"#));
    // Documents of another collection are not found, indexed or not.
    items.push(document("d", r#"{"f":"x"}"#));
    let mut messages = Messages::new();
    let sent = messages.of(&items);
    apply(&one, std::slice::from_ref(&sent)).await;
    let key = |index: usize| sent.item_key(index);
    for (index, value) in values[..10].iter().enumerate() {
        let expected = if matches!(index, 1 | 2) { vec![key(2), key(1)] } else { vec![key(index)] };
        assert_eq!(find(&other, &[("f", value.clone())]).await, expected, "{value}");
    }
    assert_eq!(find(&other, &[("f", json!("X"))]).await, []);
    assert_eq!(find(&other, &[("f", json!("5"))]).await, [key(2), key(1)]);
    assert_eq!(find(&other, &[("g", json!(0))]).await, [10, 8, 6, 4, 2, 0].map(key));
    // Several filters must all match.
    assert_eq!(find(&other, &[("f", json!(5)), ("g", json!(1))]).await, [key(1)]);
    assert_eq!(find(&other, &[("g", json!(0)), ("f", json!(5))]).await, [key(2)]);
    assert_eq!(find(&other, &[("f", json!("x")), ("g", json!(1))]).await, []);
    assert_eq!(find(&other, &[("f", json!("x")), ("f", json!("x"))]).await, [key(0)]);
    // The list comes in pages.
    let first = find_page(&other, &[("g", json!(0))], None, 4).await;
    assert_eq!(first.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [10, 8, 6, 4].map(key));
    let next = find_page(&other, &[("g", json!(0))], Some(first[3].1), 4).await;
    assert_eq!(next.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 0].map(key));
    // Deleted documents are found no more.
    apply(&one, &[messages.of(&[delete("c", key(2)), delete("c", key(0))])]).await;
    assert_eq!(find(&other, &[("f", json!(5))]).await, [key(1)]);
    assert_eq!(find(&other, &[("f", json!("x"))]).await, []);
    assert_eq!(find(&other, &[("g", json!(0))]).await, [10, 8, 6, 4].map(key));
}

async fn documents_from_before_a_definition_are_indexed_page_by_page([one, other]: [Arc<dyn Store>; 2]) {
    const BEFORE: usize = 2_500;
    let mut messages = Messages::new();
    let item = |number: usize| {
        let item = document("c", &format!(r#"{{"f":"x","n":{number}}}"#));
        if number.is_multiple_of(500) { with_key(&number.to_string(), item) } else { item }
    };
    let sent = messages.of(&(0..BEFORE).map(item).collect::<Vec<Item>>());
    let erased = [7, 1_000, 2_400].map(|index| sent.item_key(index));
    let unreadable = messages.of(&[document("c", r#"{"f":{}}"#), document("c", "{}")]);
    apply(
        &one,
        &[
            sent.clone(),
            unreadable,
            messages.of(&erased[..2].iter().map(|id| delete("c", *id)).collect::<Vec<_>>()),
        ],
    )
    .await;
    let defined = define(&one, "c", indexed(&["f"])).await;
    assert!(defined.is_defined && !defined.is_indexed);
    assert!(!collection(&other, "c").await.is_indexed);
    // A new one is found at once, and one that is deleted meanwhile is not found afterwards.
    let late = messages.of(&[document("c", r#"{"f":"late"}"#), document("c", r#"{"f":"x"}"#)]);
    apply(&other, std::slice::from_ref(&late)).await;
    assert_eq!(find(&one, &[("f", json!("late"))]).await, [late.item_key(0)]);
    assert!(other.index_page("c").await.expect("is indexed"));
    apply(&one, &[messages.of(&[delete("c", erased[2])])]).await;
    index_all(&other, "c").await;
    assert!(collection(&one, "c").await.is_indexed);
    let mut expected: Vec<ItemKey> =
        (0..BEFORE).map(|index| sent.item_key(index)).filter(|id| !erased.contains(id)).collect();
    expected.push(late.item_key(1));
    expected.reverse();
    assert_eq!(find(&one, &[("f", json!("x"))]).await, expected);
    assert_eq!(collection(&one, "c").await.version, defined.version);
}

async fn a_redefinition_forgets_what_it_does_not_index([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    define(&one, "c", indexed(&["a", "b"])).await;
    let sent = messages.of(&[document("c", r#"{"a":1,"b":2}"#), document("c", r#"{"a":1,"b":3}"#)]);
    apply(&one, std::slice::from_ref(&sent)).await;
    let [first, second] = [0, 1].map(|index| sent.item_key(index));
    define(&other, "c", indexed(&["b"])).await;
    index_all(&other, "c").await;
    assert_eq!(find(&one, &[("a", json!(1))]).await, []);
    assert_eq!(find(&one, &[("b", json!(2))]).await, [first]);
    // It is deleted while only a part was indexed, and is not found when all is again.
    apply(&one, &[messages.of(&[delete("c", first)])]).await;
    let back = define(&one, "c", indexed(&["a", "b"])).await;
    assert!(!back.is_indexed);
    index_all(&other, "c").await;
    assert_eq!(find(&one, &[("a", json!(1))]).await, [second]);
    assert_eq!(find(&one, &[("b", json!(2))]).await, []);
    assert_eq!(find(&one, &[("b", json!(3))]).await, [second]);
    define(&one, "c", Definition::default()).await;
    index_all(&one, "c").await;
    assert_eq!(find(&other, &[("b", json!(3))]).await, []);
}

async fn a_definition_that_comes_among_documents_misses_none(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: usize = 30;
    const DOCUMENTS: usize = 40;
    let barrier = Arc::new(Barrier::new(2));
    let writer = tokio::spawn({
        let (store, barrier) = (Arc::clone(&stores[0]), Arc::clone(&barrier));
        async move {
            let mut messages = Messages::new();
            for round in 0..ROUNDS {
                if round == ROUNDS / 3 {
                    barrier.wait().await;
                }
                let items: Vec<Item> = (0..DOCUMENTS).map(|_| document("c", r#"{"f":1}"#)).collect();
                apply(&store, &[messages.of(&items)]).await;
            }
        }
    });
    barrier.wait().await;
    // The fields go away and come back.
    for fields in [&["f"][..], &["f", "g"], &["g"], &["f"]] {
        define(&stores[1], "c", indexed(fields)).await;
        index_all(&stores[1], "c").await;
    }
    writer.await.expect("every batch is applied");
    assert!(collection(&stores[0], "c").await.is_indexed);
    assert_eq!(find(&stores[0], &[("f", json!(1))]).await.len(), ROUNDS * DOCUMENTS);
}

async fn collections_that_are_defined_are_listed_by_name([one, other]: [Arc<dyn Store>; 2]) {
    let listed = async |prefix: &str, after: Option<&str>, limit| {
        let page = NamePage { prefix: prefix.into(), after: after.map(Into::into), limit };
        other.collections(page).await.expect("is read")
    };
    let names = async |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        listed(prefix, after, limit).await.into_iter().map(|(name, _)| name).collect()
    };
    assert!(listed("", None, 10).await.is_empty());
    let mut messages = Messages::new();
    apply(&one, &[messages.of(&[document("never-defined", "{}"), document("a:1", "{}")])]).await;
    for name in ["b", "a:2", "a:1", "B", "gone", "a"] {
        define(&one, name, indexed(&[&name[..1]])).await;
    }
    define(&one, "gone", Definition::default()).await;
    assert_eq!(names("", None, 10).await, ["B", "a", "a:1", "a:2", "b"]);
    assert_eq!(names("a:", None, 10).await, ["a:1", "a:2"]);
    assert_eq!(names("", Some("a"), 2).await, ["a:1", "a:2"]);
    assert_eq!(names("a", Some("a:1"), 2).await, ["a:2"]);
    for (prefix, after) in [("c", None), ("g", None), ("", Some("b")), ("a\0", None)] {
        assert!(names(prefix, after, 10).await.is_empty(), "{prefix} {after:?}");
    }
    // The list has each as a read by its name has it, also while it is being indexed.
    for (name, found) in listed("", None, 10).await {
        assert_eq!(found, collection(&one, &name).await);
        assert_eq!((found.is_defined, found.is_indexed), (true, name != "a:1"), "{name}");
    }
}

/// Reads the places of all documents, in pages of this size.
async fn places(store: &Arc<dyn Store>, mut page: DocumentPage) -> Vec<Uuid> {
    let mut all = Vec::new();
    loop {
        let found = store.documents(page.clone()).await.expect("is read");
        all.extend(found.documents.iter().map(|document| document.place));
        if found.documents.len() < page.limit as usize && found.stopped_at.is_none() {
            return all;
        }
        page.before = found.stopped_at.or(all.last().copied());
    }
}

async fn a_listing_between_two_times_is_that_part_of_the_whole([one, other]: [Arc<dyn Store>; 2]) {
    define(&one, "c", indexed(&["f", "g"])).await;
    let mut messages = Messages::new();
    // There are two messages at each even time, none at the odd ones.
    let times: Vec<i64> = (0..8).map(|number| NOON_MS + number / 2 * 2).collect();
    for (number, time_ms) in times.iter().enumerate() {
        let data = format!(r#"{{"f":{},"g":1}}"#, number % 2);
        let items = [
            document("c", &data),
            with_key(&format!("k{number}"), document("c", &data)),
            document("c", "{}"),
        ];
        let sent = messages.at(*time_ms, &items);
        apply(&one, std::slice::from_ref(&sent)).await;
        if number % 3 == 0 {
            let gone = [delete("c", sent.item_key(0)), delete("c", sent.item_key(2))];
            apply(&one, &[messages.at(times[7], &gone)]).await;
        }
    }
    let time_of = |place: &Uuid| {
        let message = ItemKey::from_uuid(*place).and_then(ItemKey::message);
        message.expect("a place has a time").time_ms() - NOON_MS
    };
    let filter =
        |field: &str| (field.to_owned(), index_value(&Tree::read("1").expect("JSON")).expect("is indexed"));
    for filters in [vec![], vec![filter("f")], vec![filter("f"), filter("g")]] {
        let page = |from, before, limit| DocumentPage {
            collection: "c".into(),
            filters: filters.clone(),
            from,
            before,
            limit,
        };
        let whole = places(&other, page(None, None, 100)).await;
        assert!(whole.len() > 5 && whole.is_sorted_by(|one, next| one > next));
        for (after, before) in (-1..=7).flat_map(|after| (-1..=7).map(move |before| (after, before))) {
            let expected: Vec<Uuid> =
                whole.iter().copied().filter(|place| (after + 1..before).contains(&time_of(place))).collect();
            let [from, before] = [after + 1, before].map(|ms| Some(MessageId::lowest_at(NOON_MS + ms)));
            for limit in [1, 4, 100] {
                let found = places(&other, page(from, before, limit)).await;
                assert_eq!(found, expected, "after {after}, {filters:?} by {limit}");
            }
        }
    }
}
