//! A check of the two forms in which points are kept: as rows and in rollups, which answer reads.
//! Count and sum must agree.
use std::collections::BTreeMap;

use testkit::inspect::Points;

use crate::holdings::States;
use crate::kind::Kind;
use crate::ledger::SumAndCount;

/// Findings about the rows; `states` are the answers of the rollups.
pub fn check(states: &States, rows: &Points) -> Vec<String> {
    let mut found: BTreeMap<&str, SumAndCount> = BTreeMap::new();
    for (name, count, sum) in rows {
        let state = found.entry(name).or_default();
        #[expect(clippy::cast_possible_truncation, reason = "sums of small whole numbers")]
        let sum = *sum as i64;
        *state = (state.0 + sum, state.1 + count);
    }
    let reported = states.iter().filter(|((kind, _), state)| *kind == Kind::Point && state.1 > 0);
    let reported: BTreeMap<&str, SumAndCount> =
        reported.map(|((_, name), state)| (name.as_str(), *state)).collect();
    let names = reported.keys().chain(found.keys().filter(|name| !reported.contains_key(*name)));
    let differs = |name: &&&str| reported.get(**name) != found.get(**name);
    let finding = |name: &&str| {
        format!("WRONG: type {name} is {:?} in rollups and {:?} in rows", reported.get(name), found.get(name))
    };
    names.filter(differs).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_more_fewer_or_others_are_found() {
        let states = States::from([
            ((Kind::Point, "a".to_owned()), (7, 2)),
            ((Kind::Point, "none".to_owned()), (0, 0)),
            ((Kind::Counter, "c".to_owned()), (1, 1)),
        ]);
        let row = |name: &str, count, sum| (name.to_owned(), count, sum);
        assert_eq!(check(&states, &vec![row("a", 1, 3.0), row("a", 1, 4.0)]), Vec::<String>::new());
        for rows in [vec![], vec![row("a", 2, 8.0)], vec![row("a", 2, 7.0), row("b", 1, 1.0)]] {
            assert_eq!(check(&states, &rows).len(), 1, "{rows:?}");
        }
    }
}
