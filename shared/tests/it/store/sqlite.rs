//! What only the store on SQLite can get wrong.
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use shared::store::Store;
use shared::store::sqlite::SqliteStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::{Directory, Messages, apply, standing, unavailable};

const CHILD_DIRECTORY: &str = "FOREBAY_TEST_CHILD_DIRECTORY";

async fn file(directory: &Directory) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(directory.0.join("store.db"));
    options.connect().await.expect("opens")
}

async fn execute(connection: &mut SqliteConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(connection).await.expect("is executed");
}

#[tokio::test]
async fn what_was_answered_survives_a_kill_in_the_middle() {
    for kill_after in [1, 7, 40] {
        let directory = Directory::new("kill");
        let told = killed_after(&directory, kill_after);
        let integrity = "pragma integrity_check";
        let integrity =
            sqlx::query_scalar::<_, String>(integrity).fetch_one(&mut file(&directory).await).await;
        assert_eq!(integrity.expect("is checked"), "ok");
        let store = directory.store().await;
        let (value, version) = standing(&store, "a").await;
        assert!(value >= told, "{value} of {told}");
        assert_eq!(version, value);
        // Both counters were in every batch.
        assert_eq!(standing(&store, "b").await, (value * 2, value));
    }
}

/// Runs [`child`] in a process of its own, kills it after so many answers, and returns how many
/// batches it told to be applied.
fn killed_after(directory: &Directory, answers: usize) -> i64 {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--ignored", "--exact", "--nocapture", "store::sqlite::child"])
        .env(CHILD_DIRECTORY, &directory.0)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let mut told = 0;
    let numbers = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("applied ")?.parse().ok());
    for (answer, number) in (1..).zip(numbers) {
        told = number;
        if answer == answers {
            child.kill().expect("is killed");
        }
    }
    child.wait().expect("ends");
    assert!(told >= i64::try_from(answers).expect("small"), "{told} of {answers}");
    told
}

/// Applies until it is killed.
#[tokio::test]
#[ignore = "run as a process of its own by what_was_answered_survives_a_kill_in_the_middle"]
async fn child() {
    let directory = PathBuf::from(std::env::var_os(CHILD_DIRECTORY).expect("started by the other test"));
    let store = SqliteStore::open(&directory).await.expect("opens");
    store.migrate().await.expect("migrates");
    let store: Arc<dyn Store> = store;
    let mut messages = Messages::new();
    for number in 1.. {
        apply(&store, &[messages.increments(&[("a", 1), ("b", 2)])]).await;
        writeln!(std::io::stdout(), "applied {number}").expect("the other test listens");
    }
}

#[tokio::test]
async fn a_closed_store_is_one_file_and_can_be_opened_again() {
    let directory = Directory::new("close");
    let store = directory.store().await;
    let batch = [Messages::new().increments(&[("a", 1)])];
    apply(&store, &batch).await;
    store.close().await;
    let files = std::fs::read_dir(&directory.0).expect("is read");
    let files: Vec<_> = files.map(|file| file.expect("is read").file_name()).collect();
    assert_eq!(files, ["store.db"]);
    let mut file = file(&directory).await;
    let mode = sqlx::query_scalar::<_, String>("pragma journal_mode").fetch_one(&mut file);
    assert_eq!(mode.await.expect("is read"), "wal");
    drop(file);
    let store = directory.store().await;
    assert!(apply(&store, &batch).await.fresh.is_empty());
    assert_eq!(standing(&store, "a").await, (1, 1));
}

#[tokio::test]
async fn a_file_without_the_known_schema_is_refused() {
    let directory = Directory::new("schema");
    let store = SqliteStore::open(&directory.0).await.expect("opens");
    assert!(unavailable(store.counter("a").await.expect_err("no schema")).contains("api migrate"));
    assert!(unavailable(store.apply([].into()).await.expect_err("no schema")).contains("api migrate"));
    store.migrate().await.expect("migrates");
    assert_eq!(store.counter("a").await.expect("is read"), None);
    store.close().await;
    let newer = "insert into _sqlx_migrations values (99, 'later', '2030-01-01', true, x'00', 0)";
    execute(&mut file(&directory).await, newer).await;
    let store = SqliteStore::open(&directory.0).await.expect("opens");
    let refusals =
        [store.apply([].into()).await.map(|_| ()), store.migrate().await, store.now_ms().await.map(|_| ())];
    for refused in refusals {
        assert!(unavailable(refused.expect_err("newer")).contains("99"));
    }
}

#[tokio::test]
async fn a_batch_whose_statement_failed_is_never_reported_as_applied() {
    let directory = Directory::new("statement");
    let store = directory.store().await;
    let mut messages = Messages::new();
    let mut file = file(&directory).await;
    // Ends the transaction as a full disk does: behind the back of the client library.
    let trap = "create trigger trap before insert on counters when new.name = 'trap' \
        begin select raise(rollback, 'full'); end";
    execute(&mut file, trap).await;
    let batch = messages.each(&[("a", 1), ("trap", 1)]);
    assert!(unavailable(store.apply(batch.clone().into()).await.expect_err("the trap")).contains("full"));
    assert_eq!(store.fate(batch[0].item_key(0)).await.expect("is read"), None);
    // The next batch does not inherit the failed transaction.
    apply(&store, &[messages.increments(&[("b", 1)])]).await;
    assert_eq!((standing(&store, "a").await, standing(&store, "b").await), ((0, 0), (1, 1)));
    execute(&mut file, "drop trigger trap").await;
    assert_eq!(apply(&store, &batch).await.fresh.len(), 2);
    assert_eq!(standing(&store, "trap").await, (1, 1));
}
