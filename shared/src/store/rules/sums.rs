//! Effects of a batch on counters, without a database: merged sums for the usual case, and item by item where
//! a value might leave its range.
//!
//! Both stores call this between reading and writing. [`fold_increments`] defines the result;
//! [`sum_increments`] gives the same in one addition per counter, and says when it does not.
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use super::plan::PlannedWrite;
use crate::model::outcome::{Counter, CounterResult, Reason, SetAside};
use crate::model::write::Increment;

/// The increments of a batch, in its order.
type Increments<'t, 'a> = &'t [PlannedWrite<'a, Increment>];

/// All increments of one counter in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterSum<'a> {
    pub name: &'a str,
    pub delta: i64,
    /// Number of increments.
    pub count: i64,
    /// Lowest and highest value of the running sum, from 0.
    lowest: i64,
    highest: i64,
}

/// A sum, or a running sum, left the range of `i64`: only the exact path can say what is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// Value and version of a counter; 0 and 0 before its first increment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterState {
    pub value: i64,
    pub version: i64,
}

/// Result of the exact path for a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded<'a> {
    /// Counters that changed, by name.
    pub counters: Vec<(&'a str, CounterState)>,
    /// Results of the awaited increments that were applied.
    pub standings: Vec<CounterResult>,
    pub set_aside: Vec<SetAside>,
}

impl CounterSum<'_> {
    /// Returns true when every value on the way to `value`, which includes this sum, was in range. A sum of
    /// +5 and −5 fits everywhere, but not its first half beside the limit.
    pub fn stayed_in_range(&self, value: i64) -> bool {
        let before = i128::from(value) - i128::from(self.delta);
        let reached = |extreme: i64| i64::try_from(before + i128::from(extreme)).is_ok();
        reached(self.lowest) && reached(self.highest)
    }
}

/// Merges the increments of a batch, sorted by name.
pub fn sum_increments<'a>(increments: Increments<'_, 'a>) -> Result<Vec<CounterSum<'a>>, Overflow> {
    let mut sums: HashMap<&str, CounterSum<'_>> = HashMap::new();
    for PlannedWrite { write: Increment { counter: name, by }, .. } in increments.iter().copied() {
        let sum = sums.entry(name).or_insert(CounterSum { name, delta: 0, count: 0, lowest: 0, highest: 0 });
        sum.delta = sum.delta.checked_add(*by).ok_or(Overflow)?;
        sum.count += 1;
        sum.lowest = sum.lowest.min(sum.delta);
        sum.highest = sum.highest.max(sum.delta);
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_unstable_by_key(|sum| sum.name);
    Ok(sums)
}

/// Applies a batch one increment after the other to `current` (absent: never incremented). An increment that
/// would overflow is set aside, and the next is applied.
pub fn fold_increments<'a>(
    current: &HashMap<String, CounterState, impl BuildHasher>,
    increments: Increments<'_, 'a>,
) -> Folded<'a> {
    let mut reached: HashMap<&str, CounterState> = HashMap::new();
    let (mut standings, mut set_aside) = (Vec::new(), Vec::new());
    for task in increments {
        let Increment { counter: name, by } = task.write;
        let before = || current.get(&**name).copied().unwrap_or_default();
        let standing = reached.entry(name).or_insert_with(before);
        if let Some(value) = standing.value.checked_add(*by) {
            *standing = CounterState { value, version: standing.version + 1 };
            if task.is_awaited() {
                let CounterState { value, version } = *standing;
                standings.push(CounterResult { item: task.item(), value, version });
            }
        } else {
            let detail = format!("{by} added to {} is out of range", standing.value);
            set_aside.push(task.set_aside(Reason::CounterOverflow, &detail));
        }
    }
    let changed = |(name, standing): &(&str, CounterState)| {
        current.get(*name).copied().unwrap_or_default().version != standing.version
    };
    let mut counters: Vec<_> = reached.into_iter().filter(changed).collect();
    counters.sort_unstable_by_key(|(name, _)| *name);
    Folded { counters, standings, set_aside }
}

/// Returns the results of awaited increments, from the counters after merged sums.
pub fn counter_results(
    merged: &[Counter],
    sums: &[CounterSum<'_>],
    increments: Increments<'_, '_>,
) -> Vec<CounterResult> {
    if !increments.iter().any(PlannedWrite::is_awaited) {
        return Vec::new();
    }
    let after: HashMap<&str, &Counter> = merged.iter().map(|counter| (&*counter.name, counter)).collect();
    let before = |sum: &CounterSum<'_>| {
        let after = after.get(sum.name)?;
        let standing = CounterState { value: after.value - sum.delta, version: after.version - sum.count };
        Some((sum.name.to_owned(), standing))
    };
    let before: HashMap<String, CounterState> = sums.iter().filter_map(before).collect();
    fold_increments(&before, increments).standings
}

/// The names that a batch touches, sorted, each once.
pub fn names<'a>(increments: Increments<'_, 'a>) -> Vec<&'a str> {
    let distinct: HashSet<&str> = increments.iter().map(|task| &*task.write.counter).collect();
    let mut names: Vec<_> = distinct.into_iter().collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::id::{IdIssuer, Kind};
    use crate::model::message::{Entry, Message};
    use crate::model::write::{Item, Write};
    use crate::store::rules::plan::{Earlier, Plan};

    fn tasks(batch: &[Message]) -> Vec<PlannedWrite<'_, Increment>> {
        Plan::of(&batch.iter().collect::<Vec<_>>(), &HashSet::new(), &Earlier::new()).increments
    }

    /// Messages with these increments, three to a message.
    fn messages(increments: &[(&str, i64)]) -> Vec<Message> {
        let mut ids = IdIssuer::new(1, 1);
        let entry = |(name, by): &(&str, i64)| {
            let write = Write::Increment(Increment { counter: (*name).into(), by: *by });
            Entry::Item(Item { write, keyed: None })
        };
        let message = |chunk: &[_]| Message {
            id: ids.next(1_763_600_000_000),
            digest: [0; 16],
            accepted_at_ms: 5,
            entries: chunk.iter().map(entry).collect(),
            awaited: (0..chunk.len()).collect(),
            first: 0,
        };
        increments.chunks(3).map(message).collect()
    }

    fn current(value: i64) -> HashMap<String, CounterState> {
        ["a", "b", "c"].map(|name| (name.to_owned(), CounterState { value, version: 7 })).into()
    }

    #[test]
    fn what_overflows_is_set_aside_and_the_next_is_applied() {
        let batch = messages(&[("a", 3), ("a", 1), ("a", -1), ("b", i64::MIN), ("a", 1)]);
        let current = HashMap::from([("a".to_owned(), CounterState { value: i64::MAX - 3, version: 9 })]);
        let folded = fold_increments(&current, &tasks(&batch));
        let expected = [
            ("a", CounterState { value: i64::MAX, version: 12 }),
            ("b", CounterState { value: i64::MIN, version: 1 }),
        ];
        assert_eq!(folded.counters, expected);
        let [aside] = &folded.set_aside[..] else { panic!("{:?}", folded.set_aside) };
        assert_eq!(aside.item, batch[0].id.item(Kind::Increment, 1));
        assert_eq!(aside.reason, Reason::CounterOverflow);
        assert_eq!(aside.detail, "1 added to 9223372036854775807 is out of range");
        assert_eq!(aside.json, r#"{"increment":{"counter":"a","by":1}}"#);
        assert_eq!(aside.accepted_at_ms, 5);
    }

    #[test]
    fn a_counter_whose_increments_all_overflow_has_not_changed() {
        let batch = messages(&[("a", 1)]);
        let folded = fold_increments(&current(i64::MAX), &tasks(&batch));
        assert!(folded.counters.is_empty());
        assert_eq!(folded.set_aside.len(), 1);
    }

    #[test]
    fn a_sum_that_fits_may_have_left_the_range_on_its_way() {
        let batch = messages(&[("a", 5), ("a", -5)]);
        let sums = sum_increments(&tasks(&batch)).expect("small");
        assert!(sums[0].stayed_in_range(i64::MAX - 5));
        assert!(!sums[0].stayed_in_range(i64::MAX - 4));
        assert!(sums[0].stayed_in_range(i64::MIN));
    }

    fn increment() -> impl Strategy<Value = (&'static str, i64)> {
        let edges = prop_oneof![Just(i64::MAX), Just(i64::MIN), Just(i64::MAX / 2), Just(i64::MIN / 2)];
        (prop_oneof![Just("a"), Just("b"), Just("c")], prop_oneof![3 => -9i64..9, 1 => edges])
    }

    fn start() -> impl Strategy<Value = i64> {
        let near = |edge: i64| (0i64..20).prop_map(move |step| edge.saturating_sub(edge.signum() * step));
        prop_oneof![Just(0), near(i64::MAX), near(i64::MIN)]
    }

    proptest! {
        #[test]
        fn the_exact_path_is_integer_arithmetic_that_skips_what_does_not_fit(
            increments in proptest::collection::vec(increment(), 0..30), start in start(),
        ) {
            let batch = messages(&increments);
            let folded = fold_increments(&current(start), &tasks(&batch));
            let mut model = HashMap::from([("a", 0), ("b", 0), ("c", 0)].map(|(n, v)| (n, (i128::from(start), v))));
            let mut skipped = 0;
            for (name, by) in &increments {
                let (value, applied) = model.get_mut(name).expect("modelled");
                let next = *value + i128::from(*by);
                if (i128::from(i64::MIN)..=i128::from(i64::MAX)).contains(&next) {
                    (*value, *applied) = (next, *applied + 1);
                } else {
                    skipped += 1;
                }
            }
            prop_assert_eq!(folded.set_aside.len(), skipped);
            model.retain(|_, (_, applied)| *applied > 0);
            prop_assert_eq!(folded.counters.len(), model.len());
            for (name, standing) in folded.counters {
                let (value, applied) = model[name];
                prop_assert_eq!((i128::from(standing.value), standing.version), (value, 7 + applied));
            }
        }

        #[test]
        fn the_fast_path_equals_the_exact_one_or_says_that_it_does_not(
            increments in proptest::collection::vec(increment(), 0..30), start in start(),
        ) {
            let batch = messages(&increments);
            let batch = tasks(&batch);
            let exact = fold_increments(&current(start), &batch);
            let fast = sum_increments(&batch).ok().and_then(|sums| {
                let applied = sums.iter().map(|sum| {
                    let value = start.checked_add(sum.delta).filter(|value| sum.stayed_in_range(*value))?;
                    Some((sum.name, CounterState { value, version: 7 + sum.count }))
                });
                applied.collect::<Option<Vec<_>>>()
            });
            match fast {
                Some(fast) => {
                    let merged: Vec<_> = fast.iter().map(|(name, to)| Counter {
                        name: (*name).into(), value: to.value, version: to.version, updated_at_ms: 0,
                    }).collect();
                    let sums = sum_increments(&batch).expect("did before");
                    prop_assert_eq!(counter_results(&merged, &sums, &batch), exact.standings);
                    prop_assert_eq!((fast, 0), (exact.counters, exact.set_aside.len()));
                }
                // A sum from 0 may overflow where the stored value would not have.
                None => prop_assert!(!exact.set_aside.is_empty() || sum_increments(&batch).is_err()),
            }
        }
    }
}
