//! Definitions over a store with reads that the test answers.
use async_trait::async_trait;
use shared::event::in_process::InProcessEvents;
use shared::runtime::breaker::BreakerLimits;
use testkit::store::{Layer, Layered};
use tokio::sync::{mpsc, oneshot};

use super::*;

type Read = Result<Collection, StoreError>;

/// A store with reads that the test answers, in its own time.
struct Asked(mpsc::Sender<oneshot::Sender<Read>>);

#[async_trait]
impl Layer for Asked {
    async fn collection(&self, _: &str) -> Read {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.expect("the test listens");
        receiver.await.expect("the test answers")
    }
}

fn rig() -> (Arc<Definitions>, mpsc::Receiver<oneshot::Sender<Read>>) {
    let (sender, asked) = mpsc::channel(8);
    let limits = BreakerLimits { failures_max: 100, open_for: Duration::from_secs(1), probes_max: 1 };
    let breaker = Arc::new(Breaker::new("test", limits));
    (Definitions::new(Arc::new(Layered(Asked(sender))), breaker, InProcessEvents::start()), asked)
}

fn at(version: i64) -> Collection {
    Collection { version, is_defined: true, is_indexed: true, ..Collection::default() }
}

async fn version(definitions: &Arc<Definitions>) -> Option<i64> {
    definitions.checker("a").await.map(|checker| checker.version)
}

#[tokio::test]
async fn the_first_document_waits_briefly_and_the_answer_serves_the_next() {
    let (definitions, mut asked) = rig();
    let started = Instant::now();
    assert_eq!(version(&definitions).await, None);
    assert!(started.elapsed() >= WAIT_MAX);
    let waiting = tokio::spawn({
        let definitions = definitions.clone();
        async move { definitions.current("a").await.map(|known| known.collection.version) }
    });
    let answer = asked.recv().await.expect("the store is asked");
    answer.send(Ok(at(3))).expect("awaited");
    assert_eq!(waiting.await.expect("no panic").expect("read"), 3);
    assert_eq!(version(&definitions).await, Some(3));
    assert!(asked.try_recv().is_err(), "one load was enough");
}

#[tokio::test]
async fn a_store_that_is_away_leaves_it_unknown_at_once() {
    let (definitions, mut asked) = rig();
    let reading = tokio::spawn({
        let definitions = definitions.clone();
        async move { version(&definitions).await }
    });
    let away = StoreError::Unavailable("away".into());
    asked.recv().await.expect("the store is asked").send(Err(away)).expect("awaited");
    assert_eq!(reading.await.expect("no panic"), None);
}

#[tokio::test]
async fn a_reading_from_before_a_change_does_not_hide_it() {
    let (definitions, mut asked) = rig();
    let late = tokio::spawn({
        let definitions = definitions.clone();
        async move { definitions.current("a").await.map(|known| known.collection.version) }
    });
    let answer = asked.recv().await.expect("the store is asked");
    definitions.apply_update("a", at(5), 0).await;
    answer.send(Ok(at(4))).expect("awaited");
    assert_eq!(late.await.expect("no panic").expect("read"), 5);
    assert_eq!(version(&definitions).await, Some(5));
}

#[tokio::test]
async fn a_definition_that_this_build_cannot_use_leaves_the_check_to_the_consumer() {
    let (definitions, _asked) = rig();
    let definition = Definition { schema: Some(r#"{"type":"unheard-of"}"#.into()), ..Definition::default() };
    definitions.apply_update("a", Collection { definition, ..at(1) }, 0).await;
    assert_eq!(version(&definitions).await, None);
}

#[tokio::test]
async fn after_a_change_somewhere_an_earlier_reading_does_not_count() {
    let (definitions, mut asked) = rig();
    definitions.apply_update("a", at(1), 0).await;
    assert_eq!(version(&definitions).await, Some(1));
    definitions.invalidate_all();
    let waiting = tokio::spawn({
        let definitions = definitions.clone();
        async move { version(&definitions).await }
    });
    asked.recv().await.expect("the store is asked").send(Ok(at(2))).expect("awaited");
    assert_eq!(waiting.await.expect("no panic"), Some(2));
    assert_eq!(version(&definitions).await, Some(2));
    assert!(asked.try_recv().is_err(), "one reading was enough");
}

#[tokio::test]
async fn all_who_are_about_to_refuse_share_the_reading_that_begins_after_them() {
    let (definitions, mut asked) = rig();
    definitions.apply_update("a", at(1), 0).await;
    let early = definitions.load("a", false);
    let first = asked.recv().await.expect("the store is asked");
    let mut newer = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let definitions = definitions.clone();
        newer.spawn(async move { definitions.newer_checker("a", 1).await.map(|checker| checker.version) });
    }
    // All twenty are waiting now: on this single-threaded runtime every task ran until it had to.
    tokio::task::yield_now().await;
    assert!(asked.try_recv().is_err(), "one at a time");
    first.send(Ok(at(1))).expect("awaited");
    assert_eq!(early.await.expect("read").collection.version, 1);
    asked.recv().await.expect("the store is asked again").send(Ok(at(2))).expect("awaited");
    while let Some(version) = newer.join_next().await {
        assert_eq!(version.expect("no panic"), Some(2));
    }
    assert!(asked.try_recv().is_err(), "two readings were enough");
}
