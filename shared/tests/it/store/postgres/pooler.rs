//! A PgBouncer before the server: everything works with `store.pooler`, and without it the error says so.
use std::sync::Arc;

use shared::config;
use shared::model::outcome::ItemStatus;
use shared::store::postgres::PostgresStore;
use shared::store::{DocumentPage, NamePage, Reads, Retention, Store};
use testkit::servers::pgbouncer::{PgBouncer, program};

use super::{DAY_MS, execute, session};
use crate::store::sent::{document, increment, point};
use crate::store::{Messages, apply, fate, postgres, postgres_config, standing, unavailable};

const WRITERS: i64 = 4;
const ROUNDS: i64 = 15;

/// Trigger that records the settings of a transaction that writes.
const SPY: &str = "create table seen (commits text, time text, wait text, scan text);
    create function spy() returns trigger language plpgsql as $$ begin
        insert into seen values (current_setting('synchronous_commit'), current_setting('statement_timeout'),
            current_setting('lock_timeout'), current_setting('enable_seqscan'));
        return null;
    end $$;
    create trigger spy after insert on applied_message for each statement execute function spy()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_behind_a_pooler_of_sessions() {
    works_behind("session", "20").await;
}

/// Connections to the server are fewer than clients: each transaction gets another session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_behind_a_pooler_of_transactions() {
    works_behind("transaction", "3").await;
}

async fn works_behind(mode: &str, size: &str) {
    let Some(program) = program() else { return };
    testkit::isolated("pooler", async |isolated| {
        let url = isolated.database_url;
        let settings = [("pool_mode", mode), ("default_pool_size", size)];
        let pooler = PgBouncer::create(&program, &url, &settings).await.expect("starts");
        let through = pooler.url(&url).expect("a URL");
        let config = config::StoreSettings { pooler: true, ..postgres_config(&through) };
        let stores = [postgres(&config).await, postgres(&config).await];
        let mut direct = session(&url).await;
        execute(&mut direct, SPY).await;
        execute(&mut direct, &format!("alter database \"{}\" set synchronous_commit = off", isolated.prefix))
            .await;

        let now_ms = stores[0].now_ms().await.expect("a time");
        let old_ms = now_ms - 40 * DAY_MS;
        apply(&stores[0], &[Messages::new().at(old_ms, &[point("old", old_ms, 1.0)])]).await;
        let writers = (0..WRITERS).map(|writer| {
            let store = Arc::clone(&stores[usize::try_from(writer % 2).expect("small")]);
            tokio::spawn(write_and_read(store, now_ms))
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no panic");
        }
        assert_eq!(standing(&stores[1], "sum").await.0, WRITERS * ROUNDS);
        let page = NamePage { prefix: "s".into(), after: None, limit: 10 };
        assert_eq!(stores[1].counters(page).await.expect("is read").len(), 1);

        let retention = Retention {
            now_ms_max: i64::MAX,
            points_ms: 20 * DAY_MS,
            minutes_ms: 2 * DAY_MS,
            hours_ms: 60 * DAY_MS,
            discarded_ms: 90 * DAY_MS,
            remembered_ms: 0,
            forget_before_ms: Some(now_ms - 30 * DAY_MS),
            rows_max: 100,
        };
        let kept = stores[0].housekeep(retention).await.expect("is kept");
        assert_eq!((kept.partitions, kept.overdue), (3, 0), "of points, minutes and the ledger");
        let seen: Vec<(String, String, String, String)> =
            sqlx::query_as("select distinct * from seen").fetch_all(&mut direct).await.expect("is read");
        assert_eq!(seen, [("on".into(), "30s".into(), "7500ms".into(), "off".into())]);
        for store in stores {
            store.close().await;
        }
        pooler.stop().await.expect("stops");
    })
    .await;
}

async fn write_and_read(store: Arc<dyn Store>, now_ms: i64) {
    let mut messages = Messages::new();
    for _ in 0..ROUNDS {
        let items = [increment("sum", 1), document("c", r#"{"a":1}"#), point("t", now_ms, 1.0)];
        let message = messages.at(now_ms, &items);
        assert_eq!(apply(&store, std::slice::from_ref(&message)).await.fresh.len(), 1);
        let reported = fate(&store, message.item_key(1)).await;
        assert!(matches!(reported, Some(ItemStatus::Applied { .. })), "{reported:?}");
        let found = store.document("c", message.item_key(1)).await.expect("is read");
        assert!(found.is_some());
        let page =
            DocumentPage { collection: "c".into(), filters: Vec::new(), from: None, before: None, limit: 5 };
        assert!(!store.documents(page).await.expect("is read").documents.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_is_not_configured_is_recognised() {
    let Some(program) = program() else { return };
    testkit::isolated("unpooled", async |isolated| {
        let url = isolated.database_url;
        postgres(&postgres_config(&url)).await;
        let ignored = ("ignore_startup_parameters", "extra_float_digits,options");
        for settings in [&[][..], &[ignored], &[ignored, ("pool_mode", "transaction")]] {
            let pooler = PgBouncer::create(&program, &url, settings).await.expect("starts");
            let through = pooler.url(&url).expect("a URL");
            let store = PostgresStore::open(&postgres_config(&through)).expect("opens");
            let reported = unavailable(store.counter("a").await.expect_err("is refused"));
            assert!(reported.contains("set store.pooler to true"), "{reported}");
            store.close().await;
            pooler.stop().await.expect("stops");
        }
    })
    .await;
}
