//! Clocks that were wrong for a long time and are put right: writes take effect again without help.
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, Method};
use shared::model::id::IdIssuer;
use shared::model::message::{Builder, Message, decode, encode_increment};
use shared::model::outcome::Applied;
use shared::runtime::clock;
use shared::store::{Retention, Store, StoreError};
use testkit::store::{Layer, Layered};

use crate::process::Process;
use crate::support::{base_config, close, embedded_over, json, on_both_pairs, open, problem, wait_for};

const DAY_MS: i64 = 24 * 3_600_000;

/// An increment that was accepted at this time.
fn accepted(at_ms: i64) -> Message {
    let mut builder = Builder::new(IdIssuer::new(rand::random(), 0).next(at_ms), at_ms);
    let mut encoded = Vec::new();
    encode_increment(&mut encoded, "ahead", 1);
    builder.push(&encoded, 1);
    decode(&builder.finish().body).expect("a message")
}

/// Leaves the store as after a month in which every clock was ahead: a day in the future was
/// written, and its data has been removed.
async fn forget_a_day_to_come(store: &Arc<dyn Store>) {
    let now_ms = clock::now_ms();
    store.apply([accepted(now_ms + 30 * DAY_MS)].into()).await.expect("is applied");
    let kept_ms = 1_000 * DAY_MS;
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: kept_ms,
        minutes_ms: kept_ms,
        hours_ms: kept_ms,
        discarded_ms: kept_ms,
        forget_before_ms: Some(now_ms + 32 * DAY_MS),
        remembered_ms: DAY_MS,
        rows_max: 1_000,
    };
    wait_for("the floor", async || {
        store.housekeep(retention).await.expect("is kept");
        (store.floor_ms().await.expect("is read") > now_ms + 29 * DAY_MS).then_some(())
    })
    .await;
}

on_both_pairs! {
    /// Writes are dead-lettered until the API has read the store's floor.
    async fn writes_take_effect_although_a_day_to_come_was_forgotten(installation) {
        forget_a_day_to_come(&installation.backends[0].store).await;
        for replica in 0..installation.apis.len() {
            installation.wait_for("a write that is applied", async || {
                let answer = installation.increment_and_wait(replica, "later").await;
                (answer.status() == 200).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_write_takes_effect_although_a_day_to_come_was_forgotten() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let backend = open(&config).await;
    forget_a_day_to_come(&backend.store).await;
    close(backend).await;
    let process = Process::start(&config);
    let client = Client::builder().no_proxy().build().expect("a client");
    let write = || {
        let url = format!("http://{}/v1/counters/first/increments", process.address);
        client.post(url).header("prefer", "wait=20").send()
    };
    // The requests go to all workers.
    let answers = futures_util::future::join_all((0..8).map(|_| write())).await;
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200, "{}", json(answer).await);
    }
}

/// A store whose clock is off.
struct Off {
    store: Arc<dyn Store>,
    by_ms: Arc<AtomicI64>,
}

#[async_trait]
impl Layer for Off {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn apply_within(&self, batch: Arc<[Message]>, _: Duration) -> Result<Applied, StoreError> {
        let applied = self.store.apply(batch).await?;
        let committed_at_ms = applied.committed_at_ms + self.by_ms.load(Ordering::Relaxed);
        Ok(Applied { committed_at_ms, ..applied })
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        Ok(self.store.now_ms().await? + self.by_ms.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_put_right_is_noticed_although_no_consumer_is_heard() {
    let by_ms = Arc::new(AtomicI64::new(DAY_MS));
    let off = by_ms.clone();
    let over = move |store| -> Arc<dyn Store> { Arc::new(Layered(Off { store, by_ms: off.clone() })) };
    embedded_over(&over, |mut installation| async move {
        let consumer = installation.consumers.pop().expect("one");
        let write = async || {
            let path = "/v1/counters/clock/increments";
            installation.at(0, Method::POST, path).send().await.expect("an answer")
        };
        let refused =
            wait_for("a refusal", async || Some(write().await).filter(|it| it.status() == 503)).await;
        assert_eq!(problem(refused, 503).await["type"], "urn:forebay:problem:clock_off");
        consumer.stop().await;
        assert_eq!(write().await.status(), 503);
        by_ms.store(0, Ordering::Relaxed);
        wait_for("a write that is accepted", async || (write().await.status() == 202).then_some(())).await;
        installation
    })
    .await;
}
