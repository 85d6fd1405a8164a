//! The contract of every implementation of the events port.
use super::{Arc, Body, Events, PATIENCE, changed, connected, event, next, signal};
use shared::event::Event;

/// Runs every contract test on every implementation; a new one is a line at the end.
macro_rules! contract {
    ($($name:ident)+) => {
        macro_rules! on {
            ($implementation:ident) => {
                mod $implementation {
                    $(
                        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                        async fn $name() {
                            super::fixtures::$implementation(|events| async move {
                                super::$name(events).await;
                            })
                            .await;
                        }
                    )+
                }
            };
        }
        on!(rabbitmq);
        on!(in_process);
    };
}

contract! {
    events_come_unchanged_and_in_order_to_every_subscriber
    a_dropped_stream_hinders_nobody
    publishing_never_waits_whoever_reads
    closing_sends_what_was_handed_over
}

mod fixtures {
    use std::future::Future;

    use shared::amqp::settings::RabbitSettings;
    use shared::config::queue_limits::QueueLimits;
    use shared::event::in_process::InProcessEvents;
    use shared::event::rabbitmq::RabbitEvents;

    use super::{Arc, Events, PATIENCE};

    pub async fn rabbitmq<Fut>(test: impl FnOnce(Arc<dyn Events>) -> Fut)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        testkit::isolated("event", |isolated| {
            let limits = QueueLimits { bytes_max: 1 << 20, confirm_timeout: PATIENCE };
            test(RabbitEvents::start(RabbitSettings::new(&isolated.amqp_url, &isolated.prefix, limits)))
        })
        .await;
    }

    pub async fn in_process<Fut: Future<Output = ()> + Send>(test: impl FnOnce(Arc<dyn Events>) -> Fut) {
        test(InProcessEvents::start()).await;
    }
}

async fn events_come_unchanged_and_in_order_to_every_subscriber(events: Arc<dyn Events>) {
    let mut streams = vec![connected(events.as_ref()).await, connected(events.as_ref()).await];
    let mut published: Vec<_> = (1..=100).map(|number| changed(7, number)).collect();
    published.push(event(7, 100, Body::Heartbeat { store_away: false }));
    published.push(event(7, 100, Body::Goodbye));
    published.push(Event::defined(8, "things"));
    for event in &published {
        events.publish(event.clone());
    }
    for stream in &mut streams {
        for event in &published {
            assert_eq!(next(stream.as_mut()).await, signal(event.clone()));
        }
    }
}

async fn a_dropped_stream_hinders_nobody(events: Arc<dyn Events>) {
    let (gone, mut stays) = (connected(events.as_ref()).await, connected(events.as_ref()).await);
    drop(gone);
    for number in 1..=50 {
        events.publish(changed(7, number));
        assert_eq!(next(stays.as_mut()).await, signal(changed(7, number)));
    }
}

/// The events are more than any buffer holds, for a reader that does not read.
async fn publishing_never_waits_whoever_reads(events: Arc<dyn Events>) {
    let _idle = connected(events.as_ref()).await;
    let publisher = Arc::clone(&events);
    let publishing = tokio::task::spawn_blocking(move || {
        for number in 1..=50_000 {
            publisher.publish(changed(7, number));
        }
    });
    tokio::time::timeout(PATIENCE, publishing).await.expect("in time").expect("no panic");
}

async fn closing_sends_what_was_handed_over(events: Arc<dyn Events>) {
    let mut stream = connected(events.as_ref()).await;
    events.publish(changed(7, 1));
    events.publish(event(7, 1, Body::Goodbye));
    tokio::time::timeout(PATIENCE, events.close()).await.expect("closed in time");
    assert_eq!(next(stream.as_mut()).await, signal(changed(7, 1)));
    assert_eq!(next(stream.as_mut()).await, signal(event(7, 1, Body::Goodbye)));
}
