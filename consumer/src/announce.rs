//! Tells the API replicas what changed: numbers the events, repeats the last number each second,
//! says goodbye. Best effort: nothing waits for it, and a hole is noticed by the numbers.
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shared::clock;
use shared::event::{Body, Event, Events, HEARTBEAT_EVERY};
use shared::shutdown::Shutdown;
use shared::store::{Applied, Store};

/// Changed values in one event at most.
const CHANGES_PER_EVENT_MAX: usize = 1_000;

/// How old the knowledge of the store's clock may become before an idle consumer asks again.
const STORE_CLOCK_AGE_MAX: Duration = Duration::from_secs(30);

/// How far the two clocks of this process may come apart before the store is asked again: one of
/// them stood still or was set.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);

/// The publisher of this process' events.
pub struct Announcer {
    events: Arc<dyn Events>,
    publisher: u64,
    said: Mutex<Said>,
}

struct Said {
    number: u64,
    store_clock: Option<StoreClock>,
}

/// The store's clock as it was read, and both clocks of this process at that moment.
#[derive(Clone, Copy)]
struct StoreClock {
    store_ms: i64,
    at: Instant,
    wall_ms: i64,
}

impl StoreClock {
    fn read(store_ms: i64) -> Self {
        Self { store_ms, at: Instant::now(), wall_ms: clock::now_ms() }
    }

    /// What it shows now; `None` after a suspend or a step of the wall clock.
    fn now_ms(self) -> Option<i64> {
        let elapsed_ms = i64::try_from(self.at.elapsed().as_millis()).ok()?;
        let wall_elapsed_ms = clock::now_ms().saturating_sub(self.wall_ms);
        let apart = Duration::from_millis(wall_elapsed_ms.abs_diff(elapsed_ms));
        (apart <= CLOCKS_APART_MAX).then(|| self.store_ms.saturating_add(elapsed_ms))
    }
}

impl Announcer {
    pub fn new(events: Arc<dyn Events>, publisher: u64) -> Self {
        Self { events, publisher, said: Mutex::new(Said { number: 0, store_clock: None }) }
    }

    /// To be called after each commit of a batch of `messages`, in the order of the commits.
    pub fn committed(&self, applied: &Applied, messages: usize) {
        self.learn_clock(applied.committed_at_ms);
        if applied.fresh.len() < messages {
            // Some were committed before, perhaps without an event: a hole in the numbers makes
            // the replicas look for themselves.
            self.lock().number += 1;
        }
        for counters in applied.counters.chunks(CHANGES_PER_EVENT_MAX) {
            let counters = counters.iter().cloned().map(Into::into).collect();
            self.say(Body::Changed { counters });
        }
    }

    /// Sends heartbeats until the shutdown, then the goodbye. Start it before the first commit.
    pub async fn run(&self, store: Arc<dyn Store>, mut shutdown: Shutdown) {
        loop {
            self.say(Body::Heartbeat);
            tokio::select! {
                () = tokio::time::sleep(HEARTBEAT_EVERY) => {}
                () = shutdown.requested() => break,
            }
            if self.clock_is_old() {
                // An error means that the store is away: the ingest tells about that.
                // Heartbeats do not wait for it.
                let asked = tokio::time::timeout(HEARTBEAT_EVERY / 2, store.now_ms()).await;
                if let Ok(Ok(now_ms)) = asked {
                    self.learn_clock(now_ms);
                }
            }
        }
    }

    /// The last event: silence from now on means nothing.
    pub fn goodbye(&self) {
        self.say(Body::Goodbye);
    }

    /// Numbers and hands over under one lock, so that the channel sees the numbers in order.
    fn say(&self, body: Body) {
        let mut said = self.lock();
        if matches!(body, Body::Changed { .. }) {
            said.number += 1;
        }
        self.events.publish(Event {
            publisher: self.publisher,
            number: said.number,
            store_time_ms: said.store_clock.and_then(StoreClock::now_ms),
            body,
        });
    }

    fn learn_clock(&self, store_ms: i64) {
        self.lock().store_clock = Some(StoreClock::read(store_ms));
    }

    fn clock_is_old(&self) -> bool {
        let is_old = |clock: StoreClock| clock.at.elapsed() > STORE_CLOCK_AGE_MAX || clock.now_ms().is_none();
        self.lock().store_clock.is_none_or(is_old)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use shared::event::in_process::InProcessEvents;
    use shared::event::{Continuity, Heed, Signal};
    use shared::store::Counter;

    use super::*;

    #[tokio::test]
    async fn a_listener_from_the_beginning_hears_every_change_without_a_hole() {
        let events = InProcessEvents::start();
        let mut stream = events.subscribe().await;
        let announcer = Announcer::new(events, 7);
        let counter =
            |name: usize| Counter { name: name.to_string().into(), value: 1, version: 1, updated_at_ms: 5 };
        announcer.say(Body::Heartbeat);
        let counters = (0..2_500).map(counter).collect();
        announcer.committed(&Applied { counters, committed_at_ms: 5, ..Applied::default() }, 0);
        announcer.goodbye();

        let (mut continuity, mut changes, mut goodbye) = (Continuity::default(), 0, false);
        while !goodbye {
            let Signal::Event(event) = stream.next().await else { panic!("interrupted") };
            assert_eq!(continuity.hear(&event, Instant::now()), Heed::Complete);
            match &event.body {
                Body::Changed { counters } => {
                    assert!(event.store_time_ms >= Some(5));
                    changes += counters.len();
                }
                Body::Heartbeat => {}
                Body::Goodbye => goodbye = true,
            }
        }
        assert_eq!(changes, 2_500);
    }

    #[tokio::test]
    async fn a_message_that_was_committed_before_leaves_a_hole() {
        let events = InProcessEvents::start();
        let mut stream = events.subscribe().await;
        let announcer = Announcer::new(events, 7);
        announcer.say(Body::Heartbeat);
        announcer.committed(&Applied::default(), 1);
        announcer.say(Body::Heartbeat);
        let (mut continuity, mut heard) = (Continuity::default(), Vec::new());
        for _ in 0..2 {
            let Signal::Event(event) = stream.next().await else { panic!("interrupted") };
            heard.push(continuity.hear(&event, Instant::now()));
        }
        assert_eq!(heard, [Heed::Complete, Heed::Hole]);
    }
}
