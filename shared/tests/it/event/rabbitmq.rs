//! Effects on events that only a broker can have.
use lapin::options::ExchangeDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use serde_json::json;
use shared::amqp::settings::RabbitSettings;
use shared::config::queue_limits::QueueLimits;
use shared::event::rabbitmq::RabbitEvents;
use shared::event::{Body, Event, Signal};
use testkit::proxy::Proxy;
use testkit::{Isolated, inspect};

use super::{Arc, Duration, Events, Instant, PATIENCE, changed, connected, event, next, reaches, signal};

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
        let [mut over] = events.completions().try_into().expect("one task");
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
        let exchange = format!("{}.events.v1", isolated.prefix);
        inspect::send(&isolated.amqp_url, &exchange, b"{}").await.expect("sent");
        assert_eq!(next(stream.as_mut()).await, Signal::Interrupted);
        events.publish(changed(7, 1));
        assert_eq!(next(stream.as_mut()).await, signal(changed(7, 1)));
    })
    .await;
}

/// A newer version sends more, in entries, members and bodies that this build does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_newer_version_come_with_what_is_known_of_them_and_interrupt_nothing() {
    testkit::isolated("event", |isolated| async move {
        let events = open(&isolated.amqp_url, &isolated);
        let mut stream = connected(events.as_ref()).await;
        let exchange = format!("{}.events.v1", isolated.prefix);
        let Event { body, .. } = changed(7, 1);
        let mut committed = serde_json::to_value(&body).expect("JSON");
        committed["committed"]["counters"][0]["unit"] = "later".into();
        committed["committed"]["counters"].as_array_mut().expect("a list").push(json!({"gauge": 1.5}));
        committed["committed"]["keyed"] = json!([{"job": "later"}]);
        committed["committed"]["jobs"] = json!([{"job": 1}]);
        let newer = [
            committed,
            json!({"checkpoint": {"at": 5}}),
            json!({"heartbeat": {"store_away": false, "load": 1}}),
        ];
        for (number, body) in [1, 2, 2].into_iter().zip(newer) {
            let event = json!({"publisher": 7, "number": number, "store_time_ms": 1_763_600_000_000_i64,
                "body": body, "region": "eu"});
            inspect::send(&isolated.amqp_url, &exchange, event.to_string().as_bytes()).await.expect("sent");
        }
        assert_eq!(next(stream.as_mut()).await, signal(changed(7, 1)));
        assert_eq!(next(stream.as_mut()).await, signal(event(7, 2, Body::Unknown)));
        assert_eq!(next(stream.as_mut()).await, signal(event(7, 2, Body::Heartbeat { store_away: false })));
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
                    // This event was sent before the deletion.
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
    // The connections of publisher and subscriber, and then both again.
    let mut connections = Vec::new();
    for _ in 0..4 {
        let accepted = tokio::time::timeout(PATIENCE, silent.accept()).await.expect("tried again in time");
        connections.push(accepted.expect("a connection"));
    }
    tokio::time::timeout(PATIENCE, events.close()).await.expect("closed in time");
}
