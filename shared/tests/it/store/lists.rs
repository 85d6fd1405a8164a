//! Lists by filters of which each matches many documents and all together few: the search leaps,
//! ends, and leaves time for other requests, on both stores.
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::config;
use shared::model::collection::index_text;
use shared::model::id::{IdIssuer, ItemKey, Kind, MessageId};
use shared::store::{Document, DocumentPage, NamePage, Reads, SEARCH_STEPS_MAX, Store, StoreError};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Directory, Messages, NOON_MS, apply, postgres, postgres_config};

const DOCUMENTS: usize = 100_000;
const RARE: usize = 40_000;

/// The values of a document: `all` for every one, `even` or `odd` by turns, `third`, and `rare`.
fn fields_of(number: usize) -> impl Iterator<Item = &'static str> {
    let parity = if number.is_multiple_of(2) { "even" } else { "odd" };
    let third = number.is_multiple_of(3).then_some("third");
    let rare = number.is_multiple_of(RARE).then_some("rare");
    ["all", parity].into_iter().chain(third).chain(rare)
}

fn places() -> Vec<Uuid> {
    let mut issuer = IdIssuer::new(1, 2);
    let mut places = Vec::with_capacity(DOCUMENTS);
    for time_ms in (NOON_MS..).take(DOCUMENTS / 1_000) {
        let message = issuer.next(time_ms);
        places.extend((0..1_000).map(|index| message.item(Kind::Document, index).as_uuid()));
    }
    assert!(places.is_sorted());
    places
}

/// Field and place of each row of the index.
fn rows(places: &[Uuid]) -> (Vec<&'static str>, Vec<Uuid>) {
    let row = |(number, place): (usize, &Uuid)| {
        fields_of(number).map(move |field| (field, *place)).collect::<Vec<_>>()
    };
    places.iter().enumerate().flat_map(row).unzip()
}

async fn fill_postgres(url: &str, places: &[Uuid]) {
    let mut session = PgConnection::connect(url).await.expect("connects");
    let insert =
        "insert into documents select 'c', place, null, '{}', now() from unnest($1::uuid[]) as place";
    sqlx::query(insert).bind(places).execute(&mut session).await.expect("is filled");
    let (fields, places) = rows(places);
    let insert = "insert into document_fields select 'c', field, $3, place
        from unnest($1::text[], $2::uuid[]) as row (field, place)";
    let insert = sqlx::query(insert).bind(fields).bind(places).bind(index_text("x"));
    insert.execute(&mut session).await.expect("is filled");
    session.execute("analyze").await.expect("is analysed");
}

async fn fill_sqlite(directory: &Directory, places: &[Uuid]) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(directory.0.join("store.db"));
    let mut file = options.connect().await.expect("opens");
    let json = |rows: Vec<(&str, Uuid)>| {
        let rows: Vec<_> =
            rows.into_iter().map(|(field, place)| (field, place.simple().to_string())).collect();
        serde_json::to_string(&rows).expect("JSON")
    };
    let all = json(places.iter().map(|place| ("", *place)).collect());
    let insert = "insert into documents select 'c', unhex(value ->> 1), null, '{}', 0 from json_each(?1)";
    sqlx::query(insert).bind(all).execute(&mut file).await.expect("is filled");
    let (fields, places) = rows(places);
    let rows = json(fields.into_iter().zip(places).collect());
    let insert =
        "insert into document_fields select 'c', value ->> 0, ?2, unhex(value ->> 1) from json_each(?1)";
    sqlx::query(insert).bind(rows).bind(index_text("x")).execute(&mut file).await.expect("is filled");
}

fn page(fields: &[&str], before: Option<Uuid>, limit: u32) -> DocumentPage {
    let filters = fields.iter().map(|field| ((*field).to_owned(), index_text("x"))).collect();
    DocumentPage { collection: "c".into(), filters, from: None, before, limit }
}

/// Reads all documents that match; returns also the number of calls that it took.
async fn listed(store: &Arc<dyn Store>, fields: &[&str], limit: u32) -> (Vec<Uuid>, usize) {
    let (mut found, mut before, mut calls) = (Vec::new(), None, 0);
    loop {
        let part = store.documents(page(fields, before, limit)).await.expect("ends by itself");
        calls += 1;
        let is_last = part.documents.len() < limit as usize && part.stopped_at.is_none();
        found.extend(part.documents.iter().map(|document: &Document| document.place));
        let next = part.stopped_at.or(found.last().copied());
        if is_last {
            return (found, calls);
        }
        assert!(before.is_none_or(|before| next.is_some_and(|next| next < before)), "no progress");
        let next = next.expect("a place");
        assert!(ItemKey::from_uuid(next).is_some_and(|place| place.kind() == Some(Kind::Document)), "{next}");
        before = Some(next);
    }
}

async fn the_search_ends_and_finds_all(store: Arc<dyn Store>, places: Vec<Uuid>) {
    let matching = |fields: &[&str]| -> Vec<Uuid> {
        let matches =
            |number: usize| fields.iter().all(|field| fields_of(number).any(|other| other == *field));
        (0..DOCUMENTS).rev().filter(|number| matches(*number)).map(|number| places[number]).collect()
    };
    // It takes few steps, whichever comes first.
    for fields in [
        &["all", "rare"][..],
        &["rare", "all"],
        &["all", "even", "rare"],
        &["all", "even", "all", "even", "all", "even", "all", "rare"],
    ] {
        assert_eq!(listed(&store, fields, 10).await, (matching(fields), 1), "{fields:?}");
    }
    assert_eq!(listed(&store, &["all", "none"], 10).await, (Vec::new(), 1));
    assert_eq!(listed(&store, &["none", "all"], 10).await, (Vec::new(), 1));
    // Each page decides a part where the filters never agree.
    let steps = SEARCH_STEPS_MAX as usize;
    for fields in [&["even", "odd"][..], &["even", "odd", "all"]] {
        let (found, calls) = listed(&store, fields, 10).await;
        assert!(found.is_empty());
        assert!((2..=4 * DOCUMENTS / steps).contains(&calls), "{calls} for {fields:?}");
    }
    // An interval is searched alone, however many documents lie outside of it.
    let [from, before] = [7, 8].map(|time_ms| Some(MessageId::lowest_at(NOON_MS + time_ms)));
    let within = async |fields: &[&str]| {
        let asked = DocumentPage { from, ..page(fields, before, 2_000) };
        let found = store.documents(asked).await.expect("ends by itself");
        assert_eq!(found.stopped_at, None, "{fields:?}");
        found.documents.into_iter().map(|document| document.place).collect::<Vec<_>>()
    };
    assert!(within(&["even", "odd"]).await.is_empty() && within(&["rare"]).await.is_empty());
    let newest_first: Vec<Uuid> = places[7_000..8_000].iter().rev().copied().collect();
    assert!(within(&["all"]).await == newest_first && within(&[]).await == newest_first);
    // The pages are full, but for the last one.
    for fields in [&["all"][..], &["even", "third"], &["third", "all", "odd"]] {
        let (found, _) = listed(&store, fields, 5_000).await;
        assert!(found == matching(fields), "{} of {fields:?}", found.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_many_filters_ends_and_finds_all_on_postgres() {
    testkit::isolated("search", async |isolated| {
        let url = isolated.database_url;
        let (store, places) = (postgres(&postgres_config(&url)).await, places());
        fill_postgres(&url, &places).await;
        the_search_ends_and_finds_all(store, places).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_many_filters_ends_and_finds_all_on_sqlite() {
    let directory = Directory::new("search");
    let (store, places) = (directory.store().await, places());
    fill_sqlite(&directory, &places).await;
    the_search_ends_and_finds_all(store, places).await;
}

/// Reads by key and writes beside lists, each within a bound; `lists` is not empty until they are done.
async fn others_go_on(store: &Arc<dyn Store>, lists: &mut tokio::task::JoinSet<()>) {
    let mut messages = Messages::new();
    for round in 0..20 {
        let begun = Instant::now();
        store.counter("a").await.expect("is read");
        store.document("c", ItemKey::keyed(Kind::Document, 5)).await.expect("is read");
        apply(store, &[messages.increments(&[("a", 1)])]).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "round {round}: {:?}", begun.elapsed());
    }
    assert!(lists.try_join_next().is_none_or(|list| list.is_ok()), "no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_wait_leave_connections_to_the_rest_on_postgres() {
    testkit::isolated("share", async |isolated| {
        let url = isolated.database_url;
        let config = config::StoreSettings {
            connections_max: 4,
            list_connections_max: 3,
            read_timeout_ms: 20_000,
            ..postgres_config(&url)
        };
        let store = postgres(&config).await;
        let mut holder = PgConnection::connect(&url).await.expect("connects");
        holder.execute("begin; lock table document_fields, metric_types, dead_letters in access exclusive mode").await.expect("is locked");
        let mut lists = tokio::task::JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(&store);
            lists.spawn(async move {
                let outcome = if number < 16 {
                    store.documents(page(&["a", "b"], None, 10)).await.map(drop)
                } else {
                    let names = NamePage { prefix: String::new(), after: None, limit: 10 };
                    store.metric_types(names).await.map(drop)
                };
                assert!(matches!(outcome, Ok(()) | Err(StoreError::Busy(_))), "{outcome:?}");
            });
        }
        let mut watcher = PgConnection::connect(&url).await.expect("connects");
        let waiting = "select count(*) from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.expect("is read") < 3 {
            tokio::task::yield_now().await;
        }
        let mut messages = Messages::new();
        for _ in 0..20 {
            let read = timeout(Duration::from_secs(2), store.counter("a")).await;
            read.expect("a place").expect("is read");
            let written = timeout(Duration::from_secs(2), store.apply([messages.increments(&[("a", 1)])].into()));
            written.await.expect("a place").expect("is applied");
        }
        // Lists beyond the share got their answer while others still wait.
        let refused = sqlx::query_scalar::<_, i64>(AssertSqlSafe(waiting.to_owned())).fetch_one(&mut watcher);
        assert_eq!(refused.await.expect("is read"), 3);
        holder.execute("rollback").await.expect("is released");
        while let Some(list) = lists.join_next().await {
            list.expect("no panic");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_lists_leave_readers_to_the_rest_on_sqlite() {
    let directory = Directory::new("share");
    let store = directory.store().await;
    fill_sqlite(&directory, &places()).await;
    let mut lists = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let store = Arc::clone(&store);
        lists.spawn(async move {
            match store.documents(page(&["even", "odd"], None, 10)).await {
                Ok(found) => assert!(found.stopped_at.is_some()),
                Err(error) => assert!(matches!(error, StoreError::Busy(_)), "{error}"),
            }
        });
    }
    others_go_on(&store, &mut lists).await;
    while let Some(list) = lists.join_next().await {
        list.expect("no panic");
    }
}

/// The names before the prefix are many, and are not read.
#[tokio::test]
async fn a_page_of_names_begins_at_its_prefix_on_sqlite() {
    let directory = Directory::new("names");
    directory.store().await.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(directory.0.join("store.db"));
    let mut file = options.connect().await.expect("opens");
    let insert = "with recursive n (n) as (select 1 union all select n + 1 from n where n < 100000) \
        insert into counters (name, value, version, updated_at_ms) select 'a' || n, 1, 1, 0 from n";
    file.execute(insert).await.expect("is filled");
    // There is no time at all: only the work between two checks of the clock is allowed.
    let impatient = config::StoreSettings { read_timeout_ms: 0, ..config::StoreSettings::default() };
    let store = shared::store::sqlite::SqliteStore::open(&directory.0, &impatient).await.expect("opens");
    for (prefix, after) in [("z", None), ("z", Some("a1")), ("a99999", Some("a5"))] {
        let page = NamePage { prefix: prefix.into(), after: after.map(Into::into), limit: 10 };
        let found = store.counters(page).await.expect("is read at once");
        assert_eq!(found.len(), usize::from(prefix == "a99999"));
    }
}
