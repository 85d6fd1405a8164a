//! The contract of every queue.
use shared::runtime::shutdown::Shutdown;

use super::{
    Arc, BTreeSet, Delivery, Duration, Fixture, Instant, LIMITS, Lane, MessageId, Outgoing, PATIENCE,
    PublishError, Queue, QueueLimits, delivered_ids, fill, id_of, ids, in_time, message, next, next_many,
    publish,
};

/// Runs every contract test on every implementation; a new one is a line at the end.
macro_rules! contract {
    ($($name:ident)+) => {
        macro_rules! on {
            ($implementation:ident) => {
                mod $implementation {
                    $(
                        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                        async fn $name() {
                            super::fixtures::$implementation(|fixture| async move {
                                super::$name(fixture.as_ref()).await;
                            })
                            .await;
                        }
                    )+
                }
            };
        }
        on!(rabbitmq);
        on!(embedded);
    };
}

contract! {
    a_published_message_is_delivered_with_the_same_body
    what_was_not_acknowledged_is_delivered_again_after_the_subscriber_is_gone
    what_was_acknowledged_is_never_delivered_again
    what_is_given_back_is_delivered_again
    a_window_bounds_what_is_unacknowledged_and_an_acknowledgement_makes_room
    a_window_of_nothing_stops_deliveries_and_a_larger_one_starts_them_again
    what_came_before_a_window_was_changed_stays_with_the_subscriber
    many_publishers_at_once_and_every_confirmed_message_is_there
    a_rejected_message_does_not_come_back
    a_rejected_message_is_delivered_among_the_dead_until_it_is_acknowledged
    of_two_readers_of_the_dead_each_gets_others
    a_full_queue_refuses_and_keeps_every_message_that_it_took
    acknowledging_some_leaves_the_others
    a_publish_is_answered_by_its_deadline
    a_closed_queue_takes_nothing_and_has_answered_everything
    what_it_runs_by_itself_is_not_over_before_it_is_closed
    publishing_from_a_runtime_of_another_thread_works
    the_traces_of_a_message_come_with_it_however_often_it_is_delivered
}

mod fixtures {
    use std::future::Future;

    use shared::amqp::settings::RabbitSettings;
    use shared::queue::Queue;
    use shared::queue::embedded::EmbeddedQueue;
    use shared::queue::rabbitmq::RabbitQueue;

    use super::{Arc, Fixture, QueueLimits};

    struct Rabbit {
        url: String,
        prefix: String,
    }

    #[async_trait::async_trait]
    impl Fixture for Rabbit {
        async fn open(&self, limits: QueueLimits) -> Arc<dyn Queue> {
            RabbitQueue::start(RabbitSettings::new(&self.url, &self.prefix, limits))
        }
    }

    pub async fn rabbitmq<Fut: Future<Output = ()> + Send + 'static>(
        test: impl FnOnce(Arc<dyn Fixture>) -> Fut,
    ) {
        testkit::isolated("queue", |isolated| {
            test(Arc::new(Rabbit { url: isolated.amqp_url, prefix: isolated.prefix }))
        })
        .await;
    }

    struct Embedded {
        directory: std::path::PathBuf,
    }

    #[async_trait::async_trait]
    impl Fixture for Embedded {
        async fn open(&self, limits: QueueLimits) -> Arc<dyn Queue> {
            EmbeddedQueue::open(&self.directory, limits).await.expect("the directory is free")
        }
    }

    pub async fn embedded<Fut: Future<Output = ()> + Send + 'static>(
        test: impl FnOnce(Arc<dyn Fixture>) -> Fut,
    ) {
        let directory = std::env::temp_dir().join(testkit::unique("queue"));
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        let outcome = tokio::spawn(test(Arc::new(Embedded { directory: directory.clone() }))).await;
        std::fs::remove_dir_all(&directory).expect("the directory is removed");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic.into_panic());
        }
    }
}

async fn a_published_message_is_delivered_with_the_same_body(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let (small, large) = (message(1), message(300_000));
    for message in [&small, &large] {
        queue.publisher().publish(message.clone(), in_time()).await.expect("published");
    }
    let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), 2).await;
    for message in [&small, &large] {
        let delivery = deliveries.iter().find(|delivery| id_of(delivery) == message.id).expect("delivered");
        assert!(delivery.body == message.body);
        assert!(!delivery.redelivered);
    }
    subscription.ack(deliveries).await.expect("acknowledged");
}

async fn the_traces_of_a_message_come_with_it_however_often_it_is_delivered(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let traced = Outgoing { traces: Some(r#"[[0,1,"ä"]]"#.into()), ..message(1) };
    let plain = message(1);
    for message in [&traced, &plain] {
        queue.publisher().publish(message.clone(), in_time()).await.expect("published");
    }
    let come_with_their_traces = |deliveries: &[Delivery]| {
        deliveries.iter().all(|delivery| {
            let is_traced = id_of(delivery) == traced.id;
            delivery.traces == traced.traces.clone().filter(|_| is_traced)
        })
    };
    let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), 2).await;
    assert!(come_with_their_traces(&deliveries));
    subscription.give_back(deliveries).await.expect("given back");
    let deliveries = next_many(subscription.as_mut(), 2).await;
    assert!(come_with_their_traces(&deliveries), "given back");
    drop((subscription, deliveries));
    queue.close().await;
    let queue = fixture.open(LIMITS).await;
    let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), 2).await;
    assert!(come_with_their_traces(&deliveries), "after a restart");
    assert_eq!(delivered_ids(&deliveries), ids(&[traced, plain]));
    subscription.ack(deliveries).await.expect("acknowledged");
}

async fn what_was_not_acknowledged_is_delivered_again_after_the_subscriber_is_gone(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let published = publish(queue.publisher().as_ref(), 3).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 3).await), ids(&published));
    drop(subscription);
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let again = next_many(subscription.as_mut(), 3).await;
    assert_eq!(delivered_ids(&again), ids(&published));
    assert!(again.iter().all(|delivery| delivery.redelivered));
}

async fn what_was_acknowledged_is_never_delivered_again(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    publish(queue.publisher().as_ref(), 5).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), 5).await;
    subscription.ack(deliveries).await.expect("acknowledged");
    drop(subscription);
    queue.close().await;
    drop(queue);
    // The rule holds over a restart, too: each delivery now was published now.
    let queue = fixture.open(LIMITS).await;
    let later = publish(queue.publisher().as_ref(), 5).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 5).await), ids(&later));
}

async fn what_is_given_back_is_delivered_again(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let published = publish(queue.publisher().as_ref(), 3).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), 3).await;
    subscription.give_back(deliveries).await.expect("given back");
    let again = next_many(subscription.as_mut(), 3).await;
    assert_eq!(delivered_ids(&again), ids(&published));
    subscription.ack(again).await.expect("acknowledged");
}

async fn a_window_bounds_what_is_unacknowledged_and_an_acknowledgement_makes_room(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let published = publish(queue.publisher().as_ref(), 5).await;
    let mut narrow = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
    let mut held = next_many(narrow.as_mut(), 2).await;
    // The rest goes to another subscription, so it is not on its way to the first.
    let mut wide = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let elsewhere = next_many(wide.as_mut(), 3).await;
    assert!(narrow.try_next().expect("not lost").is_none());
    wide.set_window(0).await.expect("stopped");
    wide.give_back(elsewhere).await.expect("given back");
    assert!(narrow.try_next().expect("not lost").is_none());
    let mut seen = delivered_ids(&held);
    while seen.len() < published.len() {
        narrow.ack(vec![held.remove(0)]).await.expect("acknowledged");
        held.push(next(narrow.as_mut()).await);
        seen.extend(delivered_ids(&held));
    }
    assert_eq!(seen, ids(&published));
}

async fn a_window_of_nothing_stops_deliveries_and_a_larger_one_starts_them_again(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let mut paused = queue.subscribe(Lane::Writes, 4).await.expect("subscribed");
    paused.set_window(0).await.expect("stopped");
    let published = publish(queue.publisher().as_ref(), 6).await;
    let mut other = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let elsewhere = next_many(other.as_mut(), 6).await;
    assert_eq!(delivered_ids(&elsewhere), ids(&published));
    assert!(paused.try_next().expect("not lost").is_none());
    other.set_window(0).await.expect("stopped");
    other.give_back(elsewhere).await.expect("given back");
    paused.set_window(2).await.expect("started");
    let first = next_many(paused.as_mut(), 2).await;
    paused.ack(first).await.expect("acknowledged");
    paused.set_window(4).await.expect("grown");
    let rest = next_many(paused.as_mut(), 4).await;
    paused.ack(rest).await.expect("acknowledged");
}

async fn what_came_before_a_window_was_changed_stays_with_the_subscriber(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let published = publish(queue.publisher().as_ref(), 4).await;
    let mut subscription = queue.subscribe(Lane::Writes, 4).await.expect("subscribed");
    let mut deliveries = vec![next(subscription.as_mut()).await];
    subscription.set_window(0).await.expect("stopped");
    while let Some(delivery) = subscription.try_next().expect("not lost") {
        deliveries.push(delivery);
    }
    let acknowledged = delivered_ids(&deliveries);
    subscription.ack(deliveries).await.expect("deliveries of before can be acknowledged");
    drop(subscription);
    let rest: BTreeSet<_> = ids(&published).difference(&acknowledged).copied().collect();
    let later = publish(queue.publisher().as_ref(), 1).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let others = next_many(subscription.as_mut(), rest.len() + 1).await;
    assert_eq!(delivered_ids(&others), rest.union(&ids(&later)).copied().collect());
}

/// An acknowledgement that answered for another task's message would show as a confirmed one that
/// is missing: the queue is so small that about half of the messages are refused.
async fn many_publishers_at_once_and_every_confirmed_message_is_there(fixture: &dyn Fixture) {
    const PUBLISHERS: usize = 16;
    const EACH: usize = 40;
    let half = u64::try_from(PUBLISHERS * EACH / 2 * message(1).body.len()).expect("fits");
    let queue = fixture.open(QueueLimits { bytes_max: half, ..LIMITS }).await;
    let mut publishers = tokio::task::JoinSet::new();
    for _ in 0..PUBLISHERS {
        let publisher = queue.publisher();
        publishers.spawn(async move {
            let mut confirmed = Vec::new();
            for _ in 0..EACH {
                let message = message(1);
                match publisher.publish(message.clone(), in_time()).await {
                    Ok(()) => confirmed.push(message.id),
                    Err(PublishError::Full) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            confirmed
        });
    }
    let confirmed: BTreeSet<_> = publishers.join_all().await.into_iter().flatten().collect();
    assert!((1..PUBLISHERS * EACH).contains(&confirmed.len()), "{} confirmed", confirmed.len());
    let mut subscription = queue.subscribe(Lane::Writes, 1_000).await.expect("subscribed");
    let mut missing = confirmed;
    while !missing.is_empty() {
        let delivery = next(subscription.as_mut()).await;
        missing.remove(&id_of(&delivery));
        subscription.ack(vec![delivery]).await.expect("acknowledged");
    }
}

async fn a_rejected_message_does_not_come_back(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    publish(queue.publisher().as_ref(), 1).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let rejected = next(subscription.as_mut()).await;
    assert!(queue.waiting(Lane::Dead).await.expect("is looked at").is_empty());
    subscription.reject(rejected).await.expect("rejected");
    drop(subscription);
    let deadline = in_time();
    while queue.waiting(Lane::Dead).await.expect("is looked at").is_empty() {
        assert!(Instant::now() < deadline, "it is not in the dead queue");
        tokio::task::yield_now().await;
    }
    let later = publish(queue.publisher().as_ref(), 3).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 3).await), ids(&later));
    assert!(subscription.try_next().expect("not lost").is_none());
}

async fn a_full_queue_refuses_and_keeps_every_message_that_it_took(fixture: &dyn Fixture) {
    let queue = fixture.open(QueueLimits { bytes_max: 200_000, ..LIMITS }).await;
    let taken = fill(queue.publisher().as_ref(), 5_000).await;
    assert!(!taken.is_empty());
    let mut subscription = queue.subscribe(Lane::Writes, 1_000).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), taken.len()).await;
    assert_eq!(delivered_ids(&deliveries), ids(&taken));
    subscription.ack(deliveries).await.expect("acknowledged");
    // It takes messages again once there is space, which it notices in its own time.
    let deadline = in_time();
    while let Err(error) = queue.publisher().publish(message(1), deadline).await {
        assert_eq!(error, PublishError::Full);
        assert!(Instant::now() < deadline, "still full");
        tokio::task::yield_now().await;
    }
}

/// Rejects `count` new messages.
async fn reject(queue: &dyn Queue, count: usize) -> BTreeSet<MessageId> {
    let rejected = ids(&publish(queue.publisher().as_ref(), count).await);
    let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
    for _ in 0..count {
        let delivery = next(subscription.as_mut()).await;
        subscription.reject(delivery).await.expect("rejected");
    }
    rejected
}

async fn a_rejected_message_is_delivered_among_the_dead_until_it_is_acknowledged(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let rejected = reject(queue.as_ref(), 3).await;
    let mut dead = queue.subscribe(Lane::Dead, 1).await.expect("subscribed");
    let first = next(dead.as_mut()).await;
    assert!(rejected.contains(&id_of(&first)));
    // These deliveries belong to another queue, and no published message shows up there.
    let published = publish(queue.publisher().as_ref(), 1).await;
    let mut writes = queue.subscribe(Lane::Writes, 9).await.expect("subscribed");
    let other = next(writes.as_mut()).await;
    assert_eq!(id_of(&other), published[0].id);
    writes.ack(vec![other]).await.expect("acknowledged");
    dead.give_back(vec![first]).await.expect("given back");
    dead.set_window(3).await.expect("wider");
    let mut deliveries = next_many(dead.as_mut(), 3).await;
    assert_eq!(delivered_ids(&deliveries), rejected);
    let last = deliveries.pop().expect("three");
    let left = id_of(&last);
    dead.ack(deliveries).await.expect("acknowledged");
    // No queue is behind it: the message stays, and comes to the next reader, also of a later process.
    dead.reject(last).await.expect_err("there is no further queue");
    dead.try_next().expect_err("it is lost");
    drop((dead, writes));
    queue.close().await;
    drop(queue);
    let queue = fixture.open(LIMITS).await;
    let mut dead = queue.subscribe(Lane::Dead, 0).await.expect("subscribed");
    let deadline = in_time();
    while dead.waiting().await.expect("known") != 1 {
        assert!(Instant::now() < deadline, "one waits");
        tokio::task::yield_now().await;
    }
    dead.set_window(3).await.expect("wider");
    let last = next(dead.as_mut()).await;
    assert_eq!(id_of(&last), left);
    dead.ack(vec![last]).await.expect("acknowledged");
    let again = reject(queue.as_ref(), 1).await;
    assert_eq!(delivered_ids(&next_many(dead.as_mut(), 1).await), again);
    assert_eq!(dead.waiting().await.expect("known"), 0);
}

async fn of_two_readers_of_the_dead_each_gets_others(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let rejected = reject(queue.as_ref(), 40).await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        readers.push(queue.subscribe(Lane::Dead, 1).await.expect("subscribed"));
    }
    let mut seen = BTreeSet::new();
    for round in 0..20 {
        // Both hold one at the same time.
        let mut taken = Vec::new();
        for reader in &mut readers {
            taken.push(next(reader.as_mut()).await);
        }
        for (reader, delivery) in readers.iter_mut().zip(taken) {
            assert!(seen.insert(id_of(&delivery)), "twice in round {round}");
            reader.ack(vec![delivery]).await.expect("acknowledged");
        }
    }
    assert_eq!(seen, rejected);
}

async fn acknowledging_some_leaves_the_others(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    publish(queue.publisher().as_ref(), 6).await;
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    let (mut some, mut others) = (Vec::new(), Vec::new());
    for (index, delivery) in next_many(subscription.as_mut(), 6).await.into_iter().enumerate() {
        // The second, the fourth and the fifth are acknowledged: never all up to one.
        if [1, 3, 4].contains(&index) { some.push(delivery) } else { others.push(delivery) }
    }
    let left = delivered_ids(&others);
    subscription.ack(some).await.expect("acknowledged");
    drop(subscription);
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 3).await), left);
    let later = publish(queue.publisher().as_ref(), 1).await;
    assert_eq!(id_of(&next(subscription.as_mut()).await), later[0].id);
}

async fn a_publish_is_answered_by_its_deadline(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    publish(queue.publisher().as_ref(), 1).await;
    let begun = Instant::now();
    let answer = queue.publisher().publish(message(1), begun).await;
    assert!(begun.elapsed() < PATIENCE / 2);
    // The answer is a prompt confirm or a prompt refusal, never one that says neither.
    assert!(matches!(answer, Ok(()) | Err(PublishError::DeadlineExceeded)), "{answer:?}");
}

async fn a_closed_queue_takes_nothing_and_has_answered_everything(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let publisher = queue.publisher();
    let publishing: Vec<_> = (0..20)
        .map(|_| {
            let (publisher, message) = (Arc::clone(&publisher), message(1));
            tokio::spawn(async move { (message.id, publisher.publish(message, in_time()).await) })
        })
        .collect();
    tokio::time::timeout(PATIENCE, queue.close()).await.expect("closed in time");
    let mut confirmed = BTreeSet::new();
    for answered in publishing {
        match answered.await.expect("no panic") {
            (id, Ok(())) => drop(confirmed.insert(id)),
            (_, Err(error)) => assert!(matches!(error, PublishError::Unavailable(_)), "{error}"),
        }
    }
    let refused = publisher.publish(message(1), in_time()).await;
    assert!(matches!(refused, Err(PublishError::Unavailable(_))), "{refused:?}");
    drop((publisher, queue));
    let queue = fixture.open(LIMITS).await;
    let mut subscription = queue.subscribe(Lane::Writes, 100).await.expect("subscribed");
    let deliveries = next_many(subscription.as_mut(), confirmed.len()).await;
    assert!(delivered_ids(&deliveries).is_superset(&confirmed));
}

async fn what_it_runs_by_itself_is_not_over_before_it_is_closed(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    publish(queue.publisher().as_ref(), 1).await;
    let over = queue.completions();
    assert!(!over.is_empty() && !over.iter().any(Shutdown::is_requested), "{over:?}");
    queue.close().await;
    for mut over in over {
        tokio::time::timeout(PATIENCE, over.requested()).await.expect("over in time");
    }
}

/// The publishers are like the workers of the API: each has a single-threaded runtime of its own.
async fn publishing_from_a_runtime_of_another_thread_works(fixture: &dyn Fixture) {
    let queue = fixture.open(LIMITS).await;
    let publisher = queue.publisher();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(publish(publisher.as_ref(), 3))
    });
    let sent = tokio::task::spawn_blocking(move || thread.join().expect("no panic")).await.expect("no panic");
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
    assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 3).await), ids(&sent));
    assert!(queue.publisher().publish(message(1), Instant::now() + Duration::from_secs(10)).await.is_ok());
}
