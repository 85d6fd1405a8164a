//! Publishes changed values and item outcomes to the API replicas. It numbers the events, repeats the
//! last number each second, and says goodbye at the end. Best effort: nothing waits for it, and replicas
//! notice a gap by the numbers.
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shared::event::{Body, Committed, Event, Events, HEARTBEAT_EVERY, ItemFailed};
use shared::model::outcome::{Applied, SetAside};
use shared::runtime::clock;
use shared::runtime::shutdown::Shutdown;
use shared::store::{Reads, StoreError};

use crate::status::ConsumerStatus;

/// Maximum of entries of each list in one event.
const ENTRIES_PER_EVENT_MAX: usize = 1_000;

/// Longest detail of an item that was set aside, in characters; the store has the full text.
const DETAIL_LENGTH_MAX: usize = 200;

/// Age of the last reading of the store's clock after which an idle consumer asks again. The answer also
/// shows that the store is there, in one statement, so that waiting clients learn of an outage that no
/// write has met yet.
const STORE_CLOCK_AGE_MAX: Duration = Duration::from_secs(5);

/// Difference between the two clocks of this process after which the store is asked again: one of them
/// stood still or was set.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);

/// Publisher of this process' events.
pub struct Announcer {
    events: Arc<dyn Events>,
    publisher: u64,
    state: Mutex<AnnouncerState>,
}

struct AnnouncerState {
    number: u64,
    store_clock: Option<StoreClock>,
}

/// Store's clock as it was read, and both clocks of this process at that moment.
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

    /// Present time of the store's clock; `None` after a suspend or a step of the wall clock.
    fn now_ms(self) -> Option<i64> {
        let elapsed_ms = i64::try_from(self.at.elapsed().as_millis()).ok()?;
        let wall_elapsed_ms = clock::now_ms().saturating_sub(self.wall_ms);
        let apart = Duration::from_millis(wall_elapsed_ms.abs_diff(elapsed_ms));
        (apart <= CLOCKS_APART_MAX).then(|| self.store_ms.saturating_add(elapsed_ms))
    }
}

impl Announcer {
    pub fn new(events: Arc<dyn Events>, publisher: u64) -> Self {
        Self { events, publisher, state: Mutex::new(AnnouncerState { number: 0, store_clock: None }) }
    }

    /// Publishes a commit. Call it after each commit of a batch of `messages`, in the order of the
    /// commits.
    pub fn committed(&self, applied: &Applied, messages: usize) {
        self.update_clock(applied.committed_at_ms);
        if applied.fresh.len() < messages {
            // Some were committed before, perhaps without an event: a gap in the numbers makes the
            // replicas reload.
            self.lock().number += 1;
        }
        for committed in events_of(applied) {
            self.publish(Body::Committed(committed));
        }
    }

    /// Sends heartbeats until the shutdown. Start it before the first commit.
    pub async fn run(&self, store: Arc<dyn Reads>, status: Arc<ConsumerStatus>, shutdown: Shutdown) {
        tokio::join!(self.beat(&status, shutdown.clone()), self.refresh_clock(&*store, &status, shutdown));
    }

    async fn beat(&self, status: &ConsumerStatus, mut shutdown: Shutdown) {
        loop {
            self.publish(Body::Heartbeat { store_away: status.store_is_away() });
            if shutdown.unless_requested(tokio::time::sleep(HEARTBEAT_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Asks for the store's time when no commit reported it. Heartbeats do not wait for the answer.
    async fn refresh_clock(&self, store: &dyn Reads, status: &ConsumerStatus, mut shutdown: Shutdown) {
        loop {
            if self.clock_is_old() {
                let Some(answer) = shutdown.unless_requested(store.now_ms()).await else { return };
                // A busy store is there.
                status.set_silent(matches!(answer, Err(StoreError::Unavailable(_) | StoreError::Failed(_))));
                if let Ok(now_ms) = answer {
                    self.update_clock(now_ms);
                }
            } else {
                status.set_silent(false);
            }
            if shutdown.unless_requested(tokio::time::sleep(HEARTBEAT_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Publishes the last event: silence from now on means nothing.
    pub fn goodbye(&self) {
        self.publish(Body::Goodbye);
    }

    /// Numbers and publishes under one lock, so that the channel gets the numbers in order.
    fn publish(&self, body: Body) {
        let mut state = self.lock();
        if matches!(body, Body::Committed(_)) {
            state.number += 1;
        }
        self.events.publish(Event {
            publisher: self.publisher,
            number: state.number,
            store_time_ms: state.store_clock.and_then(StoreClock::now_ms),
            body,
        });
    }

    fn update_clock(&self, store_ms: i64) {
        self.lock().store_clock = Some(StoreClock::read(store_ms));
    }

    fn clock_is_old(&self) -> bool {
        let is_old = |clock: StoreClock| clock.at.elapsed() > STORE_CLOCK_AGE_MAX || clock.now_ms().is_none();
        self.lock().store_clock.is_none_or(is_old)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AnnouncerState> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

/// Events of one commit, each of bounded size. A waiter takes the first entry that settles its item and
/// may read at once, so the order matters. Changed values come first, then counter results before or with
/// the keyed items that they belong to, and messages last: naming a message says that everything else
/// about it was published.
fn events_of(applied: &Applied) -> Vec<Committed> {
    let mut events = Vec::new();
    spread(&mut events, 0, &applied.counters, Clone::clone, |event| &mut event.counters);
    spread(&mut events, 0, &applied.types, Arc::clone, |event| &mut event.types);
    spread(&mut events, 0, &applied.deleted, |item| item.as_uuid(), |event| &mut event.deleted);
    let from = events.len().saturating_sub(1);
    spread(&mut events, from, &applied.standings, |standing| *standing, |event| &mut event.standings);
    let failed = |aside: &SetAside| ItemFailed {
        item: aside.item,
        fingerprint: aside.fingerprint,
        reason: aside.reason.name().into(),
        detail: aside.detail.chars().take(DETAIL_LENGTH_MAX).collect(),
    };
    let from = events.len().saturating_sub(1);
    spread(&mut events, from, &applied.set_aside, failed, |event| &mut event.failed);
    let from = events.len().saturating_sub(1);
    spread(&mut events, from, &applied.keyed, |keyed| *keyed, |event| &mut event.keyed);
    let from = events.len().saturating_sub(1);
    spread(&mut events, from, &applied.fresh, |message| message.as_uuid(), |event| &mut event.messages);
    events
}

/// Spreads `entries` over the events from `from` on, as many as fit into the list that `of` names.
fn spread<T, U>(
    events: &mut Vec<Committed>,
    from: usize,
    entries: &[T],
    entry_of: impl Fn(&T) -> U,
    of: impl Fn(&mut Committed) -> &mut Vec<U>,
) {
    for (offset, entries) in entries.chunks(ENTRIES_PER_EVENT_MAX).enumerate() {
        if events.len() <= from + offset {
            events.push(Committed::default());
        }
        of(&mut events[from + offset]).extend(entries.iter().map(&entry_of));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::Ordering;

    use shared::event::in_process::InProcessEvents;
    use shared::event::{Continuity, Sequence, Signal};
    use shared::model::id::{IdIssuer, Kind};
    use shared::model::idempotency::{fingerprint_of, id_of};
    use shared::model::outcome::{Counter, CounterResult, KeyedOutcome, KeyedVerdict, Reason};
    use shared::store::Store;

    use super::*;

    #[tokio::test]
    async fn a_listener_from_the_beginning_hears_every_change_without_a_hole() {
        let events = InProcessEvents::start();
        let mut stream = events.subscribe().await;
        let announcer = Announcer::new(events, 7);
        let counter =
            |name: usize| Counter { name: name.to_string().into(), value: 1, version: 1, updated_at_ms: 5 };
        announcer.publish(Body::Heartbeat { store_away: false });
        let counters = (0..2_500).map(counter).collect();
        announcer.committed(&Applied { counters, committed_at_ms: 5, ..Applied::default() }, 0);
        announcer.goodbye();

        let (mut continuity, mut changes, mut goodbye) = (Continuity::default(), 0, false);
        while !goodbye {
            let Signal::Event(event) = stream.next().await else { panic!("interrupted") };
            assert_eq!(continuity.on_event(&event, Instant::now()), Sequence::Complete);
            match &event.body {
                Body::Committed(committed) => {
                    assert!(event.store_time_ms >= Some(5));
                    changes += committed.counters.len();
                }
                Body::Heartbeat { .. } => {}
                Body::Goodbye => goodbye = true,
                Body::Defined { .. } | Body::Unknown => panic!("no consumer publishes that"),
            }
        }
        assert_eq!(changes, 2_500);
    }

    #[tokio::test]
    async fn a_message_that_was_committed_before_leaves_a_hole() {
        let events = InProcessEvents::start();
        let mut stream = events.subscribe().await;
        let announcer = Announcer::new(events, 7);
        announcer.publish(Body::Heartbeat { store_away: false });
        announcer.committed(&Applied::default(), 1);
        announcer.publish(Body::Heartbeat { store_away: false });
        let (mut continuity, mut sequences) = (Continuity::default(), Vec::new());
        for _ in 0..2 {
            let Signal::Event(event) = stream.next().await else { panic!("interrupted") };
            sequences.push(continuity.on_event(&event, Instant::now()));
        }
        assert_eq!(sequences, [Sequence::Complete, Sequence::Gap]);
    }

    #[test]
    fn what_a_message_came_to_is_told_before_its_name_and_no_event_is_huge() {
        let mut ids = IdIssuer::new(1, 1);
        let fresh: Vec<_> = (0..1_500).map(|_| ids.next(5)).collect();
        let item = |index: usize| id_of("p", Kind::Increment, &index.to_string(), 0);
        let fingerprint = fingerprint_of("POST", "a", "{}");
        let aside = SetAside {
            item: fresh[0].item(Kind::Increment, 0),
            fingerprint: None,
            reason: Reason::Unreadable,
            detail: "ä".repeat(1_000),
            json: "{}".into(),
            accepted_at_ms: 5,
        };
        let applied = Applied {
            fresh,
            standings: (0..2_200)
                .map(|index| CounterResult { item: item(index), value: 1, version: 1 })
                .collect(),
            set_aside: vec![aside; 1_001],
            keyed: (0..2_200)
                .map(|index| KeyedOutcome { item: item(index), fingerprint, verdict: KeyedVerdict::Applied })
                .collect(),
            counters: (0..1_500)
                .map(|name: usize| Counter {
                    name: name.to_string().into(),
                    value: 1,
                    version: 1,
                    updated_at_ms: 5,
                })
                .collect(),
            types: vec!["t".into()],
            deleted: vec![item(1)],
            ..Applied::default()
        };
        let events = events_of(&applied);
        assert_eq!(
            events.len(),
            8,
            "two for counters, two more for standings, one for failed, two for keyed, one for messages"
        );
        let (mut counters, mut standings, mut keyed, mut failed, mut messages) = (0, HashSet::new(), 0, 0, 0);
        for event in &events {
            for length in [event.standings.len(), event.failed.len(), event.keyed.len(), event.messages.len()]
            {
                assert!(length <= ENTRIES_PER_EVENT_MAX);
            }
            counters += event.counters.len();
            assert!(event.standings.is_empty() || counters == 1_500, "changed values come first");
            standings.extend(event.standings.iter().map(|standing| standing.item));
            assert!(event.keyed.iter().all(|keyed| standings.contains(&keyed.item)), "standings come first");
            keyed += event.keyed.len();
            failed += event.failed.len();
            messages += event.messages.len();
            assert!(event.messages.is_empty() || (keyed, failed) == (2_200, 1_001), "messages come last");
            assert!(event.failed.iter().all(|failed| failed.detail.chars().count() == DETAIL_LENGTH_MAX));
        }
        assert_eq!((messages, events[0].types.len(), events[0].deleted.len()), (1_500, 1, 1));
        assert!(events_of(&Applied::default()).is_empty());
    }

    #[test]
    fn a_small_commit_is_one_event() {
        let fresh = vec![IdIssuer::new(1, 1).next(5)];
        let item = fresh[0].item(Kind::Increment, 0);
        let standings = vec![CounterResult { item, value: 3, version: 2 }];
        let events = events_of(&Applied { fresh, standings, ..Applied::default() });
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].standings.len(), events[0].messages.len()), (1, 1));
    }

    #[tokio::test]
    async fn heartbeats_tell_that_the_store_is_away() {
        let events = InProcessEvents::start();
        let mut stream = events.subscribe().await;
        let directory = tempfile::tempdir().expect("a directory");
        let store = shared::store::sqlite::SqliteStore::open(
            directory.path(),
            &shared::config::StoreSettings::default(),
        )
        .await
        .expect("a store");
        let (trigger, shutdown) = shared::runtime::shutdown::channel();
        let status = Arc::new(ConsumerStatus::default());
        let announcer = Arc::new(Announcer::new(events, 7));
        let running = {
            let (announcer, store, status) = (announcer.clone(), store.clone(), status.clone());
            tokio::spawn(async move { announcer.run(store, status, shutdown).await })
        };
        let mut beat_until = async |away| {
            let body = Body::Heartbeat { store_away: away };
            while !matches!(stream.next().await, Signal::Event(event) if event.body == body) {}
        };
        // The store cannot answer without a schema, and nothing is applied that would notice.
        beat_until(true).await;
        store.migrate().await.expect("the schema is made");
        beat_until(false).await;
        // A transaction noticed it.
        status.store_away.store(true, Ordering::Relaxed);
        beat_until(true).await;
        status.store_away.store(false, Ordering::Relaxed);
        beat_until(false).await;
        trigger.request();
        running.await.expect("no panic");
    }
}
