//! The cache over a store with reads that the test answers.
use std::time::Duration;

use async_trait::async_trait;
use shared::runtime::breaker::BreakerLimits;
use testkit::store::{Layer, Layered};
use tokio::sync::{mpsc, oneshot};

use super::*;

type Read = Result<Option<Counter>, StoreError>;

/// A store with reads that the test answers, in its own time.
struct Asked(mpsc::UnboundedSender<oneshot::Sender<Read>>);

#[async_trait]
impl Layer for Asked {
    async fn counter(&self, _: &str) -> Read {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).expect("the test listens");
        receiver.await.expect("the test answers")
    }
}

struct Rig {
    cache: Arc<CounterCache>,
    asked: mpsc::UnboundedReceiver<oneshot::Sender<Read>>,
}

impl Rig {
    fn new(ttl: Duration) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test answers all of the few reads it causes")]
        let (sender, asked) = mpsc::unbounded_channel();
        let limits = BreakerLimits { failures_max: 100, open_for: Duration::from_secs(1), probes_max: 1 };
        let breaker = Arc::new(Breaker::new("test", limits));
        let hour = Duration::from_hours(1);
        let limits = CacheLimits { bytes_max: 1 << 20, ttl, negative_ttl: ttl, stale_max: hour };
        Self { cache: CounterCache::new(Arc::new(Layered(Asked(sender))), breaker, limits), asked }
    }

    fn read(&self) -> tokio::task::JoinHandle<Result<(Option<i64>, CacheOutcome), StoreError>> {
        let cache = self.cache.clone();
        tokio::spawn(async move {
            let (entry, outcome) = cache.get("a").await?;
            Ok((entry.counter.as_ref().map(|counter| counter.version), outcome))
        })
    }

    /// The next read of the store, waiting for its answer.
    async fn asked(&mut self) -> oneshot::Sender<Read> {
        self.asked.recv().await.expect("the store is asked")
    }
}

const LONG: Duration = Duration::from_hours(1);

fn at(version: i64) -> Counter {
    Counter { name: "a".into(), value: version * 10, version, updated_at_ms: 0 }
}

fn away() -> StoreError {
    StoreError::Unavailable("away".into())
}

#[tokio::test]
async fn many_readers_of_one_key_cause_one_load_and_then_hits() {
    let mut rig = Rig::new(LONG);
    let readers: Vec<_> = (0..50).map(|_| rig.read()).collect();
    rig.asked().await.send(Ok(Some(at(3)))).expect("awaited");
    for reader in readers {
        assert_eq!(reader.await.expect("no panic").expect("read").0, Some(3));
    }
    assert_eq!(rig.read().await.expect("no panic").expect("read"), (Some(3), CacheOutcome::Hit));
    assert!(rig.asked.try_recv().is_err(), "one load was enough");
}

#[tokio::test]
async fn a_load_that_read_before_a_change_does_not_hide_it() {
    let mut rig = Rig::new(LONG);
    let reader = rig.read();
    let answer = rig.asked().await;
    rig.cache.apply_update(&[at(5)]);
    rig.cache.apply_update(&[at(4)]);
    answer.send(Ok(Some(at(3)))).expect("awaited");
    assert_eq!(reader.await.expect("no panic").expect("read").0, Some(5));
    assert_eq!(rig.read().await.expect("no panic").expect("read"), (Some(5), CacheOutcome::Hit));
}

#[tokio::test]
async fn a_hole_noticed_during_a_load_makes_its_result_old() {
    let mut rig = Rig::new(LONG);
    let reader = rig.read();
    let answer = rig.asked().await;
    rig.cache.invalidate_all();
    answer.send(Ok(Some(at(3)))).expect("awaited");
    reader.await.expect("no panic").expect("read");
    let again = rig.read();
    rig.asked().await.send(Ok(Some(at(4)))).expect("awaited");
    assert_eq!(again.await.expect("no panic").expect("read"), (Some(4), CacheOutcome::Miss));
}

#[tokio::test]
async fn versions_never_go_backwards_whoever_tells() {
    let mut rig = Rig::new(Duration::ZERO);
    for (reported, expected) in [(7, 7), (6, 7), (8, 8)] {
        let reader = rig.read();
        rig.asked().await.send(Ok(Some(at(reported)))).expect("awaited");
        assert_eq!(reader.await.expect("no panic").expect("read").0, Some(expected));
    }
    rig.cache.apply_update(&[at(2)]);
    let reader = rig.read();
    rig.asked().await.send(Ok(None)).expect("awaited");
    assert_eq!(reader.await.expect("no panic").expect("read").0, Some(8));
}

#[tokio::test]
async fn an_old_value_is_answered_stale_while_the_store_is_away_and_an_unknown_one_is_not_guessed() {
    let mut rig = Rig::new(Duration::ZERO);
    let unknown = rig.read();
    rig.asked().await.send(Err(away())).expect("awaited");
    assert!(unknown.await.expect("no panic").is_err());
    let reader = rig.read();
    rig.asked().await.send(Ok(Some(at(3)))).expect("awaited");
    reader.await.expect("no panic").expect("read");
    rig.cache.invalidate_all();
    let reader = rig.read();
    rig.asked().await.send(Err(away())).expect("awaited");
    assert_eq!(reader.await.expect("no panic").expect("stale"), (Some(3), CacheOutcome::Stale));
}

#[tokio::test]
async fn that_something_does_not_exist_is_never_answered_from_an_old_reading() {
    let mut rig = Rig::new(Duration::ZERO);
    let reader = rig.read();
    rig.asked().await.send(Ok(None)).expect("awaited");
    assert_eq!(reader.await.expect("no panic").expect("read").0, None);
    let reader = rig.read();
    rig.asked().await.send(Err(away())).expect("awaited");
    assert!(reader.await.expect("no panic").is_err());
}

#[tokio::test]
async fn events_change_cached_values_and_bring_in_no_others() {
    let mut rig = Rig::new(LONG);
    rig.cache.apply_update(&[at(1)]);
    let reader = rig.read();
    rig.asked().await.send(Ok(None)).expect("the event alone cached nothing");
    assert_eq!(reader.await.expect("no panic").expect("read").0, None);
    rig.cache.apply_update(&[at(2)]);
    assert_eq!(rig.read().await.expect("no panic").expect("read"), (Some(2), CacheOutcome::Hit));
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_end_the_load_for_the_others() {
    let mut rig = Rig::new(LONG);
    let first = rig.read();
    let answer = rig.asked().await;
    let second = rig.read();
    first.abort();
    answer.send(Ok(Some(at(1)))).expect("awaited");
    assert_eq!(second.await.expect("no panic").expect("read").0, Some(1));
}
