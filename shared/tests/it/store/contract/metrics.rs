//! The contract of both stores on points and their rollups.
use std::collections::BTreeMap;
use std::sync::Arc;

use shared::model::message::Message;
use shared::model::rollup::Resolution;
use shared::model::write::{Item, POINT_AGE_MS_MAX, Write};
use shared::store::{NamePage, RollupRange, Store};
use tokio::sync::Barrier;

use crate::store::sent::point;
use crate::store::{Messages, NOON_MS, apply};

on_both!(
    points_come_to_rollups_of_minutes_hours_and_days,
    old_points_have_no_rollup_of_their_minute_and_older_ones_none_of_their_hour,
    points_that_come_again_add_nothing,
    points_at_two_stores_at_once_are_all_counted,
    types_are_told_in_pages,
    a_range_of_rollups_begins_at_its_first_and_ends_before_its_last,
);

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Count, sum, least and greatest by period.
type Figures = BTreeMap<i32, (u64, f64, Option<f64>, Option<f64>)>;

async fn figures(store: &Arc<dyn Store>, kind: &str, resolution: Resolution) -> Figures {
    range(store, kind, resolution, i32::MIN, i32::MAX).await
}

async fn range(store: &Arc<dyn Store>, kind: &str, resolution: Resolution, from: i32, below: i32) -> Figures {
    let range = RollupRange { kind: kind.into(), resolution, from, below };
    let rollups = store.rollups(range).await.expect("is read").rollups;
    assert!(rollups.is_sorted_by(|(one, _), (next, _)| one < next), "ascending");
    let figures = rollups
        .iter()
        .map(|(period, rollup)| (*period, (rollup.count(), rollup.sum(), rollup.min(), rollup.max())));
    figures.collect()
}

/// Computes the figures of one type, whose values are sums of quarters: exact in any order.
fn expected(items: &[Item], kind: &str, resolution: Resolution) -> Figures {
    let mut figures = Figures::new();
    for item in items {
        let Write::Point(point) = &item.write else { panic!("{item:?}") };
        if &*point.kind == kind {
            let entry = figures.entry(resolution.period_of(point.at_ms)).or_insert((0, 0.0, None, None));
            let (count, sum, least, greatest) = *entry;
            let least = least.map_or(point.value, |least: f64| least.min(point.value));
            let greatest = greatest.map_or(point.value, |greatest: f64| greatest.max(point.value));
            *entry = (count + 1, sum + point.value, Some(least), Some(greatest));
        }
    }
    figures
}

/// Makes points of three types over the two days before noon.
fn points(number: i64) -> Vec<Item> {
    let kinds = ["a", "b", "long.name:0"];
    let at = |index: i64| NOON_MS - (index * 7_919_123) % (2 * DAY_MS - HOUR_MS);
    let value = |index: i64| f64::from(i32::try_from((index * 37) % 1_001 - 500).expect("small")) / 4.0;
    (0..number)
        .map(|index| point(kinds[usize::try_from(index % 3).expect("small")], at(index), value(index)))
        .collect()
}

async fn points_come_to_rollups_of_minutes_hours_and_days([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = points(600);
    let sent: Vec<Message> = items.chunks(60).map(|chunk| messages.of(chunk)).collect();
    // The batches have one message or several, at both stores.
    for (index, batch) in [&sent[..1], &sent[1..4], &sent[4..9], &sent[9..]].into_iter().enumerate() {
        let applied = apply([&one, &other][index % 2], batch).await;
        assert!(applied.set_aside.is_empty());
        let mut types: Vec<&str> = applied.types.iter().map(|name| &**name).collect();
        types.sort_unstable();
        assert_eq!(types, ["a", "b", "long.name:0"]);
    }
    for resolution in Resolution::ALL {
        for kind in ["a", "b", "long.name:0"] {
            let stored = figures(&other, kind, resolution).await;
            assert_eq!(stored, expected(&items, kind, resolution), "{kind} {resolution:?}");
        }
        for stranger in ["A", "c", "a\0", ""] {
            assert_eq!(figures(&other, stranger, resolution).await, Figures::new());
        }
    }
    assert_eq!(figures(&other, "a", Resolution::Day).await.len(), 3);
}

async fn old_points_have_no_rollup_of_their_minute_and_older_ones_none_of_their_hour(
    [one, other]: [Arc<dyn Store>; 2],
) {
    let mut messages = Messages::new();
    // Resolutions follow from the time at which the points were accepted, 7 ms after noon.
    let items = [
        point("t", NOON_MS + 7 - 2 * DAY_MS, 1.0),
        point("t", NOON_MS + 6 - 2 * DAY_MS, 2.0),
        point("t", NOON_MS + 7 - 90 * DAY_MS, 4.0),
        point("t", NOON_MS + HOUR_MS, 8.0),
        // Older points have no rollup of their hour either.
        point("t", NOON_MS + 6 - 90 * DAY_MS, 16.0),
        point("t", NOON_MS - 20 * 365 * DAY_MS, 32.0),
        point("t", NOON_MS - POINT_AGE_MS_MAX, 64.0),
    ];
    let applied = apply(&one, &[messages.of(&items)]).await;
    assert!(applied.set_aside.is_empty());
    let minutes = figures(&other, "t", Resolution::Minute).await;
    assert_eq!(minutes, expected(&[items[0].clone(), items[3].clone()], "t", Resolution::Minute));
    let hours = figures(&other, "t", Resolution::Hour).await;
    assert_eq!(hours, expected(&items[..4], "t", Resolution::Hour));
    assert_eq!(figures(&other, "t", Resolution::Day).await, expected(&items, "t", Resolution::Day));
}

async fn points_that_come_again_add_nothing([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = points(30);
    let sent = [messages.of(&items[..10]), messages.of(&items[10..])];
    apply(&one, &sent[..1]).await;
    apply(&one, &sent).await;
    let again = apply(&other, &sent).await;
    assert!(again.types.is_empty() && again.fresh.is_empty());
    for resolution in Resolution::ALL {
        assert_eq!(figures(&one, "a", resolution).await, expected(&items, "a", resolution));
    }
    // Times and values at the edge of what a message can carry fail nothing.
    let mut far = messages.of(&[point("far", NOON_MS, 1e290), point("far", NOON_MS, -1e290)]);
    (far.accepted_at_ms, far.digest) = (i64::MAX, [1; 16]);
    let mut past = messages.of(&[point("far", NOON_MS, -0.0), point("far", NOON_MS, 5e-324)]);
    (past.accepted_at_ms, past.digest) = (i64::MIN, [2; 16]);
    assert!(apply(&one, &[far, past]).await.set_aside.is_empty());
    let days = figures(&other, "far", Resolution::Day).await;
    let far: Vec<_> = days.values().map(|(count, _, min, max)| (*count, *min, *max)).collect();
    assert_eq!(far, [(4, Some(-1e290), Some(1e290))]);
}

async fn points_at_two_stores_at_once_are_all_counted(stores: [Arc<dyn Store>; 2]) {
    const ROUNDS: i64 = 25;
    let round = |side: i64, round: i64| -> Vec<Item> {
        // Both sides create the types and periods, or change them, in opposite orders.
        let kind =
            |number: i64| if number % 5 == 0 { format!("new{round}-{number}") } else { format!("t{number}") };
        let at = |number: i64| NOON_MS - number * 61_000 - round * HOUR_MS;
        let mut items: Vec<Item> = (0..20)
            .map(|number| {
                point(&kind(number), at(number), 1.0 + 3.0 * f64::from(i8::try_from(side).expect("small")))
            })
            .collect();
        if side == 1 {
            items.reverse();
        }
        items
    };
    let barrier = Arc::new(Barrier::new(2));
    let writers = [0, 1].map(|side| {
        let (store, barrier) =
            (Arc::clone(&stores[usize::try_from(side).expect("small")]), Arc::clone(&barrier));
        let rounds: Vec<Vec<Item>> = (0..ROUNDS).map(|number| round(side, number)).collect();
        tokio::spawn(async move {
            let mut messages = Messages::new();
            for items in rounds {
                let batch: Vec<Message> = items.chunks(7).map(|chunk| messages.of(chunk)).collect();
                barrier.wait().await;
                assert_eq!(apply(&store, &batch).await.fresh.len(), batch.len());
            }
        })
    });
    for writer in writers {
        writer.await.expect("every batch is applied");
    }
    let all: Vec<Item> =
        (0..2).flat_map(|side| (0..ROUNDS).flat_map(move |number| round(side, number))).collect();
    let mut kinds: Vec<&str> = all
        .iter()
        .map(|item| match &item.write {
            Write::Point(point) => &*point.kind,
            _ => unreachable!("only points"),
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in &kinds {
        for resolution in Resolution::ALL {
            assert_eq!(
                figures(&stores[0], kind, resolution).await,
                expected(&all, kind, resolution),
                "{kind}"
            );
        }
    }
    let page = NamePage { prefix: String::new(), after: None, limit: 1_000 };
    let reported = stores[1].metric_types(page).await.expect("is read");
    assert_eq!(reported.iter().map(|name| &**name).collect::<Vec<_>>(), kinds);
}

async fn types_are_told_in_pages([one, other]: [Arc<dyn Store>; 2]) {
    let page = async |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let page = NamePage { prefix: prefix.into(), after: after.map(Into::into), limit };
        let names = other.metric_types(page).await.expect("is read");
        names.iter().map(ToString::to_string).collect()
    };
    assert_eq!(page("", None, 10).await, Vec::<String>::new());
    let mut names = ["a", "A", "a_b", "a-b", "aXb", "a.b", "a:b", "b", "0", "_"];
    apply(&one, &[Messages::new().of(&names.map(|name| point(name, NOON_MS, 1.0)))]).await;
    names.sort_unstable();
    assert_eq!(page("", None, 100).await, names);
    assert_eq!(page("a_", None, 100).await, ["a_b"]);
    assert_eq!(page("a", Some("a.b"), 2).await, ["a:b", "aXb"]);
    assert_eq!(page("%", None, 100).await, Vec::<String>::new());
    assert_eq!(page("\0", None, 100).await, Vec::<String>::new());
    assert_eq!(page("", None, 0).await, Vec::<String>::new());
}

async fn a_range_of_rollups_begins_at_its_first_and_ends_before_its_last([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let hours = [0, 1, 2, 5, 6].map(|hours| NOON_MS - 6 * HOUR_MS + hours * HOUR_MS);
    apply(&one, &[messages.of(&hours.map(|at_ms| point("t", at_ms, 1.0)))]).await;
    let hour = |index: usize| Resolution::Hour.period_of(hours[index]);
    let periods = async |from, below| -> Vec<i32> {
        range(&other, "t", Resolution::Hour, from, below).await.into_keys().collect()
    };
    assert_eq!(periods(hour(1), hour(3)).await, [hour(1), hour(2)]);
    assert_eq!(periods(hour(1), hour(3) + 1).await, [hour(1), hour(2), hour(3)]);
    assert_eq!(periods(hour(2) + 1, hour(3)).await, Vec::<i32>::new());
    assert_eq!(periods(hour(3), hour(1)).await, Vec::<i32>::new());
    assert_eq!(periods(hour(0), hour(4) + 1).await.len(), 5);
}
