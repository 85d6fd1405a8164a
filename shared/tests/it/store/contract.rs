//! The contract of both stores.
use std::sync::Arc;

use shared::model::id::Kind;
use shared::model::message::Message;
use shared::model::outcome::{Counter, ItemStatus, Reason};
use shared::store::{NamePage, Store, StoreError};
use tokio::sync::Barrier;

use super::{Messages, NOON_MS, apply, fate, items, message, standing, unavailable};

/// Makes a test of each function, once on SQLite and once on Postgres. The function gets two
/// handles: of two processes on Postgres, of the only one that may open it on SQLite.
///
/// It is defined before the modules below, which use it, too.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let directory = crate::store::Directory::new("contract");
                    let store = directory.store().await;
                    super::$name([std::sync::Arc::clone(&store), store]).await;
                }
            )+
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    testkit::isolated("contract", async |isolated| {
                        let config = crate::store::postgres_config(&isolated.database_url);
                        let one = crate::store::postgres(&config).await;
                        let stores = [one, crate::store::postgres(&config).await];
                        super::$name(stores).await;
                    })
                    .await;
                }
            )+
        }
    };
}

mod attempts;
mod dead_letters;
pub mod dead_messages;
mod documents;
mod floor;
mod forgotten_keys;
mod housekeeping;
mod indexes;
mod keys;
mod metrics;

on_both!(
    a_batch_takes_effect_once_however_often_it_comes,
    a_batch_that_comes_twice_at_once_takes_effect_once,
    what_is_answered_is_what_is_read,
    only_new_messages_of_a_batch_are_summed,
    exactly_what_overflows_is_set_aside,
    a_sum_that_overflows_where_the_value_does_not_is_applied,
    nothing_that_a_message_can_carry_fails_its_batch,
    another_body_under_a_known_id_is_refused_and_changes_nothing,
    the_fate_of_an_item_is_told,
    pages_are_in_order_of_bytes_and_take_prefixes_literally,
    writers_with_opposite_orders_lose_nothing,
    the_clock_is_the_time,
    a_closed_store_says_so,
    a_batch_of_nothing_is_fine,
);

async fn a_batch_takes_effect_once_however_often_it_comes([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let batch = [messages.increments(&[("a", 2), ("b", 3), ("a", 5)]), messages.increments(&[("a", -1)])];
    let first = apply(&one, &batch).await;
    assert_eq!(first.fresh, [batch[0].id, batch[1].id]);
    assert!(first.set_aside.is_empty());
    for store in [&one, &other, &one] {
        let again = apply(store, &batch).await;
        assert!(again.fresh.is_empty() && again.counters.is_empty() && again.set_aside.is_empty());
        assert!(again.committed_at_ms >= first.committed_at_ms);
    }
    // The same message comes twice in one batch, against the rules.
    let twice = messages.increments(&[("b", 4)]);
    assert_eq!(apply(&one, &[twice.clone(), batch[0].clone(), twice.clone()]).await.fresh, [twice.id]);
    assert_eq!((standing(&other, "a").await, standing(&other, "b").await), ((6, 3), (7, 2)));
}

async fn a_batch_that_comes_twice_at_once_takes_effect_once(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: usize = 20;
    let mut messages = Messages::new();
    for _ in 0..ROUNDS {
        let batch: Arc<[Message]> = messages.each(&[("a", 1), ("b", 1), ("a", 1)]).into();
        let barrier = Arc::new(Barrier::new(2));
        let racing = stores.clone().map(|store| {
            let (batch, barrier) = (Arc::clone(&batch), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                store.apply(batch).await.expect("is applied").fresh
            })
        });
        let mut fresh = Vec::new();
        for racer in racing {
            fresh.extend(racer.await.expect("no panic"));
        }
        assert_eq!(fresh, batch.iter().map(|message| message.id).collect::<Vec<_>>());
    }
    let rounds = i64::try_from(ROUNDS).expect("small");
    assert_eq!(standing(&stores[0], "a").await, (2 * rounds, 2 * rounds));
    assert_eq!(standing(&stores[0], "b").await, (rounds, rounds));
}

async fn what_is_answered_is_what_is_read([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    assert_eq!(other.counter("a").await.expect("is read"), None);
    let before_ms = other.now_ms().await.expect("a time");
    apply(&one, &[messages.increments(&[("a", 1)])]).await;
    let applied =
        apply(&one, &[messages.increments(&[("b", i64::MIN), ("a", i64::MAX - 1), ("c", 0)])]).await;
    let reported: Vec<_> = applied.counters.iter().map(|c| (&*c.name, c.value, c.version)).collect();
    assert_eq!(reported, [("a", i64::MAX, 2), ("b", i64::MIN, 1), ("c", 0, 1)]);
    for counter in &applied.counters {
        assert_eq!(other.counter(&counter.name).await.expect("is read").as_ref(), Some(counter));
        assert!((before_ms..=applied.committed_at_ms).contains(&counter.updated_at_ms));
    }
    assert!(applied.committed_at_ms <= other.now_ms().await.expect("a time"));
}

async fn only_new_messages_of_a_batch_are_summed([one, _]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let batch = messages.each(&[("a", 1), ("a", 10), ("a", 100), ("a", 1_000)]);
    apply(&one, &batch[1..2]).await;
    apply(&one, &batch[3..]).await;
    let applied = apply(&one, &batch).await;
    assert_eq!(applied.fresh, [batch[0].id, batch[2].id]);
    assert_eq!(standing(&one, "a").await, (1_111, 4));
}

async fn exactly_what_overflows_is_set_aside([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    apply(&one, &[messages.increments(&[("up", i64::MAX - 1), ("down", i64::MIN + 1), ("calm", 1)])]).await;
    let batch = [
        messages.increments(&[("up", 1), ("up", 1), ("down", -1), ("calm", 1), ("down", -1)]),
        messages.increments(&[("up", -1), ("up", 2), ("up", 1), ("down", 1), ("down", -1), ("new", 4)]),
    ];
    let applied = apply(&one, &batch).await;
    let aside: Vec<_> = applied.set_aside.iter().map(|aside| aside.item).collect();
    let item = |message: &Message, index| message.id.item(Kind::Increment, index);
    assert_eq!(aside, [item(&batch[0], 1), item(&batch[0], 4), item(&batch[1], 1)]);
    assert!(applied.set_aside.iter().all(|aside| aside.reason == Reason::CounterOverflow));
    assert_eq!(applied.set_aside[0].accepted_at_ms, NOON_MS + 7);
    assert_eq!(applied.set_aside[0].json, items(&[("up", 1)])[0]);
    let reported: Vec<_> = applied.counters.iter().map(|c| (&*c.name, c.value, c.version)).collect();
    assert_eq!(reported, [("calm", 2, 2), ("down", i64::MIN, 4), ("new", 4, 1), ("up", i64::MAX, 4)]);
    for (name, value, version) in reported {
        assert_eq!(standing(&other, name).await, (value, version), "{name}");
    }
    // A batch that only overflows changes no counter, and comes back as applied.
    let hopeless = [messages.increments(&[("up", i64::MAX), ("down", i64::MIN)])];
    let applied = apply(&one, &hopeless).await;
    assert_eq!((applied.fresh.len(), applied.counters.len(), applied.set_aside.len()), (1, 0, 2));
    assert!(apply(&other, &hopeless).await.set_aside.is_empty());
    // Up and down: the sum of the batch fits, its first half does not.
    let applied = apply(&one, &messages.each(&[("up", 5), ("up", -5)])).await;
    assert_eq!(applied.set_aside.len(), 1);
    assert_eq!(standing(&one, "up").await, (i64::MAX - 5, 5));
}

async fn a_sum_that_overflows_where_the_value_does_not_is_applied([one, _]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    apply(&one, &[messages.increments(&[("a", i64::MIN)])]).await;
    let applied = apply(&one, &messages.each(&[("a", i64::MAX), ("a", i64::MAX)])).await;
    assert!(applied.set_aside.is_empty());
    assert_eq!(standing(&one, "a").await, (i64::MAX - 1, 3));
}

async fn nothing_that_a_message_can_carry_fails_its_batch([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let id = messages.id();
    let nasty = [
        r#"{"increment":{"counter":"a\u0000","by":1}}"#,
        r#"{"increment":{"counter":"a","by":1,"\u0000":2}}"#,
        r#"{"increment":{"counter":"a","by":1e400}}"#,
        r#"{"increment":"\ud800 𝄞 \\ \" ' \u0007"}"#,
        r#"{"increment":{"counter":"a","by":9223372036854775808}}"#,
        "{\"increment\":\n\t[]}",
    ];
    let good = items(&[("a", 1), ("b", 2)]);
    let all: Vec<String> =
        [&good[..1], &nasty.map(String::from)[..], &good[1..]].into_iter().flatten().cloned().collect();
    let mut odd = message(id, &all);
    odd.accepted_at_ms = i64::MAX;
    let mut old = messages.increments(&[("b", i64::MAX)]);
    old.accepted_at_ms = i64::MIN;
    let applied = apply(&one, &[odd, old]).await;
    assert_eq!((standing(&one, "a").await, standing(&one, "b").await), ((1, 1), (2, 1)));
    let reasons: Vec<_> = applied.set_aside.iter().map(|aside| aside.reason).collect();
    assert_eq!(reasons, [[Reason::Unreadable; 6].as_slice(), &[Reason::CounterOverflow]].concat());
    for (aside, sent) in applied.set_aside.iter().zip(nasty) {
        assert_eq!(aside.json, sent);
        let fate = fate(&other, aside.item).await;
        let Some(ItemStatus::Failed { reason, detail, .. }) = fate else { panic!("{fate:?}") };
        assert_eq!((&*reason, &detail), ("unreadable", &aside.detail));
    }
    // No name that a reader can ask for fails either.
    assert_eq!(other.counter("a\0").await.expect("is read"), None);
    let page = NamePage { prefix: "\0".into(), after: Some("\0".into()), limit: 9 };
    assert_eq!(other.counters(page).await.expect("is read"), []);
}

async fn another_body_under_a_known_id_is_refused_and_changes_nothing([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let (id, new) = (messages.id(), messages.increments(&[("new", 1)]));
    apply(&one, &[message(id, &items(&[("a", 1)]))]).await;
    let forged = message(id, &items(&[("a", 2)]));
    for batch in [vec![forged.clone()], vec![new.clone(), forged.clone()], vec![forged, new.clone()]] {
        let refused = other.apply(batch.into()).await;
        assert!(
            matches!(refused, Err(StoreError::DigestMismatch(reported)) if reported == id),
            "{refused:?}"
        );
    }
    let mut twin = new.clone();
    twin.digest[0] ^= 1;
    let refused = one.apply([new.clone(), twin].into()).await;
    assert!(
        matches!(refused, Err(StoreError::DigestMismatch(reported)) if reported == new.id),
        "{refused:?}"
    );
    assert_eq!((standing(&one, "a").await, standing(&one, "new").await), ((1, 1), (0, 0)));
    assert_eq!(apply(&one, std::slice::from_ref(&new)).await.fresh, [new.id]);
}

async fn the_fate_of_an_item_is_told([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let batch = [messages.increments(&[("a", i64::MAX), ("a", 1)])];
    let [good, bad] = [0, 1].map(|index| batch[0].item_key(index));
    assert_eq!(fate(&other, good).await, None);
    let before_ms = one.now_ms().await.expect("a time");
    let applied = apply(&one, &batch).await;
    let reported = fate(&other, good).await;
    let Some(ItemStatus::Applied { at_ms, .. }) = reported else { panic!("{reported:?}") };
    assert!((before_ms..=applied.committed_at_ms).contains(&at_ms));
    let reported = fate(&other, bad).await;
    let Some(ItemStatus::Failed { at_ms, reason, detail, .. }) = reported else { panic!("{reported:?}") };
    assert!((before_ms..=one.now_ms().await.expect("a time")).contains(&at_ms));
    assert_eq!(reason, "counter_overflow");
    assert_eq!(detail, "1 added to 9223372036854775807 is out of range");
    assert_eq!(fate(&other, messages.id().item(Kind::Increment, 0)).await, None);
}

async fn pages_are_in_order_of_bytes_and_take_prefixes_literally([one, _]: [Arc<dyn Store>; 2]) {
    let mut names =
        ["a", "A", "a_b", "a-b", "aXb", "a.b", "a:b", "ab", "Ab", "b", "B", "_", "-", "0", "10", "9", "z"];
    let increments = names.map(|name| (name, 1));
    apply(&one, &[Messages::new().increments(&increments)]).await;
    names.sort_unstable();
    let page = async |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let page = NamePage { prefix: prefix.into(), after: after.map(Into::into), limit };
        let counters: Vec<Counter> = one.counters(page).await.expect("is read");
        counters.iter().map(|counter| counter.name.to_string()).collect()
    };
    assert_eq!(page("", None, 100).await, names);
    assert_eq!(page("a", None, 100).await, ["a", "a-b", "a.b", "a:b", "aXb", "a_b", "ab"]);
    assert_eq!(page("a_", None, 100).await, ["a_b"]);
    assert_eq!(page("A", None, 100).await, ["A", "Ab"]);
    assert_eq!(page("a", Some("a.b"), 2).await, ["a:b", "aXb"]);
    assert_eq!(page("a", Some("Z"), 1).await, ["a"]);
    for (prefix, after) in [("%", None), ("a%", None), ("\\", None), ("a", Some("b")), ("q", None)] {
        assert_eq!(page(prefix, after, 100).await, Vec::<String>::new(), "{prefix}");
    }
    assert_eq!(page("", None, 0).await, Vec::<String>::new());
    let mut walked = Vec::new();
    while let [name] = &page("", walked.last().map(String::as_str), 1).await[..] {
        walked.push(name.clone());
    }
    assert_eq!(walked, names);
}

async fn writers_with_opposite_orders_lose_nothing(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: i64 = 60;
    const NAMES: i64 = 40;
    let writer = |store: Arc<dyn Store>, reversed: bool| async move {
        let mut messages = Messages::new();
        for round in 0..ROUNDS {
            // Names are new in every round: created by both at once, as well as changed by both.
            let fresh_name = |number| format!("round{round}-{number}");
            let mut names: Vec<String> = (0..NAMES).map(|number| format!("old{number}")).collect();
            names.extend((0..4).map(fresh_name));
            if reversed {
                names.reverse();
            }
            let increments: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
            let mut batch = messages.each(&increments);
            // Every third round takes the exact path.
            if round % 3 == 0 {
                batch.extend(messages.each(&[("old7", i64::MAX), ("old7", -i64::MAX)]));
            }
            let applied = apply(&store, &batch).await;
            assert_eq!(applied.fresh.len(), batch.len());
        }
    };
    let [one, other] = stores.clone();
    let writers = [tokio::spawn(writer(one, false)), tokio::spawn(writer(other, true))];
    for writer in writers {
        writer.await.expect("every batch is applied");
    }
    for name in (0..NAMES).filter(|number| *number != 7).map(|number| format!("old{number}")) {
        assert_eq!(standing(&stores[0], &name).await, (2 * ROUNDS, 2 * ROUNDS), "{name}");
    }
    assert_eq!(standing(&stores[0], &format!("round{}-0", ROUNDS - 1)).await, (2, 2));
}

async fn the_clock_is_the_time([one, _]: [Arc<dyn Store>; 2]) {
    let here_ms = shared::runtime::clock::now_ms();
    let there_ms = one.now_ms().await.expect("a time");
    assert!((there_ms - here_ms).abs() < 60_000, "{there_ms} {here_ms}");
}

async fn a_closed_store_says_so([one, _]: [Arc<dyn Store>; 2]) {
    one.close().await;
    let batch = [Messages::new().increments(&[("a", 1)])];
    assert!(unavailable(one.apply(batch.into()).await.expect_err("closed")).contains("closed"));
    assert!(one.counter("a").await.is_err());
    one.close().await;
}

async fn a_batch_of_nothing_is_fine([one, _]: [Arc<dyn Store>; 2]) {
    let applied = apply(&one, &[]).await;
    assert!(applied.fresh.is_empty() && applied.counters.is_empty() && applied.committed_at_ms > 0);
}
