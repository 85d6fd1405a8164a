//! What only a broker can do to events.
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use shared::event::Signal;
use shared::event::rabbitmq::RabbitEvents;
use shared::queue::QueueLimits;
use shared::queue::rabbitmq::RabbitSettings;
use testkit::Isolated;
use testkit::proxy::Proxy;

use super::{Arc, Duration, Events, Instant, PATIENCE, changed, connected, next, reaches, signal};

fn open(url: &str, isolated: &Isolated) -> Arc<RabbitEvents> {
    let limits = QueueLimits { bytes_max: 1 << 20, confirm_timeout: PATIENCE };
    RabbitEvents::start(RabbitSettings::new(url, &isolated.prefix, limits))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_session_of_a_stream_begins_with_an_interruption() {
    testkit::isolated("event", |isolated| async move {
        let broker = isolated.amqp_url.clone();
        let (_, address) = broker.split_once('@').expect("a URL with a user");
        let proxy = Proxy::start(address.split('/').next().expect("a host")).await.expect("a proxy");
        let publisher = open(&isolated.amqp_url, &isolated);
        let subscriber = open(&proxy.through(&isolated.amqp_url), &isolated);
        let mut stream = subscriber.subscribe().await;
        assert_eq!(next(stream.as_mut()).await, Signal::Interrupted);
        reaches(publisher.as_ref(), stream.as_mut()).await;
        for round in 1..=3 {
            publisher.publish(changed(7, round));
            assert_eq!(next(stream.as_mut()).await, signal(changed(7, round)));
            proxy.cut();
            assert_eq!(next(stream.as_mut()).await, Signal::Interrupted, "round {round}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_publishes_by_itself_is_not_over_before_it_is_closed() {
    testkit::isolated("event", |isolated| async move {
        let events = open(&isolated.amqp_url, &isolated);
        connected(events.as_ref()).await;
        let [mut over] = events.over().try_into().expect("one task");
        assert!(!over.is_requested());
        events.close().await;
        tokio::time::timeout(PATIENCE, over.requested()).await.expect("over in time");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_event_is_an_interruption_and_the_next_one_comes() {
    testkit::isolated("event", |isolated| async move {
        let events = open(&isolated.amqp_url, &isolated);
        let mut stream = connected(events.as_ref()).await;
        let connection = Connection::connect(&isolated.amqp_url, ConnectionProperties::default()).await;
        let channel = connection.as_ref().expect("a broker").create_channel().await.expect("a channel");
        let exchange = format!("{}.events.v1", isolated.prefix);
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish(exchange.into(), "changed".into(), options, b"{}", properties);
        sent.await.expect("sent");
        assert_eq!(next(stream.as_mut()).await, Signal::Interrupted);
        events.publish(changed(7, 1));
        assert_eq!(next(stream.as_mut()).await, signal(changed(7, 1)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_lost_its_session_publishes_again() {
    testkit::isolated("event", |isolated| async move {
        let broker = isolated.amqp_url.clone();
        let (_, address) = broker.split_once('@').expect("a URL with a user");
        let proxy = Proxy::start(address.split('/').next().expect("a host")).await.expect("a proxy");
        let publisher = open(&proxy.through(&isolated.amqp_url), &isolated);
        let subscriber = open(&isolated.amqp_url, &isolated);
        let mut stream = subscriber.subscribe().await;
        for _ in 0..3 {
            reaches(publisher.as_ref(), stream.as_mut()).await;
            proxy.cut();
        }
    })
    .await;
}

/// The publisher makes the exchange again, but the stream's queue is not bound to it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_deleted_under_a_stream_is_an_interruption_and_events_come_again() {
    testkit::isolated("event", |isolated| async move {
        let events = open(&isolated.amqp_url, &isolated);
        let mut stream = connected(events.as_ref()).await;
        let connection = Connection::connect(&isolated.amqp_url, ConnectionProperties::default()).await;
        let channel = connection.as_ref().expect("a broker").create_channel().await.expect("a channel");
        for round in 0..2 {
            let exchange = format!("{}.events.v1", isolated.prefix).into();
            channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await.expect("deleted");
            let (begun, mut interrupted) = (Instant::now(), false);
            loop {
                events.publish(changed(7, round));
                match tokio::time::timeout(Duration::from_millis(50), next(stream.as_mut())).await {
                    Ok(Signal::Interrupted) => interrupted = true,
                    // What was sent before the deletion.
                    Ok(_) if !interrupted => {}
                    Ok(_) => break,
                    Err(_) => assert!(begun.elapsed() < PATIENCE, "round {round}: nothing comes any more"),
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_a_silent_broker_is_given_up_and_tried_again() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("amqp://{}", silent.local_addr().expect("bound"));
    let limits = QueueLimits { bytes_max: 1 << 20, confirm_timeout: PATIENCE };
    let events = RabbitEvents::start(RabbitSettings::new(&url, "silent", limits));
    let _stream = events.subscribe().await;
    // Publisher and subscriber, and again both.
    let mut connections = Vec::new();
    for _ in 0..4 {
        let accepted = tokio::time::timeout(PATIENCE, silent.accept()).await.expect("tried again in time");
        connections.push(accepted.expect("a connection"));
    }
    tokio::time::timeout(PATIENCE, events.close()).await.expect("closed in time");
}
