//! Mistakes that only the store on SQLite can make.
mod valid;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use shared::model::collection::Definition;
use shared::model::rollup::Resolution;
use shared::store::sqlite::SqliteStore;
use shared::store::{Apply, DocumentPage, Reads, Retention, RollupRange, Store, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::sent::{delete, document, increment, point, with_key};
use super::{Directory, Messages, NOON_MS, apply, failed, fate, standing, unavailable};

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
        let reported = killed_after(&directory, kill_after);
        let integrity = "pragma integrity_check";
        let integrity =
            sqlx::query_scalar::<_, String>(integrity).fetch_one(&mut file(&directory).await).await;
        assert_eq!(integrity.expect("is checked"), "ok");
        let store = directory.store().await;
        let (value, version) = standing(&store, "a").await;
        assert!(value >= reported, "{value} of {reported}");
        assert_eq!(version, value);
        // Both counters were in every batch.
        assert_eq!(standing(&store, "b").await, (value * 2, value));
        let mut file = self::file(&directory).await;
        for rows in [
            "select count(*) / 2 from applied_message",
            "select count(*) from keyed_writes",
            "select count(*) from documents where data is not null",
            "select count(*) from document_fields",
            "select count(*) from points_20251120",
        ] {
            let count = sqlx::query_scalar::<_, i64>(rows).fetch_one(&mut file).await.expect("is counted");
            assert_eq!(count, value, "{rows}");
        }
        let day = Resolution::Day;
        let range = RollupRange { kind: "t".into(), resolution: day, from: 0, below: i32::MAX };
        let [(_, day)] = &store.rollups(range).await.expect("is read").rollups[..] else { panic!("one day") };
        assert_eq!(i64::try_from(day.count()).expect("small"), value);
    }
}

/// Runs [`child`] in a process of its own, kills it after this many answers, and returns how many
/// batches it reported as applied.
fn killed_after(directory: &Directory, answers: usize) -> i64 {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--ignored", "--exact", "--nocapture", "store::sqlite::child"])
        .env(CHILD_DIRECTORY, &directory.0)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let mut reported = 0;
    let numbers = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("applied ")?.parse().ok());
    for (answer, number) in (1..).zip(numbers) {
        reported = number;
        if answer == answers {
            child.kill().expect("is killed");
        }
    }
    child.wait().expect("ends");
    assert!(reported >= i64::try_from(answers).expect("small"), "{reported} of {answers}");
    reported
}

/// Applies batches until it is killed.
#[tokio::test]
#[ignore = "run as a process of its own by what_was_answered_survives_a_kill_in_the_middle"]
async fn child() {
    let directory = PathBuf::from(std::env::var_os(CHILD_DIRECTORY).expect("started by the other test"));
    let store =
        SqliteStore::open(&directory, &shared::config::StoreSettings::default()).await.expect("opens");
    store.migrate().await.expect("migrates");
    let store: Arc<dyn Store> = store;
    let mut messages = Messages::new();
    let indexed = Definition { indexed: vec!["f".into()], ..Definition::default() };
    store.define("c", indexed).await.expect("is defined");
    for number in 1.. {
        let batch = [
            messages.of(&[increment("a", 1), with_key(&format!("{number}"), increment("b", 2))]),
            messages.of(&[document("c", r#"{"f":1}"#), point("t", NOON_MS, 1.0)]),
        ];
        apply(&store, &batch).await;
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
async fn a_read_that_takes_too_long_is_ended_and_others_go_on() {
    let directory = Directory::new("long-read");
    let store = directory.store().await;
    let indexed = Definition { indexed: vec!["f".into(), "g".into()], ..Definition::default() };
    store.define("c", indexed).await.expect("is defined");
    // The values alternate, so that the search never finds one and never leaps far.
    let by_turns = [r#"{"f":"x"}"#, r#"{"g":"x"}"#];
    let items: Vec<_> = (0..1_000).map(|number| document("c", by_turns[number % 2])).collect();
    let mut messages = Messages::new();
    for _ in 0..5 {
        apply(&store, &[messages.of(&items)]).await;
    }
    store.close().await;
    // There is no time at all: only the work between two checks of the clock is allowed.
    let impatient =
        shared::config::StoreSettings { read_timeout_ms: 0, ..shared::config::StoreSettings::default() };
    let store = SqliteStore::open(&directory.0, &impatient).await.expect("opens");
    let filters = ["f", "g"].map(|field| (field.to_owned(), shared::model::collection::index_text("x")));
    let page =
        DocumentPage { collection: "c".into(), filters: filters.into(), from: None, before: None, limit: 10 };
    for _ in 0..10 {
        let ended = store.documents(page.clone()).await.expect_err("every document is looked at");
        assert!(matches!(ended, StoreError::Busy(_)), "{ended}");
        assert_eq!(store.counter("a").await.expect("is read"), None);
    }
}

#[tokio::test]
async fn a_file_without_the_known_schema_is_refused() {
    let directory = Directory::new("schema");
    let store =
        SqliteStore::open(&directory.0, &shared::config::StoreSettings::default()).await.expect("opens");
    assert!(unavailable(store.counter("a").await.expect_err("no schema")).contains("api migrate"));
    assert!(unavailable(store.apply([].into()).await.expect_err("no schema")).contains("api migrate"));
    store.migrate().await.expect("migrates");
    assert_eq!(store.counter("a").await.expect("is read"), None);
    store.close().await;
    let newer = "insert into _sqlx_migrations values (99, 'later', '2030-01-01', true, x'00', 0)";
    execute(&mut file(&directory).await, newer).await;
    let store =
        SqliteStore::open(&directory.0, &shared::config::StoreSettings::default()).await.expect("opens");
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
    // The trigger ends the transaction as a full disk does: behind the back of the client library.
    let trap = "create trigger trap before insert on counters when new.name = 'trap' \
        begin select raise(rollback, 'full'); end";
    execute(&mut file, trap).await;
    let batch = messages.each(&[("a", 1), ("trap", 1)]);
    assert!(failed(store.apply(batch.clone().into()).await.expect_err("the trap")).contains("full"));
    assert_eq!(fate(&store, batch[0].item_key(0)).await, None);
    // The next batch does not inherit the failed transaction.
    apply(&store, &[messages.increments(&[("b", 1)])]).await;
    assert_eq!((standing(&store, "a").await, standing(&store, "b").await), ((0, 0), (1, 1)));
    execute(&mut file, "drop trigger trap").await;
    assert_eq!(apply(&store, &batch).await.fresh.len(), 2);
    assert_eq!(standing(&store, "trap").await, (1, 1));
}

const DAY_MS: i64 = 24 * 3_600_000;

async fn tables_of_points(file: &mut SqliteConnection) -> Vec<String> {
    let tables = "select name from sqlite_schema where name like 'points%' order by name";
    sqlx::query_scalar(tables).fetch_all(file).await.expect("is read")
}

#[tokio::test]
async fn raw_points_are_stored_to_the_last_bit() {
    let directory = Directory::new("bits");
    let store = directory.store().await;
    let mut values =
        vec![0.1, -0.0, 5e-324, 2.225_073_858_507_201e-308, -1.711_488_800_458_074e203, 1e290, -4.0];
    // A walk over all magnitudes, with all bits in use.
    let mut bits: u64 = 0x9E37_79B9_7F4A_7C15;
    while values.len() < 1_700 {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        values.extend(Some(f64::from_bits(bits)).filter(|value| value.abs() <= 1e290));
    }
    let items: Vec<_> =
        (0..).zip(&values).map(|(index, value)| point("t", NOON_MS - index, *value)).collect();
    apply(&store, &[Messages::new().of(&items)]).await;
    let mut file = file(&directory).await;
    assert_eq!(tables_of_points(&mut file).await, ["points_20251120"]);
    let rows = "select value, at_ms, accepted_at_ms, name from points_20251120 \
        join metric_types on metric_types.id = type order by at_ms desc";
    let rows =
        sqlx::query_as::<_, (f64, i64, i64, String)>(rows).fetch_all(&mut file).await.expect("is read");
    assert_eq!(rows.len(), values.len());
    for ((stored, ..), sent) in rows.iter().zip(&values) {
        // A zero loses only its sign, which adds nothing to any sum.
        assert!(
            stored.to_bits() == sent.to_bits() || (*stored == 0.0 && *sent == 0.0),
            "{stored:?} {sent:?}"
        );
    }
    assert!(rows.iter().all(|(_, at_ms, accepted_at_ms, name)| {
        *at_ms <= NOON_MS && *accepted_at_ms == NOON_MS + 7 && name == "t"
    }));
}

#[tokio::test]
async fn raw_points_lie_by_the_day_of_their_acceptance_and_go_as_days() {
    let directory = Directory::new("days");
    let store = directory.store().await;
    let mut messages = Messages::new();
    let mut batch: Vec<_> = [0, 1, 2].map(|day| NOON_MS + day * DAY_MS).into();
    batch.push(NOON_MS + DAY_MS + 1);
    batch.sort_unstable();
    let mut batch: Vec<_> =
        batch.into_iter().map(|at_ms| messages.at(at_ms, &[point("t", at_ms - 3 * DAY_MS, 1.0)])).collect();
    // No wrong clock makes a day that does not come or was never.
    for accepted_at_ms in [i64::MAX, i64::MIN] {
        let mut wrong = messages.of(&[point("t", NOON_MS, 1.0)]);
        (wrong.accepted_at_ms, wrong.digest) = (accepted_at_ms, [1; 16]);
        batch.push(wrong);
    }
    apply(&store, &batch).await;
    let mut file = file(&directory).await;
    let tables = tables_of_points(&mut file).await;
    let (days, today) =
        (["points_19700101", "points_20251120", "points_20251121", "points_20251122"], &tables[4..]);
    assert_eq!(tables[..4], days);
    assert_eq!(today.len(), 1);
    let count = "select count(*) from points_20251121";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut file).await.expect("is read"), 2);
    // A day goes when its last moment is too old: one in a call, and without a trace in the others.
    let since_ms = store.now_ms().await.expect("a time") - (NOON_MS + DAY_MS);
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: since_ms,
        minutes_ms: since_ms,
        hours_ms: since_ms,
        discarded_ms: 90 * DAY_MS,
        remembered_ms: 0,
        forget_before_ms: Some(NOON_MS + DAY_MS),
        rows_max: 100,
    };
    let first = store.housekeep(retention).await.expect("is kept");
    assert!(first.more && first.partitions == 1, "{first:?}");
    let second = store.housekeep(retention).await.expect("is kept");
    assert!(!second.more && second.partitions == 1, "{second:?}");
    assert_eq!(tables_of_points(&mut file).await, tables[2..]);
    // Statements that were prepared for the days still work.
    apply(&store, &[messages.at(NOON_MS + 2 * DAY_MS, &[point("t", NOON_MS + 2 * DAY_MS, 1.0)])]).await;
    assert_eq!(tables_of_points(&mut file).await, tables[2..]);
}

#[tokio::test]
async fn a_large_day_goes_a_part_at_a_time() {
    let directory = Directory::new("large-day");
    let store = directory.store().await;
    let items: Vec<_> = (0..25).map(|number| point("t", NOON_MS - number, 1.0)).collect();
    apply(&store, &[Messages::new().of(&items)]).await;
    let mut file = file(&directory).await;
    let age_ms = store.now_ms().await.expect("a time") - NOON_MS;
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: age_ms - DAY_MS,
        minutes_ms: 2 * age_ms,
        hours_ms: 2 * age_ms,
        discarded_ms: DAY_MS,
        remembered_ms: 0,
        forget_before_ms: None,
        rows_max: 10,
    };
    for (rows, partitions) in [(10, 0), (10, 0), (5, 1), (0, 0)] {
        let kept = store.housekeep(retention).await.expect("is kept");
        assert_eq!((kept.rows, kept.partitions, kept.more), (rows, partitions, rows == 10));
    }
    assert_eq!(tables_of_points(&mut file).await, Vec::<String>::new());
}

/// The ingest, which waits for the transaction under way, thus waits for one step and not for all.
#[tokio::test]
async fn each_step_of_housekeeping_is_a_transaction_of_its_own() {
    let directory = Directory::new("steps");
    let store = directory.store().await;
    let bounded = Definition { retention_days: Some(1), ..Definition::default() };
    store.define("c", bounded).await.expect("is defined");
    let items = [point("t", NOON_MS, 1.0), with_key("k", increment("a", 1)), document("c", "{}")];
    let applied = apply(&store, &[Messages::new().of(&items)]).await;
    // The floor rises above the key.
    let later_ms = applied.committed_at_ms + DAY_MS / 2;
    apply(&store, &[Messages::new().at(later_ms, &[increment("a", 1)])]).await;
    let mut file = file(&directory).await;
    let trap = "create trigger trap before delete on documents begin select raise(rollback, 'no'); end";
    execute(&mut file, trap).await;
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: DAY_MS,
        minutes_ms: DAY_MS,
        hours_ms: DAY_MS,
        discarded_ms: DAY_MS,
        remembered_ms: 0,
        forget_before_ms: Some(applied.committed_at_ms + DAY_MS),
        rows_max: 100,
    };
    assert!(failed(store.housekeep(retention).await.expect_err("the trap")).contains("no"));
    let mut left = async || {
        let left = "select (select count(*) from sqlite_schema where name glob 'points_*'), \
            (select count(*) from rollups), (select count(*) from keyed_writes), \
            (select count(*) from documents)";
        let row = sqlx::query_as::<_, (i64, i64, i64, i64)>(left).fetch_one(&mut file);
        row.await.expect("is counted")
    };
    // The rollup of the day stays for ever.
    assert_eq!(left().await, (0, 1, 0, 1));
}

#[tokio::test]
async fn nothing_is_left_of_the_fields_of_documents_that_went() {
    let directory = Directory::new("fields");
    let store = directory.store().await;
    let mut messages = Messages::new();
    let definition =
        Definition { schema: None, indexed: vec!["f".into(), "g".into()], retention_days: Some(1) };
    store.define("c", definition.clone()).await.expect("is defined");
    let data = r#"{"f":"x","g":5.0}"#;
    let sent = messages.of(&[
        document("c", data),
        with_key("k", document("c", data)),
        document("c", data),
        with_key("l", document("c", data)),
        document("c", data),
    ]);
    // They are deleted before, with, and after their inserts; the last goes by its age.
    let erase = |index: usize| delete("c", sent.item_key(index));
    apply(&store, &[messages.of(&[erase(0)])]).await;
    apply(&store, &[messages.of(&[erase(1)]), sent.clone()]).await;
    let mut file = file(&directory).await;
    let mut fields = async || -> i64 {
        let count = "select count(*) from document_fields";
        sqlx::query_scalar(count).fetch_one(&mut file).await.expect("is read")
    };
    assert_eq!(fields().await, 6);
    apply(&store, &[messages.of(&[erase(2), erase(3)])]).await;
    assert_eq!(fields().await, 2);
    let one_field = Definition { indexed: vec!["g".into()], ..definition };
    store.define("c", one_field).await.expect("is defined");
    assert_eq!(fields().await, 1);
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: DAY_MS,
        minutes_ms: DAY_MS,
        hours_ms: DAY_MS,
        discarded_ms: 90 * DAY_MS,
        remembered_ms: 0,
        forget_before_ms: None,
        rows_max: 100,
    };
    // Rows of deleted documents are not among them.
    assert_eq!(store.housekeep(retention).await.expect("is kept").rows, 1);
    assert_eq!(fields().await, 0);
}

#[tokio::test]
async fn a_rollup_that_this_build_cannot_read_stops_writing_and_loses_nothing() {
    let directory = Directory::new("rollup");
    let store = directory.store().await;
    let mut messages = Messages::new();
    apply(&store, &[messages.of(&[point("t", NOON_MS, 1.0)])]).await;
    let mut file = file(&directory).await;
    let row = "update rollups set data = x'ff' where resolution = 1";
    execute(&mut file, row).await;
    let batch = [messages.of(&[increment("a", 1), point("t", NOON_MS, 1.0)])];
    let refused = store.apply(batch.clone().into()).await.expect_err("not readable");
    assert!(unavailable(refused).contains("a rollup of t cannot be read"));
    assert_eq!(standing(&store, "a").await, (0, 0));
    execute(&mut file, "delete from rollups where resolution = 1").await;
    assert_eq!(apply(&store, &batch).await.fresh.len(), 1);
}

#[tokio::test]
async fn large_documents_are_indexed_a_few_at_a_time() {
    let directory = Directory::new("large");
    let store = directory.store().await;
    let data = format!(r#"{{"f":1,"text":"{}"}}"#, "x".repeat(5 << 19));
    let items = [0; 3].map(|_| document("c", &data));
    apply(&store, &[Messages::new().of(&items)]).await;
    let indexed = Definition { indexed: vec!["f".into()], ..Definition::default() };
    store.define("c", indexed).await.expect("is defined");
    let mut file = file(&directory).await;
    for (has_more, fields) in [(true, 2), (false, 3), (false, 3)] {
        assert_eq!(store.index_page("c").await.expect("is indexed"), has_more);
        let count = "select count(*) from document_fields";
        let count = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut file).await.expect("is counted");
        assert_eq!(count, fields);
    }
}

/// A trigger that computes for long stands for any cause of a slow write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_takes_too_long_is_ended_and_others_go_on() {
    let directory = Directory::new("long-write");
    let store = directory.store().await;
    execute(
        &mut file(&directory).await,
        "create trigger heavy before insert on counters when new.name = 'heavy' begin \
         select count(*) from (with recursive n (i) as \
             (select 1 union all select i + 1 from n where i < 1000000000) select i from n); end",
    )
    .await;
    let mut messages = Messages::new();
    let begun = std::time::Instant::now();
    let heavy = messages.increments(&[("heavy", 1), ("a", 1)]);
    let limit = std::time::Duration::from_millis(200);
    let error = store.apply_within([heavy.clone()].into(), limit).await.expect_err("is ended");
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    apply(&store, &[messages.increments(&[("a", 1)])]).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(standing(&store, "a").await, (1, 1));
    let why = "it took too long".into();
    let given_up = shared::store::GiveUp { why, search: true };
    assert_eq!(store.give_up_on(heavy, given_up).await.expect("is given up").set_aside.len(), 2);
}
