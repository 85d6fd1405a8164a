//! The client: several writers with connections of their own; single, array and NDJSON requests,
//! plain and with an Idempotency-Key, to targets that many writers share and to targets that
//! exactly one request uses.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kind::{Abilities, Kind};
use crate::ledger::{Ledger, Outcome, Write};

/// Writers per API. The first sends single increments nearly as fast as they are answered, so that
/// something is open whenever a kill comes; the others mix, at a pace that keeps the audit short.
const WRITERS: usize = 6;
const PACE: Duration = Duration::from_millis(60);
const FAST_PACE: Duration = Duration::from_millis(5);
/// Longer runs write more slowly, so that what there is to audit stays the same.
const PACED_FOR: Duration = Duration::from_mins(10);
/// After a refusal or a broken connection; a restart takes longer than this.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a keyed request is repeated.
const KEYED_PATIENCE: Duration = Duration::from_mins(2);
const ITEMS_MAX: usize = 10;
/// Strange answers that are told.
const STRANGE_MAX: usize = 20;
const SHARED_TARGETS: usize = 4;
/// So many requests of each writer later others are shared, for the same reason.
const SHARED_FOR: usize = 500;

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
    /// Answers that the contract does not know. The writers go on.
    strange: Arc<Mutex<Vec<String>>>,
}

/// A client without a proxy: everything is on loopback.
pub fn client() -> anyhow::Result<Client> {
    let builder = Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(1);
    builder.build().context("no HTTP client")
}

impl Traffic {
    /// `lasting` is how long the run is meant to be.
    pub fn start(
        apis: &[SocketAddr],
        ledger: &Arc<Ledger>,
        abilities: &Abilities,
        seed: u64,
        lasting: Duration,
    ) -> anyhow::Result<Self> {
        let slower = lasting.div_duration_f64(PACED_FOR).max(1.0);
        let (stop, _) = watch::channel(false);
        let (mut writers, mut targets) = (JoinSet::new(), Vec::new());
        let strange = Arc::new(Mutex::new(Vec::new()));
        for address in apis {
            let target = Arc::new(Target {
                address: *address,
                accepted: watch::channel(0).0,
                open: watch::channel(0).0,
            });
            for number in 0..WRITERS {
                let seed = seed.wrapping_mul(1_000).wrapping_add(writers.len() as u64);
                let is_fast = number == 0;
                let writer = Writer {
                    client: client()?,
                    target: target.clone(),
                    apis: apis.to_vec(),
                    ledger: ledger.clone(),
                    abilities: abilities.clone(),
                    random: StdRng::seed_from_u64(seed),
                    name: writers.len(),
                    written: 0,
                    is_fast,
                    is_in_doubt: false,
                    strange: strange.clone(),
                };
                let pace = if is_fast { FAST_PACE } else { PACE }.mul_f64(slower);
                writers.spawn(writer.run(pace, stop.subscribe()));
            }
            targets.push(target);
        }
        Ok(Self { targets, stop, writers, strange })
    }

    pub fn accepted(&self) -> u64 {
        self.targets.iter().map(|target| *target.accepted.borrow()).sum()
    }

    /// Lets every writer finish its request. Returns answers that the contract does not know.
    pub async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        self.stop.send_replace(true);
        while let Some(writer) = self.writers.join_next().await {
            writer.context("a writer panicked")??;
        }
        Ok(std::mem::take(&mut *self.strange.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

struct Writer {
    client: Client,
    target: Arc<Target>,
    /// Where keyed requests are repeated.
    apis: Vec<SocketAddr>,
    ledger: Arc<Ledger>,
    abilities: Abilities,
    random: StdRng,
    name: usize,
    written: usize,
    is_fast: bool,
    /// The request before was not accepted.
    is_in_doubt: bool,
    strange: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    async fn run(mut self, pace: Duration, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut pace = tokio::time::interval(pace);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            pace.tick().await;
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let (write, lines) = self.draw();
        let request = self.ledger.intend(write.clone()).await?;
        self.target.open.send_modify(|open| *open += 1);
        let outcome = match write.key {
            None => send(&self.client, self.target.address, &write, lines).await,
            Some(_) => self.repeat(&write, lines).await,
        };
        self.target.open.send_modify(|open| *open -= 1);
        // What a strange answer means is unknown, too.
        let outcome = outcome.unwrap_or_else(|strange| {
            self.note(&format!("request {request}: {strange:#}"));
            Outcome::Unknown
        });
        self.is_in_doubt = !matches!(outcome, Outcome::Accepted(_));
        self.ledger.settle(request, outcome)?;
        if self.is_in_doubt {
            tokio::time::sleep(RETRY_PAUSE).await;
        } else {
            self.target.accepted.send_modify(|accepted| *accepted += 1);
        }
        Ok(())
    }

    fn note(&self, answer: &str) {
        let mut strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if strange.len() < STRANGE_MAX {
            strange.push(format!("STRANGE: {answer}"));
        }
    }

    /// The next request, and whether an array goes as lines.
    fn draw(&mut self) -> (Write, bool) {
        self.written += 1;
        let drawn = self.abilities.kinds[self.random.random_range(0..self.abilities.kinds.len())];
        // A target of its own shows exactly whether a request of unknown fate took effect: its sum
        // is 0 or the request's, nothing else. While requests fail none goes to a shared one:
        // thousands of unknown ones would make any sum possible.
        let kind = if self.is_in_doubt { Kind::Counter } else { drawn };
        let is_own = self.random.random_bool(0.5) || self.is_in_doubt;
        let target = if is_own && kind == Kind::Counter {
            format!("once-{}-{}", self.name, self.written)
        } else {
            let epoch = self.written / SHARED_FOR;
            format!("shared-{epoch}-{}", self.random.random_range(0..SHARED_TARGETS))
        };
        let is_single = self.is_fast || self.random.random_bool(0.3);
        let count = if is_single { 1 } else { self.random.random_range(2..=ITEMS_MAX) };
        let mut number = || match self.random.random_range(-3..=8) {
            0 => 9,
            other => other,
        };
        let items = (0..count).map(|_| number()).collect();
        let is_keyed = self.abilities.keyed && self.random.random_bool(0.3);
        let key = is_keyed.then(|| format!("key-{}-{}", self.name, self.written));
        (Write { kind, target, items, key }, self.random.random_bool(0.5))
    }

    /// Sends a keyed request to any API until one accepts it, and then sometimes once more.
    async fn repeat(&mut self, write: &Write, lines: bool) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + KEYED_PATIENCE;
        let mut api = self.target.address;
        loop {
            if let Outcome::Accepted(ids) = send(&self.client, api, write, lines).await? {
                if self.random.random_bool(0.3) {
                    let api = self.any_api();
                    let again = send(&self.client, api, write, lines).await?;
                    if !again.agrees_with(&ids) {
                        let key = write.key.as_deref().unwrap_or_default();
                        self.note(&format!("{key} was accepted as {ids:?} and again as {again:?}"));
                    }
                }
                return Ok(Outcome::Accepted(ids));
            }
            if Instant::now() > deadline {
                return Ok(Outcome::Unknown);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            api = self.any_api();
        }
    }

    fn any_api(&mut self) -> SocketAddr {
        self.apis[self.random.random_range(0..self.apis.len())]
    }
}

/// Bodies of 202, single and batch.
#[derive(Deserialize)]
#[serde(untagged)]
enum Accepted {
    Batch { accepted: usize, ids: Vec<String>, rejected: Vec<serde_json::Value> },
    Single { id: String, status: String },
}

/// Sends one request once. An error is an answer that the contract does not know.
pub async fn send(client: &Client, api: SocketAddr, write: &Write, lines: bool) -> anyhow::Result<Outcome> {
    let json: Vec<String> = write.items.iter().map(|number| write.kind.item(*number)).collect();
    let (media_type, body) = match json.as_slice() {
        [one] => ("application/json", one.clone()),
        _ if lines => ("application/x-ndjson", json.join("\n")),
        _ => ("application/json", format!("[{}]", json.join(","))),
    };
    let url = format!("http://{api}{}", write.kind.path(&write.target));
    let mut request = client.post(url).header("content-type", media_type).body(body);
    if let Some(key) = &write.key {
        request = request.header("idempotency-key", key);
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Ok(Outcome::NotSent),
        Err(_) => return Ok(Outcome::Unknown),
    };
    let status = response.status();
    // An answer that broke off: the server may have accepted, and nobody has the ids.
    let Ok(body) = response.bytes().await else { return Ok(Outcome::Unknown) };
    match status {
        StatusCode::ACCEPTED => accepted(&body, write.items.len()),
        StatusCode::SERVICE_UNAVAILABLE => Ok(Outcome::Unknown),
        other => bail!("{write:?}: answered {other} {}", String::from_utf8_lossy(&body)),
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
