//! Faults that only a broker can have: it cuts connections, is silent, loses queues, differs in version.
use std::future::Future;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use shared::amqp::settings::RabbitSettings;
use shared::config::Config;
use shared::queue::rabbitmq::RabbitQueue;
use shared::queue::{Link, QueueError};
use testkit::Isolated;
use testkit::proxy::Proxy;

use super::{
    Arc, BTreeSet, Duration, Instant, LIMITS, Lane, Outgoing, PATIENCE, PublishError, Queue, QueueLimits,
    delivered_ids, fill, id_of, ids, in_time, message, next, next_many, publish,
};

/// Runs a test with names of its own and a proxy in front of the broker.
async fn with_proxy<Fut: Future<Output = ()> + Send + 'static>(
    test: impl FnOnce(Isolated, Arc<Proxy>) -> Fut + Send + 'static,
) {
    testkit::isolated("rabbit", |isolated| async move {
        let broker = isolated.amqp_url.clone();
        let (_, address) = broker.split_once('@').expect("a URL with a user");
        let server = address.split('/').next().expect("a host").to_owned();
        let proxy = Arc::new(Proxy::start(server).await.expect("a proxy"));
        test(isolated, proxy).await;
    })
    .await;
}

fn open(isolated: &Isolated, limits: QueueLimits) -> Arc<RabbitQueue> {
    RabbitQueue::start(RabbitSettings::new(&isolated.amqp_url, &isolated.prefix, limits))
}

fn open_through(proxy: &Proxy, isolated: &Isolated, limits: QueueLimits) -> Arc<RabbitQueue> {
    RabbitQueue::start(RabbitSettings::new(&proxy.through(&isolated.amqp_url), &isolated.prefix, limits))
}

async fn link_becomes(queue: &RabbitQueue, expected: Link) {
    let (publisher, deadline) = (queue.publisher(), in_time());
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while publisher.link() != expected {
        assert!(Instant::now() < deadline, "the link stays {:?}", publisher.link());
        tick.tick().await;
    }
}

type Publishing = Vec<tokio::task::JoinHandle<Result<(), PublishError>>>;

/// Starts publishes and returns once each was handed to the publisher.
async fn begin_publishing(queue: &RabbitQueue, count: usize) -> (Vec<Outgoing>, Publishing) {
    let messages: Vec<_> = (0..count).map(|_| message(1)).collect();
    let begun = Arc::new(tokio::sync::Barrier::new(count + 1));
    let publishing = messages.iter().map(|message| {
        let (publisher, message, begun) = (queue.publisher(), message.clone(), Arc::clone(&begun));
        tokio::spawn(async move {
            let publish = publisher.publish(message, in_time());
            tokio::join!(publish, begun.wait()).0
        })
    });
    let publishing = publishing.collect();
    begun.wait().await;
    (messages, publishing)
}

async fn delete_queue(isolated: &Isolated, word: &str) {
    let connection = raw_connection(isolated).await;
    let channel = connection.create_channel().await.expect("a channel");
    let name = format!("{}.{word}.v1", isolated.prefix);
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deleted");
}

async fn raw_connection(isolated: &Isolated) -> Connection {
    Connection::connect(&isolated.amqp_url, ConnectionProperties::default()).await.expect("a broker")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_in_hand_at_a_cut_are_published_again_under_their_ids() {
    with_proxy(|isolated, proxy| async move {
        let queue = open_through(&proxy, &isolated, LIMITS);
        link_becomes(&queue, Link::Up).await;
        proxy.black_hole(true);
        let (messages, publishing) = begin_publishing(&queue, 20).await;
        proxy.cut();
        proxy.black_hole(false);
        for publish in publishing {
            assert_eq!(publish.await.expect("no panic"), Ok(()));
        }
        let mut subscription = queue.subscribe(Lane::Writes, 100).await.expect("subscribed");
        let mut seen = BTreeSet::new();
        while seen != ids(&messages) {
            let delivery = next(subscription.as_mut()).await;
            let original = messages.iter().find(|message| message.id == id_of(&delivery));
            assert_eq!(delivery.body, original.expect("an id of ours").body);
            seen.insert(id_of(&delivery));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_confirm_leads_to_the_same_message_once_more() {
    with_proxy(|isolated, proxy| async move {
        let direct = open(&isolated, LIMITS);
        let mut subscription = direct.subscribe(Lane::Writes, 10).await.expect("subscribed");
        let queue = open_through(&proxy, &isolated, LIMITS);
        link_becomes(&queue, Link::Up).await;
        proxy.mute(true);
        let (messages, mut publishing) = begin_publishing(&queue, 1).await;
        let first = next(subscription.as_mut()).await;
        proxy.cut();
        proxy.mute(false);
        assert_eq!(publishing.remove(0).await.expect("no panic"), Ok(()));
        let second = next(subscription.as_mut()).await;
        assert_eq!((&first.body, &second.body), (&messages[0].body, &messages[0].body));
        subscription.ack(vec![first, second]).await.expect("acknowledged");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_black_hole_deadlines_hold_and_afterwards_everything_works_again() {
    with_proxy(|isolated, proxy| async move {
        let limits = QueueLimits { confirm_timeout: Duration::from_millis(200), ..LIMITS };
        let queue = open_through(&proxy, &isolated, limits);
        publish(queue.publisher().as_ref(), 1).await;
        proxy.black_hole(true);
        // The first one meets a session that seems to be up, the second one that is being rebuilt.
        for _ in 0..2 {
            let (begun, patience) = (Instant::now(), Duration::from_millis(700));
            let answer = queue.publisher().publish(message(1), begun + patience).await;
            assert_eq!(answer, Err(PublishError::DeadlineExceeded));
            assert!((patience..patience * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        }
        assert_eq!(queue.publisher().link(), Link::Down);
        proxy.black_hole(false);
        publish(queue.publisher().as_ref(), 3).await;
        assert_eq!(queue.publisher().link(), Link::Up);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_at_the_start_is_waited_for() {
    with_proxy(|isolated, proxy| async move {
        proxy.down(true);
        let queue = open_through(&proxy, &isolated, LIMITS);
        let refused = queue.subscribe(Lane::Writes, 1).await.err();
        assert!(matches!(refused, Some(QueueError::Unavailable(_))), "{refused:?}");
        let (messages, publishing) = begin_publishing(&queue, 3).await;
        proxy.down(false);
        for publish in publishing {
            assert_eq!(publish.await.expect("no panic"), Ok(()));
        }
        let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
        assert_eq!(delivered_ids(&next_many(subscription.as_mut(), 3).await), ids(&messages));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_loses_a_subscription_for_good_and_its_deliveries_come_again() {
    with_proxy(|isolated, proxy| async move {
        let queue = open_through(&proxy, &isolated, LIMITS);
        let published = publish(queue.publisher().as_ref(), 3).await;
        let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribed");
        let mut held = next_many(subscription.as_mut(), 2).await;
        proxy.cut();
        tokio::time::timeout(PATIENCE, subscription.next())
            .await
            .expect("reported in time")
            .expect_err("lost");
        subscription.ack(vec![held.remove(0)]).await.expect_err("lost for good");
        subscription.try_next().expect_err("lost for good");

        let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribed");
        let again = next_many(subscription.as_mut(), 3).await;
        assert_eq!(delivered_ids(&again), ids(&published));
        subscription.ack(held).await.expect_err("a delivery of another session");
        subscription.ack(again).await.expect("acknowledged");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_without_a_window_notices_a_cut_as_well() {
    with_proxy(|isolated, proxy| async move {
        let queue = open_through(&proxy, &isolated, LIMITS);
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        subscription.set_window(0).await.expect("stopped");
        proxy.cut();
        tokio::time::timeout(PATIENCE, subscription.next())
            .await
            .expect("reported in time")
            .expect_err("lost");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_under_a_consumer_loses_the_subscription() {
    testkit::isolated("rabbit", |isolated| async move {
        let queue = open(&isolated, LIMITS);
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        delete_queue(&isolated, "writes").await;
        tokio::time::timeout(PATIENCE, subscription.next())
            .await
            .expect("reported in time")
            .expect_err("lost");
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed to a new queue");
        let published = publish(queue.publisher().as_ref(), 1).await;
        assert_eq!(id_of(&next(subscription.as_mut()).await), published[0].id);
    })
    .await;
}

/// Every message is returned, and the returns come attached to other confirms than their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_under_a_publisher_is_declared_anew_and_nothing_is_confirmed_into_the_void() {
    testkit::isolated("rabbit", |isolated| async move {
        let queue = open(&isolated, LIMITS);
        link_becomes(&queue, Link::Up).await;
        for _ in 0..3 {
            delete_queue(&isolated, "writes").await;
            let (messages, publishing) = begin_publishing(&queue, 100).await;
            for publish in publishing {
                assert_eq!(publish.await.expect("no panic"), Ok(()));
            }
            let mut subscription = queue.subscribe(Lane::Writes, 1_000).await.expect("subscribed");
            let mut missing = ids(&messages);
            while !missing.is_empty() {
                missing.remove(&id_of(&next(subscription.as_mut()).await));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_explained_and_used_once_it_was_deleted() {
    testkit::isolated("rabbit", |isolated| async move {
        let older = open(&isolated, QueueLimits { bytes_max: 1 << 20, ..LIMITS });
        link_becomes(&older, Link::Up).await;
        older.close().await;
        let queue = open(&isolated, LIMITS);
        let refused = queue.subscribe(Lane::Writes, 1).await.err();
        let Some(QueueError::Misdeclared(explanation)) = refused else { panic!("{refused:?}") };
        for part in ["dead.v1", "x-max-length-bytes", "1048576", "queue.bytes_max"] {
            assert!(explanation.contains(part), "{explanation}");
        }
        let answer = queue.publisher().publish(message(1), in_time()).await;
        assert_eq!(answer, Err(PublishError::Unavailable(explanation.into())));
        assert_eq!(queue.publisher().link(), Link::Down);
        delete_queue(&isolated, "writes").await;
        delete_queue(&isolated, "dead").await;
        link_becomes(&queue, Link::Up).await;
        publish(queue.publisher().as_ref(), 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_readers_of_the_queue_are_counted_also_those_of_other_programs() {
    testkit::isolated("rabbit", |isolated| async move {
        let queue = open(&isolated, LIMITS);
        link_becomes(&queue, Link::Up).await;
        let readers = async || queue.waiting(Lane::Writes).await.expect("is looked at").readers;
        assert_eq!(readers().await, Some(0));
        let subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        let connection = raw_connection(&isolated).await;
        let channel = connection.create_channel().await.expect("a channel");
        let (name, options) = (format!("{}.writes.v1", isolated.prefix), BasicConsumeOptions::default());
        let foreign = channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await;
        assert_eq!(readers().await, Some(2));
        drop((subscription, foreign, channel));
    })
    .await;
}

/// On RabbitMQ 3.10 two declarations of a new quorum queue can crash each other's channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_start_together_on_a_new_broker_all_come_up() {
    testkit::isolated("rabbit", |isolated| async move {
        let queues: Vec<_> = (0..4).map(|_| open(&isolated, LIMITS)).collect();
        let subscribing = queues.iter().map(|queue| queue.subscribe(Lane::Writes, 1));
        for subscribed in futures_util::future::join_all(subscribing).await {
            subscribed.map(drop).expect("subscribed");
        }
        for queue in &queues {
            link_becomes(queue, Link::Up).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_stays_full_is_shown_and_tried_on_new_sessions_and_takes_again_once_there_is_room() {
    testkit::isolated("rabbit", |isolated| async move {
        let queue = open(&isolated, QueueLimits { bytes_max: 100_000, ..LIMITS });
        let publisher = queue.publisher();
        let lost = || shared::runtime::metrics::metrics().queue_sessions_lost.get();
        let (mut taken, lost_before) = (fill(publisher.as_ref(), 5_000).await, lost());
        assert_eq!(publisher.link(), Link::Up, "one refusal is no state");
        let deadline = in_time();
        while publisher.link() != Link::Full || lost() == lost_before {
            assert!(Instant::now() < deadline, "{:?}, {} lost", publisher.link(), lost());
            // A new session may find a little space left.
            let message = message(5_000);
            match publisher.publish(message.clone(), in_time()).await {
                Ok(()) => taken.push(message),
                Err(error) => assert_eq!(error, PublishError::Full),
            }
        }
        let mut subscription = queue.subscribe(Lane::Writes, 1_000).await.expect("subscribed");
        let deliveries = next_many(subscription.as_mut(), taken.len()).await;
        assert_eq!(delivered_ids(&deliveries), ids(&taken));
        subscription.ack(deliveries).await.expect("acknowledged");
        let deadline = in_time();
        while let Err(error) = publisher.publish(message(1), deadline).await {
            assert_eq!(error, PublishError::Full);
            assert!(Instant::now() < deadline, "still full");
        }
        link_becomes(&queue, Link::Up).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_message_goes_to_the_dead_queue_with_its_body() {
    testkit::isolated("rabbit", |isolated| async move {
        let queue = open(&isolated, LIMITS);
        let published = publish(queue.publisher().as_ref(), 1).await;
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        let delivery = next(subscription.as_mut()).await;
        subscription.reject(delivery).await.expect("rejected");

        let connection = raw_connection(&isolated).await;
        let channel = connection.create_channel().await.expect("a channel");
        let (dead, options) = (format!("{}.dead.v1", isolated.prefix), BasicConsumeOptions::default());
        let consumer = channel.basic_consume(dead.into(), "".into(), options, FieldTable::default()).await;
        let dead = tokio::time::timeout(PATIENCE, consumer.expect("a dead queue").next()).await;
        let dead = dead.expect("in time").expect("a letter").expect("no error");
        assert_eq!(dead.data, published[0].body);
        assert_eq!(dead.properties.delivery_mode(), &Some(2));
        let id = dead.properties.message_id().as_ref().map(ToString::to_string);
        assert_eq!(id, Some(published[0].id.to_string()));
    })
    .await;
}

/// Checks that there is a queue and an exchange of these names.
async fn there_are(isolated: &Isolated, queue: &str, exchange: &str) -> (bool, bool) {
    let connection = raw_connection(isolated).await;
    let name = |word: &str| format!("{}.{word}.v1", isolated.prefix).into();
    // An error closes the channel, so each check has its own.
    let channel = connection.create_channel().await.expect("a channel");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(name(queue), passive, FieldTable::default()).await.is_ok();
    let channel = connection.create_channel().await.expect("a channel");
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default();
    let exchange =
        channel.exchange_declare(name(exchange), ExchangeKind::Direct, passive, none).await.is_ok();
    connection.close(200, "done".into()).await.expect("closed");
    (queue, exchange)
}

/// The exchange says that the queues are older than a broker needs; a program that does not find it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_deleted_queue_is_new_again_no_exchange_says_that_it_is_old() {
    testkit::isolated("rabbit", |isolated| async move {
        for word in ["writes", "dead"] {
            let queue = open(&isolated, LIMITS);
            link_becomes(&queue, Link::Up).await;
            queue.close().await;
            assert_eq!(there_are(&isolated, word, "dead").await, (true, true));
            delete_queue(&isolated, word).await;
            let mut config = Config::default();
            config.queue.url.clone_from(&isolated.amqp_url);
            config.queue.prefix.clone_from(&isolated.prefix);
            config.queue.bytes_max = LIMITS.bytes_max;
            // One hour, which is longer than this test.
            config.queue.settle_ms = 3_600_000;
            let waits = RabbitQueue::start(RabbitSettings::from(&config));
            let (deadline, mut tick) = (in_time(), tokio::time::interval(Duration::from_millis(20)));
            loop {
                match there_are(&isolated, word, "dead").await {
                    (true, false) => break,
                    (true, true) => panic!("{word} is new, and the exchange says that it is old"),
                    (false, _) => assert!(Instant::now() < deadline, "{word} is not made again"),
                }
                tick.tick().await;
            }
            waits.close().await;
        }
        // A later program declares and binds it again.
        let queue = open(&isolated, LIMITS);
        let published = publish(queue.publisher().as_ref(), 1).await;
        let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        let delivery = next(subscription.as_mut()).await;
        subscription.reject(delivery).await.expect("rejected");
        let mut dead = queue.subscribe(Lane::Dead, 1).await.expect("subscribed");
        assert_eq!(id_of(&next(dead.as_mut()).await), published[0].id);
    })
    .await;
}
