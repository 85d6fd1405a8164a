//! The comparison of the ledger with what the service says, through the same HTTP as everyone.
//!
//! [`check`] is pure. A counter that one request used alone decides that request exactly; on
//! shared counters the value and the version must be what the accepted requests and *some* whole
//! set of the unknown ones make.
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::ledger::{Entry, Outcome};
use crate::traffic;

/// How long accepted writes may take to be applied after the last kill.
const DRAIN_PATIENCE: Duration = Duration::from_mins(1);
/// Nothing changed for so long: what is unknown will not come any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
const RECEIPTS_AT_ONCE: usize = 16;
/// Findings of one kind are told up to here; one bug makes thousands.
const TOLD_MAX: usize = 20;
/// Beyond so many possible sums only their bounds are checked.
const POSSIBLE_MAX: usize = 500_000;

/// Value and version of a counter.
pub type State = (i64, i64);

#[derive(Debug, Default)]
pub struct Audit {
    pub findings: Vec<String>,
}

/// Waits until everything accepted is applied and nothing moves any more, then compares.
pub async fn audit(entries: &[Entry], apis: Vec<SocketAddr>) -> anyhow::Result<Audit> {
    let client = traffic::client()?;
    let mut findings = check_receipts(&client, entries, &apis).await?;
    let address = *apis.first().context("an API")?;
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let (mut counters, mut since) = (read_counters(&client, address).await?, Instant::now());
    while since.elapsed() < SETTLED_AFTER {
        ensure!(Instant::now() < deadline, "counters still change {DRAIN_PATIENCE:?} after the load");
        tokio::time::sleep(PAUSE).await;
        let now = read_counters(&client, address).await?;
        if now != counters {
            (counters, since) = (now, Instant::now());
        }
    }
    findings.extend(check(entries, &counters));
    Ok(Audit { findings })
}

#[derive(Deserialize)]
struct Receipt {
    status: String,
}

/// Every id of a 202 must be `applied` in the end.
async fn check_receipts(
    client: &Client,
    entries: &[Entry],
    apis: &[SocketAddr],
) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let permits = Arc::new(Semaphore::new(RECEIPTS_AT_ONCE));
    let (mut checks, mut findings, mut seen) = (JoinSet::new(), Vec::new(), HashSet::new());
    for entry in entries {
        let Outcome::Accepted(ids) = &entry.outcome else { continue };
        for id in ids {
            if !seen.insert(id) {
                findings
                    .push(format!("id {id} was given twice, the second time to request {}", entry.request));
            }
            let permit = permits.clone().acquire_owned().await?;
            let address = apis[seen.len() % apis.len()];
            let url = format!("http://{address}/v1/receipts/{id}");
            let (client, request) = (client.clone(), entry.request);
            checks.spawn(async move {
                let status = await_applied(&client, &url, deadline).await;
                drop(permit);
                (status != "applied").then(|| format!("LOST: request {request}, receipt {url}: {status}"))
            });
        }
    }
    while let Some(check) = checks.join_next().await {
        findings.extend(check.context("a check panicked")?);
    }
    Ok(shortened(findings))
}

/// The last status of a receipt: `applied`, or what it was at the deadline or for good.
async fn await_applied(client: &Client, url: &str, deadline: Instant) -> String {
    loop {
        let status = match client.get(url).send().await {
            Ok(answer) if answer.status().is_success() => match answer.json::<Receipt>().await {
                Ok(receipt) => receipt.status,
                Err(error) => error.to_string(),
            },
            Ok(answer) => answer.status().to_string(),
            Err(error) => error.to_string(),
        };
        let final_word = ["applied", "failed", "conflict"].contains(&status.as_str());
        if final_word || Instant::now() > deadline {
            return status;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Counter>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Counter {
    name: String,
    value: i64,
    version: i64,
}

async fn read_counters(client: &Client, address: SocketAddr) -> anyhow::Result<BTreeMap<String, State>> {
    let (mut counters, mut after) = (BTreeMap::new(), String::new());
    loop {
        let url = format!("http://{address}/v1/counters?limit=1000{after}");
        let answer = client.get(url).send().await?.error_for_status()?;
        let page: Page = answer.json().await.context("the list of counters")?;
        counters
            .extend(page.items.into_iter().map(|counter| (counter.name, (counter.value, counter.version))));
        let Some(next) = page.next else { return Ok(counters) };
        after = format!("&after={next}");
    }
}

/// Compares the ledger with the counters. No finding: every accepted request took effect exactly
/// once, every unknown one once or not at all, and as a whole.
pub fn check(entries: &[Entry], counters: &BTreeMap<String, State>) -> Vec<String> {
    let mut by_counter: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_counter.entry(&entry.counter).or_default().push(entry);
    }
    let unasked = counters.keys().filter(|name| !by_counter.contains_key(name.as_str()));
    let mut findings: Vec<_> = unasked.map(|name| format!("{name}: nobody wrote to it")).collect();
    for (name, entries) in by_counter {
        let found = counters.get(name).copied().unwrap_or((0, 0));
        findings.extend(check_counter(name, &entries, found));
    }
    shortened(findings)
}

fn check_counter(name: &str, entries: &[&Entry], found: State) -> Option<String> {
    let (mut certain, mut unknown) = ((0, 0), Vec::new());
    for entry in entries {
        let state = (entry.sum(), i64::try_from(entry.items.len()).ok()?);
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
        "{verdict}: {name} has value {} and version {}; accepted make {} and {}, {} unknown requests up to {all} \
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

    fn entry(request: usize, counter: &str, items: &[i64], outcome: Outcome) -> Entry {
        Entry { request, counter: counter.into(), items: items.to_vec(), outcome }
    }

    fn accepted(request: usize, items: &[i64]) -> Entry {
        entry(request, "c", items, Outcome::Accepted(vec![]))
    }

    fn findings(entries: &[Entry], state: State) -> Vec<String> {
        check(entries, &BTreeMap::from([("c".to_owned(), state)]))
    }

    #[test]
    fn a_lost_a_doubled_and_a_halved_request_are_found() {
        let entries = [accepted(0, &[2, 3]), accepted(1, &[7])];
        assert_eq!(findings(&entries, (12, 3)), Vec::<String>::new());
        for (state, word) in [((5, 2), "LOST"), ((19, 4), "DOUBLED"), ((10, 2), "LOST"), ((13, 3), "WRONG")] {
            let found = findings(&entries, state);
            assert!(found.len() == 1 && found[0].starts_with(word), "{state:?}: {found:?}");
        }
        assert!(check(&entries, &BTreeMap::new())[0].starts_with("LOST"), "a counter that is not there");
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
        assert_eq!(check(&entries, &BTreeMap::new()), Vec::<String>::new());
        assert!(findings(&entries, (4, 1))[0].starts_with("DOUBLED"));
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
        let found = check(&entries, &BTreeMap::new());
        assert_eq!(found.len(), TOLD_MAX + 1);
        assert_eq!(found[TOLD_MAX], "and 80 more like these");
    }
}
