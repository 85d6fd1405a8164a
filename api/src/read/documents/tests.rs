//! The cache over a store with reads that the test answers.
use async_trait::async_trait;
use shared::model::id::{IdIssuer, Kind};
use shared::runtime::breaker::BreakerLimits;
use testkit::store::{Layer, Layered};
use tokio::sync::{mpsc, oneshot};

use super::*;

type Read = Result<Option<Stored>, StoreError>;

/// A store with reads that the test answers, in its own time.
struct Asked(mpsc::Sender<oneshot::Sender<Read>>);

#[async_trait]
impl Layer for Asked {
    async fn document(&self, _: &str, _: ItemKey) -> Read {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.expect("the test listens");
        receiver.await.expect("the test answers")
    }
}

struct Rig {
    cache: Arc<DocumentCache>,
    asked: mpsc::Receiver<oneshot::Sender<Read>>,
    id: ItemKey,
}

impl Rig {
    fn new(ttl: Duration) -> Self {
        let (sender, asked) = mpsc::channel(8);
        let limits = BreakerLimits { failures_max: 100, open_for: Duration::from_secs(1), probes_max: 1 };
        let breaker = Arc::new(Breaker::new("test", limits));
        let hour = Duration::from_hours(1);
        let limits = CacheLimits { bytes_max: 1 << 20, ttl, negative_ttl: ttl, stale_max: hour };
        let cache = DocumentCache::new(Arc::new(Layered(Asked(sender))), breaker, limits);
        Self { cache, asked, id: IdIssuer::new(1, 2).next(3).item(Kind::Document, 4) }
    }

    fn read(&self, collection: &'static str) -> tokio::task::JoinHandle<Result<DocumentLookup, StoreError>> {
        let (cache, id) = (self.cache.clone(), self.id);
        tokio::spawn(async move { cache.get(collection, id).await })
    }

    /// Reads once, from a store that holds this.
    async fn read_from(&mut self, held: Read) -> Result<DocumentLookup, StoreError> {
        let read = self.read("a");
        self.asked.recv().await.expect("the store is asked").send(held).expect("awaited");
        read.await.expect("no panic")
    }

    fn document(&self) -> Stored {
        let (id, place, data) = (self.id, self.id.as_uuid(), "{}".to_owned());
        let document = Document { id, place, data, accepted_at_ms: 0, fingerprint: None };
        Stored::Document(document)
    }
}

const LONG: Duration = Duration::from_hours(1);

fn outcome(read: Result<DocumentLookup, StoreError>) -> Option<CacheOutcome> {
    match read.expect("known") {
        DocumentLookup::Document(_, outcome) => Some(outcome),
        DocumentLookup::Deleted | DocumentLookup::Nothing => None,
    }
}

fn away() -> Read {
    Err(StoreError::Unavailable("away".into()))
}

#[tokio::test]
async fn a_document_is_answered_from_memory_until_it_is_deleted() {
    let mut rig = Rig::new(LONG);
    let held = Ok(Some(rig.document()));
    assert_eq!(outcome(rig.read_from(held).await), Some(CacheOutcome::Miss));
    assert_eq!(outcome(rig.read("a").await.expect("no panic")), Some(CacheOutcome::Hit));
    rig.cache.forget([rig.id]);
    assert!(matches!(rig.read_from(Ok(Some(Stored::Deleted))).await, Ok(DocumentLookup::Deleted)));
    assert!(matches!(rig.read_from(Ok(None)).await, Ok(DocumentLookup::Nothing)));
}

#[tokio::test]
async fn what_was_read_before_a_deletion_is_not_kept_after_it() {
    let mut rig = Rig::new(LONG);
    let read = rig.read("a");
    let asked = rig.asked.recv().await.expect("the store is asked");
    rig.cache.forget([rig.id]);
    asked.send(Ok(Some(rig.document()))).expect("awaited");
    assert_eq!(outcome(read.await.expect("no panic")), Some(CacheOutcome::Miss));
    assert!(matches!(rig.read_from(Ok(Some(Stored::Deleted))).await, Ok(DocumentLookup::Deleted)));
}

#[tokio::test]
async fn an_old_entry_is_answered_stale_while_the_store_is_away_and_only_then() {
    let mut rig = Rig::new(LONG);
    let held = Ok(Some(rig.document()));
    rig.read_from(held).await.expect("held");
    rig.cache.invalidate_all();
    assert_eq!(outcome(rig.read_from(away()).await), Some(CacheOutcome::Stale));
    let held = Ok(Some(rig.document()));
    assert_eq!(outcome(rig.read_from(held).await), Some(CacheOutcome::Miss));
    rig.cache.forget([rig.id]);
    rig.read_from(away()).await.expect_err("nothing is known of it");
}

#[tokio::test]
async fn an_entry_answers_for_its_own_collection_only() {
    let mut rig = Rig::new(LONG);
    let held = Ok(Some(rig.document()));
    rig.read_from(held).await.expect("held");
    let read = rig.read("b");
    rig.asked.recv().await.expect("the store is asked").send(Ok(None)).expect("awaited");
    assert!(matches!(read.await.expect("no panic"), Ok(DocumentLookup::Nothing)));
    assert_eq!(outcome(rig.read("a").await.expect("no panic")), Some(CacheOutcome::Hit));
}

#[tokio::test]
async fn a_burst_of_misses_reads_the_store_once() {
    let mut rig = Rig::new(LONG);
    let reads: Vec<_> = (0..50).map(|_| rig.read("a")).collect();
    let asked = rig.asked.recv().await.expect("the store is asked");
    asked.send(Ok(Some(rig.document()))).expect("awaited");
    for read in reads {
        assert_eq!(outcome(read.await.expect("no panic")), Some(CacheOutcome::Miss));
    }
    assert!(rig.asked.try_recv().is_err(), "one read was enough");
}

#[tokio::test]
async fn who_asks_after_a_deletion_does_not_join_a_read_from_before_it() {
    let mut rig = Rig::new(LONG);
    let before = rig.read("a");
    let asked = rig.asked.recv().await.expect("the store is asked");
    rig.cache.forget([rig.id]);
    let after = [rig.read("a"), rig.read("a")];
    tokio::task::yield_now().await;
    asked.send(Ok(Some(rig.document()))).expect("awaited");
    assert_eq!(outcome(before.await.expect("no panic")), Some(CacheOutcome::Miss));
    let asked = rig.asked.recv().await.expect("the store is asked again");
    asked.send(Ok(Some(Stored::Deleted))).expect("awaited");
    for read in after {
        assert!(matches!(read.await.expect("no panic"), Ok(DocumentLookup::Deleted)));
    }
    assert!(rig.asked.try_recv().is_err(), "one read for both");
}

#[tokio::test]
async fn that_nothing_is_there_is_not_answered_from_a_read_that_began_before_the_question() {
    let mut rig = Rig::new(LONG);
    let first = rig.read("a");
    let asked = rig.asked.recv().await.expect("the store is asked");
    let second = rig.read("a");
    tokio::task::yield_now().await;
    asked.send(Ok(None)).expect("awaited");
    assert!(matches!(first.await.expect("no panic"), Ok(DocumentLookup::Nothing)));
    let asked = rig.asked.recv().await.expect("the store is asked again");
    asked.send(Ok(Some(rig.document()))).expect("awaited");
    assert_eq!(outcome(second.await.expect("no panic")), Some(CacheOutcome::Miss));
}
