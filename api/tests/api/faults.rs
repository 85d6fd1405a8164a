//! The whole flow over ports that fail on purpose: nothing is lost or doubled. Three seeded bugs,
//! each of which the test must catch, prove that it can fail.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use shared::model::id::IdIssuer;
use shared::model::message::{Message, Outgoing};
use shared::model::outcome::Applied;
use shared::program::backend::Backend;
use shared::queue::{
    Delivery, Lane, Link, Lost, PublishError, Publisher, Queue, QueueError, Subscription, Waiting,
};
use shared::store::{Store, StoreError};
use testkit::store::{Layer, Layered};

use crate::support::{RunningConsumer, base_config, close, open, wait_for};

/// A bug of a kind that a programmer could write.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    AcknowledgeBeforeCommit,
    LedgerSkipped,
    ConfirmIgnored,
}

/// A source of faults, which disturbs one call in so many; shared by the three ports.
struct Disturbance {
    bug: Bug,
    on: AtomicBool,
    publishes: AtomicU64,
    applies: AtomicU64,
    acks: AtomicU64,
    /// Request to break the consumer's session now, as if its process had been killed.
    crash: AtomicBool,
}

impl Disturbance {
    /// Draws a number for this call, the same in every run.
    fn draw(&self, calls: &AtomicU64) -> Draw {
        let mut bits = calls.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Draw { percent: (bits >> 32) % 100, on: self.on.load(Ordering::Relaxed) }
    }

    fn crashed(&self) -> Result<(), Lost> {
        if self.crash.swap(false, Ordering::Relaxed) { Err(Lost("crashed".into())) } else { Ok(()) }
    }
}

/// A number below a hundred; faults take disjoint parts of that range.
struct Draw {
    percent: u64,
    on: bool,
}

impl Draw {
    fn is_in(&self, percents: std::ops::Range<u64>) -> bool {
        self.on && percents.contains(&self.percent)
    }
}

struct FaultyQueue(Arc<dyn Queue>, Arc<Disturbance>);
struct FaultyPublisher(Arc<dyn Publisher>, Arc<Disturbance>);
struct FaultySubscription(Box<dyn Subscription>, Arc<Disturbance>);
struct FaultyStore(Arc<dyn Store>, Arc<Disturbance>);

#[async_trait]
impl Queue for FaultyQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(FaultyPublisher(self.0.publisher(), self.1.clone()))
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let subscription = self.0.subscribe(lane, window).await?;
        Ok(match lane {
            Lane::Writes => Box::new(FaultySubscription(subscription, self.1.clone())),
            Lane::Dead => subscription,
        })
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        self.0.waiting(lane).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

#[async_trait]
impl Publisher for FaultyPublisher {
    /// Publishes a message; some are lost, others stored without a confirm.
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError> {
        let draw = self.1.draw(&self.1.publishes);
        let answer = if draw.is_in(0..15) {
            Err(PublishError::Unavailable("not sent".into()))
        } else {
            let stored = self.0.publish(message, deadline).await;
            if draw.is_in(15..30) { stored.and(Err(PublishError::DeadlineExceeded)) } else { stored }
        };
        // The error is `Full`, because any other would open the breaker and end the test early.
        if self.1.bug == Bug::ConfirmIgnored { Ok(()) } else { answer.map_err(|_| PublishError::Full) }
    }

    fn link(&self) -> Link {
        self.0.link()
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&mut self) -> Result<Delivery, Lost> {
        self.1.crashed()?;
        let delivery = self.0.next().await?;
        self.taken(delivery).await
    }

    fn try_next(&mut self) -> Result<Option<Delivery>, Lost> {
        // Only deliveries of `next` go through the seeded bug.
        if self.1.bug == Bug::AcknowledgeBeforeCommit { Ok(None) } else { self.0.try_next() }
    }

    /// Acknowledges; sometimes breaks the session after a commit and before its acknowledgement.
    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        if self.1.bug == Bug::AcknowledgeBeforeCommit {
            return Ok(());
        }
        if self.1.draw(&self.1.acks).is_in(0..20) {
            return Err(Lost("crashed between commit and acknowledgement".into()));
        }
        self.0.ack(deliveries).await
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.1.crashed()?;
        if self.1.bug == Bug::AcknowledgeBeforeCommit { Ok(()) } else { self.0.give_back(deliveries).await }
    }

    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost> {
        self.0.reject(delivery).await
    }

    async fn waiting(&mut self) -> Result<u64, Lost> {
        self.0.waiting().await
    }

    async fn set_window(&mut self, window: u16) -> Result<(), Lost> {
        self.1.crashed()?;
        self.0.set_window(window).await
    }
}

impl FaultySubscription {
    async fn taken(&mut self, delivery: Delivery) -> Result<Delivery, Lost> {
        if self.1.bug != Bug::AcknowledgeBeforeCommit {
            return Ok(delivery);
        }
        let copy = Delivery::new(delivery.body.clone(), delivery.redelivered, 0);
        self.0.ack(vec![delivery]).await?;
        Ok(copy)
    }
}

#[async_trait]
impl Layer for FaultyStore {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.0
    }

    /// Applies a batch; sometimes fails before the transaction, or after its commit, and breaks the session.
    async fn apply_within(&self, batch: Arc<[Message]>, _: Duration) -> Result<Applied, StoreError> {
        let batch = if self.1.bug == Bug::LedgerSkipped { under_new_ids(&batch) } else { batch };
        let away = |why: &str| StoreError::Unavailable(why.into());
        let draw = self.1.draw(&self.1.applies);
        if draw.is_in(0..15) {
            self.1.crash.store(true, Ordering::Relaxed);
            return Err(away("before the transaction"));
        }
        if self.1.crash.load(Ordering::Relaxed) {
            return Err(away("crashed"));
        }
        let applied = self.0.apply(batch).await?;
        if draw.is_in(15..40) {
            return Err(away("after the commit"));
        }
        Ok(applied)
    }
}

/// Gives messages new ids, as if there were no ledger: each delivery looks like one that was never seen.
fn under_new_ids(batch: &[Message]) -> Arc<[Message]> {
    let renamed = batch.iter().map(|message| {
        let id = IdIssuer::new(rand::random(), rand::random()).next(message.id.time_ms());
        Message { id, ..message.clone() }
    });
    renamed.collect()
}

/// The differences between the client's ledger and the store's values.
#[derive(Debug, Default)]
struct Verdict {
    lost: Vec<String>,
    doubled: Vec<String>,
    accepted: usize,
    refused: usize,
}

/// Runs the flow. Each write has a counter of its own, so that a write with an unknown outcome
/// shows 0 or exactly its increment.
async fn run(backend: Backend, config: &shared::config::Config, bug: Bug) -> Verdict {
    let disturbance = Arc::new(Disturbance {
        bug,
        on: AtomicBool::new(true),
        publishes: AtomicU64::new(0),
        applies: AtomicU64::new(0),
        acks: AtomicU64::new(0),
        crash: AtomicBool::new(false),
    });
    let store = backend.store.clone();
    let backend = Backend {
        queue: Arc::new(FaultyQueue(backend.queue.clone(), disturbance.clone())),
        store: Arc::new(Layered(FaultyStore(backend.store.clone(), disturbance.clone()))),
        ..backend
    };
    let consumer = RunningConsumer::start(config, &backend);
    let api = api::server::Server::start(config, &backend).expect("the API starts");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut ledger = HashMap::new();
    for number in 0..200 {
        let url = format!("http://{}/v1/counters/w-{number}/increments", api.address);
        let answer = client.post(url).send().await.expect("an answer");
        ledger.insert(format!("w-{number}"), answer.status() == 202);
    }
    disturbance.on.store(false, Ordering::Relaxed);
    // This write is applied behind everything else: when it is there, the queue is drained, apart
    // from redeliveries, which change nothing (or are the bug).
    let url = format!("http://{}/v1/counters/last/increments", api.address);
    wait_for("the last write", async || {
        client.post(&url).send().await.expect("an answer");
        store.counter("last").await.expect("the store answers").filter(|counter| counter.version > 3)
    })
    .await;
    api.stop().await;
    consumer.stop().await;
    let mut verdict = Verdict::default();
    for (name, accepted) in ledger {
        let value = store.counter(&name).await.expect("the store answers").map_or(0, |counter| counter.value);
        match (accepted, value) {
            (true, 0) => verdict.lost.push(name),
            (_, 0 | 1) => {}
            (_, _) => verdict.doubled.push(name),
        }
        if accepted { verdict.accepted += 1 } else { verdict.refused += 1 }
    }
    close(backend).await;
    verdict
}

async fn run_embedded(bug: Bug) -> Verdict {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    let url = format!("embedded:{}", directory.path().display());
    config.queue.url.clone_from(&url);
    config.store.url = url;
    let backend = open(&config).await;
    run(backend, &config, bug).await
}

async fn run_cluster(bug: Bug, judge: impl FnOnce(Verdict)) {
    testkit::isolated("faults", move |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        let backend = open(&config).await;
        judge(run(backend, &config, bug).await);
    })
    .await;
}

fn assert_exact(verdict: &Verdict) {
    assert!(verdict.lost.is_empty() && verdict.doubled.is_empty(), "{verdict:?}");
    assert!(verdict.accepted > 100 && verdict.refused > 20, "the faults must hit: {verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_embedded() {
    assert_exact(&run_embedded(Bug::None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_cluster() {
    run_cluster(Bug::None, |verdict| assert_exact(&verdict)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_before_the_commit_is_caught() {
    let verdict = run_embedded(Bug::AcknowledgeBeforeCommit).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
    run_cluster(Bug::AcknowledgeBeforeCommit, |verdict| assert!(!verdict.lost.is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skipping_the_ledger_is_caught() {
    let verdict = run_embedded(Bug::LedgerSkipped).await;
    assert!(!verdict.doubled.is_empty(), "{verdict:?}");
    run_cluster(Bug::LedgerSkipped, |verdict| assert!(!verdict.doubled.is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ignoring_confirms_is_caught() {
    let verdict = run_embedded(Bug::ConfirmIgnored).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
    run_cluster(Bug::ConfirmIgnored, |verdict| assert!(!verdict.lost.is_empty())).await;
}
