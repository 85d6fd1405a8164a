//! Loads that the test answers, with the number of known changes as their stamp.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, yield_now};

use super::*;

/// Value that a load read, with its stamp at its end.
type Loaded = Result<(&'static str, u64), StoreError>;

/// Time that something may take to happen. Failing takes this long, passing does not.
const PATIENCE: Duration = Duration::from_secs(5);

struct Rig {
    flight: Arc<SingleFlight<&'static str, u64, (&'static str, u64)>>,
    changes: Arc<AtomicU64>,
    ask: mpsc::Sender<oneshot::Sender<&'static str>>,
    asked: mpsc::Receiver<oneshot::Sender<&'static str>>,
}

impl Rig {
    fn new() -> Self {
        let (ask, asked) = mpsc::channel(100);
        Self { flight: SingleFlight::new(), changes: Arc::default(), ask, asked }
    }

    /// Calls for a load that knows all changes, or begins after the call. The call itself is over at once.
    fn call(&self, key: &'static str) -> impl Future<Output = Loaded> {
        let changes = || self.changes.load(Ordering::Relaxed);
        self.flight.load(
            key,
            move |stamp| *stamp == changes(),
            move |_| {
                let ask = self.ask.clone();
                let load = async move {
                    let (sender, answer) = oneshot::channel();
                    ask.send(sender).await.expect("the test listens");
                    let read = answer.await.expect("the test answers");
                    move |stamp| Ok((read, stamp))
                };
                (changes(), load)
            },
        )
    }

    /// Calls from a task of its own, which waits for the result.
    async fn caller(&self, key: &'static str) -> JoinHandle<Loaded> {
        let (_, asked) = mpsc::channel(1);
        let (flight, changes, ask) = (self.flight.clone(), self.changes.clone(), self.ask.clone());
        let caller = tokio::spawn(async move { Self { flight, changes, ask, asked }.call(key).await });
        // On this single-threaded runtime the task runs until it waits.
        yield_now().await;
        caller
    }

    fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The next load, waiting for its answer.
    async fn asked(&mut self) -> oneshot::Sender<&'static str> {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("a load begins in time").expect("a load begins")
    }

    fn is_quiet(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }
}

async fn got(caller: JoinHandle<Loaded>) -> Loaded {
    tokio::time::timeout(PATIENCE, caller).await.expect("a result in time").expect("no panic")
}

#[tokio::test]
async fn callers_of_one_key_share_a_load_and_other_keys_have_their_own() {
    let mut rig = Rig::new();
    let callers = [rig.caller("a").await, rig.caller("a").await, rig.caller("a").await];
    let other = rig.caller("b").await;
    for read in ["one", "two"] {
        rig.asked().await.send(read).expect("awaited");
    }
    for caller in callers {
        assert_eq!(got(caller).await.expect("loaded"), ("one", 0));
    }
    assert_eq!(got(other).await.expect("loaded"), ("two", 0));
    assert!(rig.is_quiet() && rig.flight.lock().is_empty());
}

#[tokio::test]
async fn who_calls_after_a_change_waits_for_the_load_after_it_whatever_changes_then() {
    let mut rig = Rig::new();
    let before = rig.caller("a").await;
    let first = rig.asked().await;
    rig.change();
    let after = [rig.caller("a").await, rig.caller("a").await];
    assert!(rig.is_quiet(), "one load of a key at a time");
    first.send("old").expect("awaited");
    assert_eq!(got(before).await.expect("loaded"), ("old", 0));
    let second = rig.asked().await;
    rig.change();
    second.send("new").expect("awaited");
    for caller in after {
        assert_eq!(got(caller).await.expect("loaded"), ("new", 1));
    }
    assert!(rig.is_quiet(), "one load for both");
}

#[tokio::test]
async fn a_result_is_made_from_the_stamp_as_events_left_it() {
    let mut rig = Rig::new();
    let caller = rig.caller("a").await;
    let answer = rig.asked().await;
    rig.flight.lock().get_mut("a").expect("under way").stamp = 7;
    answer.send("one").expect("awaited");
    assert_eq!(got(caller).await.expect("loaded"), ("one", 7));
}

#[tokio::test]
async fn a_load_begins_with_the_call_and_ends_without_its_caller() {
    let mut rig = Rig::new();
    drop(rig.call("a"));
    let answer = rig.asked().await;
    let (second, third) = (rig.caller("a").await, rig.caller("a").await);
    second.abort();
    answer.send("one").expect("awaited");
    assert_eq!(got(third).await.expect("loaded"), ("one", 0));
    assert!(rig.is_quiet(), "one load was enough");
}

#[tokio::test]
async fn a_load_that_panics_fails_its_callers_and_the_next_call_starts_anew() {
    let mut rig = Rig::new();
    let caller = rig.caller("a").await;
    drop(rig.asked().await);
    got(caller).await.expect_err("the load was abandoned");
    // Nobody waits for the end of this one.
    drop(rig.call("a"));
    drop(rig.asked().await);
    while !rig.flight.lock()["a"].task.is_finished() {
        yield_now().await;
    }
    let caller = rig.caller("a").await;
    rig.asked().await.send("one").expect("awaited");
    assert_eq!(got(caller).await.expect("loaded"), ("one", 0));
}
