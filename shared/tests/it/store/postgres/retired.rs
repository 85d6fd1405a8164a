//! Removal of old partitions beside writers, without a gap, and from any point at which it was interrupted.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shared::model::outcome::ItemStatus;
use shared::store::{Housekept, Retention, Store};
use sqlx::PgConnection;

use super::{DAY_MS, dated, execute, session};
use crate::store::sent::point;
use crate::store::{Messages, NOON_MS, apply, fate, postgres, postgres_config, standing};

const RETENTION: Retention = Retention {
    now_ms_max: i64::MAX,
    points_ms: 20 * DAY_MS,
    minutes_ms: 2 * DAY_MS,
    hours_ms: 60 * DAY_MS,
    discarded_ms: 90 * DAY_MS,
    remembered_ms: 0,
    forget_before_ms: Some(NOON_MS + 20 * DAY_MS),
    rows_max: 100,
};

async fn housekeep(store: &Arc<dyn Store>) -> Housekept {
    store.housekeep(RETENTION).await.expect("is kept")
}

/// Makes old days of points, of minutes and of the ledger; returns the number of partitions.
async fn fill(store: &Arc<dyn Store>, days: i64) -> u64 {
    let mut messages = Messages::new();
    for day in 0..days {
        let at_ms = NOON_MS + day * DAY_MS;
        apply(store, &[messages.at(at_ms, &[point("t", at_ms, 1.0)]), dated(at_ms, &[("a", 1)])]).await;
    }
    // Each day has a partition of each table.
    u64::try_from(3 * days).expect("small")
}

async fn there(session: &mut PgConnection) -> i64 {
    let old = "select count(*) from pg_class where relkind = 'r'
        and (relname like 'points\\_2025%' or relname like 'rollups\\_minute\\_2025%' or relname like 'applied\\_message\\_2025%')";
    sqlx::query_scalar(old).fetch_one(session).await.expect("is read")
}

/// Runs transactions one after the other, of 50 to 300 ms, each with a lock on all tables that a
/// writer may use.
async fn busy(mut session: PgConnection, seed: u64, is_done: Arc<AtomicBool>) -> u64 {
    let mut transactions = 0;
    while !is_done.load(Ordering::Relaxed) {
        transactions += 1;
        let pause_ms = 50 + (seed * 97 + transactions * 61) % 250;
        let work = format!(
            "begin; lock table applied_message, points, rollups in row exclusive mode;
             select pg_sleep({pause_ms} / 1000.0); commit"
        );
        execute(&mut session, &work).await;
    }
    transactions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_dropped_beside_writers_without_a_gap() {
    testkit::isolated("gapless", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let all = fill(&stores[0], 3).await;
        let is_done = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for seed in 0..3 {
            writers.push(tokio::spawn(busy(session(&url).await, seed, Arc::clone(&is_done))));
        }
        let (begun, mut dropped) = (Instant::now(), 0);
        while dropped < all {
            // Two run it at once, as consumers do.
            let (one, other) = tokio::join!(housekeep(&stores[0]), housekeep(&stores[1]));
            dropped += one.partitions + other.partitions;
            if there(&mut session(&url).await).await == 0 {
                break;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{dropped} of {all}");
        }
        is_done.store(true, Ordering::Relaxed);
        for writer in writers {
            assert!(writer.await.expect("no panic") > 3);
        }
        assert_eq!(there(&mut session(&url).await).await, 0);
        assert_eq!(housekeep(&stores[0]).await.overdue, 0);
        // A message of a removed day is not applied.
        let late = dated(NOON_MS - 1, &[("a", 1)]);
        assert_eq!(apply(&stores[1], &[late]).await.set_aside.len(), 1);
        assert_eq!(standing(&stores[1], "a").await, (3, 3));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_a_transaction_holds_are_counted_as_overdue_and_stay_usable() {
    testkit::isolated("overdue", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let all = fill(&store, 2).await;
        let mut backup = session(&url).await;
        execute(&mut backup, "begin; lock table applied_message, points, rollups in access share mode").await;
        let kept = housekeep(&store).await;
        assert_eq!((kept.partitions, kept.overdue, kept.more), (0, all, false));
        // The days are there for late messages.
        let late = dated(NOON_MS + 5_000, &[("late", 1)]);
        apply(&store, &[late]).await;
        assert_eq!(standing(&store, "late").await, (1, 1));
        execute(&mut backup, "commit").await;
        let kept = housekeep(&store).await;
        assert_eq!((kept.partitions, kept.overdue), (all, 0));
    })
    .await;
}

/// Begins to detach, and ends the session while it waits.
async fn interrupted(url: &str, table: &str, name: &str) {
    let (mut holder, mut watcher) = (session(url).await, session(url).await);
    execute(&mut watcher, &format!("comment on table {name} is 'forebay: being dropped'")).await;
    execute(&mut holder, &format!("begin; lock table only {table} in access share mode")).await;
    let mut housekeeper = session(url).await;
    let detach = format!("alter table {table} detach partition {name} concurrently");
    let detaching = tokio::spawn(async move {
        sqlx::raw_sql(sqlx::AssertSqlSafe(detach)).execute(&mut housekeeper).await.map(drop)
    });
    let pending = "select exists (select from pg_inherits where inhdetachpending)";
    while !sqlx::query_scalar::<_, bool>(pending).fetch_one(&mut watcher).await.expect("is read") {
        tokio::task::yield_now().await;
    }
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and query like 'alter table%concurrently'";
    execute(&mut watcher, end).await;
    detaching.await.expect("no panic").expect_err("was ended");
    execute(&mut holder, "commit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_needs_a_day_whose_detaching_was_interrupted_ends_that_and_applies_nothing_twice() {
    testkit::isolated("interrupted", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let known = dated(NOON_MS + 1_000, &[("a", 1)]);
        apply(&store, &[known.clone(), dated(NOON_MS + 2_000, &[("there", 1)])]).await;
        interrupted(&url, "applied_message", "applied_message_20251120").await;
        // One is delivered again, and one of that day was never applied.
        let late = dated(NOON_MS + 1_500, &[("a", 1)]);
        let later = dated(NOON_MS + 3_000, &[("a", 1)]);
        let applied = apply(&store, &[known.clone(), late, later.clone()]).await;
        assert_eq!(applied.set_aside.len(), 2, "both may have been applied");
        assert_eq!(standing(&store, "a").await, (2, 2), "the last is younger than all that were dropped");
        assert!(matches!(fate(&store, later.item_key(0)).await, Some(ItemStatus::Applied { .. })));
        assert_eq!(housekeep(&store).await.partitions, 1);
        assert_eq!(fate(&store, later.item_key(0)).await, Some(ItemStatus::Forgotten));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_in_the_middle_goes_with_the_next_round() {
    testkit::isolated("left", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let all = fill(&store, 2).await;
        interrupted(&url, "applied_message", "applied_message_20251120").await;
        let mut session = session(&url).await;
        execute(&mut session, "comment on table points_20251120 is 'forebay: being dropped'").await;
        execute(&mut session, "alter table points detach partition points_20251120").await;
        // A partition that an administrator detached is kept.
        execute(&mut session, "alter table points detach partition points_20251121").await;
        assert_eq!(housekeep(&store).await.partitions, all - 1);
        assert_eq!(there(&mut session).await, 1);
    })
    .await;
}
