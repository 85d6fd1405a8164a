//! Locks between two connections: nothing is lost, and no wait is circular.
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::collection::Definition;
use shared::model::message::Message;
use shared::model::rollup::Resolution;
use shared::model::write::Item;
use shared::store::{DocumentPage, RollupRange, Store, Stored};
use sqlx::PgConnection;
use tokio::sync::Barrier;

use super::{execute, session};
use crate::store::sent::{delete, document, increment, point, with_key};
use crate::store::{Messages, NOON_MS, apply, postgres, postgres_config, standing};

/// Waits until this many sessions of the store wait for a lock.
async fn waiting(session: &mut PgConnection, number: i64) {
    let waiting = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'forebay' and wait_event_type = 'Lock'";
    let begin = Instant::now();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *session).await.expect("is read") != number {
        assert!(begin.elapsed() < Duration::from_secs(5), "not {number} wait");
    }
}

fn spawn(store: &Arc<dyn Store>, batch: &[Message]) -> tokio::task::JoinHandle<usize> {
    let (store, batch) = (Arc::clone(store), batch.to_vec());
    tokio::spawn(async move { apply(&store, &batch).await.fresh.len() })
}

async fn field_rows(session: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from document_fields").fetch_one(session).await.expect("is read")
}

fn indexed(field: &str) -> Definition {
    Definition { indexed: vec![field.into()], ..Definition::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_overtakes_its_insert_wins() {
    testkit::isolated("overtakes", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        stores[0].define("c", indexed("f")).await.expect("is defined");
        let (mut messages, mut holder, mut watcher) =
            (Messages::new(), session(&url).await, session(&url).await);
        apply(&stores[0], &[messages.of(&[increment("held", 1)])]).await;
        let data = r#"{"f":1}"#;
        for (round, is_insert_first) in [("0", true), ("1", false), ("2", true), ("3", false)] {
            let items = match round {
                "0" | "1" => [document("c", data), document("c", data)],
                _ => [
                    with_key(&format!("{round}b"), document("c", data)),
                    with_key(&format!("{round}a"), document("c", data)),
                ],
            };
            let sent = messages.of(&items);
            let ids = [sent.item_key(0), sent.item_key(1)];
            let erase = messages.of(&[delete("c", ids[1]), delete("c", ids[0])]);
            let (first, second) = if is_insert_first { (sent, erase) } else { (erase, sent) };
            // The first has written its documents and waits for a counter; the second for the first.
            execute(&mut holder, "begin; select from counters for update").await;
            let first = spawn(&stores[0], &[first, messages.of(&[increment("held", 1)])]);
            waiting(&mut watcher, 1).await;
            let second = spawn(&stores[1], &[second]);
            waiting(&mut watcher, 2).await;
            execute(&mut holder, "commit").await;
            assert_eq!((first.await.expect("no panic"), second.await.expect("no panic")), (2, 1));
            for id in ids {
                let found = stores[0].document("c", id).await.expect("is read");
                assert_eq!(found, Some(Stored::Deleted), "{round}");
            }
            assert_eq!(field_rows(&mut watcher).await, 0, "{round}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_delete_what_the_other_one_inserts_wait_in_no_circle() {
    testkit::isolated("circle", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        stores[0].define("c", indexed("f")).await.expect("is defined");
        let (mut messages, mut holder, mut watcher) =
            (Messages::new(), session(&url).await, session(&url).await);
        // This makes the partition.
        apply(&stores[0], &[messages.of(&[increment("a", 1)])]).await;
        let sent = [0, 1].map(|_| messages.of(&[document("c", r#"{"f":1}"#)]));
        let ids = [sent[0].item_key(0), sent[1].item_key(0)];
        // A session that has inserted its document waits here for its field, before it deletes.
        for id in ids {
            let row = format!("insert into document_fields values ('c', 'f', '1', '{id}')");
            execute(&mut holder, &if id == ids[0] { format!("begin; {row}") } else { row }).await;
        }
        let [one, other] = sent;
        let one = spawn(&stores[0], &[one, messages.of(&[delete("c", ids[1])])]);
        waiting(&mut watcher, 1).await;
        let other = spawn(&stores[1], &[other, messages.of(&[delete("c", ids[0])])]);
        waiting(&mut watcher, 2).await;
        execute(&mut holder, "rollback").await;
        assert_eq!((one.await.expect("no panic"), other.await.expect("no panic")), (2, 2));
        for id in ids {
            let found = stores[0].document("c", id).await.expect("is read");
            assert_eq!(found, Some(Stored::Deleted));
        }
        assert_no_deadlock(stores, &url).await;
    })
    .await;
}

/// Asserts that no deadlock occurred. The stores are closed first: only sessions that have ended have
/// reported to the statistics of the server.
async fn assert_no_deadlock(stores: [Arc<dyn Store>; 2], url: &str) {
    for store in stores {
        store.close().await;
    }
    let mut session = session(url).await;
    assert_eq!(field_rows(&mut session).await, 0);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let deadlocks: i64 = sqlx::query_scalar(deadlocks).fetch_one(&mut session).await.expect("is read");
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_waits_for_documents_that_are_on_their_way() {
    testkit::isolated("defines", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let (mut messages, mut holder, mut watcher) =
            (Messages::new(), session(&url).await, session(&url).await);
        apply(&stores[0], &[messages.of(&[increment("held", 1)])]).await;
        execute(&mut holder, "begin; select from counters for update").await;
        let early = messages.of(&[document("c", r#"{"f":1}"#), increment("held", 1)]);
        let writer = spawn(&stores[0], std::slice::from_ref(&early));
        waiting(&mut watcher, 1).await;
        let definer = {
            let store = Arc::clone(&stores[1]);
            tokio::spawn(async move { store.define("c", indexed("f")).await.expect("is defined") })
        };
        waiting(&mut watcher, 2).await;
        // A batch that comes now waits for the definition, and is indexed by it.
        let late = messages.of(&[document("c", r#"{"f":1}"#)]);
        let latecomer = spawn(&stores[0], std::slice::from_ref(&late));
        waiting(&mut watcher, 3).await;
        execute(&mut holder, "commit").await;
        assert_eq!((writer.await.expect("no panic"), latecomer.await.expect("no panic")), (1, 1));
        assert!(!definer.await.expect("no panic").is_indexed);
        while stores[0].index_page("c").await.expect("is indexed") {}
        let filters = vec![("f".to_owned(), "1".to_owned())];
        let page = DocumentPage { collection: "c".into(), filters, from: None, before: None, limit: 9 };
        let found: Vec<_> = stores[1]
            .documents(page)
            .await
            .expect("is read")
            .documents
            .into_iter()
            .map(|found| found.id)
            .collect();
        assert_eq!(found, [late.item_key(0), early.item_key(0)]);
    })
    .await;
}

/// Makes the messages of one side in a round: documents, the deletes of those that the other side
/// sends, and keys, types and counters that both touch, some of them new.
fn side(messages: &mut Messages, round: i64, side: i64) -> (Vec<Message>, Vec<Item>) {
    let name = |number: i64| format!("{round}-{side}-{number}");
    let documents: Vec<Item> = (0..8)
        .map(|number| {
            let item = document("c", &format!(r#"{{"f":{number}}}"#));
            if number % 2 == 0 { with_key(&name(number), item) } else { item }
        })
        .collect();
    let sent: Vec<Message> = documents.chunks(2).map(|items| messages.of(items)).collect();
    let deletes = sent.iter().flat_map(|sent| [0, 1].map(|index| delete("c", sent.item_key(index))));
    let deletes = deletes.collect();
    (sent, deletes)
}

fn shared_items(round: i64) -> Vec<Item> {
    let mut items = Vec::new();
    for number in 0..12 {
        items.push(with_key(&format!("{round}-{number}"), increment("keyed", 1)));
        items.push(increment(&format!("old{number}"), 1));
        items.push(increment(&format!("new{round}-{number}"), 1));
        items.push(point(&format!("old{number}"), NOON_MS - number * 3_600_000, 1.0));
        items.push(point(&format!("new{round}-{number}"), NOON_MS, 1.0));
        items.push(point("old0", NOON_MS - round * 60_000, 1.0));
    }
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opposite_orders_of_everything_meet_no_deadlock() {
    const ROUNDS: i64 = 30;
    testkit::isolated("opposite", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        stores[0].define("c", indexed("f")).await.expect("is defined");
        let mut batches = [Vec::new(), Vec::new()];
        let mut messages = Messages::new();
        for round in 0..ROUNDS {
            let (one, one_gone) = side(&mut messages, round, 0);
            let (other, other_gone) = side(&mut messages, round, 1);
            let items = shared_items(round);
            let reversed: Vec<Item> = items.iter().rev().cloned().collect();
            for (side, (sent, gone, items)) in
                [(one, other_gone, items), (other, one_gone, reversed)].into_iter().enumerate()
            {
                let mut batch = sent;
                batch.extend(gone.chunks(3).map(|items| messages.of(items)));
                batch.extend(items.chunks(5).map(|items| messages.of(items)));
                if side == 1 {
                    batch.reverse();
                }
                batches[side].push(batch);
            }
        }
        let barrier = Arc::new(Barrier::new(2));
        let mut writers = Vec::new();
        for (store, batches) in stores.iter().zip(batches) {
            let (store, barrier) = (Arc::clone(store), Arc::clone(&barrier));
            writers.push(tokio::spawn(async move {
                for batch in batches {
                    barrier.wait().await;
                    let applied = apply(&store, &batch).await;
                    assert_eq!((applied.fresh.len(), applied.set_aside.len()), (batch.len(), 0));
                }
            }));
        }
        for writer in writers {
            writer.await.expect("every batch is applied");
        }
        let page =
            DocumentPage { collection: "c".into(), filters: Vec::new(), from: None, before: None, limit: 9 };
        assert_eq!(stores[0].documents(page).await.expect("is read").documents, []);
        assert_eq!(standing(&stores[0], "keyed").await, (12 * ROUNDS, 12 * ROUNDS));
        assert_eq!(standing(&stores[0], "old3").await, (2 * ROUNDS, 2 * ROUNDS));
        let range =
            RollupRange { kind: "old0".into(), resolution: Resolution::Day, from: 0, below: i32::MAX };
        let days = stores[1].rollups(range).await.expect("is read").rollups;
        let counted: u64 = days.iter().map(|(_, rollup)| rollup.count()).sum();
        assert_eq!(i64::try_from(counted), Ok(2 * ROUNDS * 13));
        assert_no_deadlock(stores, &url).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_nobody_waits_for_ends_and_a_write_may_wait_longer() {
    testkit::isolated("limits", async |isolated| {
        let url = isolated.database_url;
        let config = shared::config::StoreSettings { read_timeout_ms: 500, ..postgres_config(&url) };
        let store = postgres(&config).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.of(&[increment("a", 1)])]).await;
        let (mut holder, mut watcher) = (session(&url).await, session(&url).await);
        execute(&mut holder, "begin; lock table counters in access exclusive mode").await;
        store.counter("a").await.expect_err("is held");
        // The server gives up as well: long before the limit of a write.
        waiting(&mut watcher, 0).await;
        let writer = spawn(&store, &[messages.of(&[increment("a", 1)])]);
        let long = "select count(*) from pg_stat_activity where datname = current_database()
            and application_name = 'forebay' and wait_event_type = 'Lock'
            and clock_timestamp() - query_start > '1 second'";
        let begin = Instant::now();
        while sqlx::query_scalar::<_, i64>(long).fetch_one(&mut watcher).await.expect("is read") != 1 {
            assert!(begin.elapsed() < Duration::from_secs(5), "it does not wait");
        }
        execute(&mut holder, "commit").await;
        assert_eq!(writer.await.expect("no panic"), 1);
        assert_eq!(standing(&store, "a").await, (2, 2));
    })
    .await;
}

/// The retention that a list waited for may have been lifted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_that_is_lifted_while_housekeeping_waits_keeps_the_documents() {
    testkit::isolated("lifted", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let mut messages = Messages::new();
        let daily = Definition { retention_days: Some(1), ..Definition::default() };
        store.define("c", daily).await.expect("is defined");
        apply(&store, &[messages.of(&[document("c", "{}")])]).await;
        let (mut holder, mut watcher) = (session(&url).await, session(&url).await);
        // This is the lock of a session that replaces a definition.
        execute(&mut holder, "begin; select pg_advisory_xact_lock(x'666f726562617902'::int8)").await;
        let day_ms = 86_400_000;
        let retention = shared::store::Retention {
            now_ms_max: i64::MAX,
            points_ms: 90 * day_ms,
            minutes_ms: 90 * day_ms,
            hours_ms: 90 * day_ms,
            discarded_ms: 90 * day_ms,
            remembered_ms: 0,
            forget_before_ms: None,
            rows_max: 100,
        };
        let housekeeping = {
            let store = Arc::clone(&store);
            tokio::spawn(async move { while store.housekeep(retention).await.is_ok_and(|kept| kept.more) {} })
        };
        waiting(&mut watcher, 1).await;
        execute(&mut holder, "update collections set retention_days = null; commit").await;
        housekeeping.await.expect("no panic");
        let count = "select count(*) from documents where data is not null";
        assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut watcher).await.expect("is read"), 1);
    })
    .await;
}
