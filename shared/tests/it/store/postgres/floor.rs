//! The floor of the ledger beside writers: in any order, nothing is applied twice or lost.
use std::sync::Arc;

use shared::model::outcome::ItemStatus;
use shared::store::{Housekept, Retention, Store};
use sqlx::PgConnection;
use tokio::sync::Barrier;

use super::{DAY_MS, dated, execute, session};
use crate::store::{NOON_MS, apply, fate, postgres, postgres_config, standing};

const RETENTION: Retention = Retention {
    now_ms_max: i64::MAX,
    points_ms: 90 * DAY_MS,
    minutes_ms: 90 * DAY_MS,
    hours_ms: 90 * DAY_MS,
    discarded_ms: 90 * DAY_MS,
    remembered_ms: 0,
    forget_before_ms: None,
    rows_max: 100,
};

async fn forget(store: &Arc<dyn Store>, before_ms: i64) -> Housekept {
    let retention = Retention { forget_before_ms: Some(before_ms), ..RETENTION };
    store.housekeep(retention).await.expect("is kept")
}

/// Waits until a session waits for a lock on the ledger or on a counter.
async fn wait_for_a_blocked_session(watcher: &mut PgConnection) {
    let waiting = "select exists (select from pg_locks where not granted)";
    while !sqlx::query_scalar::<_, bool>(waiting).fetch_one(&mut *watcher).await.expect("is read") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_while_its_day_is_dropped_is_applied_once_or_set_aside() {
    testkit::isolated("floor", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let (mut applied, mut aside) = (0, 0);
        for day in 0..30 {
            let at_ms = NOON_MS + day * DAY_MS;
            // The day holds a later row: once that is dropped, the message is too old.
            apply(&stores[0], &[dated(at_ms + 1_000, &[("there", 1)])]).await;
            let message = dated(at_ms, &[("a", 1)]);
            let barrier = Arc::new(Barrier::new(2));
            let writer = {
                let (store, barrier, message) = (Arc::clone(&stores[0]), barrier.clone(), message.clone());
                tokio::spawn(async move {
                    barrier.wait().await;
                    apply(&store, &[message]).await.set_aside.len()
                })
            };
            barrier.wait().await;
            while forget(&stores[1], at_ms + DAY_MS).await.partitions == 0 {}
            match writer.await.expect("no panic") {
                0 => applied += 1,
                count => aside += count,
            }
            let value = standing(&stores[1], "a").await;
            assert_eq!(value, (applied, applied), "day {day}");
            // It is dropped by now, if it was applied; there as a dead letter, if not.
            apply(&stores[0], std::slice::from_ref(&message)).await;
            let reported = fate(&stores[1], message.item_key(0)).await;
            assert!(matches!(reported, Some(ItemStatus::Failed { .. })), "{reported:?}");
            assert_eq!(standing(&stores[1], "a").await, value);
        }
        assert_eq!(usize::try_from(applied).expect("a count") + aside, 30);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_in_the_middle_keeps_its_day_and_its_row_counts() {
    testkit::isolated("middle", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let (mut holder, mut watcher) = (session(&url).await, session(&url).await);
        apply(&stores[0], &[dated(NOON_MS, &[("a", 1)])]).await;
        execute(&mut holder, "begin; select * from counters for update").await;
        let message = dated(NOON_MS + 5, &[("a", 10)]);
        let writer = {
            let (store, message) = (Arc::clone(&stores[0]), message.clone());
            tokio::spawn(async move { apply(&store, &[message]).await.set_aside.len() })
        };
        wait_for_a_blocked_session(&mut watcher).await;
        // Its ledger row is written and not committed.
        assert_eq!(forget(&stores[1], NOON_MS + 2 * DAY_MS).await.partitions, 0);
        execute(&mut holder, "commit").await;
        assert_eq!(writer.await.expect("no panic"), 0);
        assert_eq!(forget(&stores[1], NOON_MS + 2 * DAY_MS).await.partitions, 1);
        assert_eq!(fate(&stores[0], message.item_key(0)).await, Some(ItemStatus::Forgotten));
        assert_eq!(apply(&stores[0], &[message]).await.set_aside.len(), 1);
        assert_eq!(standing(&stores[1], "a").await, (11, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_while_the_floor_was_raised_sees_it_raised() {
    testkit::isolated("raised", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let (mut housekeeper, mut watcher) = (session(&url).await, session(&url).await);
        for (round, drop) in ["", "drop table applied_message_20251120;"].into_iter().enumerate() {
            let at_ms = NOON_MS + i64::try_from(round).expect("small") * 10;
            apply(&store, &[dated(at_ms, &[("there", 1)])]).await;
            let last = dated(at_ms + 5, &[("never sent", 1)]).id.as_uuid();
            // The statements are those of housekeeping, with a stop between them.
            execute(&mut housekeeper, "begin; lock table only applied_message in access exclusive mode")
                .await;
            let writer = {
                let store = Arc::clone(&store);
                tokio::spawn(async move { apply(&store, &[dated(at_ms + 1, &[("a", 1)])]).await })
            };
            wait_for_a_blocked_session(&mut watcher).await;
            let raise = format!("update ledger_floor set id = '{last}' where one; {drop} commit");
            execute(&mut housekeeper, &raise).await;
            assert_eq!(writer.await.expect("no panic").set_aside.len(), 1, "{drop}");
            assert_eq!(standing(&store, "a").await, (0, 0));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_wait_for_no_writer_that_has_read_the_floor() {
    testkit::isolated("unlocked", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let (mut holder, mut watcher) = (session(&url).await, session(&url).await);
        apply(&stores[0], &[dated(NOON_MS, &[("a", 1)])]).await;
        execute(&mut holder, "begin; select * from counters for update").await;
        let writer = {
            let store = Arc::clone(&stores[0]);
            tokio::spawn(async move { apply(&store, &[dated(NOON_MS + 1, &[("a", 1)])]).await })
        };
        wait_for_a_blocked_session(&mut watcher).await;
        apply(&stores[1], &[dated(NOON_MS + 2, &[("b", 1)])]).await;
        assert_eq!(standing(&stores[1], "b").await, (1, 1));
        execute(&mut holder, "commit").await;
        writer.await.expect("no panic");
    })
    .await;
}
