//! The client: several writers with a connection each, single, array and NDJSON requests, on
//! counters that many writers share and on counters that exactly one request uses.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ledger::{Ledger, Outcome};

/// Writers per API. The first sends single increments as fast as they are answered, so that
/// something is open whenever a kill comes; the others mix, at a pace that keeps the audit short.
const WRITERS: usize = 6;
const PACE: Duration = Duration::from_millis(60);
/// After a refusal or a broken connection; a restart takes longer than this.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const ITEMS_MAX: usize = 10;
const SHARED_COUNTERS: usize = 4;

/// What is going on at one API right now.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Requests that were answered 202 so far.
    pub accepted: watch::Sender<u64>,
    /// Requests that are open.
    pub open: watch::Sender<usize>,
}

pub struct Traffic {
    pub targets: Vec<Arc<Target>>,
    stop: watch::Sender<bool>,
    writers: JoinSet<anyhow::Result<()>>,
}

/// A client without a proxy: everything is on loopback.
pub fn client() -> anyhow::Result<Client> {
    let builder = Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(1);
    builder.build().context("no HTTP client")
}

impl Traffic {
    pub fn start(apis: Vec<SocketAddr>, ledger: &Arc<Ledger>, seed: u64) -> anyhow::Result<Self> {
        let (stop, _) = watch::channel(false);
        let mut writers = JoinSet::new();
        let mut targets = Vec::new();
        for address in apis {
            let target =
                Arc::new(Target { address, accepted: watch::channel(0).0, open: watch::channel(0).0 });
            for number in 0..WRITERS {
                let seed = seed.wrapping_mul(1_000).wrapping_add(writers.len() as u64);
                let writer = Writer {
                    client: client()?,
                    target: target.clone(),
                    ledger: ledger.clone(),
                    random: StdRng::seed_from_u64(seed),
                    name: writers.len(),
                    written: 0,
                    flat_out: number == 0,
                };
                writers.spawn(writer.run(stop.subscribe()));
            }
            targets.push(target);
        }
        Ok(Self { targets, stop, writers })
    }

    pub fn accepted(&self) -> u64 {
        self.targets.iter().map(|target| *target.accepted.borrow()).sum()
    }

    /// Lets every writer finish its request. Returns answers that the contract does not know.
    pub async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        self.stop.send_replace(true);
        let mut findings = Vec::new();
        while let Some(writer) = self.writers.join_next().await {
            if let Err(error) = writer.context("a writer panicked")? {
                findings.push(format!("{error:#}"));
            }
        }
        Ok(findings)
    }
}

struct Writer {
    client: Client,
    target: Arc<Target>,
    ledger: Arc<Ledger>,
    random: StdRng,
    name: usize,
    written: usize,
    flat_out: bool,
}

/// Bodies of 202, single and batch.
#[derive(Deserialize)]
#[serde(untagged)]
enum Accepted {
    Batch { accepted: usize, ids: Vec<String>, rejected: Vec<serde_json::Value> },
    Single { id: String, status: String },
}

impl Writer {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            if !self.flat_out {
                pace.tick().await;
            }
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let (counter, items, lines) = self.draw();
        let request = self.ledger.intend(counter.clone(), items.clone()).await?;
        self.target.open.send_modify(|open| *open += 1);
        let outcome = self.send(&counter, &items, lines).await;
        self.target.open.send_modify(|open| *open -= 1);
        let outcome = outcome.with_context(|| format!("request {request}"))?;
        if matches!(outcome, Outcome::Accepted(_)) {
            self.target.accepted.send_modify(|accepted| *accepted += 1);
            self.ledger.settle(request, outcome)
        } else {
            self.ledger.settle(request, outcome)?;
            tokio::time::sleep(RETRY_PAUSE).await;
            Ok(())
        }
    }

    /// The next request: its counter, its increments, and whether an array goes as lines.
    fn draw(&mut self) -> (String, Vec<i64>, bool) {
        self.written += 1;
        // A counter of its own shows exactly whether a request of unknown fate took effect: its
        // value is 0 or the request's sum, nothing else.
        let counter = if self.random.random_bool(0.5) {
            format!("once-{}-{}", self.name, self.written)
        } else {
            format!("shared-{}", self.random.random_range(0..SHARED_COUNTERS))
        };
        let single = self.flat_out || self.random.random_bool(0.3);
        let count = if single { 1 } else { self.random.random_range(2..=ITEMS_MAX) };
        let mut by = || match self.random.random_range(-3..=8) {
            0 => 9,
            other => other,
        };
        let items = (0..count).map(|_| by()).collect();
        (counter, items, self.random.random_bool(0.5))
    }

    async fn send(&self, counter: &str, items: &[i64], lines: bool) -> anyhow::Result<Outcome> {
        let url = format!("http://{}/v1/counters/{counter}/increments", self.target.address);
        let json: Vec<String> = items.iter().map(|by| format!("{{\"by\":{by}}}")).collect();
        let (media_type, body) = match json.as_slice() {
            [one] => ("application/json", one.clone()),
            _ if lines => ("application/x-ndjson", json.join("\n")),
            _ => ("application/json", format!("[{}]", json.join(","))),
        };
        let request = self.client.post(url).header("content-type", media_type).body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Ok(Outcome::NotSent),
            Err(_) => return Ok(Outcome::Unknown),
        };
        let status = response.status();
        // An answer that broke off: the server may have accepted, and nobody has the ids.
        let Ok(body) = response.bytes().await else { return Ok(Outcome::Unknown) };
        match status {
            StatusCode::ACCEPTED => accepted(&body, items.len()),
            StatusCode::SERVICE_UNAVAILABLE => Ok(Outcome::Unknown),
            other => bail!("{counter}: answered {other} {}", String::from_utf8_lossy(&body)),
        }
    }
}

fn accepted(body: &[u8], items: usize) -> anyhow::Result<Outcome> {
    let text = || String::from_utf8_lossy(body).into_owned();
    let ids = match serde_json::from_slice(body).with_context(text)? {
        Accepted::Single { id, status } if items == 1 && status == "accepted" => vec![id],
        Accepted::Batch { accepted, ids, rejected }
            if accepted == items && ids.len() == items && rejected.is_empty() =>
        {
            ids
        }
        _ => bail!("202 for {items} items with {}", text()),
    };
    Ok(Outcome::Accepted(ids))
}
