//! Effects of a broker that runs out of memory or of patience, crashes, or deletes a queue. On a private
//! broker where other tests would suffer.
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shared::config::Config;
use shared::model::message::Outgoing;
use shared::queue::{Link, PublishError, Publisher};
use testkit::inspect;
use testkit::private::Broker;

use crate::{PATIENCE, Rig, base_config, cluster, wait_for};

/// Time that a caller waits for a confirm, about the same as in the API.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) async fn on_a_private_broker<Fut: Future<Output = Rig>>(
    word: &str,
    test: impl FnOnce(Rig, Broker) -> Fut,
) {
    testkit::private::broker(|broker| {
        testkit::isolated(word, |isolated| async move {
            let mut config = base_config();
            config.queue.url = broker.url().into();
            config.queue.prefix = isolated.prefix;
            // RabbitMQ 3.10 does not bring back a queue that was made just before it was killed.
            config.queue.settle_ms = Config::default().queue.settle_ms;
            config.store.url = isolated.database_url;
            test(Rig::new(config).await, broker).await.close().await;
        })
    })
    .await;
}

async fn link_becomes(rig: &Rig, expected: Link) {
    let publisher = rig.backend.queue.publisher();
    wait_for(&format!("{expected:?}"), async || publisher.link() == expected).await;
}

/// Publishes as a patient client does: the same message until it is durable.
async fn insist(publisher: &dyn Publisher, message: &Outgoing) {
    let begun = Instant::now();
    while let Err(error) = publisher.publish(message.clone(), Instant::now() + ACCEPT_TIMEOUT).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_memory_alarm_lasts_nothing_is_taken_and_the_backlog_is_applied() {
    on_a_private_broker("alarm", |mut rig, broker| async move {
        for _ in 0..100 {
            let message = rig.message("backlog", 1);
            rig.publish(message).await;
        }
        broker.memory_alarm(true).await;
        // The broker reports that it is blocked at a publish, and takes this one afterwards.
        let (publisher, unknown) = (rig.backend.queue.publisher(), rig.message("unknown", 1));
        let answer = publisher.publish(unknown, Instant::now() + ACCEPT_TIMEOUT).await;
        assert_eq!(answer, Err(PublishError::DeadlineExceeded));
        assert_eq!(publisher.link(), Link::Blocked);
        let after = rig.message("after", 1);
        rig.consuming(async {
            rig.wait_for_value("backlog", 100).await;
            assert_eq!(publisher.link(), Link::Blocked, "the alarm was over before");
            broker.memory_alarm(false).await;
            link_becomes(&rig, Link::Up).await;
            rig.publish(after).await;
            rig.wait_for_value("after", 1).await;
        })
        .await;
        assert_eq!(rig.value("backlog").await, Some(100));
        assert!(matches!(rig.value("unknown").await, None | Some(1)));
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_broker_takes_away_after_its_commit_is_applied_once() {
    on_a_private_broker("patience", |mut rig, broker| async move {
        // Channels check their time limits only that often.
        broker.set("channel_tick_interval", 200).await;
        broker.set("consumer_timeout", 1_000).await;
        for _ in 0..20 {
            let message = rig.message("held", 1);
            rig.publish(message).await;
        }
        let held = rig.store.0.answering.lock().await;
        let queue = format!("{}.writes.v1", rig.config.queue.prefix);
        let waiting = async || inspect::waiting(broker.url(), &queue).await.expect("the broker answers");
        rig.consuming(async {
            wait_for("the first commit", async || rig.value("held").await == Some(1)).await;
            wait_for("the broker's patience to end", async || waiting().await == 20).await;
            drop(held);
            rig.wait_for_value("held", 20).await;
            wait_for("an empty queue", async || waiting().await == 0).await;
        })
        .await;
        assert_eq!(rig.value("held").await, Some(20));
        assert!(rig.store.0.asked.lock().expect("no panic").iter().sum::<usize>() > 20, "none came twice");
        broker.set("consumer_timeout", 1_800_000).await;
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_started_again_loses_and_doubles_nothing() {
    on_a_private_broker("killed", |mut rig, broker| async move {
        let messages: Vec<_> = (0..100_000).map(|_| rig.message("counted", 1)).collect();
        let (publisher, enough) = (rig.backend.queue.publisher(), Arc::new(AtomicBool::new(false)));
        let is_enough = Arc::clone(&enough);
        let publishing = tokio::spawn(async move {
            let mut durable = 0;
            for message in messages {
                insist(publisher.as_ref(), &message).await;
                durable += 1;
                if is_enough.load(Ordering::Relaxed) {
                    return durable;
                }
            }
            panic!("more messages were needed")
        });
        rig.consuming(async {
            let at_least = async |count| rig.value("counted").await.is_some_and(|value| value >= count);
            wait_for("a beginning", async || at_least(50).await).await;
            broker.kill().await;
            link_becomes(&rig, Link::Down).await;
            let before = rig.value("counted").await.expect("counted before");
            broker.restart().await;
            wait_for("more", async || at_least(before + 50).await).await;
            enough.store(true, Ordering::Relaxed);
            let durable = publishing.await.expect("no panic");
            rig.wait_for_value("counted", durable).await;
        })
        .await;
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_deleted_under_both_programs_are_made_again_and_work_goes_on() {
    cluster("deleted", |mut rig| async move {
        let mut rounds: Vec<Vec<_>> = Vec::new();
        for _ in 0..4 {
            rounds.push((0..20).map(|_| rig.message("rounds", 1)).collect());
        }
        let (broker, prefix) = (rig.config.queue.url.clone(), rig.config.queue.prefix.clone());
        rig.consuming(async {
            let mut expected = 0;
            for round in rounds {
                for message in round {
                    insist(rig.backend.queue.publisher().as_ref(), &message).await;
                    expected += 1;
                }
                // All must be applied, so that nothing is deleted with the queue.
                rig.wait_for_value("rounds", expected).await;
                for word in ["writes", "dead"] {
                    inspect::delete_queue(&broker, &format!("{prefix}.{word}.v1")).await.expect("deleted");
                }
            }
        })
        .await;
        assert_eq!(rig.value("rounds").await, Some(80));
        rig
    })
    .await;
}
