//! The client: several writers with connections of their own; single, array and NDJSON requests of
//! every kind, plain and with an Idempotency-Key, some that wait for their effect, to targets that
//! many writers share and to targets that exactly one request uses. Writers delete documents again.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Client;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinSet;

use crate::early;
use crate::kind::{Abilities, Kind};
use crate::ledger::{Ledger, Outcome, Write};
use crate::send;

/// Writers per API. The first sends single increments nearly as fast as they are answered, so that
/// requests are open whenever a kill comes; the others mix, at a pace that keeps the audit short.
const WRITERS: usize = 6;
const PACE: Duration = Duration::from_millis(60);
const FAST_PACE: Duration = Duration::from_millis(5);
/// Duration above which runs write more slowly, so that the audit has the same amount to check.
const PACED_FOR: Duration = Duration::from_mins(10);
/// Pause after a refusal or a broken connection; a restart takes longer than this.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time within which a keyed request is repeated.
const KEYED_PATIENCE: Duration = Duration::from_mins(2);
const ITEMS_MAX: usize = 10;
/// Strange answers that are reported.
const STRANGE_MAX: usize = 20;
const SHARED_TARGETS: usize = 4;
/// Requests of each writer after which new targets are shared, for the same reason.
const SHARED_FOR: usize = 500;
/// Documents that a writer remembers for a deletion.
const REMEMBERED_MAX: usize = 100;
const WAIT_SECONDS: u64 = 2;
/// Age of the points, so large that no stepped clock takes them for too new, within a span of
/// several minutes.
const MEASURED_BEFORE_MS: std::ops::Range<i64> = 7_200_000..7_800_000;
/// Factor by which writers go on more slowly during an outage that lasts.
const SLOW_FACTOR: u32 = 10;

/// Counts at one API.
#[derive(Debug)]
pub struct ApiCounts {
    pub address: SocketAddr,
    /// Number of requests accepted so far.
    pub accepted: watch::Sender<u64>,
    /// Number of open requests.
    pub open: watch::Sender<usize>,
}

pub struct Traffic {
    pub targets: Vec<Arc<ApiCounts>>,
    stop: watch::Sender<bool>,
    writers: JoinSet<anyhow::Result<()>>,
    slower: Arc<AtomicU32>,
    /// Lock held by each writer while it writes.
    turn: Arc<RwLock<()>>,
    /// Answers outside the contract. The writers go on.
    strange: Arc<Mutex<Vec<String>>>,
}

impl Traffic {
    /// Starts the writers; `lasting` is the intended duration of the run.
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
        let (strange, factor) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(1)));
        let turn = Arc::default();
        for address in apis {
            let target = Arc::new(ApiCounts {
                address: *address,
                accepted: watch::channel(0).0,
                open: watch::channel(0).0,
            });
            for number in 0..WRITERS {
                let seed = seed.wrapping_mul(1_000).wrapping_add(writers.len() as u64);
                let is_fast = number == 0;
                let writer = Writer {
                    client: send::client()?,
                    target: target.clone(),
                    apis: apis.to_vec(),
                    ledger: ledger.clone(),
                    abilities: abilities.clone(),
                    random: StdRng::seed_from_u64(seed),
                    name: writers.len(),
                    written: 0,
                    is_fast,
                    is_in_doubt: false,
                    remembered: Vec::new(),
                    slower: factor.clone(),
                    turn: Arc::clone(&turn),
                    strange: strange.clone(),
                };
                let pace = if is_fast { FAST_PACE } else { PACE }.mul_f64(slower);
                writers.spawn(writer.run(pace, stop.subscribe()));
            }
            targets.push(target);
        }
        Ok(Self { targets, stop, writers, slower: factor, turn, strange })
    }

    pub fn accepted(&self) -> u64 {
        self.targets.iter().map(|target| *target.accepted.borrow()).sum()
    }

    /// Makes the writers slow, or as fast as they were before.
    pub fn slow(&self, on: bool) {
        self.slower.store(if on { SLOW_FACTOR } else { 1 }, Ordering::Relaxed);
    }

    /// Stops all writing while the guard is held.
    pub async fn still(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.turn).write_owned().await
    }

    /// Lets every writer finish its request. Returns answers outside the contract.
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
    target: Arc<ApiCounts>,
    /// APIs at which keyed requests are repeated.
    apis: Vec<SocketAddr>,
    ledger: Arc<Ledger>,
    abilities: Abilities,
    random: StdRng,
    name: usize,
    written: usize,
    is_fast: bool,
    /// The previous request was not accepted.
    is_in_doubt: bool,
    /// Collections, ids and numbers of documents that were accepted and not deleted.
    remembered: Vec<(String, String, i64)>,
    slower: Arc<AtomicU32>,
    turn: Arc<RwLock<()>>,
    strange: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    async fn run(mut self, pace: Duration, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        while !*stop.borrow() {
            let began = Instant::now();
            let turn = Arc::clone(&self.turn).read_owned().await;
            self.write().await?;
            drop(turn);
            let pace = pace * self.slower.load(Ordering::Relaxed);
            tokio::time::sleep(pace.saturating_sub(began.elapsed())).await;
        }
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let write = self.draw();
        let request = self.ledger.intend(write.clone()).await?;
        self.target.open.send_modify(|open| *open += 1);
        let outcome = match write.key {
            None => send::once(&self.client, self.target.address, &write).await,
            Some(_) => self.repeat(&write).await,
        };
        self.target.open.send_modify(|open| *open -= 1);
        // The effect of a strange answer is unknown, too.
        let outcome = outcome.unwrap_or_else(|strange| {
            self.note(&format!("STRANGE: request {request}: {strange:#}"));
            Outcome::Unknown
        });
        self.is_in_doubt = !outcome.is_taken();
        self.ledger.settle(request, outcome.clone())?;
        if self.is_in_doubt {
            tokio::time::sleep(RETRY_PAUSE * self.slower.load(Ordering::Relaxed)).await;
            return Ok(());
        }
        self.target.accepted.send_modify(|accepted| *accepted += 1);
        self.look(request, &write, &outcome).await;
        self.remember(&write, &outcome);
        Ok(())
    }

    /// Checks an answer by a read. A keyed write was perhaps answered by another API than its own,
    /// so only its receipt is read.
    async fn look(&mut self, request: usize, write: &Write, outcome: &Outcome) {
        let Outcome::Applied(reported) = outcome else { return };
        if write.key.is_none() || reported.id.is_some() {
            let apis = (self.target.address, self.any_api());
            if let Some(early) = early::look(&self.client, apis, write, reported).await {
                self.note(&format!("EARLY: request {request}: {early}"));
            }
        }
    }

    fn remember(&mut self, write: &Write, outcome: &Outcome) {
        if write.kind == Kind::Document && write.deletes.is_none() && self.remembered.len() < REMEMBERED_MAX {
            let documents = outcome.ids().iter().zip(&write.items);
            self.remembered.extend(documents.map(|(id, number)| (write.target.clone(), id.clone(), *number)));
        }
    }

    fn note(&self, answer: &str) {
        let mut strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if strange.len() < STRANGE_MAX {
            strange.push(answer.to_owned());
        }
    }

    fn draw(&mut self) -> Write {
        self.written += 1;
        let drawn = self.abilities.kinds[self.random.random_range(0..self.abilities.kinds.len())];
        // A target of its own shows exactly whether a request with an unknown outcome took effect:
        // its sum is 0 or the request's, nothing else. While requests fail none goes to a shared
        // target: thousands of unknown ones would make any sum possible.
        let kind = if self.is_in_doubt { Kind::Counter } else { drawn };
        let is_single = self.is_fast || self.random.random_bool(0.3);
        let mut write = match kind {
            Kind::Document if self.random.random_bool(0.3) && !self.remembered.is_empty() => self.deletion(),
            _ => Write::new(kind, self.target_for(kind), self.numbers(is_single)),
        };
        if kind == Kind::Point {
            write.at_ms = now_ms() - self.random.random_range(MEASURED_BEFORE_MS);
        }
        write.lines = self.random.random_bool(0.5);
        let is_keyed = self.abilities.keyed && self.random.random_bool(0.3);
        write.key = is_keyed.then(|| format!("key-{}-{}", self.name, self.written));
        let waits = write.items.len() == 1 && self.random.random_bool(if self.is_fast { 0.1 } else { 0.4 });
        write.wait_seconds = waits.then_some(WAIT_SECONDS);
        write
    }

    fn target_for(&mut self, kind: Kind) -> String {
        let is_own = self.is_in_doubt || self.random.random_bool(0.5);
        if is_own && kind == Kind::Counter {
            return format!("once-{}-{}", self.name, self.written);
        }
        let epoch = self.written / SHARED_FOR;
        format!("shared-{epoch}-{}", self.random.random_range(0..SHARED_TARGETS))
    }

    fn numbers(&mut self, is_single: bool) -> Vec<i64> {
        let count = if is_single { 1 } else { self.random.random_range(2..=ITEMS_MAX) };
        let mut number = || match self.random.random_range(-3..=8) {
            0 => 9,
            other => other,
        };
        (0..count).map(|_| number()).collect()
    }

    /// Deletes a document that no other writer deletes.
    fn deletion(&mut self) -> Write {
        let place = self.random.random_range(0..self.remembered.len());
        let (collection, id, number) = self.remembered.swap_remove(place);
        Write { deletes: Some(id), ..Write::new(Kind::Document, collection, vec![number]) }
    }

    /// Sends a keyed request to any API until one accepts it, and then sometimes once more.
    async fn repeat(&mut self, write: &Write) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + KEYED_PATIENCE;
        let mut api = self.target.address;
        loop {
            let outcome = send::once(&self.client, api, write).await?;
            if outcome.is_taken() {
                if self.random.random_bool(0.3) {
                    let api = self.any_api();
                    let again = send::once(&self.client, api, write).await?;
                    if !again.agrees_with(&outcome) {
                        let key = write.key.as_deref().unwrap_or_default();
                        self.note(&format!(
                            "STRANGE: {key} was accepted as {outcome:?} and again as {again:?}"
                        ));
                    }
                }
                return Ok(outcome);
            }
            if Instant::now() > deadline {
                return Ok(Outcome::Unknown);
            }
            tokio::time::sleep(RETRY_PAUSE * self.slower.load(Ordering::Relaxed)).await;
            api = self.any_api();
        }
    }

    fn any_api(&mut self) -> SocketAddr {
        self.apis[self.random.random_range(0..self.apis.len())]
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of a client, which is none of the service's")]
fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
