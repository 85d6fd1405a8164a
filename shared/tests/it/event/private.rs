//! Effects on events of the administrator of a broker, or of its lack of memory: on a private one.
use std::time::Instant;

use shared::amqp::settings::RabbitSettings;
use shared::config::queue_limits::QueueLimits;
use shared::event::Signal;
use shared::event::rabbitmq::RabbitEvents;
use testkit::proxy::Proxy;
use tokio::time::timeout;

use super::{Arc, Duration, Events, PATIENCE, changed, connected, next, reaches};

/// Name of the connection in the broker's tools.
const PUBLISHER: &str = "forebay events publisher";

fn open(url: &str, prefix: &str) -> Arc<RabbitEvents> {
    let limits = QueueLimits { bytes_max: 1 << 20, confirm_timeout: PATIENCE };
    RabbitEvents::start(RabbitSettings::new(url, prefix, limits))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_while_the_broker_blocked_is_not_told_afterwards_and_a_close_does_not_wait() {
    testkit::private::broker(|broker| async move {
        let prefix = testkit::unique("blocked");
        let (events, also) = (open(broker.url(), &prefix), open(broker.url(), &prefix));
        let mut stream = connected(events.as_ref()).await;
        broker.memory_alarm(true).await;
        let (begun, mut number) = (Instant::now(), 0);
        while !broker.blocks(PUBLISHER).await {
            assert!(begun.elapsed() < PATIENCE, "never blocked");
            number += 1;
            events.publish(changed(7, number));
        }
        // The publisher learns of it a moment later than the tool.
        let first = number + 1;
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        for number in first..first + 500 {
            events.publish(changed(7, number));
            also.publish(changed(8, number));
            tick.tick().await;
        }
        let closed = timeout(Duration::from_secs(2), also.close()).await;
        assert!(closed.is_ok(), "it waits for the broker");
        broker.memory_alarm(false).await;
        let (begun, mut late) = (Instant::now(), 0);
        loop {
            // This event is dropped until the publisher has learned that the alarm is over.
            events.publish(changed(9, 1));
            match timeout(Duration::from_millis(20), next(stream.as_mut())).await {
                Ok(Signal::Event(event)) if event.publisher == 9 => break,
                Ok(Signal::Event(event)) if event.number >= first => late += 1,
                _ => assert!(begun.elapsed() < PATIENCE, "nothing comes any more"),
            }
        }
        assert!(late < 250, "{late} of what was said during the alarm came after it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_queue_was_deleted_is_interrupted_and_hears_again() {
    testkit::private::broker(|broker| async move {
        let prefix = testkit::unique("cancelled");
        let events = open(broker.url(), &prefix);
        let mut stream = connected(events.as_ref()).await;
        let queues = broker.control(&["--quiet", "list_queues", "--no-table-headers", "name"]).await;
        let own: Vec<_> = queues.lines().filter(|name| name.starts_with("amq.gen")).collect();
        assert!(!own.is_empty(), "{queues}");
        for queue in own {
            // The queue is exclusive: only the broker itself may delete it.
            broker.control(&["delete_queue", queue]).await;
        }
        while next(stream.as_mut()).await != Signal::Interrupted {}
        reaches(events.as_ref(), stream.as_mut()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_the_exchange_it_is_tried_ever_later_and_with_it_events_come() {
    testkit::private::broker(|broker| async move {
        let (prefix, user) = (testkit::unique("refused"), testkit::unique("publishes"));
        let url = broker.add_user(user.clone(), [".*", "^(?!.*events).*$", ".*"]).await;
        let (_, address) = url.split_once('@').expect("a URL with a user");
        let proxy = Proxy::start(address.split('/').next().expect("a host")).await.expect("a proxy");
        let (others, events) = (open(broker.url(), &prefix), open(&proxy.through(&url), &prefix));
        let mut stream = connected(others.as_ref()).await;
        let (begun, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(10)));
        while proxy.accepted() < 6 {
            assert!(begun.elapsed() < PATIENCE, "tried only {} times", proxy.accepted());
            events.publish(changed(7, 1));
            tick.tick().await;
        }
        // The back-off is at least half of 100, 200, 400, 800 and 1600 ms.
        assert!(begun.elapsed() > Duration::from_millis(1_500), "{:?}", begun.elapsed());
        broker.control(&["set_permissions", "-p", "/", &user, ".*", ".*", ".*"]).await;
        let begun = Instant::now();
        loop {
            events.publish(changed(7, 1));
            let came = timeout(Duration::from_millis(20), next(stream.as_mut())).await;
            if matches!(came, Ok(Signal::Event(_))) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing comes");
        }
    })
    .await;
}
