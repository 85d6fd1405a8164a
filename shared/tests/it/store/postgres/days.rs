//! Days of points and minutes: made when they are needed, dropped as a whole, missed by no process.
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::collection::Definition;
use shared::model::message::Message;
use shared::model::rollup::Resolution;
use shared::store::{Housekept, Retention, RollupRange, Store};
use sqlx::PgConnection;
use tokio::sync::Barrier;

use super::{DAY_MS, execute, session};
use crate::store::sent::{document, increment, point};
use crate::store::{Messages, NOON_MS, apply, postgres, postgres_config, unavailable};

const RETENTION: Retention = Retention {
    now_ms_max: i64::MAX,
    points_ms: 20 * DAY_MS,
    minutes_ms: 2 * DAY_MS,
    hours_ms: 60 * DAY_MS,
    discarded_ms: 90 * DAY_MS,
    remembered_ms: 0,
    forget_before_ms: None,
    rows_max: 100,
};

async fn partitions(session: &mut PgConnection, table: &str) -> Vec<String> {
    let names = sqlx::query_scalar(
        "select relname::text from pg_inherits join pg_class on oid = inhrelid
         where inhparent = to_regclass($1) order by relname",
    );
    names.bind(table).fetch_all(session).await.expect("is read")
}

/// Counts the points per resolution.
async fn counted(store: &Arc<dyn Store>, kind: &str) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, resolution) in counts.iter_mut().zip(Resolution::ALL) {
        let range = RollupRange { kind: kind.into(), resolution, from: i32::MIN, below: i32::MAX };
        *count = store
            .rollups(range)
            .await
            .expect("is read")
            .rollups
            .iter()
            .map(|(_, rollup)| rollup.count())
            .sum();
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_whose_day_is_missing_are_applied() {
    testkit::isolated("missing", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let mut messages = Messages::new();
        let mut session = session(&url).await;
        apply(&stores[0], &[messages.of(&[point("t", NOON_MS, 1.0)])]).await;
        assert_eq!(partitions(&mut session, "points").await, ["points_20251120"]);
        let made: (Vec<String>, String) = sqlx::query_as(
            "select reloptions, attstorage::text from pg_class join pg_attribute on attrelid = pg_class.oid
             where relname = 'rollups_minute_20251120' and attname = 'data'",
        )
        .fetch_one(&mut session)
        .await
        .expect("the partition");
        assert_eq!(made, (vec!["fillfactor=50".to_owned()], "m".to_owned()));
        // The tables are dropped behind the back of a process that knew them, both and one by one.
        for dropped in
            ["points_20251120, rollups_minute_20251120", "points_20251120", "rollups_minute_20251120"]
        {
            execute(&mut session, &format!("drop table {dropped}")).await;
            let applied = apply(&stores[0], &[messages.of(&[point("t", NOON_MS, 1.0)])]).await;
            assert_eq!((applied.fresh.len(), applied.set_aside.len()), (1, 0));
        }
        assert_eq!(counted(&stores[1], "t").await, [1, 4, 4]);
        // Two calls need the same day at once.
        let barrier = Arc::new(Barrier::new(2));
        let racing = stores.clone().map(|store| {
            let barrier = Arc::clone(&barrier);
            let batch: Vec<Message> = (1..5)
                .map(|day| {
                    let at_ms = NOON_MS + day * DAY_MS;
                    Messages::new().at(at_ms, &[point("race", at_ms, 1.0)])
                })
                .collect();
            tokio::spawn(async move {
                barrier.wait().await;
                apply(&store, &batch).await.set_aside.len()
            })
        });
        for racer in racing {
            assert_eq!(racer.await.expect("no panic"), 0);
        }
        assert_eq!(counted(&stores[1], "race").await, [8, 8, 8]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_the_name_of_a_day_is_attached_when_it_is_empty_and_named_when_not() {
    testkit::isolated("detached", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let (mut messages, mut session) = (Messages::new(), session(&url).await);
        let mut batch = || [messages.of(&[point("t", NOON_MS, 1.0)])];
        apply(&store, &batch()).await;
        execute(&mut session, "alter table points detach partition points_20251120").await;
        let reported = unavailable(store.apply(batch().into()).await.expect_err("nothing is mixed"));
        assert!(reported.contains("points_20251120 holds rows and is no partition of points"), "{reported}");
        let kept = "select count(*) from points_20251120";
        assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut session).await.expect("is read"), 1);
        execute(&mut session, "delete from points_20251120").await;
        apply(&store, &batch()).await;
        assert_eq!(partitions(&mut session, "points").await, ["points_20251120"]);
        assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut session).await.expect("is read"), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_housekeeping_that_fails_keeps_no_other_from_being_done() {
    testkit::isolated("steps", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let now_ms = store.now_ms().await.expect("a time");
        let mut messages = Messages::new();
        let old_ms = now_ms - 40 * DAY_MS;
        apply(&store, &[messages.at(old_ms, &[point("t", old_ms, 1.0)])]).await;
        let daily = Definition { retention_days: Some(1), ..Definition::default() };
        for name in ["a", "b"] {
            store.define(name, daily.clone()).await.expect("is defined");
            apply(&store, &[messages.at(old_ms, &[document(name, "{}")])]).await;
        }
        let mut session = session(&url).await;
        let refuse = |table: &str, condition: &str| {
            format!(
                "create or replace function refuse() returns trigger language plpgsql
                 as $$ begin raise exception 'refused'; end $$;
                 create trigger refuse before delete on {table} for each row when ({condition})
                 execute function refuse()"
            )
        };
        execute(&mut session, &refuse("documents", "old.collection = 'a'")).await;
        // A day that cannot be made does no harm either.
        let tomorrow = now_ms / DAY_MS + 1;
        let name: String = sqlx::query_scalar(
            "select 'points_' || to_char(to_timestamp($1::int8) at time zone 'UTC', 'YYYYMMDD')",
        )
        .bind(tomorrow * DAY_MS / 1_000)
        .fetch_one(&mut session)
        .await
        .expect("a name");
        execute(&mut session, &format!("create table {name} as select 1 as other")).await;
        let reported = unavailable(store.housekeep(RETENTION).await.expect_err("two steps fail"));
        assert!(reported.contains("a: refused (P0001)") && reported.contains(&name), "{reported}");
        let left: Vec<String> = sqlx::query_scalar("select collection from documents")
            .fetch_all(&mut session)
            .await
            .expect("is read");
        assert_eq!(left, ["a"]);
        // The one left is today's, which was made; the old one was dropped.
        assert_eq!(partitions(&mut session, "points").await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_dropped_beside_writers_and_wait_for_no_reader() {
    testkit::isolated("days", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let (mut reader, mut watcher) = (session(&url).await, session(&url).await);
        let now_ms = stores[0].now_ms().await.expect("a time");
        let mut messages = Messages::new();
        let sent = |messages: &mut Messages, days: i64| {
            let at_ms = now_ms - days * DAY_MS;
            messages.at(at_ms, &[point("t", at_ms, 1.0)])
        };
        for days in [40, 22, 19, 4, 0] {
            apply(&stores[0], &[sent(&mut messages, days)]).await;
        }
        let [points, minutes] =
            [partitions(&mut watcher, "points").await, partitions(&mut watcher, "rollups").await];
        assert_eq!((points.len(), minutes.len()), (5, 2 + 5));
        // A reader does not end: the tables that it holds stay, and no other waits long.
        execute(&mut reader, "begin; lock table points, rollups in access share mode").await;
        let begin = Instant::now();
        let kept = stores[1].housekeep(RETENTION).await.expect("is kept");
        assert_eq!(kept.partitions, 0);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        apply(&stores[0], &[sent(&mut messages, 0)]).await;
        execute(&mut reader, "commit").await;
        // A writer goes on all the while.
        let writer = {
            let store = Arc::clone(&stores[0]);
            tokio::spawn(async move {
                let mut messages = Messages::new();
                for _ in 0..100 {
                    let items = [point("busy", now_ms, 1.0), increment("busy", 1)];
                    let applied = apply(&store, &[messages.at(now_ms, &items)]).await;
                    assert!(applied.set_aside.is_empty());
                }
            })
        };
        let mut dropped = 0;
        let begin = Instant::now();
        while dropped < 2 + 4 {
            dropped += stores[1].housekeep(RETENTION).await.expect("is kept").partitions;
            assert!(begin.elapsed() < Duration::from_secs(20), "{dropped} dropped");
        }
        writer.await.expect("every batch is applied");
        let left = partitions(&mut watcher, "points").await;
        assert_eq!(left[..3], points[2..]);
        // The days of today and tomorrow were made ahead.
        let tomorrow = left.last().expect("a day").trim_start_matches("points_");
        for table in ["applied_message", "rollups_minute"] {
            let name = format!("{table}_{tomorrow}");
            let parent = table.trim_end_matches("_minute");
            assert!(partitions(&mut watcher, parent).await.contains(&name), "{name}");
        }
        assert_eq!(counted(&stores[1], "busy").await, [100; 3]);
        assert_eq!(counted(&stores[1], "t").await, [2, 6, 6]);
        assert_eq!(stores[1].housekeep(RETENTION).await.expect("is kept"), Housekept::default());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollup_that_was_pruned_behind_a_process_is_made_again() {
    testkit::isolated("pruned", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let now_ms = stores[0].now_ms().await.expect("a time");
        let mut messages = Messages::new();
        let mut batch = |days: i64| {
            let at_ms = now_ms - days * DAY_MS;
            [messages.at(now_ms, &[point("t", at_ms, 1.0), point("t", now_ms, 1.0)])]
        };
        apply(&stores[0], &batch(70)).await;
        while stores[1].housekeep(RETENTION).await.expect("is kept").more {}
        assert_eq!(counted(&stores[1], "t").await, [1, 1, 2]);
        assert!(apply(&stores[0], &batch(70)).await.set_aside.is_empty());
        assert_eq!(counted(&stores[1], "t").await, [2, 3, 4]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollup_that_cannot_be_read_pauses_its_writers_and_stays() {
    testkit::isolated("corrupt", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.of(&[point("t", NOON_MS, 1.0)])]).await;
        let mut session = session(&url).await;
        execute(&mut session, "update rollups set data = '\\x01' where resolution = 1").await;
        let batch = [messages.of(&[point("t", NOON_MS, 1.0)])];
        let reported = unavailable(store.apply(batch.into()).await.expect_err("cannot be read"));
        assert!(reported.contains("rollup of resolution 1"), "{reported}");
        let data: Vec<u8> = sqlx::query_scalar("select data from rollups where resolution = 1")
            .fetch_one(&mut session)
            .await
            .expect("is there");
        assert_eq!(data, [1]);
        let rows: i64 =
            sqlx::query_scalar("select count(*) from points").fetch_one(&mut session).await.expect("is read");
        assert_eq!(rows, 1);
    })
    .await;
}
