//! A message that the server neither applies nor refuses: how long it may try, and how it is ended.
//! Triggers that sleep stand for any cause of a long wait.
use std::time::{Duration, Instant};

use shared::model::outcome::{ItemStatus, Reason};
use shared::store::GiveUp;

use super::{execute, session};
use crate::store::sent::{document, increment, point, with_key};
use crate::store::{
    Messages, NOON_MS, apply, failed, fate, postgres, postgres_config, standing, unavailable,
};

/// Makes rows of a table that `condition` describes take longer than any client waits.
async fn sleep_at(session: &mut sqlx::PgConnection, table: &str, condition: &str) {
    execute(
        session,
        &format!(
            "create or replace function sleep() returns trigger language plpgsql as $$ begin
                 if {condition} then
                     perform pg_sleep(600);
                 end if;
                 return new;
             end $$;
             create or replace trigger sleep before insert or update on {table}
             for each row execute function sleep()"
        ),
    )
    .await;
}

fn ended(search: bool) -> GiveUp {
    GiveUp { why: "it took tö long".into(), search }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_little_time_is_ended_by_the_server_and_holds_nothing_afterwards() {
    testkit::isolated("little", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let mut messages = Messages::new();
        sleep_at(&mut session, "counters", "new.name = 'heavy'").await;
        let batch = [messages.increments(&[("bystander", 1), ("heavy", 1)])];
        let begun = Instant::now();
        let limit = Duration::from_millis(300);
        let error = store.apply_within(batch.as_slice().into(), limit).await.expect_err("too slow");
        assert!(failed(error).contains("57014"));
        apply(&store, &[messages.increments(&[("bystander", 1)])]).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(standing(&store, "bystander").await, (1, 1));
    })
    .await;
}

/// A transaction that waits for a lock is not slow: another one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_waits_for_a_lock_is_not_taken_for_a_slow_one() {
    testkit::isolated("locked", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut other = session(&isolated.database_url).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.increments(&[("a", 1)])]).await;
        execute(&mut other, "begin").await;
        execute(&mut other, "select * from counters where name = 'a' for update").await;
        let batch = [messages.increments(&[("a", 1)])];
        let limit = Duration::from_millis(200);
        let error = store.apply_within(batch.as_slice().into(), limit).await.expect_err("it is locked");
        assert!(unavailable(error).contains("55P03"));
        execute(&mut other, "rollback").await;
        apply(&store, &batch).await;
        assert_eq!(standing(&store, "a").await, (2, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_that_take_too_long_alone_are_set_aside_and_the_others_are_applied() {
    testkit::isolated("slow_items", async |isolated| {
        let config = postgres_config(&isolated.database_url);
        let store = postgres(&shared::config::StoreSettings { write_timeout_ms: 12_000, ..config }).await;
        let mut session = session(&isolated.database_url).await;
        sleep_at(&mut session, "documents", "new.data like '%heavy%'").await;
        let mut messages = Messages::new();
        let mut items = vec![increment("a", 1), document("c", "{}"), point("t", NOON_MS, 1.0)];
        items.extend((0..40).map(|_| increment("a", 1)));
        items.push(document("c", r#"{"a":"heavy"}"#));
        items.push(with_key("k", increment("a", 1)));
        let message = messages.of(&items);
        let applied = store.give_up_on(message.clone(), ended(true)).await.expect("is ended");
        assert_eq!(applied.fresh, [message.id]);
        let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
        assert_eq!(aside, [(message.item_key(43), Reason::NotApplied)]);
        assert_eq!(standing(&store, "a").await, (42, 42));
        assert_eq!(applied.counters.len(), 1);
        assert_eq!(applied.counters[0].value, 42);
        assert_eq!((applied.keyed.len(), applied.types.len()), (1, 1));
        assert!(apply(&store, &[message]).await.fresh.is_empty(), "it is done for good");
    })
    .await;
}

/// Every refused item is dead-lettered, however large the share: others were applied meanwhile, so
/// the server is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_that_are_refused_are_set_aside_however_many() {
    testkit::isolated("many_items", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let object = "create function object() returns trigger language plpgsql as \
             $$ begin raise exception 'no' using errcode = '22001'; end $$";
        execute(&mut session, object).await;
        let trigger =
            "create trigger object before insert on documents for each row execute function object()";
        execute(&mut session, trigger).await;
        let mut messages = Messages::new();
        let mut items: Vec<_> = (0..50).map(|_| document("c", "{}")).collect();
        items.push(increment("a", 1));
        let message = messages.of(&items);
        let error = store.apply([message.clone()].into()).await.expect_err("too many");
        assert!(failed(error).contains("items alike"));
        let applied = store.give_up_on(message, ended(true)).await.expect("is ended");
        assert_eq!(applied.set_aside.len(), 50);
        assert!(applied.set_aside.iter().all(|aside| aside.reason == Reason::RefusedByStore));
        assert_eq!(standing(&store, "a").await, (1, 1));
    })
    .await;
}

/// The code of the failure does not matter: the server itself is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_that_fail_for_an_unknown_reason_are_set_aside_and_the_others_are_applied() {
    testkit::isolated("odd_items", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let odd = "create function odd() returns trigger language plpgsql as $$ begin \
             if new.data = '{\"n\":3}' then raise exception 'odd'; end if; return new; end $$";
        execute(&mut session, odd).await;
        let trigger = "create trigger odd before insert on documents for each row execute function odd()";
        execute(&mut session, trigger).await;
        let mut messages = Messages::new();
        let mut items: Vec<_> = (0..8).map(|n| document("c", &format!(r#"{{"n":{n}}}"#))).collect();
        items.push(increment("a", 1));
        let message = messages.of(&items);
        let error = store.apply([message.clone()].into()).await.expect_err("one of them fails");
        assert!(failed(error).contains("P0001"));
        let applied = store.give_up_on(message.clone(), ended(true)).await.expect("is ended");
        let aside = applied.set_aside.iter();
        let aside: Vec<_> = aside.map(|aside| (aside.item, aside.reason, &*aside.detail)).collect();
        assert_eq!(aside, [(message.item_key(3), Reason::NotApplied, "odd (P0001)")]);
        assert_eq!(standing(&store, "a").await, (1, 1));
    })
    .await;
}

/// The rows of the message itself are refused, too: then it is given up as a whole, elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_ended_without_a_try_in_one_cheap_transaction() {
    testkit::isolated("given_up", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        for table in ["documents", "counters"] {
            sleep_at(&mut session, table, "true").await;
        }
        let mut messages = Messages::new();
        let message = messages.of(&[document("c", "{}"), increment("a", 1)]);
        let applied = store.give_up_on(message.clone(), ended(false)).await.expect("is ended");
        assert_eq!(applied.set_aside.len(), 2);
        let reported = fate(&store, message.item_key(0)).await;
        let Some(ItemStatus::Failed { reason, detail, .. }) = reported else { panic!("{reported:?}") };
        assert_eq!((&*reason, &*detail), ("not_applied", "it took t? long"));
        execute(
            &mut session,
            "create or replace function object() returns trigger language plpgsql as \
            $$ begin raise exception 'no' using errcode = '22001'; end $$",
        )
        .await;
        execute(
            &mut session,
            "create trigger object before insert on applied_message for each row execute function object()",
        )
        .await;
        for search in [true, false] {
            let message = messages.increments(&[("a", 1)]);
            let error = store.give_up_on(message, ended(search)).await.expect_err("nothing is taken");
            assert!(failed(error).contains("any batch"), "{search}");
        }
    })
    .await;
}
