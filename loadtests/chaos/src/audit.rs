//! The comparison of the ledger with what the service says, through the same HTTP as everyone.
//!
//! [`check`] is pure. A target that one request used alone decides that request exactly; on
//! shared ones the sum and the count must be what the accepted requests and *some* whole set of
//! the unknown ones make.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::kind::{self, Kind, State, States};
use crate::ledger::{Entry, Outcome};
use crate::traffic;

/// How long accepted writes may take to be applied after the last fault, and to settle then.
const DRAIN_PATIENCE: Duration = Duration::from_mins(2);
/// Nothing changed for so long: what is unknown will not come any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
const RECEIPTS_AT_ONCE: usize = 16;
/// Receipts that are asked for; of more an even selection. What targets hold is compared for all.
const RECEIPTS_MAX: usize = 50_000;
/// Findings of one kind are told up to here; one bug makes thousands.
const TOLD_MAX: usize = 20;
/// Beyond so many possible sums only their bounds are checked.
const POSSIBLE_MAX: usize = 500_000;

#[derive(Debug, Default)]
pub struct Audit {
    pub findings: Vec<String>,
    pub receipts_checked: usize,
}

/// Waits until everything accepted is applied and nothing moves any more, then compares.
pub async fn audit(entries: &[Entry], apis: &[SocketAddr]) -> anyhow::Result<Audit> {
    let client = traffic::client()?;
    let (mut findings, receipts_checked) = check_receipts(&client, entries, apis).await?;
    let address = *apis.first().context("an API")?;
    let targets: BTreeSet<_> =
        entries.iter().map(|entry| (entry.write.kind, entry.write.target.as_str())).collect();
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let (mut states, mut since) = (kind::read(&client, address, &targets).await?, Instant::now());
    while since.elapsed() < SETTLED_AFTER {
        ensure!(Instant::now() < deadline, "targets still change {DRAIN_PATIENCE:?} after the load");
        tokio::time::sleep(PAUSE).await;
        let now = kind::read(&client, address, &targets).await?;
        if now != states {
            (states, since) = (now, Instant::now());
        }
    }
    findings.extend(check(entries, &states));
    Ok(Audit { findings, receipts_checked })
}

#[derive(Deserialize)]
struct Receipt {
    status: String,
}

/// Every id of a 202 must be `applied` in the end, and no two requests may have the same.
async fn check_receipts(
    client: &Client,
    entries: &[Entry],
    apis: &[SocketAddr],
) -> anyhow::Result<(Vec<String>, usize)> {
    let mut findings = Vec::new();
    let (mut seen, mut given) = (HashSet::new(), Vec::new());
    for entry in entries {
        let Outcome::Accepted(ids) = &entry.outcome else { continue };
        for id in ids {
            if !seen.insert(id) {
                findings
                    .push(format!("id {id} was given twice, the second time to request {}", entry.request));
            }
            given.push((entry.request, id));
        }
    }
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let permits = Arc::new(Semaphore::new(RECEIPTS_AT_ONCE));
    let (mut checks, mut checked) = (JoinSet::new(), 0);
    for (request, id) in given.iter().step_by(given.len().div_ceil(RECEIPTS_MAX).max(1)) {
        checked += 1;
        let (client, request, id) = (client.clone(), *request, (*id).clone());
        let (permit, api) = (permits.clone().acquire_owned().await?, apis[checked % apis.len()]);
        checks.spawn(async move {
            let status = await_applied(&client, api, &id, deadline).await;
            drop(permit);
            (status != "applied").then(|| format!("LOST: request {request}, receipt {id}: {status}"))
        });
    }
    while let Some(check) = checks.join_next().await {
        findings.extend(check.context("a check panicked")?);
    }
    Ok((shortened(findings), checked))
}

/// The last status of a receipt: `applied`, or what it was at the deadline or for good.
async fn await_applied(client: &Client, api: SocketAddr, id: &str, deadline: Instant) -> String {
    loop {
        let status = receipt_status(client, api, id).await;
        let is_final = ["applied", "failed", "conflict"].contains(&status.as_str());
        if is_final || Instant::now() > deadline {
            return status;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a receipt says, or what came instead of one.
pub async fn receipt_status(client: &Client, api: SocketAddr, id: &str) -> String {
    match client.get(format!("http://{api}/v1/receipts/{id}")).send().await {
        Ok(answer) if answer.status().is_success() => match answer.json::<Receipt>().await {
            Ok(receipt) => receipt.status,
            Err(error) => error.to_string(),
        },
        Ok(answer) => answer.status().to_string(),
        Err(error) => error.to_string(),
    }
}

/// Compares the ledger with what the targets hold. No finding: every accepted request took effect
/// exactly once, every unknown one once or not at all, and as a whole.
pub fn check(entries: &[Entry], states: &States) -> Vec<String> {
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

fn check_target(name: &str, entries: &[&Entry], found: State) -> Option<String> {
    let (mut certain, mut unknown) = ((0, 0), Vec::new());
    for entry in entries {
        let state = (entry.write.sum(), i64::try_from(entry.write.items.len()).ok()?);
        match entry.outcome {
            Outcome::Accepted(_) => certain = (certain.0 + state.0, certain.1 + state.1),
            Outcome::Unknown => unknown.push(state),
            Outcome::NotSent => {}
        }
    }
    if possible(certain, &unknown, found) {
        return None;
    }
    let all: i64 = unknown.iter().map(|(_, items)| items).sum();
    let verdict = if found.1 < certain.1 {
        "LOST"
    } else if found.1 > certain.1 + all {
        "DOUBLED"
    } else {
        "WRONG"
    };
    let requests: Vec<_> = entries.iter().map(|entry| entry.request).collect();
    let told = &requests[..requests.len().min(TOLD_MAX)];
    Some(format!(
        "{verdict}: {name} holds the sum {} of {} items; accepted make {} and {}, {} unknown requests up to {all} \
         items more; {} requests, the first {told:?}",
        found.0,
        found.1,
        certain.0,
        certain.1,
        unknown.len(),
        requests.len()
    ))
}

/// Whether `found` is `certain` plus some subset of `unknown`.
fn possible(certain: State, unknown: &[State], found: State) -> bool {
    let mut states = HashSet::from([certain]);
    for more in unknown {
        let grown: Vec<_> = states.iter().map(|state| (state.0 + more.0, state.1 + more.1)).collect();
        states.extend(grown);
        if states.len() > POSSIBLE_MAX {
            let all: i64 = unknown.iter().map(|(_, items)| items).sum();
            return (certain.1..=certain.1 + all).contains(&found.1);
        }
    }
    states.contains(&found)
}

fn shortened(mut findings: Vec<String>) -> Vec<String> {
    if findings.len() > TOLD_MAX {
        let more = findings.len() - TOLD_MAX;
        findings.truncate(TOLD_MAX);
        findings.push(format!("and {more} more like these"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Write;

    fn entry(request: usize, counter: &str, items: &[i64], outcome: Outcome) -> Entry {
        let write = Write { kind: Kind::Counter, target: counter.into(), items: items.to_vec(), key: None };
        Entry { request, write, outcome }
    }

    fn accepted(request: usize, items: &[i64]) -> Entry {
        entry(request, "c", items, Outcome::Accepted(vec![]))
    }

    fn findings(entries: &[Entry], state: State) -> Vec<String> {
        check(entries, &States::from([((Kind::Counter, "c".to_owned()), state)]))
    }

    #[test]
    fn a_lost_a_doubled_a_halved_and_a_wrong_request_are_found() {
        let entries = [accepted(0, &[2, 3]), accepted(1, &[7])];
        assert_eq!(findings(&entries, (12, 3)), Vec::<String>::new());
        for (state, word) in [((5, 2), "LOST"), ((19, 4), "DOUBLED"), ((10, 2), "LOST"), ((13, 3), "WRONG")] {
            let found = findings(&entries, state);
            assert!(found.len() == 1 && found[0].starts_with(word), "{state:?}: {found:?}");
        }
        assert!(check(&entries, &States::new())[0].starts_with("LOST"), "a counter that is not there");
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
        assert_eq!(check(&entries, &States::new()), Vec::<String>::new());
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
        let found = check(&[accepted(0, &[7])], &states);
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
        let found = check(&entries, &States::new());
        assert_eq!(found.len(), TOLD_MAX + 1);
        assert_eq!(found[TOLD_MAX], "and 80 more like these");
    }
}
