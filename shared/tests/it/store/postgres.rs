//! Mistakes that only the store on Postgres can make.
mod alone;
mod commits;
mod days;
mod floor;
mod plans;
mod pooler;
mod refused;
mod retired;
mod waits;

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::config;
use shared::model::id::IdIssuer;
use shared::model::message::Message;
use shared::store::postgres::PostgresStore;
use shared::store::{Apply, Reads, Store, StoreError};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::timeout;

use super::proxy::{Mode, Proxy};
use super::{
    Messages, apply, apply_until_known, items, message, postgres, postgres_config, standing, unavailable,
};

const DAY_MS: i64 = 86_400_000;

/// Opens a session beside the store's.
async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("connects")
}

async fn execute(session: &mut PgConnection, statement: &str) {
    session.execute(AssertSqlSafe(statement.to_owned())).await.expect("is executed");
}

/// Reads a value as another session sees it.
async fn seen_value(url: &str, name: &str) -> i64 {
    let value = sqlx::query_scalar("select value from counters where name = $1").bind(name);
    value.fetch_optional(&mut session(url).await).await.expect("is read").unwrap_or(0)
}

async fn ledger_rows(url: &str) -> i64 {
    let rows = sqlx::query_scalar("select count(*) from applied_message");
    rows.fetch_one(&mut session(url).await).await.expect("is read")
}

/// Starts a proxy before the server; returns also the settings that go through it.
async fn proxied(url: &str) -> (Proxy, config::StoreSettings) {
    let (before, after) = url.split_once('@').expect("a URL with a user");
    let (server, database) = after.split_once('/').expect("a URL with a database");
    let server = server.to_socket_addrs().expect("resolves").next().expect("an address");
    let proxy = Proxy::start(server).await;
    let through = postgres_config(&format!("{before}@{}/{database}", proxy.address));
    (proxy, through)
}

/// Waits until no session of the store is in a transaction, a far shorter time than the server
/// waits before it ends one.
async fn no_transaction_stays_open(url: &str) {
    let mut session = session(url).await;
    let open = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'forebay' and state like 'idle in transaction%'";
    let begin = Instant::now();
    while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut session).await.expect("is read") > 0 {
        assert!(begin.elapsed() < Duration::from_secs(5), "a transaction stays open");
    }
}

fn dated(time_ms: i64, increments: &[(&str, i64)]) -> Message {
    message(IdIssuer::new(9, 9).next(time_ms), &items(increments))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_killed_in_the_middle_cost_nothing() {
    const WRITERS: i64 = 3;
    const ROUNDS: i64 = 60;
    testkit::isolated("killed", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let writer = |store: Arc<dyn Store>, mut killer: PgConnection| async move {
            let (mut messages, mut failed) = (Messages::new(), 0);
            for round in 0..ROUNDS {
                let batch = messages.each(&[("a", 1), ("b", 2), ("a", 1)]);
                let (outcome, ()) =
                    tokio::join!(store.apply(batch.clone().into()), kill_one(&mut killer, round % 12));
                failed += usize::from(outcome.is_err());
                apply_until_known(&store, &batch).await;
            }
            failed
        };
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            writers.push(tokio::spawn(writer(Arc::clone(&store), session(&url).await)));
        }
        let mut failed = 0;
        for writer in writers {
            failed += writer.await.expect("every batch is applied in the end");
        }
        assert!(failed > 5, "{failed} attempts met a killed session");
        let rounds = WRITERS * ROUNDS;
        assert_eq!(standing(&store, "a").await, (2 * rounds, 2 * rounds));
        assert_eq!(standing(&store, "b").await, (2 * rounds, rounds));
    })
    .await;
}

/// Ends one of the store's sessions that is in the middle of a transaction, after this many round trips.
async fn kill_one(killer: &mut PgConnection, round_trips: i64) {
    for _ in 0..round_trips {
        execute(killer, "select").await;
    }
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'forebay' and state <> 'idle'
        order by random() limit 1";
    execute(killer, kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_transaction_swallows_nothing_that_is_written_later() {
    testkit::isolated("abandoned", async |isolated| {
        let url = isolated.database_url;
        let (proxy, config) = proxied(&url).await;
        let store = postgres(&config::StoreSettings { connections_max: 1, ..config }).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.increments(&[("warm", 1)])]).await;
        // A round trip takes 50 ms: the call is abandoned in `begin`, in the ledger, in the sums,
        // in `commit`.
        proxy.set(Mode::Slow(Duration::from_millis(25)));
        for abandoned_after_ms in [15, 40, 65, 90, 115, 140, 165, 190] {
            let abandoned = messages.increments(&[("abandoned", 1)]);
            let patience = Duration::from_millis(abandoned_after_ms);
            let outcome = timeout(patience, store.apply([abandoned.clone()].into())).await;
            assert!(abandoned_after_ms > 65 || outcome.is_err());
            // A read goes through whatever connection the pool has, and must leave it clean.
            store.counter("warm").await.expect("is read");
            no_transaction_stays_open(&url).await;
            let name = format!("after{abandoned_after_ms}");
            let written = apply(&store, &[messages.increments(&[(&name, 7)])]).await;
            assert_eq!(written.counters[0].value, 7);
            assert_eq!(seen_value(&url, &name).await, 7, "written after {abandoned_after_ms} ms");
            apply(&store, &[abandoned]).await;
        }
        assert_eq!(seen_value(&url, "abandoned").await, 8);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_costs_a_time_out_and_no_connection() {
    testkit::isolated("silent", async |isolated| {
        let (proxy, config) = proxied(&isolated.database_url).await;
        let config = config::StoreSettings {
            connections_max: 2,
            connect_timeout_ms: 800,
            read_timeout_ms: 800,
            write_timeout_ms: 1_200,
            ..config
        };
        // The bound is the longest time that a call may take, times several for a busy machine.
        let bound = Duration::from_secs(10);
        let store = postgres(&config).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.increments(&[("a", 1)])]).await;
        for _ in 0..3 {
            proxy.set(Mode::Silent);
            let batch: Arc<[Message]> = [messages.increments(&[("a", 1)])].into();
            let silent = (0..6).map(|number| {
                let (store, batch) = (Arc::clone(&store), Arc::clone(&batch));
                tokio::spawn(async move {
                    let begin = Instant::now();
                    let outcome = match number % 2 {
                        0 => store.apply(batch).await.map(|_| ()),
                        _ => store.counter("a").await.map(|_| ()),
                    };
                    (outcome, begin.elapsed())
                })
            });
            let mut unavailable = 0;
            for call in silent.collect::<Vec<_>>() {
                let (outcome, took) = call.await.expect("no panic");
                match outcome {
                    Err(StoreError::Unavailable(_) | StoreError::Failed(_)) => unavailable += 1,
                    // These wait behind calls that get no answer.
                    Err(StoreError::Busy(_)) => {}
                    other => panic!("{other:?}"),
                }
                assert!(took < bound, "{took:?}");
            }
            assert!(unavailable > 0, "who has a connection knows");
            // As soon as the server answers, so does the store: twice, with both connections.
            proxy.set(Mode::Pass);
            let (read, written) = tokio::join!(store.now_ms(), store.apply(batch));
            read.expect("is read");
            written.expect("is applied");
        }
        assert_eq!(standing(&store, "a").await, (4, 4));
        proxy.set(Mode::Silent);
        timeout(bound, store.close()).await.expect("closing does not wait for a silent server");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_any_day_finds_its_partition() {
    testkit::isolated("partition", async |isolated| {
        let url = isolated.database_url;
        let stores = [postgres(&postgres_config(&url)).await, postgres(&postgres_config(&url)).await];
        let times =
            [0, DAY_MS - 1, DAY_MS, 1_763_640_000_000, 1_763_640_000_000 + 400 * DAY_MS, (1 << 48) - 1];
        let batch: Arc<[Message]> = times.map(|time_ms| dated(time_ms, &[("a", 1)])).into();
        let [one, other] = stores.clone().map(|store| {
            let batch = Arc::clone(&batch);
            tokio::spawn(async move { store.apply(batch).await.expect("is applied").fresh.len() })
        });
        assert_eq!(one.await.expect("no panic") + other.await.expect("no panic"), times.len());
        let partitions = "select relname from pg_class join pg_inherits on oid = inhrelid
            where inhparent = 'applied_message'::regclass order by relname";
        let partitions: Vec<String> =
            sqlx::query_scalar(partitions).fetch_all(&mut session(&url).await).await.expect("is read");
        assert_eq!(partitions.len(), 5, "{partitions:?}");
        assert_eq!(partitions[0], "applied_message_19700101");
        // The table is dropped behind the back of a process that knew it.
        execute(&mut session(&url).await, "drop table applied_message_19700101").await;
        let applied = apply(&stores[0], &[dated(5, &[("b", 1)])]).await;
        assert_eq!((applied.fresh.len(), applied.set_aside.len()), (1, 0));
        assert_eq!(standing(&stores[1], "b").await, (1, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_made_beside_a_running_backup() {
    testkit::isolated("backup", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let mut session = session(&url).await;
        // These are the locks that a dump, and another writer, hold until they end.
        execute(&mut session, "begin; lock table applied_message in access share mode").await;
        execute(&mut session, "lock table applied_message in row exclusive mode").await;
        assert_eq!(apply(&store, &[dated(5, &[("a", 1)])]).await.fresh.len(), 1);
        execute(&mut session, "commit").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_statement_failed_is_never_reported_as_applied() {
    testkit::isolated("statement", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let trap = "alter table counters add constraint trap check (name <> 'trap')";
        execute(&mut session(&url).await, trap).await;
        let mut messages = Messages::new();
        let batch = messages.each(&[("a", 1), ("trap", 1)]);
        let reported = unavailable(store.apply(batch.clone().into()).await.expect_err("the trap"));
        assert!(reported.contains("23514"), "{reported}");
        assert_eq!((ledger_rows(&url).await, standing(&store, "a").await), (0, (0, 0)));
        execute(&mut session(&url).await, "alter table counters drop constraint trap").await;
        assert_eq!(apply(&store, &batch).await.fresh.len(), 2);
        assert_eq!(standing(&store, "trap").await, (1, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_that_others_hold_are_waited_for_within_the_time_limit() {
    testkit::isolated("locks", async |isolated| {
        let url = isolated.database_url;
        let config = config::StoreSettings { write_timeout_ms: 800, ..postgres_config(&url) };
        let store = postgres(&config).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.increments(&[("a", 1)])]).await;
        let mut holder = session(&url).await;
        execute(&mut holder, "begin; select * from counters for update").await;
        let batch = [messages.increments(&[("a", 1)])];
        let refused = store.apply(batch.clone().into()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        // Reads are not affected.
        assert_eq!(standing(&store, "a").await, (1, 1));
        execute(&mut holder, "rollback").await;
        apply(&store, &batch).await;
        assert_eq!(standing(&store, "a").await, (2, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_the_known_schema_is_refused() {
    testkit::isolated("schema", async |isolated| {
        let url = isolated.database_url;
        let store = PostgresStore::open(&postgres_config(&url)).expect("opens");
        let batch: Arc<[Message]> = [Messages::new().increments(&[("a", 1)])].into();
        let reported = unavailable(store.apply(Arc::clone(&batch)).await.expect_err("no schema"));
        assert!(reported.contains("api migrate"), "{reported}");
        assert!(unavailable(store.now_ms().await.expect_err("no schema")).contains("api migrate"));
        store.migrate().await.expect("migrates");
        store.migrate().await.expect("a second time, too");
        assert_eq!(store.counter("a").await.expect("is read"), None);

        let newer = "insert into _sqlx_migrations values (99, 'later', now(), true, '', 0)";
        execute(&mut session(&url).await, newer).await;
        let late = PostgresStore::open(&postgres_config(&url)).expect("opens");
        let reported = unavailable(late.apply(Arc::clone(&batch)).await.expect_err("newer schema"));
        assert!(reported.contains("99 is newer"), "{reported}");
        assert!(late.migrate().await.is_err());
        // A process that verified the schema before goes on until the server misses a table.
        assert_eq!(store.counter("a").await.expect("is read"), None);
        execute(&mut session(&url).await, "alter table counters rename to tallies").await;
        assert!(unavailable(store.counter("a").await.expect_err("renamed")).contains("42P01"));
        assert!(unavailable(store.counter("a").await.expect_err("renamed")).contains("99 is newer"));
        assert_eq!(ledger_rows(&url).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_database_is_created_once_however_many_ask_and_only_where_that_is_wanted() {
    testkit::isolated("create", async |isolated| {
        testkit::drop_database(&isolated.prefix).await.expect("is dropped");
        let careful = PostgresStore::open(&postgres_config(&isolated.database_url)).expect("opens");
        for _ in 0..2 {
            let reported = unavailable(careful.migrate().await.expect_err("no such database"));
            assert!(
                reported.contains(&isolated.prefix) && reported.contains("CREATE_DATABASE"),
                "{reported}"
            );
        }
        let config =
            config::StoreSettings { create_database: true, ..postgres_config(&isolated.database_url) };
        let open = || PostgresStore::open(&config).expect("opens");
        let stores = [open(), open(), open()];
        let migrations = stores.each_ref().map(|store| store.migrate());
        for migrated in futures_util::future::join_all(migrations).await {
            migrated.expect("migrates");
        }
        assert_eq!(stores[0].counter("a").await.expect("is read"), None);
    })
    .await;
}

#[tokio::test]
async fn opening_connects_to_nothing_and_no_error_tells_the_password() {
    let config = |url: &str| config::StoreSettings { connect_timeout_ms: 200, ..postgres_config(url) };
    let store = PostgresStore::open(&config("postgres://user:hush@127.0.0.1:1/none")).expect("opens");
    let reported = unavailable(store.now_ms().await.expect_err("nobody listens"));
    assert!(!reported.is_empty() && !reported.contains("hush"), "{reported}");
    let reported = unavailable(store.migrate().await.expect_err("nobody listens"));
    assert!(reported.contains("refused") && !reported.contains("hush"), "{reported}");
    for malformed in ["postgres://user:hush@[::1/none", "postgres://user:hush@host:99999/none"] {
        let error = PostgresStore::open(&config(malformed)).err().expect("malformed");
        assert!(!format!("{error:#}").contains("hush"), "{error:#}");
    }
}
