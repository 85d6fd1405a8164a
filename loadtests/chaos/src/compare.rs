//! The comparison of the ledger with what the targets hold. Pure.
//!
//! A target that one request used alone decides that request exactly; on shared ones the sum and
//! the count must follow from the accepted requests and *some* whole set of the unknown ones.
//! Documents are compared one by one, too, and the answers to requests that waited must agree.
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::holdings::{Holdings, States};
use crate::kind::Kind;
use crate::ledger::{Entry, Outcome, SumAndCount};

/// Findings of one kind that are reported; one bug makes thousands.
const REPORTED_MAX: usize = 20;
/// Number of possible sums above which only their bounds are checked.
const POSSIBLE_MAX: usize = 500_000;

/// All findings about the content of the targets at one API.
pub fn check(entries: &[Entry], holdings: &Holdings) -> Vec<String> {
    let mut findings = check_states(entries, &holdings.states);
    findings.extend(shortened(check_documents(entries, &holdings.documents)));
    findings.extend(shortened(check_standings(entries, &holdings.states)));
    findings.extend(shortened(holdings.contradictions.clone()));
    findings
}

/// Compares the ledger with what the targets hold. No finding: every accepted request took effect
/// exactly once, every unknown one once or not at all, and as a whole.
pub fn check_states(entries: &[Entry], states: &States) -> Vec<String> {
    let mut by_target: BTreeMap<(Kind, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_target.entry((entry.write.kind, &entry.write.target)).or_default().push(entry);
    }
    let unasked = states.keys().filter(|(kind, name)| !by_target.contains_key(&(*kind, name.as_str())));
    let mut findings: Vec<_> = unasked.map(|(_, name)| format!("{name}: nobody wrote to it")).collect();
    for ((kind, name), entries) in by_target {
        let found = states.get(&(kind, name.to_owned())).copied().unwrap_or((0, 0));
        findings.extend(check_target(name, &entries, found));
    }
    shortened(findings)
}

fn check_target(name: &str, entries: &[&Entry], found: SumAndCount) -> Option<String> {
    let (mut certain, mut unknown) = ((0, 0), Vec::new());
    for entry in entries {
        let effect = entry.write.effect();
        match entry.outcome {
            Outcome::Accepted(_) | Outcome::Applied(_) => {
                certain = (certain.0 + effect.0, certain.1 + effect.1);
            }
            Outcome::Unknown => unknown.push(effect),
            Outcome::NotSent => {}
        }
    }
    if possible(certain, &unknown, found) {
        return None;
    }
    let (least, most) = bounds(certain, &unknown);
    let verdict = if found.1 < least {
        "LOST"
    } else if found.1 > most {
        "DOUBLED"
    } else {
        "WRONG"
    };
    let requests: Vec<_> = entries.iter().map(|entry| entry.request).collect();
    let reported = &requests[..requests.len().min(REPORTED_MAX)];
    Some(format!(
        "{verdict}: {name} holds the sum {} of {} items; accepted make {} and {}, with {} unknown requests {least} \
         to {most} items; {} requests, the first {reported:?}",
        found.0,
        found.1,
        certain.0,
        certain.1,
        unknown.len(),
        requests.len()
    ))
}

/// Fewest and most items that may be there: unknown deletions take away.
fn bounds(certain: SumAndCount, unknown: &[SumAndCount]) -> (i64, i64) {
    let less: i64 = unknown.iter().map(|effect| effect.1.min(0)).sum();
    let more: i64 = unknown.iter().map(|effect| effect.1.max(0)).sum();
    (certain.1 + less, certain.1 + more)
}

/// Checks that `found` is `certain` plus some subset of `unknown`.
fn possible(certain: SumAndCount, unknown: &[SumAndCount], found: SumAndCount) -> bool {
    let mut states = HashSet::from([certain]);
    for more in unknown {
        let grown: Vec<_> = states.iter().map(|state| (state.0 + more.0, state.1 + more.1)).collect();
        states.extend(grown);
        if states.len() > POSSIBLE_MAX {
            let (least, most) = bounds(certain, unknown);
            return (least..=most).contains(&found.1);
        }
    }
    states.contains(&found)
}

/// Checks each document: it must be there with its number, deleted, or refused, as it was acknowledged.
fn check_documents(entries: &[Entry], documents: &BTreeMap<String, BTreeMap<String, i64>>) -> Vec<String> {
    let is_document = |entry: &&Entry| entry.write.kind == Kind::Document;
    let of_documents: Vec<&Entry> = entries.iter().filter(is_document).collect();
    let deletions: HashMap<&str, &Entry> =
        of_documents.iter().filter_map(|entry| Some((entry.write.deletes.as_deref()?, *entry))).collect();
    let (mut findings, mut known, mut has_unknown) = (Vec::new(), HashSet::new(), HashSet::new());
    for entry in of_documents.iter().filter(|entry| entry.write.deletes.is_none()) {
        let (target, request) = (entry.write.target.as_str(), entry.request);
        if !entry.outcome.is_taken() {
            has_unknown.insert(target);
        }
        for (index, id) in entry.outcome.ids().iter().enumerate() {
            known.insert(id.as_str());
            let found = documents.get(target).and_then(|held| held.get(id)).copied();
            let number = entry.write.items[index];
            let is_deleted = deletions.get(id.as_str()).map(|entry| &entry.outcome);
            let wrong = match (is_deleted, found) {
                _ if !entry.write.takes_effect(index) => found.map(|_| "WRONG: there, and must be set aside"),
                (Some(outcome), Some(_)) if outcome.is_taken() => {
                    Some("LOST: there, though its deletion was accepted")
                }
                (None | Some(Outcome::NotSent), None) => Some("LOST: not there"),
                (_, Some(found)) if found != number => Some("WRONG: there with another number"),
                _ => None,
            };
            findings.extend(
                wrong.map(|wrong| format!("{wrong}: document {id} of request {request} in {target}")),
            );
        }
    }
    let foreign =
        |target: &String, id: &String| !known.contains(id.as_str()) && !has_unknown.contains(target.as_str());
    let held = documents.iter().flat_map(|(target, held)| held.keys().map(move |id| (target, id)));
    let foreign = held.filter(|(target, id)| foreign(target, id));
    findings.extend(foreign.map(|(target, id)| format!("DOUBLED: nobody wrote document {id} in {target}")));
    findings
}

/// Checks the counters in answers to requests that waited: each increment has its own version, and
/// the values fit together.
fn check_standings(entries: &[Entry], states: &States) -> Vec<String> {
    let mut reported: BTreeMap<&str, BTreeMap<i64, (&Entry, i64)>> = BTreeMap::new();
    let mut findings = Vec::new();
    for entry in entries {
        let Outcome::Applied(applied) = &entry.outcome else { continue };
        let Some((value, version)) = applied.standing else { continue };
        let versions = reported.entry(&entry.write.target).or_default();
        if let Some((other, _)) = versions.insert(version, (entry, value)) {
            let (one, other) = (entry.request, other.request);
            findings.push(format!("WRONG: requests {one} and {other} both got version {version}"));
        }
    }
    for (name, versions) in reported {
        let last = states.get(&(Kind::Counter, name.to_owned())).copied().unwrap_or_default();
        // The known sums: before the first increment, after the last one, and after the reported ones.
        let mut known: BTreeMap<i64, i64> = BTreeMap::from([(0, 0), (last.1, last.0)]);
        known.extend(versions.iter().map(|(version, (_, value))| (*version, *value)));
        for (version, (entry, value)) in versions {
            let by = entry.write.effect().0;
            let before = known.get(&(version - 1)).copied();
            let fits = version <= last.1
                && before.is_none_or(|before| before + by == value)
                && (version != last.1 || value == last.0);
            if !fits {
                let request = entry.request;
                findings.push(format!(
                    "WRONG: request {request} was answered {name} is {value} at version {version} after {by:+}; \
                     before it was {before:?}, and in the end it is {} at {}",
                    last.0, last.1
                ));
            }
        }
    }
    findings
}

pub fn shortened(mut findings: Vec<String>) -> Vec<String> {
    if findings.len() > REPORTED_MAX {
        let more = findings.len() - REPORTED_MAX;
        findings.truncate(REPORTED_MAX);
        findings.push(format!("and {more} more like these"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Applied, Write};

    fn entry(request: usize, counter: &str, items: &[i64], outcome: Outcome) -> Entry {
        Entry { request, write: Write::new(Kind::Counter, counter, items.to_vec()), outcome }
    }

    fn accepted(request: usize, items: &[i64]) -> Entry {
        entry(request, "c", items, Outcome::Accepted(vec![]))
    }

    fn findings(entries: &[Entry], state: SumAndCount) -> Vec<String> {
        check_states(entries, &States::from([((Kind::Counter, "c".to_owned()), state)]))
    }

    #[test]
    fn a_lost_a_doubled_a_halved_and_a_wrong_request_are_found() {
        let entries = [accepted(0, &[2, 3]), accepted(1, &[7])];
        assert_eq!(findings(&entries, (12, 3)), Vec::<String>::new());
        for (state, word) in [((5, 2), "LOST"), ((19, 4), "DOUBLED"), ((10, 2), "LOST"), ((13, 3), "WRONG")] {
            let found = findings(&entries, state);
            assert!(found.len() == 1 && found[0].starts_with(word), "{state:?}: {found:?}");
        }
        assert!(check_states(&entries, &States::new())[0].starts_with("LOST"), "a counter that is not there");
    }

    #[test]
    fn an_unknown_request_took_effect_once_or_not_at_all_and_as_a_whole() {
        let entries = [accepted(0, &[1]), entry(1, "c", &[4, 5], Outcome::Unknown)];
        for fine in [(1, 1), (10, 3)] {
            assert_eq!(findings(&entries, fine), Vec::<String>::new());
        }
        for bad in [(5, 2), (19, 5), (0, 0), (10, 2)] {
            assert_eq!(findings(&entries, bad).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn a_request_that_never_left_must_not_take_effect() {
        let entries = [entry(0, "c", &[4], Outcome::NotSent)];
        assert_eq!(check_states(&entries, &States::new()), Vec::<String>::new());
        assert!(findings(&entries, (4, 1))[0].starts_with("DOUBLED"));
    }

    #[test]
    fn a_keyed_request_that_was_sent_often_took_effect_once() {
        let mut keyed = accepted(0, &[5]);
        keyed.write.key = Some("key".into());
        assert_eq!(findings(&[keyed.clone()], (5, 1)), Vec::<String>::new());
        assert!(findings(&[keyed.clone()], (10, 2))[0].starts_with("DOUBLED"));
        assert!(findings(&[keyed], (0, 0))[0].starts_with("LOST"));
    }

    #[test]
    fn the_same_name_of_another_kind_is_another_target() {
        let states = States::from([((Kind::Document, "c".to_owned()), (7, 1))]);
        let found = check_states(&[accepted(0, &[7])], &states);
        assert!(found.len() == 2 && found[1].starts_with("LOST"), "{found:?}");
    }

    #[test]
    fn a_counter_that_nobody_wrote_is_found() {
        assert_eq!(findings(&[], (1, 1)), ["c: nobody wrote to it"]);
    }

    #[test]
    fn many_findings_are_counted_and_not_all_told() {
        let entries: Vec<_> = (0..100)
            .map(|number| entry(number, &format!("c{number}"), &[1], Outcome::Accepted(vec![])))
            .collect();
        let found = check_states(&entries, &States::new());
        assert_eq!(found.len(), REPORTED_MAX + 1);
        assert_eq!(found[REPORTED_MAX], "and 80 more like these");
    }

    fn document(request: usize, ids: &[&str], numbers: &[i64], outcome: Option<Outcome>) -> Entry {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let write = Write::new(Kind::Document, "d", numbers.to_vec());
        Entry { request, write, outcome: outcome.unwrap_or(Outcome::Accepted(ids)) }
    }

    fn deletion(request: usize, id: &str, number: i64, outcome: Outcome) -> Entry {
        let mut entry = document(request, &["deletion"], &[number], Some(outcome));
        entry.write.deletes = Some(id.into());
        entry
    }

    fn held(documents: &[(&str, i64)]) -> BTreeMap<String, BTreeMap<String, i64>> {
        let held = documents.iter().map(|(id, number)| ((*id).to_owned(), *number)).collect();
        BTreeMap::from([("d".to_owned(), held)])
    }

    #[test]
    fn each_document_is_there_deleted_or_set_aside_as_it_was_acknowledged() {
        let taken = || Outcome::Accepted(vec!["own".into()]);
        let refused = crate::refused::NUMBER;
        let entries = [document(0, &["a", "b", "r"], &[1, 2, refused], None), deletion(1, "b", 2, taken())];
        assert_eq!(check_documents(&entries, &held(&[("a", 1)])), Vec::<String>::new());
        for (documents, word) in [
            (&[][..], "LOST: not there"),
            (&[("a", 2)], "WRONG: there with another number"),
            (&[("a", 1), ("b", 2)], "LOST: there, though"),
            (&[("a", 1), ("r", refused)], "WRONG: there, and must"),
            (&[("a", 1), ("x", 1)], "DOUBLED: nobody wrote"),
        ] {
            let found = check_documents(&entries, &held(documents));
            assert!(found.len() == 1 && found[0].starts_with(word), "{documents:?}: {found:?}");
        }
    }

    #[test]
    fn an_unknown_deletion_may_have_happened_and_an_unknown_insert_may_be_there() {
        let entries = [document(0, &["a"], &[1], None), deletion(1, "a", 1, Outcome::Unknown)];
        for documents in [&[][..], &[("a", 1)]] {
            assert_eq!(check_documents(&entries, &held(documents)), Vec::<String>::new());
            let state = documents.iter().fold((0, 0), |(sum, count), (_, number)| (sum + number, count + 1));
            let states = States::from([((Kind::Document, "d".to_owned()), state)]);
            assert_eq!(check_states(&entries, &states), Vec::<String>::new());
        }
        let entries = [document(0, &[], &[1], Some(Outcome::Unknown))];
        assert_eq!(check_documents(&entries, &held(&[("x", 1)])), Vec::<String>::new());
    }

    fn waited(request: usize, by: i64, standing: SumAndCount) -> Entry {
        let reported = Applied { id: None, standing: Some(standing) };
        entry(request, "c", &[by], Outcome::Applied(reported))
    }

    #[test]
    fn what_was_told_to_those_who_waited_must_fit_together_and_with_the_end() {
        let end = States::from([((Kind::Counter, "c".to_owned()), (10, 3))]);
        let fine = [waited(0, 2, (2, 1)), accepted(1, &[5]), waited(2, 3, (10, 3))];
        assert_eq!(check_standings(&fine, &end), Vec::<String>::new());
        for wrong in [
            [waited(0, 2, (3, 1)), accepted(1, &[5]), waited(2, 3, (10, 3))],
            [waited(0, 2, (2, 1)), waited(1, 5, (8, 2)), accepted(2, &[3])],
            [waited(0, 2, (2, 1)), accepted(1, &[5]), waited(2, 3, (11, 3))],
            [waited(0, 2, (2, 1)), accepted(1, &[5]), waited(2, 3, (10, 4))],
            [waited(0, 2, (2, 1)), waited(1, 2, (2, 1)), accepted(2, &[5])],
        ] {
            assert!(!check_standings(&wrong, &end).is_empty(), "{wrong:?}");
        }
    }
}
