//! Confirms that do not come although no connection was cut, and the deliveries of the broker while
//! a first transaction is held: seen from the broker's side.
use std::time::Instant;

use shared::queue::{Lane, Link};
use testkit::inspect;
use testkit::proxy::Proxy;

use crate::{PATIENCE, Rig, base_config, cluster, wait_for};

/// Number of times that the broker is asked for a value that must not change.
const LOOKS: usize = 10;

impl Rig {
    fn writes(&self) -> String {
        format!("{}.writes.v1", self.config.queue.prefix)
    }
}

/// lapin keeps confirms that never come: the session is given up, and the same bytes go into the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_stays_away_leads_to_the_same_message_once_more_and_it_is_applied_once() {
    testkit::isolated("unconfirmed", |isolated| async move {
        let mut config = base_config();
        let broker = isolated.amqp_url;
        let (_, address) = broker.rsplit_once('@').expect("a URL with a user");
        let proxy = Proxy::start(address.split('/').next().expect("a host")).await.expect("a proxy");
        config.queue.url = proxy.through(&broker);
        config.queue.prefix = isolated.prefix;
        config.queue.confirm_timeout_ms = 200;
        config.store.url = isolated.database_url;
        let mut rig = Rig::new(config).await;
        let (publisher, message) = (rig.backend.queue.publisher(), rig.message("once", 1));
        wait_for("a session", async || publisher.link() == Link::Up).await;
        let (queue, body) = (rig.writes(), message.body.to_vec());
        let waiting = async || inspect::waiting(&broker, &queue).await.expect("the broker answers");
        proxy.mute(true);
        let publishing = tokio::spawn({
            let publisher = rig.backend.queue.publisher();
            async move { publisher.publish(message, Instant::now() + PATIENCE).await }
        });
        wait_for("the first one", async || waiting().await == 1).await;
        wait_for("the end of the session", async || publisher.link() == Link::Down).await;
        assert!(!publishing.is_finished(), "nobody has confirmed it");
        proxy.mute(false);
        assert_eq!(publishing.await.expect("no panic"), Ok(()));
        let bodies = inspect::bodies(&broker, &queue).await.expect("the broker answers");
        assert!((1..=2).contains(&bodies.len()) && bodies.iter().all(|found| *found == body), "{bodies:?}");
        let last = rig.message("last", 1);
        rig.consuming(async {
            rig.publish(last).await;
            rig.wait_for_value("last", 1).await;
            wait_for("an empty queue", async || waiting().await == 0).await;
        })
        .await;
        assert_eq!(rig.value("once").await, Some(1));
        rig.close().await;
    })
    .await;
}

/// The broker delivers one message while a transaction is held, however many it had delivered before.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_unclean_end_the_broker_hands_out_one_message_until_one_is_applied() {
    const MESSAGES: u32 = 40;
    cluster("slow_start", |mut rig| async move {
        for _ in 0..MESSAGES {
            let message = rig.message("handed", 1);
            rig.publish(message).await;
        }
        let (broker, queue) = (rig.config.queue.url.clone(), rig.writes());
        let waiting = async || inspect::waiting(&broker, &queue).await.expect("the broker answers");
        // Another subscriber takes them all and dies.
        let mut subscription = rig.backend.queue.subscribe(Lane::Writes, 100).await.expect("subscribed");
        let taken = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("in time").expect("one");
        wait_for("all to be handed out", async || waiting().await == 0).await;
        drop((taken, subscription));
        wait_for("all to come back", async || waiting().await == MESSAGES).await;
        let held = rig.store.0.answering.lock().await;
        rig.consuming(async {
            wait_for("the first commit", async || rig.value("handed").await.is_some()).await;
            for _ in 0..LOOKS {
                assert_eq!(waiting().await, MESSAGES - 1, "only one is handed out");
            }
            drop(held);
            rig.wait_for_value("handed", i64::from(MESSAGES)).await;
        })
        .await;
        let asked = rig.store.0.asked.lock().expect("no panic").clone();
        assert!(asked[0] == 1 && asked.iter().any(|messages| *messages > 1), "the window opens: {asked:?}");
        rig
    })
    .await;
}
