//! Requests that wait for the outcome of their writes.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shared::model::id::ItemKey;
use shared::model::message::Message;
use shared::model::outcome::{Applied, ItemStatus};
use shared::store::{Store, StoreError};
use testkit::store::{Layer, Layered};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Installation, cluster_over, embedded_over, json, on_both_pairs, problem};

/// Upper limit for an answer to `wait=20` that did not come because the time was up.
const SOONER: Duration = Duration::from_secs(15);

async fn post(installation: &Installation, path: &str, prefer: &str, body: Value) -> Response {
    let request = installation.at(0, Method::POST, path).header("prefer", prefer);
    request.json(&body).send().await.expect("an answer")
}

fn is_vary_prefer(response: &Response) -> bool {
    response.headers().get("vary").is_some_and(|vary| vary == "Prefer")
}

on_both_pairs! {
    async fn a_write_that_waits_is_answered_with_the_value_that_it_made(installation) {
        installation.wait_until_events_arrive().await;
        for version in 1..=3 {
            let response = post(&installation, "/v1/counters/w/increments", "wait=20", json!({"by": 5})).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["preference-applied"], "wait=20");
            let expected = json!({"name": "w", "value": version * 5, "version": version});
            assert_eq!(json(response).await, expected);
        }
        let capped = post(&installation, "/v1/counters/w/increments", "respond-async, Wait=99", json!({})).await;
        assert_eq!(capped.headers()["preference-applied"], "wait=30");
        let junk = post(&installation, "/v1/counters/w/increments", "wait=soon", json!({})).await;
        assert_eq!(junk.status(), 202);
    }

    async fn a_hundred_that_wait_at_once_get_each_value_once(installation) {
        installation.wait_until_events_arrive().await;
        let waiting: Vec<_> = (0..100)
            .map(|replica| {
                let request = installation.at(replica, Method::POST, "/v1/counters/hundred/increments");
                tokio::spawn(request.header("prefer", "wait=20").send())
            })
            .collect();
        let (mut values, mut versions) = (BTreeSet::new(), BTreeSet::new());
        for waiting in waiting {
            let response = waiting.await.expect("no panic").expect("an answer");
            assert_eq!(response.status(), 200);
            let counter = json(response).await;
            values.insert(counter["value"].as_i64().expect("a value"));
            versions.insert(counter["version"].as_i64().expect("a version"));
        }
        assert_eq!(values, (1..=100).collect());
        assert_eq!(versions, values);
    }

    async fn a_write_that_is_set_aside_answers_with_its_receipt(installation) {
        installation.wait_until_events_arrive().await;
        let path = "/v1/counters/full/increments";
        let first = post(&installation, path, "wait=20", json!({"by": i64::MAX})).await;
        assert_eq!(first.status(), 200);
        let response = post(&installation, path, "wait=20", json!({})).await;
        assert_eq!(response.headers()["preference-applied"], "wait=20");
        let set_aside = problem(response, 422).await;
        assert_eq!(set_aside["type"], "urn:forebay:problem:set_aside");
        let receipt = &set_aside["receipt"];
        assert_eq!((&receipt["status"], &receipt["reason"]), (&json!("failed"), &json!("counter_overflow")));
        let id = receipt["id"].as_str().expect("an id");
        assert_eq!(json(installation.get(&format!("/v1/receipts/{id}")).await).await, *receipt);
    }

    async fn arrays_do_not_wait(installation) {
        let response = post(&installation, "/v1/counters/w/increments", "wait=20", json!([{}, {}])).await;
        assert_eq!(response.status(), 202);
        assert!(!response.headers().contains_key("preference-applied"));
    }

    async fn a_read_waits_for_a_change_of_what_the_client_knows(installation) {
        installation.increment(0, "follow", 1).await;
        installation.wait_for_value(0, "follow", 1).await;
        let get = |etag: &str, prefer: &str| {
            let request = installation.at(0, Method::GET, "/v1/counters/follow");
            request.header("if-none-match", etag).header("prefer", prefer).send()
        };
        let older = get("\"0\"", "wait=20").await.expect("an answer");
        assert!(older.status() == 200 && is_vary_prefer(&older));
        let started = Instant::now();
        let same = get("\"1\"", "wait=1").await.expect("an answer");
        assert!(same.status() == 304 && is_vary_prefer(&same));
        assert!(started.elapsed() >= Duration::from_secs(1));
        let waiting = tokio::spawn(get("\"1\"", "wait=20"));
        waits(&installation, 0, 1).await;
        installation.increment(1, "follow", 1).await;
        let changed = waiting.await.expect("no panic").expect("an answer");
        assert_eq!(changed.status(), 200);
        assert_eq!(changed.headers()["preference-applied"], "wait=20");
        assert_eq!(json(changed).await["version"], 2);
        assert!(started.elapsed() < SOONER);
    }

    async fn the_short_path_waits_by_itself(installation) {
        installation.wait_until_events_arrive().await;
        for count in 1..=3 {
            let response = installation.at(0, Method::POST, "/counter").send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("preference-applied"), "nobody asked for it");
            assert_eq!(json(response).await, json!({"count": count}));
        }
        let asked = post(&installation, "/counter", "wait=20", json!({"by": 2})).await;
        assert_eq!(asked.headers()["preference-applied"], "wait=20");
        assert_eq!(json(asked).await, json!({"count": 5}));
    }
}

/// Waits until this many requests wait at a replica.
async fn waits(installation: &Installation, replica: usize, count: usize) {
    let api = &installation.apis[replica % installation.apis.len()];
    installation.wait_for("requests that wait", async || (api.waiting() >= count).then_some(())).await;
}

/// The behaviour of the store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Fine,
    /// Transactions wait.
    Held,
    Away,
    /// The next transaction commits, and its answer is lost.
    Lost,
    /// Failed items are redriven with success before anything reads their status.
    Redriven,
}

struct Moods {
    mood: watch::Sender<Mood>,
    /// Number of reads of item statuses that were answered.
    looked: AtomicUsize,
}

impl Moods {
    fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

struct Moody {
    store: Arc<dyn Store>,
    moods: Arc<Moods>,
}

#[async_trait]
impl Layer for Moody {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn apply_within(&self, batch: Arc<[Message]>, _: Duration) -> Result<Applied, StoreError> {
        let away = |why: &str| StoreError::Unavailable(why.into());
        let mut moods = self.moods.mood.subscribe();
        let mood = *moods.wait_for(|mood| *mood != Mood::Held).await.expect("the test has it");
        if mood == Mood::Away {
            return Err(away("away"));
        }
        let applied = self.store.apply(batch).await?;
        let loses = |mood: &mut Mood| std::mem::replace(mood, Mood::Fine) == Mood::Lost;
        if mood == Mood::Lost && self.moods.mood.send_if_modified(loses) {
            return Err(away("after the commit"));
        }
        Ok(applied)
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        let mut statuses = self.store.item_statuses(items).await?;
        self.moods.looked.fetch_add(1, Ordering::Relaxed);
        if *self.moods.mood.borrow() == Mood::Redriven {
            for status in statuses.iter_mut().flatten() {
                if let ItemStatus::Failed { at_ms, fingerprint, .. } = *status {
                    *status = ItemStatus::Applied { at_ms, fingerprint };
                }
            }
        }
        Ok(statuses)
    }
}

/// Runs a test on both pairs over stores with moods.
async fn moody<Fut: Future<Output = Installation>>(
    word: &str,
    test: impl Fn(Installation, Arc<Moods>) -> Fut,
) {
    let moods = Arc::new(Moods { mood: watch::Sender::new(Mood::Fine), looked: AtomicUsize::new(0) });
    let over = |store: Arc<dyn Store>| -> Arc<dyn Store> {
        Arc::new(Layered(Moody { store, moods: moods.clone() }))
    };
    embedded_over(&over, |installation| test(installation, moods.clone())).await;
    moods.set(Mood::Fine);
    cluster_over(word, &over, |installation| test(installation, moods.clone())).await;
}

/// Starts a request that waits in the background, at the first replica.
fn waiting(installation: &Installation, path: &str) -> JoinHandle<Response> {
    let request = installation.at(0, Method::POST, path).header("prefer", "wait=20");
    tokio::spawn(async move { request.send().await.expect("an answer") })
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_store_that_is_away() {
    moody("away", |installation, moods| async move {
        installation.wait_until_events_arrive().await;
        moods.set(Mood::Away);
        let started = Instant::now();
        let open = waiting(&installation, "/v1/counters/away/increments");
        // A consumer notices a fault of the store when it has something to apply.
        installation
            .wait_for("a release", async || {
                installation.increment(0, "away", 1).await;
                open.is_finished().then_some(())
            })
            .await;
        let open = open.await.expect("no panic");
        assert_eq!(open.status(), 202, "released");
        assert!(!open.headers().contains_key("preference-applied"));
        installation
            .wait_for("an answer at once", async || {
                let started = Instant::now();
                let response = installation.increment_and_wait(1, "away").await;
                (response.status() == 202 && started.elapsed() < Duration::from_millis(900)).then_some(())
            })
            .await;
        assert!(started.elapsed() < SOONER, "{:?}", started.elapsed());
        moods.set(Mood::Fine);
        installation
            .wait_for("waits as before", async || {
                let response = installation.increment_and_wait(0, "back").await;
                (response.status() == 200).then_some(())
            })
            .await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_was_lost_after_the_commit_is_told_as_the_one_of_now() {
    moody("lost", |installation, moods| async move {
        installation.wait_until_events_arrive().await;
        moods.set(Mood::Lost);
        let started = Instant::now();
        let response = installation.increment_and_wait(0, "lost").await;
        assert_eq!(response.status(), 200, "it was looked up, not given up");
        assert_eq!(response.headers()["forebay-value"], "present");
        assert_eq!(json(response).await, json!({"name": "lost", "value": 1, "version": 1}));
        assert!(started.elapsed() < SOONER);
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_that_was_redriven_before_its_answer_is_applied() {
    moody("redriven", |installation, moods| async move {
        installation.wait_until_events_arrive().await;
        let path = "/v1/counters/redriven/increments";
        assert_eq!(post(&installation, path, "wait=20", json!({"by": i64::MAX})).await.status(), 200);
        moods.set(Mood::Redriven);
        for key in [None, Some("k")] {
            let request = installation.at(0, Method::POST, path).header("prefer", "wait=20");
            let request =
                key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
            let response = request.json(&json!({"by": 1})).send().await.expect("an answer");
            assert_eq!(response.status(), 200, "{key:?}");
            assert_eq!(response.headers()["forebay-value"], "present");
        }
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_releases_who_waits() {
    moody("stop", |mut installation, moods| async move {
        moods.set(Mood::Held);
        let open: Vec<_> = (0..5).map(|_| waiting(&installation, "/v1/counters/stop/increments")).collect();
        let receipt = installation.increment(0, "stop", 1).await;
        let request = installation.at(0, Method::GET, &format!("/v1/receipts/{receipt}"));
        let receipt = tokio::spawn(request.header("prefer", "wait=20").send());
        waits(&installation, 0, 6).await;
        let started = Instant::now();
        installation.apis.remove(0).stop().await;
        for open in open {
            assert_eq!(open.await.expect("no panic").status(), 202);
        }
        let receipt = receipt.await.expect("no panic").expect("an answer");
        assert_eq!(json(receipt).await["status"], "accepted");
        assert!(started.elapsed() < SOONER);
        moods.set(Mood::Fine);
        installation.restart_api();
        installation.wait_for_value(0, "stop", 6).await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_waits_until_it_is_settled() {
    moody("receipt", |installation, moods| async move {
        // Otherwise a gap in the events could make a replica read once more.
        installation.wait_until_events_arrive().await;
        moods.set(Mood::Held);
        let id = installation.increment(0, "settled", 1).await;
        let path = format!("/v1/receipts/{id}");
        let get = |replica, prefer: &str| {
            let request = installation.at(replica, Method::GET, &path).header("prefer", prefer);
            tokio::spawn(async move { request.send().await.expect("an answer") })
        };
        let early = get(0, "wait=1").await.expect("no panic");
        assert!(!early.headers().contains_key("preference-applied"), "it did not help");
        assert_eq!(json(early).await["status"], "accepted");
        let looked = moods.looked.load(Ordering::Relaxed);
        let open = [get(0, "wait=20"), get(1, "wait=20")];
        // Each registers, reads, and only then waits.
        let all_looked = || moods.looked.load(Ordering::Relaxed) >= looked + open.len();
        installation.wait_for("two that wait", async || all_looked().then_some(())).await;
        moods.set(Mood::Fine);
        for open in open {
            let response = open.await.expect("no panic");
            assert_eq!(response.headers()["preference-applied"], "wait=20");
            let receipt = json(response).await;
            assert_eq!(receipt["status"], "applied");
            assert!(receipt["applied_at"].is_string());
        }
        let settled = get(0, "wait=20").await.expect("no panic");
        assert!(!settled.headers().contains_key("preference-applied"), "nothing to wait for");
        installation
    })
    .await;
}
