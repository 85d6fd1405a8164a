//! The answers of the service after the run: receipts, and the content of every target, read at
//! every API through the public HTTP interface. [`compare`] judges them by the ledger.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::compare::{self, shortened};
use crate::dead;
use crate::holdings::{self, Questions, States};
use crate::ledger::Entry;
use crate::send;

/// Time within which accepted writes must be applied after the last fault, and again within which
/// the rest must settle.
const DRAIN_PATIENCE: Duration = Duration::from_mins(2);
/// Time without a change after which no unknown item is expected any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Time that a replica may be behind the store when an event was lost (`cache.ttl_ms`), and some more.
const COHERENT_WITHIN: Duration = Duration::from_secs(13);
const PAUSE: Duration = Duration::from_millis(100);
const RECEIPTS_AT_ONCE: usize = 16;
/// Receipts that are read; of a larger number an even selection. The content of targets is compared for all.
const RECEIPTS_MAX: usize = 50_000;

#[derive(Debug, Default)]
pub struct Audit {
    pub findings: Vec<String>,
    pub receipts_checked: usize,
    /// Content of the targets in the end.
    pub states: States,
}

/// Waits until everything accepted is applied and nothing moves any more, then compares.
pub async fn audit(entries: &[Entry], apis: &[SocketAddr]) -> anyhow::Result<Audit> {
    let client = send::client()?;
    let (mut findings, receipts_checked) = check_receipts(&client, entries, apis).await?;
    let asked = Questions::of(entries);
    let address = *apis.first().context("an API")?;
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let (mut held, mut since) = (holdings::read(&client, address, &asked).await?, Instant::now());
    while since.elapsed() < SETTLED_AFTER {
        ensure!(Instant::now() < deadline, "targets still change {DRAIN_PATIENCE:?} after the load");
        tokio::time::sleep(PAUSE).await;
        let now = holdings::read(&client, address, &asked).await?;
        if now != held {
            (held, since) = (now, Instant::now());
        }
    }
    let deadline = Instant::now() + COHERENT_WITHIN;
    for api in apis {
        findings.extend(check_api(&client, *api, (entries, &asked), deadline).await?);
    }
    findings.extend(dead::check(&client, address).await?);
    Ok(Audit { findings, receipts_checked, states: held.states })
}

/// Findings about one replica, read again until there are none or the time is over.
async fn check_api(
    client: &Client,
    api: SocketAddr,
    (entries, asked): (&[Entry], &Questions<'_>),
    deadline: Instant,
) -> anyhow::Result<Vec<String>> {
    loop {
        let held = holdings::read(client, api, asked).await?;
        let findings = compare::check(entries, &held);
        if findings.is_empty() || Instant::now() > deadline {
            return Ok(findings.into_iter().map(|finding| format!("{finding} (at {api})")).collect());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Deserialize)]
struct ReceiptStatus {
    status: String,
}

/// Checks receipts: every id of a 202 must be `applied` in the end, or `failed` where the store
/// refuses the item, and no two requests may have the same.
async fn check_receipts(
    client: &Client,
    entries: &[Entry],
    apis: &[SocketAddr],
) -> anyhow::Result<(Vec<String>, usize)> {
    let mut findings = Vec::new();
    let (mut seen, mut given) = (HashSet::new(), Vec::new());
    for entry in entries {
        for (index, id) in entry.outcome.ids().iter().enumerate() {
            if !seen.insert(id) {
                findings
                    .push(format!("id {id} was given twice, the second time to request {}", entry.request));
            }
            let wanted = if entry.write.takes_effect(index) { "applied" } else { "failed" };
            given.push((entry.request, id, wanted));
        }
    }
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let permits = Arc::new(Semaphore::new(RECEIPTS_AT_ONCE));
    let (mut checks, mut checked) = (JoinSet::new(), 0);
    for (request, id, wanted) in given.iter().step_by(given.len().div_ceil(RECEIPTS_MAX).max(1)) {
        checked += 1;
        let (client, request, id, wanted) = (client.clone(), *request, (*id).clone(), *wanted);
        let (permit, api) = (permits.clone().acquire_owned().await?, apis[checked % apis.len()]);
        checks.spawn(async move {
            let status = await_settled(&client, api, &id, deadline).await;
            drop(permit);
            (status != wanted)
                .then(|| format!("LOST: request {request}, receipt {id}: {status}, not {wanted}"))
        });
    }
    while let Some(check) = checks.join_next().await {
        findings.extend(check.context("a check panicked")?);
    }
    Ok((shortened(findings), checked))
}

/// Reads a receipt until its status is final, or until the deadline.
async fn await_settled(client: &Client, api: SocketAddr, id: &str, deadline: Instant) -> String {
    loop {
        let status = receipt_status(client, api, id).await;
        let is_final = ["applied", "failed", "conflict"].contains(&status.as_str());
        if is_final || Instant::now() > deadline {
            return status;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Status of a receipt, or the answer that came instead of one.
pub async fn receipt_status(client: &Client, api: SocketAddr, id: &str) -> String {
    match client.get(format!("http://{api}/v1/receipts/{id}")).send().await {
        Ok(answer) if answer.status().is_success() => match answer.json::<ReceiptStatus>().await {
            Ok(receipt) => receipt.status,
            Err(error) => error.to_string(),
        },
        Ok(answer) => answer.status().to_string(),
        Err(error) => error.to_string(),
    }
}
