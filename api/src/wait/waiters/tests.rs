//! The registry with events, and a store with answers that the test decides.
use std::time::Duration;

use async_trait::async_trait;
use shared::event::ItemFailed;
use shared::model::id::{IdIssuer, Kind, MessageId};
use shared::model::idempotency::{fingerprint_of, id_of};
use shared::model::outcome::{CounterResult, KeyedOutcome, KeyedVerdict};
use shared::runtime::breaker::BreakerLimits;
use shared::runtime::shutdown;
use shared::store::StoreError;
use testkit::store::{Layer, Layered};
use tokio::sync::mpsc;

use super::*;
use crate::wait::reconcile;

const BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 2, open_for: Duration::from_hours(1), probes_max: 1 };

const FOREVER: Duration = Duration::from_hours(1);

fn waiters() -> Arc<Waiters> {
    Waiters::new(100_000, Arc::new(Breaker::new("test", BREAKER)))
}

fn message() -> MessageId {
    IdIssuer::new(rand::random(), 1).next(5)
}

fn wait(waiters: &Arc<Waiters>, item: ItemKey, fingerprint: Option<Fingerprint>) -> Waiter<Outcome> {
    waiters.permit().expect("there is room").wait_for(item, fingerprint)
}

async fn outcome(waiter: &mut Waiter<Outcome>) -> Option<Outcome> {
    waiter.outcome(Instant::now() + FOREVER).await
}

fn keyed_item() -> ItemKey {
    id_of("p", Kind::Increment, "k", 0)
}

fn payload(number: i64) -> Fingerprint {
    fingerprint_of("POST", "a", &number.to_string())
}

fn named(message: MessageId) -> Committed {
    Committed { messages: vec![message.as_uuid()], ..Committed::default() }
}

fn standing(item: ItemKey, value: i64) -> CounterResult {
    CounterResult { item, value, version: 1 }
}

fn verdict_event(number: i64, verdict: KeyedVerdict) -> Committed {
    let keyed = vec![KeyedOutcome { item: keyed_item(), fingerprint: payload(number), verdict }];
    Committed { keyed, ..Committed::default() }
}

/// Outcome of a keyed item from the store: perhaps another request brought it.
const FOUND: Outcome = Outcome::Applied { standing: None, is_own: false };

fn applied(standing: Option<(ItemKey, i64)>) -> Outcome {
    Outcome::Applied { standing: standing.map(|(item, value)| self::standing(item, value)), is_own: true }
}

fn item_status(fingerprint: Option<Fingerprint>) -> ItemStatus {
    ItemStatus::Applied { at_ms: 5, fingerprint }
}

#[tokio::test]
async fn everybody_who_waits_for_an_item_hears_of_it_also_before_he_asks() {
    let (waiters, message) = (waiters(), message());
    let (one, two) = (message.item(Kind::Increment, 0), message.item(Kind::Point, 1));
    let mut waiting = [wait(&waiters, one, None), wait(&waiters, one, None), wait(&waiters, two, None)];
    let standings = vec![standing(one, 7)];
    waiters.on_event(&Committed { standings, ..named(message) });
    assert_eq!(waiting[0].reported(), Some(applied(Some((one, 7)))));
    assert_eq!(outcome(&mut waiting[1]).await, Some(applied(Some((one, 7)))));
    assert_eq!(outcome(&mut waiting[2]).await, Some(applied(None)));
    assert_eq!(outcome(&mut waiting[2]).await, None, "once");
}

#[tokio::test]
async fn an_item_that_was_set_aside_is_told_with_its_reason_and_its_message_does_not_apply_it() {
    let (waiters, message) = (waiters(), message());
    let item = message.item(Kind::Increment, 0);
    let mut waiting = wait(&waiters, item, None);
    let failed = ItemFailed { item, fingerprint: None, reason: "r".into(), detail: "d".into() };
    waiters.on_event(&Committed { failed: vec![failed], ..named(message) });
    let expected = Outcome::Failed { reason: "r".into(), detail: "d".into() };
    assert_eq!(outcome(&mut waiting).await, Some(expected));
}

/// An event of a newer version says something of the item that this version cannot read.
#[tokio::test]
async fn an_unclear_item_is_not_settled_by_its_message_and_the_store_decides() {
    let (waiters, message) = (waiters(), message());
    let (unclear, clear) = (message.item(Kind::Increment, 0), message.item(Kind::Increment, 1));
    let mut waiting = [wait(&waiters, unclear, None), wait(&waiters, clear, None)];
    waiters.on_event(&Committed { unclear: vec![unclear], ..named(message) });
    assert_eq!((waiting[0].reported(), waiting[1].reported()), (None, Some(applied(None))));
    let (items, mark) = waiters.lock().take_doubted(10);
    assert_eq!(items, [unclear]);
    waiters.apply_update(&items, vec![Some(item_status(None))], mark);
    assert!(matches!(waiting[0].reported(), Some(Outcome::Applied { .. })));
}

#[tokio::test]
async fn the_first_payload_under_a_key_is_applied_and_the_other_conflicts() {
    let waiters = waiters();
    let mut one = wait(&waiters, keyed_item(), Some(payload(1)));
    let mut other = wait(&waiters, keyed_item(), Some(payload(2)));
    let mut any = wait(&waiters, keyed_item(), None);
    // The standing may come in an event before.
    waiters.on_event(&Committed { standings: vec![standing(keyed_item(), 7)], ..Committed::default() });
    assert_eq!((one.reported(), other.reported()), (None, None));
    waiters.on_event(&verdict_event(1, KeyedVerdict::Applied));
    assert_eq!(one.reported(), Some(applied(Some((keyed_item(), 7)))));
    assert_eq!(other.reported(), Some(Outcome::Conflict));
    assert_eq!(any.reported(), Some(applied(Some((keyed_item(), 7)))));
}

#[tokio::test]
async fn a_keyed_item_that_was_set_aside_conflicts_with_other_payloads() {
    let waiters = waiters();
    let mut one = wait(&waiters, keyed_item(), Some(payload(1)));
    let mut other = wait(&waiters, keyed_item(), Some(payload(2)));
    let fingerprint = Some(payload(1));
    let failed = ItemFailed { item: keyed_item(), fingerprint, reason: "r".into(), detail: "d".into() };
    waiters.on_event(&Committed { failed: vec![failed], ..Committed::default() });
    assert!(matches!(one.reported(), Some(Outcome::Failed { .. })));
    assert_eq!(other.reported(), Some(Outcome::Conflict));
}

#[tokio::test]
async fn a_conflict_is_told_to_its_payload_only_and_the_store_decides_for_the_others() {
    let waiters = waiters();
    let mut one = wait(&waiters, keyed_item(), Some(payload(1)));
    let mut other = wait(&waiters, keyed_item(), Some(payload(2)));
    waiters.on_event(&verdict_event(2, KeyedVerdict::Conflict));
    assert_eq!(other.reported(), Some(Outcome::Conflict));
    assert_eq!(one.reported(), None);
    let (items, mark) = waiters.lock().take_doubted(10);
    waiters.apply_update(&items, vec![Some(item_status(Some(payload(1))))], mark);
    assert_eq!(one.reported(), Some(FOUND));
}

#[tokio::test]
async fn after_a_hole_a_message_is_not_taken_at_its_word_but_named_items_are() {
    let (waiters, message) = (waiters(), message());
    let (lost, named_item) = (message.item(Kind::Increment, 0), message.item(Kind::Increment, 1));
    let mut waiting = [wait(&waiters, lost, None), wait(&waiters, named_item, None)];
    // The event that reported a failure is missing.
    waiters.doubt_all();
    waiters.on_event(&Committed { standings: vec![standing(named_item, 3)], ..named(message) });
    assert_eq!(waiting[0].reported(), None);
    assert_eq!(waiting[1].reported(), Some(applied(Some((named_item, 3)))));
    let (items, mark) = waiters.lock().take_doubted(10);
    assert_eq!(items, [lost]);
    let failed = ItemStatus::Failed { at_ms: 5, reason: "r".into(), detail: "d".into(), fingerprint: None };
    waiters.apply_update(&items, vec![Some(failed)], mark);
    assert!(matches!(waiting[0].reported(), Some(Outcome::Failed { .. })));
}

#[tokio::test]
async fn what_the_store_does_not_know_yet_is_told_by_later_events() {
    let (waiters, message) = (waiters(), message());
    let mut waiting = wait(&waiters, message.item(Kind::Increment, 0), None);
    waiters.doubt_all();
    let (items, mark) = waiters.lock().take_doubted(10);
    waiters.apply_update(&items, vec![None], mark);
    waiters.on_event(&named(message));
    assert_eq!(outcome(&mut waiting).await, Some(applied(None)));
}

#[tokio::test]
async fn a_commit_during_a_read_is_not_lost() {
    let (waiters, message) = (waiters(), message());
    let mut waiting = wait(&waiters, message.item(Kind::Increment, 0), None);
    waiters.doubt_all();
    let (items, mark) = waiters.lock().take_doubted(10);
    // The read looks, then the message is committed and named, then the read answers.
    waiters.on_event(&named(message));
    waiters.apply_update(&items, vec![None], mark);
    assert_eq!(waiting.reported(), None);
    let (items, mark) = waiters.lock().take_doubted(10);
    waiters.apply_update(&items, vec![Some(item_status(None))], mark);
    assert_eq!(waiting.reported(), Some(applied(None)));
}

#[tokio::test]
async fn a_hole_during_a_read_keeps_the_doubt() {
    let (waiters, message) = (waiters(), message());
    let mut waiting = wait(&waiters, message.item(Kind::Increment, 0), None);
    waiters.doubt_all();
    let (items, mark) = waiters.lock().take_doubted(10);
    waiters.doubt_all();
    waiters.apply_update(&items, vec![None], mark);
    waiters.on_event(&named(message));
    assert_eq!(waiting.reported(), None);
    assert!(waiters.lock().has_doubts());
}

#[tokio::test]
async fn a_change_or_a_hole_wakes_who_follows_a_counter() {
    let waiters = waiters();
    let follow = |name| waiters.permit().expect("there is room").wait_for_counter(name);
    let (mut one, mut other) = (follow("a"), follow("b"));
    let counter = Counter { name: "a".into(), value: 1, version: 1, updated_at_ms: 5 };
    waiters.changed(&[counter]);
    assert_eq!((one.reported(), other.reported()), (Some(Changed), None));
    waiters.doubt_all();
    assert_eq!(other.reported(), Some(Changed));
}

#[tokio::test]
async fn who_leaves_is_forgotten() {
    let (waiters, message) = (waiters(), message());
    let item = message.item(Kind::Increment, 0);
    let (stays, leaves) = (wait(&waiters, item, None), wait(&waiters, item, None));
    let follower = waiters.permit().expect("there is room").wait_for_counter("a");
    assert_eq!(waiters.open(), 3);
    drop(leaves);
    assert!(!waiters.lock().is_empty());
    drop((stays, follower));
    assert!(waiters.lock().is_empty());
    let mut late = wait(&waiters, item, None);
    assert_eq!(late.outcome(Instant::now()).await, None, "the time is up");
    drop(late);
    assert!(waiters.lock().is_empty());
    assert_eq!(waiters.open(), 0);
}

#[tokio::test]
async fn nobody_waits_beyond_the_limit() {
    let waiters = Waiters::new(1, Arc::new(Breaker::new("test", BREAKER)));
    let permit = waiters.permit().expect("there is room");
    assert!(waiters.permit().is_none());
    drop(permit);
    assert!(waiters.permit().is_some());
}

#[tokio::test]
async fn all_are_released_while_the_store_is_away_and_when_the_process_stops() {
    let breaker = Arc::new(Breaker::new("test", BREAKER));
    let waiters = Waiters::new(10, breaker.clone());
    let item = message().item(Kind::Increment, 0);
    let mut waiting = wait(&waiters, item, None);
    waiters.release_if_vain();
    assert_eq!(waiting.outcome(Instant::now()).await, None);
    assert_eq!(waiting.ended, Some("time_up"), "it was not released");
    let mut waiting = wait(&waiters, item, None);
    waiters.set_consumers_away(true);
    waiters.release_if_vain();
    assert_eq!(outcome(&mut waiting).await, None);
    assert!(waiters.permit().is_none(), "nobody waits for a store that is away");
    waiters.set_consumers_away(false);
    let mut waiting = wait(&waiters, item, None);
    for _ in 0..BREAKER.failures_max {
        breaker.permit(Instant::now()).expect("closed").failure(Instant::now(), &"away");
    }
    assert!(waiters.permit().is_none());
    waiters.release_if_vain();
    assert_eq!(outcome(&mut waiting).await, None);

    let waiters = self::waiters();
    let (mut before, late) = (wait(&waiters, item, None), waiters.permit().expect("there is room"));
    waiters.close();
    assert_eq!(outcome(&mut before).await, None);
    assert_eq!(outcome(&mut late.wait_for(item, None)).await, None);
}

#[tokio::test]
async fn ten_thousand_are_answered_by_the_events_of_their_messages() {
    let waiters = waiters();
    let messages: Vec<_> = (0..10).map(|_| message()).collect();
    let items =
        messages.iter().flat_map(|message| (0..1_000).map(|index| message.item(Kind::Increment, index)));
    let mut waiting: Vec<_> = items.map(|item| wait(&waiters, item, None)).collect();
    let committed = |messages: &[MessageId]| Committed {
        messages: messages.iter().map(|message| message.as_uuid()).collect(),
        ..Committed::default()
    };
    waiters.on_event(&committed(&messages[..9]));
    assert_eq!(waiting.iter_mut().filter_map(Waiter::reported).count(), 9_000);
    waiters.on_event(&committed(&messages));
    assert_eq!(waiting.iter_mut().filter_map(Waiter::reported).count(), 1_000);
    assert!(waiters.lock().is_empty());
}

/// Number of items that the store is asked about, and the sender of the answer for each.
type Question = (usize, oneshot::Sender<Result<Option<ItemStatus>, StoreError>>);

/// A store with answers about statuses that the test gives.
struct Asked(mpsc::Sender<Question>);

#[async_trait]
impl Layer for Asked {
    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.0.send((items.len(), sender)).await.expect("the test listens");
        let status = receiver.await.expect("the test answers")?;
        Ok(vec![status; items.len()])
    }
}

#[tokio::test]
async fn a_hole_costs_a_few_reads_and_one_that_fails_is_repeated() {
    let (waiters, message) = (waiters(), message());
    let mut waiting: Vec<_> =
        (0..1_500).map(|index| wait(&waiters, message.item(Kind::Increment, index), None)).collect();
    let (sender, mut asked) = mpsc::channel(1);
    let (trigger, shutdown) = shutdown::channel();
    let breaker = Arc::new(Breaker::new("test", BREAKER));
    let store = Arc::new(Layered(Asked(sender)));
    let task = tokio::spawn(reconcile::run(waiters.clone(), store, breaker, shutdown));
    waiters.doubt_all();
    let away = || Err(StoreError::Unavailable("away".into()));
    for (count, answer) in [(1_000, away()), (1_000, Ok(None)), (500, Ok(Some(item_status(None))))] {
        let (items, reply) = asked.recv().await.expect("the store is asked");
        assert_eq!(items, count);
        reply.send(answer).expect("awaited");
    }
    for waiting in &mut waiting[1_000..] {
        assert_eq!(outcome(waiting).await, Some(applied(None)));
    }
    waiters.on_event(&named(message));
    for waiting in &mut waiting[..1_000] {
        assert_eq!(outcome(waiting).await, Some(applied(None)));
    }
    trigger.request();
    task.await.expect("no panic");
}

#[tokio::test]
async fn what_was_processed_before_is_looked_up() {
    let waiters = waiters();
    let mut same = wait(&waiters, keyed_item(), Some(payload(1)));
    let mut other = wait(&waiters, keyed_item(), Some(payload(2)));
    let (sender, mut asked) = mpsc::channel(1);
    let (trigger, shutdown) = shutdown::channel();
    let breaker = Arc::new(Breaker::new("test", BREAKER));
    let store = Arc::new(Layered(Asked(sender)));
    let task = tokio::spawn(reconcile::run(waiters.clone(), store, breaker, shutdown));
    waiters.on_event(&verdict_event(1, KeyedVerdict::Repeated));
    let (_, reply) = asked.recv().await.expect("the store is asked");
    reply.send(Ok(Some(item_status(Some(payload(1)))))).expect("awaited");
    assert_eq!(outcome(&mut same).await, Some(FOUND));
    assert_eq!(outcome(&mut other).await, Some(Outcome::Conflict));
    trigger.request();
    task.await.expect("no panic");
}
