//! The contract of both stores on deletions without a request.
use std::sync::Arc;

use shared::model::collection::{Definition, index_text};
use shared::model::id::{ItemKey, Kind};
use shared::model::outcome::KeyedVerdict;
use shared::model::rollup::Resolution;
use shared::model::write::Item;
use shared::store::{DocumentPage, Housekept, Retention, RollupRange, Store};

use crate::store::contract::dead_letters::set_aside;
use crate::store::sent::{delete, document, identity, increment, point, with_key};
use crate::store::{Messages, apply, fate, standing};

on_both!(
    a_key_is_free_again_after_its_retention,
    a_key_of_a_document_lives_as_long_as_its_document,
    a_key_stays_as_long_as_its_dead_letter,
    documents_go_after_their_retention_with_their_fields,
    rollups_go_after_the_retention_of_their_resolution,
    housekeeping_where_nothing_is_old_changes_nothing,
    dead_letters_that_wait_are_counted_and_discarded_ones_are_not,
);

pub const DAY_MS: i64 = 24 * 3_600_000;

/// Retention that keeps everything that these tests make.
pub const LONG: Retention = Retention {
    now_ms_max: i64::MAX,
    points_ms: 90 * DAY_MS,
    minutes_ms: 90 * DAY_MS,
    hours_ms: 90 * DAY_MS,
    discarded_ms: 90 * DAY_MS,
    remembered_ms: 0,
    forget_before_ms: None,
    rows_max: 1_000,
};

async fn housekeep(store: &Arc<dyn Store>, retention: Retention) -> Housekept {
    store.housekeep(retention).await.expect("is kept")
}

/// Runs housekeeping until nothing is left to do; returns how often there was something.
pub async fn housekeep_all(store: &Arc<dyn Store>, retention: Retention) -> u32 {
    let mut times = 0;
    while housekeep(store, retention).await.more {
        times += 1;
        assert!(times < 1_000, "there is always more");
    }
    times
}

/// Raises the floor above everything that is entered today, and returns messages that lie above it.
pub async fn above_the_floor(store: &Arc<dyn Store>, now_ms: i64) -> Messages {
    apply(store, &[Messages::new().at(now_ms + 2 * DAY_MS, &[increment("passing", 1)])]).await;
    housekeep_all(store, Retention { forget_before_ms: Some(now_ms + 4 * DAY_MS), ..LONG }).await;
    let mut messages = Messages::new();
    messages.at(now_ms + 5 * DAY_MS, &[increment("never sent", 1)]);
    messages
}

/// Returns a time of the store's clock that is later than everything before the call.
pub async fn next_ms(store: &Arc<dyn Store>) -> i64 {
    let before_ms = store.now_ms().await.expect("a time");
    loop {
        let now_ms = store.now_ms().await.expect("a time");
        if now_ms > before_ms {
            return now_ms;
        }
    }
}

async fn dead_letters_that_wait_are_counted_and_discarded_ones_are_not([one, other]: [Arc<dyn Store>; 2]) {
    assert_eq!(housekeep(&one, LONG).await.dead_letters, 0);
    let items = ["a", "b", "c"].map(|name| increment(name, 1));
    let keys = set_aside(&one, &mut Messages::new(), &items).await;
    assert_eq!(housekeep(&other, LONG).await.dead_letters, 3);
    one.discard(keys[0].as_uuid()).await.expect("is discarded");
    assert_eq!(housekeep(&other, LONG).await.dead_letters, 2);
}

async fn a_key_is_free_again_after_its_retention([one, other]: [Arc<dyn Store>; 2]) {
    const KEYS: usize = 25;
    let mut messages = above_the_floor(&one, one.now_ms().await.expect("a time")).await;
    let items: Vec<Item> = (0..KEYS).map(|number| with_key(&number.to_string(), increment("a", 1))).collect();
    let applied = apply(&one, &[messages.of(&items)]).await;
    housekeep_all(&other, LONG).await;
    let again = apply(&one, &[messages.of(&items)]).await;
    assert!(again.keyed.iter().all(|outcome| outcome.verdict == KeyedVerdict::Repeated));
    while one.now_ms().await.expect("a time") <= applied.committed_at_ms {}
    // The number at a time is limited.
    let now_ms = one.now_ms().await.expect("a time");
    let early = Retention { forget_before_ms: Some(applied.committed_at_ms - 60_000), ..LONG };
    assert_eq!(housekeep(&other, early).await, Housekept::default());
    let short = Retention { forget_before_ms: Some(now_ms), rows_max: 10, ..LONG };
    let first = housekeep(&other, short).await;
    assert!(first.more && first.rows == 10, "{first:?}");
    housekeep_all(&one, short).await;
    assert!(!housekeep(&other, short).await.more);
    assert_eq!(fate(&one, identity(Kind::Increment, "3", 0)).await, None);
    let freed = apply(&other, &[messages.of(&items)]).await;
    assert!(freed.keyed.iter().all(|outcome| outcome.verdict == KeyedVerdict::Applied));
    assert_eq!(standing(&one, "a").await, (50, 50));
}

/// A client that sends again after a long time gets "applied" for a document that is there, and for
/// one that was deleted, but not for one that retention took.
async fn a_key_of_a_document_lives_as_long_as_its_document([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let now_ms = one.now_ms().await.expect("a time");
    let bounded = Definition { retention_days: Some(10), ..Definition::default() };
    one.define("bounded", bounded).await.expect("is defined");
    let keyed = |key: &str, collection: &str| with_key(key, document(collection, "{}"));
    let items = [keyed("stays", "c"), keyed("deleted", "c"), keyed("goes", "bounded")];
    apply(&one, &[messages.at(now_ms - 11 * DAY_MS, &items)]).await;
    // Earlier keys may be removed after this.
    apply(&one, &[messages.at(now_ms + DAY_MS, &[increment("passing", 1)])]).await;
    // Its tombstone stays.
    let erase = [delete("c", identity(Kind::Document, "deleted", 0))];
    apply(&one, &[messages.at(now_ms + 3 * DAY_MS, &erase)]).await;
    let fate_of = async |key: &str| fate(&other, identity(Kind::Document, key, 0)).await;
    let all = Retention { forget_before_ms: Some(now_ms + 2 * DAY_MS), ..LONG };
    housekeep_all(&other, all).await;
    for (key, is_known) in [("stays", true), ("deleted", true), ("goes", false)] {
        assert_eq!(fate_of(key).await.is_some(), is_known, "{key}");
    }
    let again = apply(&one, &[messages.at(now_ms, &items)]).await;
    let verdicts: Vec<_> = again.keyed.iter().map(|outcome| outcome.verdict).collect();
    assert_eq!(verdicts, [KeyedVerdict::Repeated, KeyedVerdict::Repeated, KeyedVerdict::Applied]);
    assert_eq!(listed(&one, "c", None).await, [identity(Kind::Document, "stays", 0)]);
    assert_eq!(listed(&one, "bounded", None).await, [identity(Kind::Document, "goes", 0)]);
}

async fn a_key_stays_as_long_as_its_dead_letter([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = above_the_floor(&one, one.now_ms().await.expect("a time")).await;
    let items =
        [increment("a", i64::MAX), with_key("bad", increment("a", 1)), with_key("good", increment("b", 1))];
    let applied = apply(&one, &[messages.of(&items)]).await;
    assert_eq!(applied.set_aside.len(), 1);
    let all = Retention { forget_before_ms: Some(applied.committed_at_ms + DAY_MS), ..LONG };
    housekeep_all(&other, all).await;
    let again = apply(&other, &[messages.of(&items[1..])]).await;
    let verdicts: Vec<_> = again.keyed.iter().map(|outcome| outcome.verdict).collect();
    assert_eq!(verdicts, [KeyedVerdict::Repeated, KeyedVerdict::Applied]);
}

async fn listed(store: &Arc<dyn Store>, collection: &str, filter: Option<&str>) -> Vec<ItemKey> {
    let filters = filter.map(|text| ("f".to_owned(), index_text(text))).into_iter().collect();
    let page =
        DocumentPage { collection: collection.into(), filters, from: None, before: None, limit: 1_000 };
    store.documents(page).await.expect("is read").documents.into_iter().map(|document| document.id).collect()
}

async fn documents_go_after_their_retention_with_their_fields([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let now_ms = one.now_ms().await.expect("a time");
    let bounded = Definition { indexed: vec!["f".into()], retention_days: Some(10), schema: None };
    one.define("bounded", bounded.clone()).await.expect("is defined");
    let forever = Definition { retention_days: None, ..bounded.clone() };
    one.define("forever", forever).await.expect("is defined");
    let data = r#"{"f":"x"}"#;
    let items = |key: &str| -> Vec<Item> {
        (0..12)
            .map(|number| {
                let item = document(if number % 4 == 3 { "forever" } else { "bounded" }, data);
                if number % 2 == 0 { with_key(&format!("{key}{number}"), item) } else { item }
            })
            .collect()
    };
    let old = messages.at(now_ms - 11 * DAY_MS, &items("old"));
    let new = messages.at(now_ms - 9 * DAY_MS, &items("new"));
    apply(&one, &[old.clone(), new.clone(), messages.at(now_ms, &[delete("bounded", old.item_key(0))])])
        .await;
    // The collection is never defined, or defined no more: its documents stay for ever.
    let strangers = messages.at(now_ms, &[document("stranger", data)]);
    apply(&one, std::slice::from_ref(&strangers)).await;
    let few = Retention { rows_max: 4, ..LONG };
    assert!(housekeep(&other, few).await.more);
    assert!(housekeep_all(&other, few).await >= 1);
    let of = |message: &shared::model::message::Message, is_forever: bool| -> Vec<ItemKey> {
        (0..12).rev().filter(|n| (n % 4 == 3) == is_forever).map(|n| message.item_key(n)).collect()
    };
    assert_eq!(listed(&one, "bounded", None).await, of(&new, false));
    assert_eq!(listed(&one, "bounded", Some("x")).await, of(&new, false));
    let forever = [of(&new, true), of(&old, true)].concat();
    assert_eq!(listed(&one, "forever", None).await, forever);
    assert_eq!(listed(&one, "forever", Some("x")).await, forever);
    assert_eq!(listed(&one, "stranger", None).await, [strangers.item_key(0)]);
    assert_eq!(one.document("bounded", old.item_key(1)).await.expect("is read"), None);
    // A shorter retention counts from now on; without one the rest is kept.
    one.define("bounded", Definition::default()).await.expect("is removed");
    housekeep_all(&one, LONG).await;
    assert_eq!(listed(&one, "bounded", None).await.len(), 9);
    one.define("bounded", Definition { retention_days: Some(1), ..bounded }).await.expect("is defined");
    housekeep_all(&one, LONG).await;
    assert_eq!(listed(&one, "bounded", None).await, []);
}

async fn periods(store: &Arc<dyn Store>, resolution: Resolution) -> Vec<i32> {
    let mut periods = Vec::new();
    for kind in ["a", "b"] {
        let range = RollupRange { kind: kind.into(), resolution, from: i32::MIN, below: i32::MAX };
        periods.extend(
            store.rollups(range).await.expect("is read").rollups.into_iter().map(|(period, _)| period),
        );
    }
    periods
}

async fn rollups_go_after_the_retention_of_their_resolution([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let now_ms = one.now_ms().await.expect("a time");
    let days_ago = [200, 30, 5, 0].map(|days| now_ms - days * DAY_MS);
    for at_ms in days_ago {
        apply(&one, &[messages.at(at_ms, &[point("a", at_ms, 1.0), point("b", at_ms, 1.0)])]).await;
    }
    let all = |resolution: Resolution, count: usize| {
        let periods = days_ago[days_ago.len() - count..].iter().map(|at_ms| resolution.period_of(*at_ms));
        [periods.clone().collect::<Vec<_>>(), periods.collect()].concat()
    };
    for resolution in Resolution::ALL {
        assert_eq!(periods(&other, resolution).await, all(resolution, 4), "{resolution:?}");
    }
    let retention = Retention {
        points_ms: 20 * DAY_MS,
        minutes_ms: 2 * DAY_MS,
        hours_ms: 90 * DAY_MS,
        rows_max: 1,
        ..LONG
    };
    // Another clock shows an earlier time than the store's does.
    housekeep_all(&one, Retention { now_ms_max: days_ago[0], ..retention }).await;
    for resolution in Resolution::ALL {
        assert_eq!(periods(&other, resolution).await, all(resolution, 4), "{resolution:?}");
    }
    let first = housekeep(&other, retention).await;
    assert!(first.more && first.rows + first.partitions > 0, "{first:?}");
    housekeep_all(&one, retention).await;
    assert_eq!(periods(&other, Resolution::Minute).await, all(Resolution::Minute, 1));
    assert_eq!(periods(&other, Resolution::Hour).await, all(Resolution::Hour, 3));
    assert_eq!(periods(&other, Resolution::Day).await, all(Resolution::Day, 4));
    assert_eq!(housekeep(&one, retention).await, Housekept::default());
    // Points that are accepted for a time when everything old was deleted find their tables.
    let late = days_ago[0];
    apply(&other, &[Messages::new().at(late, &[point("a", late, 1.0)])]).await;
    assert_eq!(periods(&one, Resolution::Day).await, all(Resolution::Day, 4));
    assert!(periods(&one, Resolution::Minute).await.contains(&Resolution::Minute.period_of(late)));
}

async fn housekeeping_where_nothing_is_old_changes_nothing([one, other]: [Arc<dyn Store>; 2]) {
    // This makes partitions ahead, where there are any.
    housekeep_all(&one, LONG).await;
    assert_eq!(housekeep(&other, LONG).await, Housekept::default());
    let mut messages = Messages::new();
    let now_ms = one.now_ms().await.expect("a time");
    let items = [
        with_key("k", increment("a", 1)),
        document("c", "{}"),
        point("a", now_ms, 1.0),
        point("b", now_ms, 1.0),
    ];
    let sent = messages.at(now_ms, &items);
    apply(&one, std::slice::from_ref(&sent)).await;
    for _ in 0..2 {
        assert_eq!(housekeep(&other, LONG).await, Housekept::default());
    }
    assert_eq!(standing(&one, "a").await, (1, 1));
    assert_eq!(listed(&one, "c", None).await, [sent.item_key(1)]);
    for resolution in Resolution::ALL {
        assert_eq!(periods(&one, resolution).await.len(), 2);
    }
    assert!(fate(&one, identity(Kind::Increment, "k", 0)).await.is_some());
}
