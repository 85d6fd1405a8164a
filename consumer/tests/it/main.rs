//! The consumer on real queues, over stores that come and go.
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use consumer::Consumer;
use consumer::status::ConsumerStatus;
use shared::config::Config;
use shared::model::dead_letter::DeadMessage;
use shared::model::id::{IdIssuer, Kind, MessageId};
use shared::model::message::{Builder, Message, Outgoing, encode_increment};
use shared::model::outcome::{Applied, ItemStatus};
use shared::program::backend::{self, Backend};
use shared::runtime::shutdown;
use shared::store::{Store, StoreError};
use testkit::store::{Layer, Layered};

const PATIENCE: Duration = Duration::from_secs(30);

/// A store that can be taken away and records its calls.
struct Switched {
    store: Arc<dyn Store>,
    away: AtomicBool,
    /// Number of messages of each `apply`.
    asked: Mutex<Vec<usize>>,
    /// While a test holds it, commits are not answered.
    answering: tokio::sync::Mutex<()>,
    failed: AtomicUsize,
    /// Probes without an answer.
    unanswered: AtomicUsize,
    /// The store takes everything but dead letters.
    is_full_of_the_dead: AtomicBool,
    /// Dead letters that the store did not take.
    unburied: AtomicUsize,
    /// While a test holds it, writes of dead letters are not answered.
    burying: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Layer for Switched {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn apply_within(&self, batch: Arc<[Message]>, _: Duration) -> Result<Applied, StoreError> {
        self.asked.lock().expect("no panic").push(batch.len());
        if self.away.load(Ordering::Relaxed) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Unavailable("away".into()));
        }
        let outcome = self.store.apply(batch).await;
        if outcome.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        drop(self.answering.lock().await);
        outcome
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let probed = if self.away.load(Ordering::Relaxed) {
            Err(StoreError::Unavailable("away".into()))
        } else {
            self.store.probe().await
        };
        self.unanswered.fetch_add(usize::from(probed.is_err()), Ordering::Relaxed);
        probed
    }

    async fn bury(&self, message: DeadMessage) -> Result<(), StoreError> {
        let refuses = [&self.away, &self.is_full_of_the_dead];
        if refuses.iter().any(|refuses| refuses.load(Ordering::Relaxed)) {
            self.unburied.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Unavailable("no room".into()));
        }
        let outcome = self.store.bury(message).await;
        drop(self.burying.lock().await);
        outcome
    }
}

struct Rig {
    config: Config,
    backend: Backend,
    store: Arc<Layered<Switched>>,
    issuer: IdIssuer,
}

impl Rig {
    async fn new(config: Config) -> Self {
        let backend = backend::open(&config).await.expect("the backend opens");
        backend.store.migrate().await.expect("the schema is brought up");
        let store = Arc::new(Layered(Switched {
            store: backend.store.clone(),
            away: AtomicBool::new(false),
            asked: Mutex::default(),
            answering: tokio::sync::Mutex::default(),
            failed: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            is_full_of_the_dead: AtomicBool::new(false),
            unburied: AtomicUsize::new(0),
            burying: tokio::sync::Mutex::default(),
        }));
        let backend = Backend { store: store.clone(), ..backend };
        Self { config, backend, store, issuer: IdIssuer::new(rand::random(), 0) }
    }

    fn message(&mut self, counter: &str, by: i64) -> Outgoing {
        let mut builder = Builder::new(
            self.issuer.next(shared::runtime::clock::now_ms()),
            shared::runtime::clock::now_ms(),
        );
        let mut encoded = Vec::new();
        encode_increment(&mut encoded, counter, by);
        builder.push(&encoded, 1);
        builder.finish()
    }

    async fn publish(&self, message: Outgoing) {
        let publisher = self.backend.queue.publisher();
        publisher.publish(message, Instant::now() + PATIENCE).await.expect("durable");
    }

    /// Runs a consumer while `during` runs.
    async fn consuming<T>(&self, during: impl Future<Output = T>) -> T {
        let (trigger, shutdown) = shutdown::channel();
        let consumer = Consumer::new(&self.config, &self.backend, rand::random());
        let task = tokio::spawn(consumer.run(shutdown));
        let outcome = during.await;
        trigger.request();
        task.await.expect("the consumer does not panic");
        outcome
    }

    /// Waits until `count` calls of the store have failed.
    async fn wait_for_failures(&self, count: usize) {
        let asked = [&self.store.0.failed, &self.store.0.unanswered];
        let in_vain = || asked.iter().map(|asked| asked.load(Ordering::Relaxed)).sum::<usize>();
        wait_for("probes", async || in_vain() >= count).await;
    }

    async fn value(&self, counter: &str) -> Option<i64> {
        self.backend.store.counter(counter).await.expect("the store answers").map(|counter| counter.value)
    }

    async fn wait_for_value(&self, counter: &str, value: i64) {
        let stored = async || self.backend.store.counter(counter).await.ok().flatten();
        wait_for(counter, async || stored().await.is_some_and(|counter| counter.value == value)).await;
    }

    async fn wait_for_fate(&self, id: MessageId) -> ItemStatus {
        let item = id.item(Kind::Increment, 0);
        let fate = async |item| {
            let fates = self.backend.store.item_statuses([item].into()).await.ok()?;
            fates.into_iter().next().flatten()
        };
        wait_for("a fate", async || fate(item).await.is_some()).await;
        fate(item).await.expect("just seen")
    }

    async fn close(self) {
        self.backend.queue.close().await;
        self.backend.events.close().await;
        self.backend.store.close().await;
    }
}

async fn wait_for(what: &str, is_true: impl AsyncFn() -> bool) {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    while !is_true().await {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tick.tick().await;
    }
}

fn base_config() -> Config {
    let mut config = Config::default();
    config.queue.bytes_max = 64 << 20;
    config.queue.settle_ms = 0;
    config.ids.secrets = vec!["test".into()];
    config
}

async fn embedded<Fut: Future<Output = Rig>>(test: impl FnOnce(Rig) -> Fut) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    test(Rig::new(config).await).await.close().await;
}

async fn cluster<Fut: Future<Output = Rig>>(word: &str, test: impl FnOnce(Rig) -> Fut) {
    testkit::isolated(word, |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        test(Rig::new(config).await).await.close().await;
    })
    .await;
}

macro_rules! on_both_pairs {
    ($($name:ident)+) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn embedded() {
                crate::embedded(super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn cluster() {
                crate::cluster(stringify!($name), super::$name).await;
            }
        }
    )+};
}

mod alarms;
mod confirms;
mod dead_letters;
mod dead_queue;
mod dear_documents;
mod housekeeping;
mod private;
mod probe;
mod stops;
mod store_away;
mod stuck;
mod suspects;
mod watched;

on_both_pairs! {
    what_waits_is_merged_into_few_transactions
    what_is_no_message_is_rejected_and_the_rest_is_applied
    a_reused_id_is_never_applied_and_does_not_block_the_rest
    while_the_store_is_away_one_message_waits_and_afterwards_all_are_applied
    a_stop_under_a_backlog_does_not_wait_for_its_end
    a_stop_while_the_store_is_away_keeps_everything_for_the_next_consumer
}

async fn what_waits_is_merged_into_few_transactions(mut rig: Rig) -> Rig {
    for _ in 0..100 {
        let message = rig.message("merged", 1);
        rig.publish(message).await;
    }
    rig.consuming(rig.wait_for_value("merged", 100)).await;
    let asked = rig.store.0.asked.lock().expect("no panic").clone();
    assert_eq!(asked[0], 1, "every start is slow");
    assert!(asked.len() <= 20, "{asked:?}");
    assert_eq!(asked.iter().sum::<usize>(), 100, "each message once");
    rig
}

async fn what_is_no_message_is_rejected_and_the_rest_is_applied(mut rig: Rig) -> Rig {
    for body in ["no json", r#"{"v":99}"#, "[]"] {
        let good = rig.message("rest", 1);
        let bad = Outgoing { body: body.into(), ..rig.message("never", 1) };
        rig.publish(good).await;
        rig.publish(bad).await;
    }
    rig.consuming(rig.wait_for_value("rest", 3)).await;
    // A second consumer gets none of them: they are neither in the queue nor applied.
    let last = rig.message("last", 1);
    rig.publish(last).await;
    rig.consuming(rig.wait_for_value("last", 1)).await;
    assert_eq!(rig.value("never").await, None);
    rig
}

async fn a_reused_id_is_never_applied_and_does_not_block_the_rest(mut rig: Rig) -> Rig {
    let first = rig.message("reused", 1);
    let other =
        Outgoing { id: first.id, body: first.body.to_vec().replacing(b":1}}", b":9}}"), ..first.clone() };
    let same = first.clone();
    rig.publish(first).await;
    rig.consuming(rig.wait_for_value("reused", 1)).await;
    rig.publish(other).await;
    rig.publish(same).await;
    let last = rig.message("last", 1);
    let id = last.id;
    rig.publish(last).await;
    let fate = rig.consuming(rig.wait_for_fate(id)).await;
    assert!(matches!(fate, ItemStatus::Applied { .. }));
    assert_eq!(rig.value("reused").await, Some(1));
    rig
}

trait Replacing {
    fn replacing(self, from: &[u8], to: &[u8]) -> bytes::Bytes;
}

impl Replacing for Vec<u8> {
    fn replacing(mut self, from: &[u8], to: &[u8]) -> bytes::Bytes {
        let at = self.windows(from.len()).position(|window| window == from).expect("it is there");
        self.splice(at..at + from.len(), to.iter().copied());
        self.into()
    }
}

async fn while_the_store_is_away_one_message_waits_and_afterwards_all_are_applied(mut rig: Rig) -> Rig {
    rig.store.0.away.store(true, Ordering::Relaxed);
    for _ in 0..30 {
        let message = rig.message("outage", 1);
        rig.publish(message).await;
    }
    rig.consuming(async {
        rig.wait_for_failures(5).await;
        rig.store.0.away.store(false, Ordering::Relaxed);
        rig.wait_for_value("outage", 30).await;
    })
    .await;
    let asked = rig.store.0.asked.lock().expect("no panic").clone();
    let failed = rig.store.0.failed.load(Ordering::Relaxed);
    assert!(asked[..failed].iter().all(|messages| *messages == 1), "{asked:?}");
    assert_eq!(asked[failed..].iter().sum::<usize>(), 30, "each message once: {asked:?}");
    rig
}

/// Every batch ends because the next message does not fit, so one message is always held.
async fn a_stop_under_a_backlog_does_not_wait_for_its_end(mut rig: Rig) -> Rig {
    rig.config.queue.merge_items_max = 1;
    for _ in 0..400 {
        let message = rig.message("backlog", 1);
        rig.publish(message).await;
    }
    rig.consuming(wait_for("a beginning", async || rig.value("backlog").await.is_some())).await;
    let applied = rig.value("backlog").await.expect("just seen");
    assert!(applied < 400, "the stop waited for the backlog");
    rig.consuming(rig.wait_for_value("backlog", 400)).await;
    rig
}

async fn a_stop_while_the_store_is_away_keeps_everything_for_the_next_consumer(mut rig: Rig) -> Rig {
    rig.store.0.away.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        let message = rig.message("kept", 1);
        rig.publish(message).await;
    }
    rig.consuming(rig.wait_for_failures(4)).await;
    rig.store.0.away.store(false, Ordering::Relaxed);
    rig.consuming(rig.wait_for_value("kept", 10)).await;
    rig
}
