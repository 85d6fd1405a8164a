//! The cache over loads that the test answers, in its own time.
use std::time::Duration;

use shared::runtime::breaker::BreakerLimits;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;

type Body = Result<Vec<u8>, StoreError>;

/// `tag/rest`.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key(&'static str);

impl ReadKey for Key {
    fn tag(&self) -> &str {
        self.0.split('/').next().expect("there is a first part")
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

struct Rig {
    cache: Arc<ReadCache<Key>>,
    ask: mpsc::Sender<oneshot::Sender<Body>>,
    asked: mpsc::Receiver<oneshot::Sender<Body>>,
}

impl Rig {
    fn new(ttl: Duration, stale_max: Duration) -> Self {
        let (ask, asked) = mpsc::channel(1_000);
        let limits = BreakerLimits { failures_max: 100, open_for: Duration::from_secs(1), probes_max: 1 };
        let breaker = Arc::new(Breaker::new("test", limits));
        let limits = CacheLimits { bytes_max: 1 << 20, ttl, negative_ttl: ttl, stale_max };
        Self { cache: ReadCache::new(breaker, limits), ask, asked }
    }

    fn read(&self, key: &'static str) -> JoinHandle<Result<(String, CacheOutcome), StoreError>> {
        let (cache, ask) = (self.cache.clone(), self.ask.clone());
        tokio::spawn(async move {
            let load = || {
                let ask = ask.clone();
                async move {
                    let (sender, receiver) = oneshot::channel();
                    ask.send(sender).await.expect("the test listens");
                    receiver.await.expect("the test answers")
                }
            };
            let (answer, outcome) = cache.get(&Key(key), load).await?;
            Ok((String::from_utf8_lossy(&answer.body).into_owned(), outcome))
        })
    }

    /// The next load, waiting for its answer.
    async fn asked(&mut self) -> oneshot::Sender<Body> {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("the store is asked in time").expect("the store is asked")
    }

    async fn answer(&mut self, body: &str) {
        self.asked().await.send(Ok(body.into())).expect("awaited");
    }

    fn changed(&self, tag: &str) {
        self.cache.changed([tag].into_iter());
    }

    fn is_quiet(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }
}

/// Time that something may take to happen. Failing takes this long, passing does not.
const PATIENCE: Duration = Duration::from_secs(5);

const LONG: Duration = Duration::from_hours(1);

fn away() -> StoreError {
    StoreError::Unavailable("away".into())
}

async fn got(reader: JoinHandle<Result<(String, CacheOutcome), StoreError>>) -> (String, CacheOutcome) {
    let read = tokio::time::timeout(PATIENCE, reader).await.expect("an answer in time");
    read.expect("no panic").expect("an answer")
}

fn hit(body: &str) -> (String, CacheOutcome) {
    (body.into(), CacheOutcome::Hit)
}

fn miss(body: &str) -> (String, CacheOutcome) {
    (body.into(), CacheOutcome::Miss)
}

#[tokio::test]
async fn many_readers_of_one_key_cause_one_load_and_then_hits() {
    let mut rig = Rig::new(LONG, LONG);
    let readers: Vec<_> = (0..50).map(|_| rig.read("a/1")).collect();
    rig.answer("one").await;
    for reader in readers {
        assert_eq!(got(reader).await.0, "one");
    }
    assert_eq!(got(rig.read("a/1")).await, hit("one"));
    assert!(rig.is_quiet(), "one load was enough");
}

#[tokio::test]
async fn a_change_makes_the_answers_of_its_tag_old_and_no_others() {
    let mut rig = Rig::new(LONG, LONG);
    for key in ["a/1", "a/2", "b/1"] {
        let reader = rig.read(key);
        rig.answer(key).await;
        got(reader).await;
    }
    rig.changed("a");
    rig.changed("never read");
    assert_eq!(got(rig.read("b/1")).await, hit("b/1"));
    for key in ["a/1", "a/2"] {
        let reader = rig.read(key);
        rig.answer("new").await;
        assert_eq!(got(reader).await, miss("new"));
        assert_eq!(got(rig.read(key)).await, hit("new"));
    }
}

#[tokio::test]
async fn what_was_read_before_a_change_never_counts_as_fresh() {
    let mut rig = Rig::new(LONG, LONG);
    let reader = rig.read("a/1");
    let answer = rig.asked().await;
    rig.changed("a");
    answer.send(Ok("old".into())).expect("awaited");
    assert_eq!(got(reader).await, miss("old"), "it asked before the change");
    let reader = rig.read("a/1");
    rig.answer("new").await;
    assert_eq!(got(reader).await, miss("new"));
}

#[tokio::test]
async fn who_asks_after_a_change_does_not_join_a_load_from_before_it() {
    let mut rig = Rig::new(LONG, LONG);
    let before = rig.read("a/1");
    let answer = rig.asked().await;
    rig.changed("a");
    let after: Vec<_> = (0..10).map(|_| rig.read("a/1")).collect();
    // All ten are waiting now: on this single-threaded runtime every task ran until it had to.
    tokio::task::yield_now().await;
    assert!(rig.is_quiet(), "one load of a key at a time");
    answer.send(Ok("old".into())).expect("awaited");
    assert_eq!(got(before).await.0, "old");
    let next = rig.asked().await;
    // Another change does not send them round again: this load began after they asked.
    rig.changed("a");
    next.send(Ok("new".into())).expect("awaited");
    for reader in after {
        assert_eq!(got(reader).await.0, "new");
    }
    assert!(rig.is_quiet(), "one load for all of them");
}

#[tokio::test]
async fn a_hole_makes_everything_old_also_what_is_being_loaded() {
    let mut rig = Rig::new(LONG, LONG);
    let reader = rig.read("a/1");
    rig.answer("one").await;
    got(reader).await;
    let reader = rig.read("b/1");
    let answer = rig.asked().await;
    rig.cache.invalidate_all();
    answer.send(Ok("one".into())).expect("awaited");
    got(reader).await;
    for key in ["a/1", "b/1"] {
        let reader = rig.read(key);
        rig.answer("two").await;
        assert_eq!(got(reader).await, miss("two"));
    }
}

#[tokio::test]
async fn an_old_answer_is_given_stale_while_the_store_is_away_and_an_unknown_one_is_not_guessed() {
    let mut rig = Rig::new(Duration::ZERO, LONG);
    let unknown = rig.read("a/1");
    rig.asked().await.send(Err(away())).expect("awaited");
    assert!(unknown.await.expect("no panic").is_err());
    let reader = rig.read("a/1");
    rig.answer("one").await;
    got(reader).await;
    rig.changed("a");
    let reader = rig.read("a/1");
    rig.asked().await.send(Err(away())).expect("awaited");
    assert_eq!(got(reader).await, ("one".into(), CacheOutcome::Stale));
}

#[tokio::test]
async fn an_answer_that_is_too_old_is_not_given_at_all() {
    let mut rig = Rig::new(Duration::ZERO, Duration::ZERO);
    let reader = rig.read("a/1");
    rig.answer("one").await;
    got(reader).await;
    let reader = rig.read("a/1");
    rig.asked().await.send(Err(away())).expect("awaited");
    assert!(reader.await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_end_the_load_for_the_others() {
    let mut rig = Rig::new(LONG, LONG);
    let first = rig.read("a/1");
    let answer = rig.asked().await;
    let second = rig.read("a/1");
    first.abort();
    answer.send(Ok("one".into())).expect("awaited");
    assert_eq!(got(second).await.0, "one");
}

#[tokio::test]
async fn a_load_that_panics_fails_its_readers_and_the_next_one_starts_anew() {
    let mut rig = Rig::new(LONG, LONG);
    let reader = rig.read("a/1");
    drop(rig.asked().await);
    assert!(reader.await.expect("the reader does not panic").is_err());
    let reader = rig.read("a/1");
    rig.answer("one").await;
    assert_eq!(got(reader).await, miss("one"));
}

#[tokio::test]
async fn the_same_body_has_the_same_tag_and_memory_of_tags_is_bounded() {
    let mut rig = Rig::new(LONG, LONG);
    let mut etags = Vec::new();
    for body in ["one", "one", "two"] {
        rig.changed("a");
        let reader = rig.read("a/1");
        rig.answer(body).await;
        got(reader).await;
        etags.push(rig.cache.entries.get(&Key("a/1")).expect("cached").etag.clone());
    }
    assert!(etags[0] == etags[1] && etags[1] != etags[2], "{etags:?}");
    let mut flights = rig.cache.lock();
    for number in 0..10_000 {
        flights.tag(&number.to_string());
    }
    assert!(flights.tags.len() <= TAGS_SPARE + 2, "{}", flights.tags.len());
    assert!(flights.tags.contains_key("a"), "an answer has it");
}
