//! Effects on a queue that only the administrator of a broker can have, on a private one.
use shared::amqp::settings::RabbitSettings;
use shared::config::Config;
use shared::queue::rabbitmq::RabbitQueue;
use testkit::inspect;

use super::{Arc, LIMITS, Lane, Queue, delivered_ids, ids, next, next_many, publish};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_the_right_to_configure_works_on_what_an_operator_declared() {
    testkit::private::broker(|broker| async move {
        let prefix = testkit::unique("operated");
        let may = ["^$", ".*", ".*"];
        let restricted = broker.add_user(testkit::unique("user"), may).await;
        let open = |url: &str| RabbitQueue::start(RabbitSettings::new(url, &prefix, LIMITS));

        let queue: Arc<dyn Queue> = open(&restricted);
        let refused = queue.subscribe(Lane::Writes, 1).await.err();
        assert!(refused.is_some_and(|error| error.to_string().contains("not available")));
        queue.close().await;

        let operator = open(broker.url());
        publish(operator.publisher().as_ref(), 1).await;
        let queue = open(&restricted);
        let published = publish(queue.publisher().as_ref(), 2).await;
        let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
        let mut deliveries = next_many(subscription.as_mut(), 3).await;
        assert!(delivered_ids(&deliveries).is_superset(&ids(&published)));
        subscription.reject(deliveries.remove(0)).await.expect("rejected");
        subscription.ack(deliveries).await.expect("acknowledged");
        let later = publish(queue.publisher().as_ref(), 1).await;
        assert_eq!(super::id_of(&next(subscription.as_mut()).await), later[0].id);
        let dead = format!("{prefix}.dead.v1");
        let deadline = super::in_time();
        while inspect::waiting(broker.url(), &dead).await.expect("the broker answers") != 1 {
            assert!(super::Instant::now() < deadline, "the rejected message is not in the dead queue");
        }
    })
    .await;
}

/// A new quorum queue is in the broker's own registers only some time after it was declared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_new_queue_confirmed_survives_a_broker_that_is_killed_at_once() {
    testkit::private::broker(|broker| async move {
        let mut config = Config::default();
        config.queue.url = broker.url().to_owned();
        config.queue.prefix = testkit::unique("settle");
        let open = || RabbitQueue::start(RabbitSettings::from(&config));
        let queues: Vec<Arc<dyn Queue>> = vec![open(), open()];
        let publishers = queues.iter().map(|queue| queue.publisher()).collect::<Vec<_>>();
        let published = tokio::join!(publish(publishers[0].as_ref(), 1), publish(publishers[1].as_ref(), 1));
        broker.kill().await;
        broker.restart().await;
        let later = publish(publishers[0].as_ref(), 1).await;
        let mut subscription = queues[1].subscribe(Lane::Writes, 10).await.expect("subscribed");
        let all = [published.0, published.1, later].concat();
        let deliveries = next_many(subscription.as_mut(), all.len()).await;
        assert!(delivered_ids(&deliveries).is_superset(&ids(&all)));
        subscription.ack(deliveries).await.expect("acknowledged");
    })
    .await;
}

/// The exchange is missing when a program ends between deleting and declaring it, or when an
/// operator deletes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rejected_while_the_dead_exchange_was_missing_is_known_of_and_comes() {
    testkit::private::broker(|broker| async move {
        // The setting decides how often it retries messages that it could not route.
        broker.set("dead_letter_worker_publisher_confirm_timeout", 1_000).await;
        let prefix = testkit::unique("exchange");
        let queue = RabbitQueue::start(RabbitSettings::new(broker.url(), &prefix, LIMITS));
        let published = publish(queue.publisher().as_ref(), 1).await;
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        assert!(queue.waiting(Lane::Dead).await.expect("is looked at").is_empty());
        inspect::delete_exchange(broker.url(), &format!("{prefix}.dead.v1")).await.expect("deleted");
        let delivery = next(subscription.as_mut()).await;
        subscription.reject(delivery).await.expect("rejected");
        assert!(!queue.waiting(Lane::Dead).await.expect("is looked at").is_empty(), "on its way");
        let mut dead = queue.subscribe(Lane::Dead, 1).await.expect("subscribed");
        assert_eq!(super::id_of(&next(dead.as_mut()).await), published[0].id);
        broker.set("dead_letter_worker_publisher_confirm_timeout", 180_000).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_declare_the_dead_exchange_again_nobody_knows_what_is_dead() {
    testkit::private::broker(|broker| async move {
        let prefix = testkit::unique("unknown");
        let operator: Arc<dyn Queue> = RabbitQueue::start(RabbitSettings::new(broker.url(), &prefix, LIMITS));
        publish(operator.publisher().as_ref(), 1).await;
        let restricted = broker.add_user(testkit::unique("looks"), ["^$", ".*", ".*"]).await;
        let queue = RabbitQueue::start(RabbitSettings::new(&restricted, &prefix, LIMITS));
        assert!(queue.waiting(Lane::Dead).await.expect("is looked at").is_empty());
        inspect::delete_exchange(broker.url(), &format!("{prefix}.dead.v1")).await.expect("deleted");
        for _ in 0..2 {
            queue.waiting(Lane::Dead).await.expect_err("nobody knows");
        }
        drop(operator.subscribe(Lane::Writes, 1).await.expect("subscribed"));
        assert!(
            !queue.waiting(Lane::Dead).await.expect("is looked at").is_empty(),
            "some may be on their way"
        );
    })
    .await;
}
