//! Rollups as heavy as they can get, which clients make with a few thousand points, on both stores:
//! merged in parts, read in pages, and those of earlier builds, which were heavier.
use std::collections::BTreeMap;
use std::sync::Arc;

use shared::model::rollup::bytes::BYTES_MAX;
use shared::model::rollup::{Resolution, Rollup};
use shared::store::rules::points::{PAGE_BYTES_MAX, PART_BYTES_MAX};
use shared::store::{RollupRange, Store};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, SqliteConnection};
use tokio::sync::Barrier;

use super::sent::point;
use super::{Directory, Messages, NOON_MS, apply, postgres, postgres_config};

const HOUR_MS: i64 = 3_600_000;

/// Number of types in a batch; each has a rollup of a minute, an hour and a day.
const TYPES: usize = 200;

/// Bytes of memory that two batches at once may need in addition: parts as they are read, as they
/// are written, and as the server's messages.
const MEMORY_MAX: usize = 32 << 20;

/// The rows behind a store.
enum Rows {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Rows {
    /// Replaces the content of all rollups.
    async fn replace(&mut self, data: &[u8]) {
        match self {
            Self::Sqlite(file) => {
                let query = sqlx::query("update rollups set data = ?1").bind(data);
                query.execute(file).await.expect("is executed");
            }
            Self::Postgres(session) => {
                let query = sqlx::query("update rollups set data = $1").bind(data);
                query.execute(session).await.expect("is executed");
            }
        }
    }

    async fn longest(&mut self) -> usize {
        let longest: i64 = match self {
            Self::Sqlite(file) => {
                sqlx::query_scalar("select max(length(data)) from rollups").fetch_one(file).await
            }
            Self::Postgres(session) => {
                let longest = sqlx::query_scalar("select max(length(data))::int8 from rollups");
                longest.fetch_one(session).await
            }
        }
        .expect("is read");
        usize::try_from(longest).expect("a length")
    }
}

/// Makes a test for each store, with two handles and the rows behind.
macro_rules! on_both_with_rows {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    testkit::alone::alone(async {
                        let directory = super::Directory::new("heavy");
                        let (store, rows) = (directory.store().await, super::file(&directory).await);
                        super::$name([std::sync::Arc::clone(&store), store], rows).await;
                    })
                    .await;
                }
            )+
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let isolated = testkit::isolated("heavy", async |isolated| {
                        let config = super::postgres_config(&isolated.database_url);
                        let stores = [super::postgres(&config).await, super::postgres(&config).await];
                        super::$name(stores, super::session(&isolated.database_url).await).await;
                    });
                    testkit::alone::alone(isolated).await;
                }
            )+
        }
    };
}

on_both_with_rows!(
    a_batch_over_many_heavy_rollups_is_merged_in_parts,
    a_read_over_heavy_rollups_comes_in_pages,
    heavier_rollups_of_earlier_builds_are_read_and_shrink,
);

async fn file(directory: &Directory) -> Rows {
    let options = SqliteConnectOptions::new().filename(directory.0.join("store.db"));
    Rows::Sqlite(options.connect().await.expect("opens"))
}

async fn session(url: &str) -> Rows {
    Rows::Postgres(PgConnection::connect(url).await.expect("connects"))
}

/// Makes a rollup with a value in every bin, on both sides.
fn heavy() -> Rollup {
    let mut rollup = Rollup::default();
    for bin in 0..2_770 {
        let value = 1e-9 * (f64::from(bin) / 50.1 + 0.001).exp();
        rollup.add(value);
        rollup.add(-value);
    }
    rollup
}

async fn all(store: &Arc<dyn Store>, kind: &str, resolution: Resolution) -> Vec<Vec<(i32, Rollup)>> {
    let mut pages = Vec::new();
    let mut next = Some(i32::MIN);
    while let Some(from) = next {
        let range = RollupRange { kind: kind.into(), resolution, from, below: i32::MAX };
        let page = store.rollups(range).await.expect("is read");
        pages.push(page.rollups);
        next = page.next;
    }
    pages
}

async fn a_batch_over_many_heavy_rollups_is_merged_in_parts(stores: [Arc<dyn Store>; 2], mut rows: Rows) {
    let kinds: Vec<String> = (0..TYPES).map(|number| format!("t{number}")).collect();
    let items: Vec<_> = kinds.iter().map(|kind| point(kind, NOON_MS, 2.5)).collect();
    let mut messages = Messages::new();
    for store in &stores {
        apply(store, &[messages.of(&items)]).await;
    }
    let mut expected = heavy();
    let data = expected.encode();
    assert!(3 * TYPES * data.len() > 3 * PART_BYTES_MAX, "{}", data.len());
    rows.replace(&data).await;
    // This resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").expect("is written");
    let before = testkit::alone::memory("VmRSS");
    let barrier = Arc::new(Barrier::new(2));
    // Both run at once, in opposite orders: they lock in one order.
    let writers = stores.clone().map(|store| (store, Arc::clone(&barrier)));
    let mut tasks = Vec::new();
    for (side, (store, barrier)) in writers.into_iter().enumerate() {
        let mut items = items.clone();
        if side == 1 {
            items.reverse();
        }
        tasks.push(tokio::spawn(async move {
            let mut messages = Messages::new();
            barrier.wait().await;
            assert_eq!(apply(&store, &[messages.of(&items)]).await.fresh.len(), 1);
        }));
    }
    for task in tasks {
        task.await.expect("every batch is applied");
    }
    let grown = testkit::alone::memory("VmHWM").saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{} MiB more", grown >> 20);
    expected.add(2.5);
    expected.add(2.5);
    for kind in &kinds {
        for resolution in Resolution::ALL {
            let found = all(&stores[0], kind, resolution).await.concat();
            assert!(found.len() == 1 && found[0].1 == expected, "{kind} {resolution:?}");
        }
    }
}

async fn a_read_over_heavy_rollups_comes_in_pages([one, other]: [Arc<dyn Store>; 2], mut rows: Rows) {
    let heavy = heavy();
    let data = heavy.encode();
    let hours = i64::try_from(3 * PAGE_BYTES_MAX / data.len()).expect("small");
    let items: Vec<_> = (0..hours).map(|hour| point("t", NOON_MS - hour * HOUR_MS, 1.0)).collect();
    apply(&one, &[Messages::new().of(&items)]).await;
    rows.replace(&data).await;
    let pages = all(&other, "t", Resolution::Hour).await;
    assert!((3..=4).contains(&pages.len()), "{}", pages.len());
    for page in &pages {
        let bytes: usize = page.iter().map(|(_, rollup)| rollup.encode().len()).sum();
        assert!(bytes < PAGE_BYTES_MAX + BYTES_MAX, "{bytes}");
    }
    let first = Resolution::Hour.period_of(NOON_MS) - i32::try_from(hours).expect("small") + 1;
    let expected: BTreeMap<i32, Rollup> =
        (0..).map(|hour| first + hour).zip(vec![heavy; items.len()]).collect();
    assert!(pages.concat() == expected.into_iter().collect::<Vec<_>>());
}

async fn heavier_rollups_of_earlier_builds_are_read_and_shrink(
    [one, other]: [Arc<dyn Store>; 2],
    mut rows: Rows,
) {
    let items = [point("t", NOON_MS, 3.0)];
    let mut messages = Messages::new();
    apply(&one, &[messages.of(&items)]).await;
    // Bins 1 to 34,000, each with one value, as builds wrote them that kept every bin.
    let count = 34_000_u16;
    let mut data = vec![1, 0xD0, 0x89, 0x02, 2, 1];
    data.extend([1, 1].repeat(usize::from(count) - 1));
    data.extend([1e-9_f64, 1e285].into_iter().flat_map(f64::to_be_bytes));
    data.push(1);
    data.extend(1e285_f64.to_be_bytes());
    rows.replace(&data).await;
    let [page] = &all(&other, "t", Resolution::Day).await[..] else { panic!("one page") };
    let read = &page[0].1;
    assert_eq!((read.count(), read.max(), read.sum()), (u64::from(count), Some(1e285), 1e285));
    apply(&one, &[messages.of(&items)]).await;
    assert!(rows.longest().await < BYTES_MAX / 4, "{}", rows.longest().await);
    let [page] = &all(&other, "t", Resolution::Minute).await[..] else { panic!("one page") };
    let read = &page[0].1;
    assert_eq!((read.count(), read.max(), read.sum()), (u64::from(count) + 1, Some(1e285), 1e285));
}
