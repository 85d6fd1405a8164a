//! The dead queue is read beside the ingest: messages that can be applied are, the rest become dead
//! letters.
use bytes::Bytes;
use consumer::dead_letters::dead_queue::DeadQueue;
use consumer::ingest::announce::Announcer;
use consumer::ingest::suspects::Pace;
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, MESSAGE_KIND, Redrive, RedriveOutcome,
};
use shared::model::id::BodyId;
use shared::queue::{Delivery, Lane, Subscription};
use tracing::instrument::WithSubscriber;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::*;

on_both_pairs! {
    what_cannot_be_read_becomes_dead_letters_and_leaves_the_queues_empty
    another_body_under_an_applied_id_becomes_a_dead_letter
    what_an_older_consumer_rejected_is_applied_by_a_newer_one
    what_an_older_consumer_buried_is_applied_by_a_redrive
    what_an_older_consumer_buried_is_applied_by_a_newer_one_and_the_rest_stays_as_it_is
    while_the_store_is_away_a_dead_message_waits_and_nothing_is_lost
    a_store_that_takes_no_dead_letters_does_not_hinder_writes
    two_consumers_bury_each_message_once
    a_crash_between_the_row_and_its_acknowledgement_makes_no_second_row
    a_large_body_is_kept_whole
    a_message_that_is_rejected_twice_is_not_lost
    a_message_that_cannot_be_read_is_known_to_be_in_hand_until_it_is_buried
    a_stop_does_not_wait_for_a_burial_that_is_not_answered
    a_dead_message_that_was_held_for_long_is_given_back_and_not_lost
    what_is_set_aside_of_a_dead_message_is_told_in_the_log
}

fn id_of(body: &[u8]) -> Uuid {
    BodyId::of(body).as_uuid()
}

impl Rig {
    async fn publish_body(&mut self, body: impl Into<Bytes>) {
        let message = Outgoing { body: body.into(), ..self.message("never", 1) };
        self.publish(message).await;
    }

    async fn letter(&self, id: Uuid) -> Option<DeadLetter> {
        self.backend.store.dead_letter(id).await.expect("the store answers")
    }

    async fn wait_for_letter(&self, body: &[u8]) -> DeadLetter {
        wait_for("a dead letter", async || self.letter(id_of(body)).await.is_some()).await;
        self.letter(id_of(body)).await.expect("just seen")
    }

    /// All dead letters.
    async fn letters(&self) -> Vec<DeadLetter> {
        let filter = DeadLetterFilter::default();
        let page = DeadLetterPage { filter, discarded: false, after: None, limit: 1_000 };
        self.backend.store.dead_letters(page).await.expect("the store answers")
    }

    /// Rejects all waiting messages, as a consumer does that can read none of them.
    async fn reject_all(&self, count: usize) {
        let mut subscription = self.backend.queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        for _ in 0..count {
            let delivery = next(subscription.as_mut()).await;
            subscription.reject(delivery).await.expect("rejected");
        }
    }

    /// Waits until both queues are empty, apart from messages that a consumer holds.
    async fn wait_until_empty(&self) {
        let queue = &self.backend.queue;
        let mut writes = queue.subscribe(Lane::Writes, 0).await.expect("subscribed");
        let mut dead = queue.subscribe(Lane::Dead, 0).await.expect("subscribed");
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let empty = async {
            while writes.waiting().await.expect("known") + dead.waiting().await.expect("known") > 0 {
                tick.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, empty).await.expect("the queues become empty");
    }
}

impl Rig {
    /// Reader of the dead queue without an ingest beside it.
    fn reader(&self) -> DeadQueue {
        let Backend { queue, store, events, ids, .. } = &self.backend;
        DeadQueue {
            queue: queue.clone(),
            store: store.clone(),
            ids: ids.clone(),
            announcer: Arc::new(Announcer::new(events.clone(), 1)),
            pace: Pace::default(),
            in_hand: self.backend.progress.register("dead_queue", PATIENCE),
            status: Arc::default(),
        }
    }
}

/// Another consumer gets the message, and its store may take it.
async fn a_dead_message_that_was_held_for_long_is_given_back_and_not_lost(mut rig: Rig) -> Rig {
    rig.publish_body("held").await;
    rig.reject_all(1).await;
    rig.store.0.is_full_of_the_dead.store(true, Ordering::Relaxed);
    let (trigger, shutdown) = shutdown::channel();
    let reader =
        DeadQueue { pace: Pace { held_max: Duration::from_millis(300), ..Pace::default() }, ..rig.reader() };
    let task = tokio::spawn(reader.run(shutdown));
    wait_for("attempts", async || rig.store.0.unburied.load(Ordering::Relaxed) >= 2).await;
    let mut other = rig.backend.queue.subscribe(Lane::Dead, 1).await.expect("subscribed");
    let given_back = next(other.as_mut()).await;
    assert_eq!(&given_back.body[..], b"held");
    rig.store.0.is_full_of_the_dead.store(false, Ordering::Relaxed);
    other.give_back(vec![given_back]).await.expect("given back");
    drop(other);
    rig.wait_for_letter(b"held").await;
    trigger.request();
    task.await.expect("the reader does not panic");
    assert_eq!(rig.letters().await.len(), 1);
    rig
}

async fn next(subscription: &mut dyn Subscription) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.expect("delivered in time").expect("not lost")
}

async fn what_cannot_be_read_becomes_dead_letters_and_leaves_the_queues_empty(mut rig: Rig) -> Rig {
    let newer = r#"{"v":99,"id":"019a9c1e-7a10-8c01-9f3c-5a1d00000000","accepted_at_ms":5,"items":[]}"#;
    let later = newer.replace("99", "1").replace("[]", r#"[{"later":{}}]"#);
    let bodies: [(&[u8], &str, &str); 5] = [
        (b"no json", "no json", "undecodable"),
        (b"[]", "[]", "undecodable"),
        (b"\xff\x00", "base64:/wA=", "undecodable"),
        (newer.as_bytes(), newer, "unknown_version"),
        (later.as_bytes(), &later, "unknown_kind"),
    ];
    for (body, ..) in bodies {
        let good = rig.message("rest", 1);
        rig.publish(good).await;
        // The second time adds no row.
        for _ in 0..2 {
            rig.publish_body(body.to_vec()).await;
        }
    }
    rig.consuming(async {
        rig.wait_for_value("rest", 5).await;
        for (body, item, reason) in bodies {
            let letter = rig.wait_for_letter(body).await;
            assert_eq!((&*letter.kind, &*letter.reason, &*letter.item), (MESSAGE_KIND, reason, item));
        }
        rig.wait_until_empty().await;
    })
    .await;
    // No consumer held one either.
    rig.wait_until_empty().await;
    assert_eq!(rig.letters().await.len(), 5);
    rig
}

async fn another_body_under_an_applied_id_becomes_a_dead_letter(mut rig: Rig) -> Rig {
    let first = rig.message("reused", 1);
    let other = first.body.to_vec().replacing(b":1}}", b":9}}");
    rig.publish(first.clone()).await;
    rig.consuming(async {
        rig.wait_for_value("reused", 1).await;
        rig.publish(Outgoing { body: other.clone(), ..first }).await;
        assert_eq!(rig.wait_for_letter(&other).await.reason, "digest_mismatch");
    })
    .await;
    rig.wait_until_empty().await;
    assert_eq!(rig.value("reused").await, Some(1));
    rig
}

async fn what_an_older_consumer_rejected_is_applied_by_a_newer_one(mut rig: Rig) -> Rig {
    let messages: Vec<_> = (0..3).map(|_| rig.message("newer", 1)).collect();
    for message in &messages {
        rig.publish(message.clone()).await;
    }
    rig.reject_all(3).await;
    // One of them comes by the queue, too.
    rig.publish(messages[0].clone()).await;
    rig.consuming(async {
        for message in &messages {
            assert!(matches!(rig.wait_for_fate(message.id).await, ItemStatus::Applied { .. }));
        }
        rig.wait_until_empty().await;
    })
    .await;
    rig.wait_until_empty().await;
    assert_eq!((rig.value("newer").await, rig.letters().await), (Some(3), vec![]));
    rig
}

async fn what_an_older_consumer_buried_is_applied_by_a_newer_one_and_the_rest_stays_as_it_is(
    mut rig: Rig,
) -> Rig {
    let kind = shared::model::message::Undecodable::Kind(0);
    let (message, newest) = (rig.message("rescued", 1), Bytes::from_static(b"later"));
    for body in [&message.body, &newest] {
        rig.backend.store.bury(DeadMessage::undecodable(body.clone(), &kind)).await.expect("is buried");
    }
    let before = rig.letter(id_of(&newest)).await;
    rig.consuming(async {
        assert!(matches!(rig.wait_for_fate(message.id).await, ItemStatus::Applied { .. }));
    })
    .await;
    assert_eq!((rig.value("rescued").await, rig.letter(id_of(&message.body)).await), (Some(1), None));
    assert_eq!(rig.letter(id_of(&newest)).await, before);
    rig
}

/// An older consumer read the dead queue before a newer one was there.
async fn what_an_older_consumer_buried_is_applied_by_a_redrive(mut rig: Rig) -> Rig {
    let message = rig.message("buried", 1);
    let version = shared::model::message::Undecodable::Version(1);
    let dead = DeadMessage::undecodable(message.body.clone(), &version);
    rig.backend.store.bury(dead).await.expect("is buried");
    let all =
        Redrive { filter: DeadLetterFilter::default(), after: None, limit: 9, dry_run: false, force: false };
    let done = rig.backend.store.redrive(all).await.expect("is redriven");
    assert_eq!(done.items.len(), 1);
    assert_eq!(done.items[0].outcome, RedriveOutcome::Applied);
    // It comes once more: the ledger knows it.
    rig.publish(message).await;
    let last = rig.message("last", 1);
    rig.publish(last).await;
    rig.consuming(rig.wait_for_value("last", 1)).await;
    assert_eq!((rig.value("buried").await, rig.letters().await), (Some(1), vec![]));
    rig
}

async fn while_the_store_is_away_a_dead_message_waits_and_nothing_is_lost(mut rig: Rig) -> Rig {
    let good = rig.message("good", 1);
    rig.publish(good).await;
    rig.reject_all(1).await;
    for number in 0..5 {
        rig.publish_body(format!("garbage {number}")).await;
    }
    rig.store.0.away.store(true, Ordering::Relaxed);
    rig.consuming(async {
        rig.wait_for_failures(3).await;
        assert_eq!(rig.letters().await, []);
        rig.store.0.away.store(false, Ordering::Relaxed);
        for number in 0..5 {
            rig.wait_for_letter(format!("garbage {number}").as_bytes()).await;
        }
        rig.wait_for_value("good", 1).await;
        rig.wait_until_empty().await;
    })
    .await;
    rig.wait_until_empty().await;
    assert_eq!((rig.value("good").await, rig.letters().await.len()), (Some(1), 5));
    rig
}

async fn a_store_that_takes_no_dead_letters_does_not_hinder_writes(mut rig: Rig) -> Rig {
    rig.store.0.is_full_of_the_dead.store(true, Ordering::Relaxed);
    rig.publish_body("garbage").await;
    let messages: Vec<_> = (0..50).map(|_| rig.message("beside", 1)).collect();
    rig.consuming(async {
        wait_for("attempts", async || rig.store.0.unburied.load(Ordering::Relaxed) >= 3).await;
        for message in messages {
            rig.publish(message).await;
        }
        rig.wait_for_value("beside", 50).await;
    })
    .await;
    assert_eq!(rig.letters().await, []);
    // A stop gave it back.
    rig.store.0.is_full_of_the_dead.store(false, Ordering::Relaxed);
    rig.consuming(rig.wait_for_letter(b"garbage")).await;
    rig.wait_until_empty().await;
    rig
}

async fn two_consumers_bury_each_message_once(mut rig: Rig) -> Rig {
    let bodies: Vec<_> = (0..40).map(|number| format!("garbage {number}")).collect();
    for (number, body) in bodies.iter().enumerate() {
        rig.publish_body(body.clone()).await;
        if number % 4 == 0 {
            let message = rig.message("good", 1);
            rig.publish(message).await;
        }
    }
    rig.reject_all(50).await;
    let buried = async {
        rig.wait_for_value("good", 10).await;
        for body in &bodies {
            rig.wait_for_letter(body.as_bytes()).await;
        }
    };
    rig.consuming(rig.consuming(buried)).await;
    rig.wait_until_empty().await;
    assert_eq!((rig.value("good").await, rig.letters().await.len()), (Some(10), 40));
    rig
}

async fn a_crash_between_the_row_and_its_acknowledgement_makes_no_second_row(mut rig: Rig) -> Rig {
    rig.publish_body("garbage").await;
    let unanswered = rig.store.0.burying.lock().await;
    let reader = rig.reader();
    rig.reject_all(1).await;
    let (_trigger, shutdown) = shutdown::channel();
    let reading = tokio::spawn(reader.run(shutdown));
    let first = rig.wait_for_letter(b"garbage").await;
    // In the middle of the statement: the row is there, and the consumer does not know.
    reading.abort();
    assert!(reading.await.expect_err("was aborted").is_cancelled());
    drop(unanswered);
    rig.consuming(rig.wait_until_empty()).await;
    rig.wait_until_empty().await;
    assert_eq!(rig.letters().await, [first]);
    rig
}

async fn a_large_body_is_kept_whole(mut rig: Rig) -> Rig {
    let body: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_be_bytes).collect();
    rig.publish_body(body.clone()).await;
    let letter = rig.consuming(rig.wait_for_letter(&body)).await;
    assert_eq!(letter.item.len(), "base64:".len() + body.len().div_ceil(3) * 4);
    rig.wait_until_empty().await;
    rig
}

/// There is no queue behind the dead one: a rejection there ends the subscription and nothing else.
async fn a_message_that_is_rejected_twice_is_not_lost(mut rig: Rig) -> Rig {
    rig.publish_body("garbage").await;
    rig.reject_all(1).await;
    let mut dead = rig.backend.queue.subscribe(Lane::Dead, 1).await.expect("subscribed");
    let delivery = next(dead.as_mut()).await;
    dead.reject(delivery).await.expect_err("nothing is behind it");
    dead.next().await.expect_err("it is lost");
    drop(dead);
    rig.consuming(rig.wait_for_letter(b"garbage")).await;
    rig.wait_until_empty().await;
    rig
}

/// A broker does not count a message that a consumer holds, and its age is not known.
async fn a_message_that_cannot_be_read_is_known_to_be_in_hand_until_it_is_buried(mut rig: Rig) -> Rig {
    rig.store.0.is_full_of_the_dead.store(true, Ordering::Relaxed);
    rig.publish_body("garbage").await;
    rig.reject_all(1).await;
    let reader = rig.reader();
    let status = reader.status.clone();
    assert!(!status.has_unreadable());
    let (trigger, shutdown) = shutdown::channel();
    let reading = tokio::spawn(reader.run(shutdown));
    wait_for("an attempt", async || rig.store.0.unburied.load(Ordering::Relaxed) >= 2).await;
    assert!(status.has_unreadable(), "between two attempts");
    rig.store.0.is_full_of_the_dead.store(false, Ordering::Relaxed);
    rig.wait_for_letter(b"garbage").await;
    wait_for("empty hands", async || !status.has_unreadable()).await;
    trigger.request();
    reading.await.expect("no panic");
    rig.wait_until_empty().await;
    rig
}

async fn a_stop_does_not_wait_for_a_burial_that_is_not_answered(mut rig: Rig) -> Rig {
    rig.publish_body("garbage").await;
    let unanswered = rig.store.0.burying.lock().await;
    let stopped = tokio::time::timeout(PATIENCE, rig.consuming(rig.wait_for_letter(b"garbage"))).await;
    let first = stopped.expect("the stop ends");
    drop(unanswered);
    // It was given back, and the store knows it.
    rig.consuming(rig.wait_until_empty()).await;
    rig.wait_until_empty().await;
    assert_eq!(rig.letters().await, [first]);
    rig
}

async fn what_is_set_aside_of_a_dead_message_is_told_in_the_log(mut rig: Rig) -> Rig {
    let full = rig.message("full", i64::MAX);
    rig.publish(full).await;
    rig.consuming(rig.wait_for_value("full", i64::MAX)).await;
    let aside = rig.message("full", 1);
    rig.publish(aside.clone()).await;
    rig.reject_all(1).await;
    let log = Log::default();
    let writer = log.clone();
    let lines = shared::program::logs::json_logs(EnvFilter::new("info"), move || writer.clone());
    let (trigger, shutdown) = shutdown::channel();
    let reading = tokio::spawn(rig.reader().run(shutdown).with_subscriber(lines));
    assert!(matches!(rig.wait_for_fate(aside.id).await, ItemStatus::Failed { .. }));
    rig.wait_until_empty().await;
    trigger.request();
    reading.await.expect("no panic");
    let id = rig.backend.ids.sign(aside.id.item(Kind::Increment, 0)).to_string();
    let text = log.text();
    let line = text.lines().find(|line| line.contains("\"item set aside\""));
    assert!(line.is_some_and(|line| line.contains(&id)), "{text}");
    rig
}

/// Log lines of the test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8")
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
