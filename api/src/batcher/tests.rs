//! The batcher over a publisher with confirms that the test decides.
use std::sync::Mutex;

use async_trait::async_trait;
use proptest::prelude::*;
use shared::model::message::{Outgoing, decode};
use shared::model::trace::{TRACES_MAX, Traces};
use shared::runtime::breaker::BreakerLimits;
use tokio::sync::{mpsc, oneshot};

use super::*;

const LIMITS: BatchLimits = BatchLimits {
    items_max: 4,
    bytes_max: 10_000,
    in_flight_max: 2,
    waiting_max: 1,
    accept_timeout: Duration::from_mins(1),
    settle: Duration::from_secs(2),
};

const BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 1, open_for: Duration::from_hours(1), probes_max: 1 };

type Published = (Outgoing, oneshot::Sender<Result<(), PublishError>>);

/// A publisher with confirms that the test decides.
struct Held {
    published: mpsc::UnboundedSender<Published>,
    link: Mutex<Link>,
}

#[async_trait]
impl Publisher for Held {
    async fn publish(&self, message: Outgoing, _: Instant) -> Result<(), PublishError> {
        let (sender, receiver) = oneshot::channel();
        self.published.send((message, sender)).expect("the test listens");
        receiver.await.unwrap_or(Err(PublishError::DeadlineExceeded))
    }

    fn link(&self) -> Link {
        *self.link.lock().expect("no panic")
    }
}

struct Rig {
    batcher: Batcher,
    publisher: Arc<Held>,
    published: mpsc::UnboundedReceiver<Published>,
}

impl Rig {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: BatchLimits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test reads all of the few messages it causes")]
        let (sender, published) = mpsc::unbounded_channel();
        let held = Arc::new(Held { published: sender, link: Mutex::new(Link::Up) });
        let breaker = Arc::new(Breaker::new("test", BREAKER));
        let batcher = Batcher::new(held.clone(), breaker, IdIssuer::new(1, 1), limits);
        Self { batcher, publisher: held, published }
    }

    fn send(&self, items: usize) -> tokio::task::JoinHandle<Result<Placed, NotAccepted>> {
        let batcher = self.batcher.clone();
        let one = r#"{"increment":{"counter":"a","by":1}}"#;
        let encoded = vec![one; items].join(",");
        actix_web::rt::spawn(async move {
            let kind = Kind::Increment;
            let entry =
                BatchEntry { kind, json: encoded.as_bytes(), items, is_awaited: items == 1, trace: None };
            batcher.begin(entry)?.confirmed().await
        })
    }

    async fn next(&mut self) -> (usize, oneshot::Sender<Result<(), PublishError>>) {
        let (message, confirm) = self.published.recv().await.expect("a publish");
        let decoded = decode(&message.body).expect("what is published can be read");
        assert_eq!(decoded.entries.len(), message.items);
        assert!(decoded.awaited.iter().all(|index| *index < message.items));
        (message.items, confirm)
    }
}

#[actix_web::test]
async fn requests_that_are_ready_together_share_a_message_and_each_knows_its_place() {
    let mut rig = Rig::new();
    let answers = [rig.send(1), rig.send(2)];
    let (items, confirm) = rig.next().await;
    assert_eq!(items, 3);
    confirm.send(Ok(())).expect("awaited");
    let mut places = Vec::new();
    for answer in answers {
        places.push(answer.await.expect("no panic").expect("accepted"));
    }
    assert_eq!(places[0].message, places[1].message);
    assert_eq!((places[0].first, places[1].first), (0, 1));
}

#[actix_web::test]
async fn nobody_is_answered_before_the_confirm_and_what_came_meanwhile_goes_out_after_it() {
    let mut rig = Rig::new();
    let first = rig.send(1);
    let (_, confirm) = rig.next().await;
    let later = [rig.send(1), rig.send(1)];
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert!(!first.is_finished() && rig.published.try_recv().is_err());
    confirm.send(Ok(())).expect("awaited");
    first.await.expect("no panic").expect("accepted");
    let (items, confirm) = rig.next().await;
    assert_eq!(items, 2);
    confirm.send(Ok(())).expect("awaited");
    for answer in later {
        answer.await.expect("no panic").expect("accepted");
    }
}

#[actix_web::test]
async fn a_full_message_goes_out_beside_the_one_in_flight_and_the_surplus_is_refused() {
    let mut rig = Rig::new();
    let mut answers = vec![rig.send(1)];
    let (_, confirm_first) = rig.next().await;
    answers.push(rig.send(4));
    let (items, confirm_second) = rig.next().await;
    assert_eq!(items, 4, "full, so it does not wait for the confirm");
    // Both places in flight are taken: one closed message may wait, and that is all.
    answers.push(rig.send(4));
    tokio::task::yield_now().await;
    let surplus = rig.send(4).await.expect("no panic");
    assert_eq!(surplus.expect_err("refused"), NotAccepted::Overloaded);
    confirm_first.send(Ok(())).expect("awaited");
    confirm_second.send(Ok(())).expect("awaited");
    let (items, confirm) = rig.next().await;
    assert_eq!(items, 4);
    confirm.send(Ok(())).expect("awaited");
    for answer in answers {
        answer.await.expect("no panic").expect("accepted");
    }
}

#[actix_web::test]
async fn a_confirm_that_never_comes_fails_every_request_of_the_message_and_then_all_at_once() {
    let mut rig = Rig::new();
    let answers = [rig.send(1), rig.send(1)];
    let (_, confirm) = rig.next().await;
    confirm.send(Err(PublishError::DeadlineExceeded)).expect("awaited");
    for answer in answers {
        assert_eq!(answer.await.expect("no panic").expect_err("failed"), NotAccepted::Unknown);
    }
    let refused = rig.send(1).await.expect("no panic").expect_err("the breaker is open");
    assert!(matches!(refused, NotAccepted::Unavailable { .. }));
    assert!(rig.published.try_recv().is_err(), "nothing was tried");
}

#[actix_web::test]
async fn a_blocked_broker_is_told_at_once_and_a_full_queue_does_not_open_the_breaker() {
    let mut rig = Rig::new();
    *rig.publisher.link.lock().expect("no panic") = Link::Blocked;
    let refused = rig.send(1).await.expect("no panic").expect_err("blocked");
    assert!(matches!(refused, NotAccepted::Unavailable { .. }));
    // Only a publish shows whether there is room again.
    *rig.publisher.link.lock().expect("no panic") = Link::Settling;
    let refused = rig.send(1).await.expect("no panic").expect_err("the queue was just made");
    assert_eq!(refused, NotAccepted::Unavailable { retry_after: LIMITS.settle });
    *rig.publisher.link.lock().expect("no panic") = Link::Full;
    for expected in [Err(PublishError::Full), Ok(())] {
        let answer = rig.send(1);
        let (_, confirm) = rig.next().await;
        confirm.send(expected.clone()).expect("awaited");
        let answer = answer.await.expect("no panic").map(|_| ());
        assert_eq!(answer, expected.map_err(|_| NotAccepted::Full));
    }
}

#[actix_web::test]
async fn a_message_that_waited_too_long_is_overload_and_no_fault_of_the_link() {
    let mut rig = Rig::with(BatchLimits { accept_timeout: Duration::ZERO, ..LIMITS });
    for _ in 0..2 {
        // A second time the same: the breaker did not open.
        let refused = rig.send(1).await.expect("no panic").expect_err("too late");
        assert_eq!(refused, NotAccepted::Overloaded);
    }
    assert!(rig.published.try_recv().is_err(), "nothing was sent");
}

#[actix_web::test]
async fn a_client_that_leaves_does_not_take_its_write_back() {
    let mut rig = Rig::new();
    let gone = rig.send(1);
    let stays = rig.send(1);
    tokio::task::yield_now().await;
    gone.abort();
    let (items, confirm) = rig.next().await;
    assert_eq!(items, 2);
    confirm.send(Ok(())).expect("awaited");
    stays.await.expect("no panic").expect("accepted");
}

#[actix_web::test]
async fn nothing_is_sent_before_its_request_yields_and_what_is_awaited_is_marked() {
    let mut rig = Rig::new();
    let json = br#"{"increment":{"counter":"a","by":1}}"#;
    let entry = |is_awaited| BatchEntry { kind: Kind::Increment, json, items: 1, is_awaited, trace: None };
    // The fifth closes the message of the others.
    let pending: Vec<_> =
        (0..5).map(|number| rig.batcher.begin(entry(number % 2 == 1)).expect("placed")).collect();
    assert!(rig.published.try_recv().is_err(), "the requests may still register");
    let (message, _confirm) = rig.published.recv().await.expect("a publish");
    let decoded = decode(&message.body).expect("what is published can be read");
    assert_eq!((decoded.entries.len(), decoded.awaited), (4, vec![1, 3]));
    assert_eq!(pending[1].placed.message, decoded.id);
}

#[actix_web::test]
async fn a_message_tells_which_traced_request_brought_which_items_and_drops_what_is_too_much() {
    let mut rig = Rig::with(BatchLimits { items_max: 100, ..LIMITS });
    let json = br#"{"increment":{"counter":"a","by":1}},{"increment":{"counter":"a","by":1}}"#;
    let parent = |number: usize| {
        let header = format!("00-{:032x}-00f067aa0ba902b7-01", number + 1);
        TraceParent::parse(header.as_bytes()).expect("a trace")
    };
    let (dropped, mut pending) = (metrics().traces_dropped.get(), Vec::new());
    for number in 0..TRACES_MAX + 2 {
        let trace = (number != 1).then(|| parent(number));
        let entry = BatchEntry { kind: Kind::Increment, json, items: 2, is_awaited: false, trace };
        pending.push(rig.batcher.begin(entry).expect("placed"));
    }
    let (message, _confirm) = rig.published.recv().await.expect("a publish");
    let traces = Traces::decode(message.traces.as_deref().expect("some"));
    let expected = |number| (number != 1 && number <= TRACES_MAX).then(|| parent(number));
    for number in 0..TRACES_MAX + 2 {
        for index in [number * 2, number * 2 + 1] {
            assert_eq!(traces.of_item(index), expected(number), "{number}");
        }
    }
    assert!(metrics().traces_dropped.get() > dropped);
}

proptest! {
    #[test]
    fn a_message_of_several_requests_stays_within_its_limits_and_no_request_is_split(
        requests in proptest::collection::vec((1usize..8, 1usize..6_000), 1..40),
    ) {
        let (mut items, mut bytes, mut in_message) = (0, 0, 0);
        for more in requests {
            if let Some(why) = must_close_before(items, bytes, more, &LIMITS) {
                let over_items = items + more.0 > LIMITS.items_max;
                prop_assert_eq!(why, if over_items { WhyFlushed::Items } else { WhyFlushed::Bytes });
                (items, bytes, in_message) = (0, 0, 0);
            }
            (items, bytes, in_message) = (items + more.0, bytes + more.1, in_message + 1);
            if in_message > 1 {
                prop_assert!(items <= LIMITS.items_max && bytes <= LIMITS.bytes_max);
            }
            if must_close_after(items, bytes, &LIMITS).is_some() {
                prop_assert!(items >= LIMITS.items_max || bytes >= LIMITS.bytes_max);
                (items, bytes, in_message) = (0, 0, 0);
            }
        }
    }
}
