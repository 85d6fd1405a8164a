//! A message that waits for the store is held for long, and never for longer than a broker allows.
use std::collections::HashMap;

use bytes::Bytes;
use consumer::ingest::announce::Announcer;
use consumer::ingest::merge::MergeLimits;
use consumer::ingest::session::Ingest;
use consumer::ingest::suspects::Pace;
use shared::queue::{Delivery, Lane, Lost, Publisher, Queue, QueueError, Subscription, Waiting};

use crate::*;

on_both_pairs! {
    a_probe_that_was_held_for_long_is_given_back_once_and_nothing_is_lost
    a_consumer_whose_probe_another_one_got_does_not_say_that_the_store_is_away
}

/// Replaces the minutes that a broker allows.
const HELD_MAX: Duration = Duration::from_millis(300);

/// A queue that counts its sessions and their deliveries.
struct Counted {
    queue: Arc<dyn Queue>,
    sessions: AtomicUsize,
    /// Deliveries by body.
    deliveries: Arc<Mutex<HashMap<Bytes, u32>>>,
    /// A store that comes back with the second session.
    store: Arc<Layered<Switched>>,
}

struct CountedSubscription {
    subscription: Box<dyn Subscription>,
    deliveries: Arc<Mutex<HashMap<Bytes, u32>>>,
}

impl CountedSubscription {
    fn count(&self, delivery: &Delivery) {
        *self.deliveries.lock().expect("no panic").entry(delivery.body.clone()).or_default() += 1;
    }
}

#[async_trait]
impl Queue for Counted {
    fn publisher(&self) -> Arc<dyn Publisher> {
        self.queue.publisher()
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        if lane == Lane::Dead {
            return self.queue.subscribe(lane, window).await;
        }
        if self.sessions.fetch_add(1, Ordering::Relaxed) == 1 {
            self.store.0.away.store(false, Ordering::Relaxed);
        }
        let subscription = self.queue.subscribe(lane, window).await?;
        Ok(Box::new(CountedSubscription { subscription, deliveries: self.deliveries.clone() }))
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        self.queue.waiting(lane).await
    }

    async fn close(&self) {
        self.queue.close().await;
    }
}

#[async_trait]
impl Subscription for CountedSubscription {
    async fn next(&mut self) -> Result<Delivery, Lost> {
        let delivery = self.subscription.next().await?;
        self.count(&delivery);
        Ok(delivery)
    }

    fn try_next(&mut self) -> Result<Option<Delivery>, Lost> {
        let delivery = self.subscription.try_next()?;
        if let Some(delivery) = &delivery {
            self.count(delivery);
        }
        Ok(delivery)
    }

    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.subscription.ack(deliveries).await
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.subscription.give_back(deliveries).await
    }

    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost> {
        self.subscription.reject(delivery).await
    }

    async fn waiting(&mut self) -> Result<u64, Lost> {
        self.subscription.waiting().await
    }

    async fn set_window(&mut self, window: u16) -> Result<(), Lost> {
        self.subscription.set_window(window).await
    }
}

impl Rig {
    fn counted(&self) -> Arc<Counted> {
        Arc::new(Counted {
            queue: self.backend.queue.clone(),
            sessions: AtomicUsize::new(0),
            deliveries: Arc::default(),
            store: self.store.clone(),
        })
    }

    /// Runs an ingest that holds nothing for long while `during` runs.
    async fn ingesting(&self, queue: &Arc<Counted>, during: impl AsyncFnOnce(Arc<ConsumerStatus>)) {
        let (trigger, shutdown) = shutdown::channel();
        let settings = &self.config.queue;
        let ingest = Ingest {
            queue: queue.clone(),
            store: self.backend.store.clone(),
            ids: self.backend.ids.clone(),
            announcer: Arc::new(Announcer::new(self.backend.events.clone(), 1)),
            limits: MergeLimits {
                items_max: settings.merge_items_max,
                bytes_max: settings.merge_bytes_max,
                linger_max: Duration::from_millis(settings.linger_ms_max),
            },
            prefetch: settings.prefetch,
            pace: Pace { held_max: HELD_MAX, ..Pace::default() },
            in_hand: self.backend.progress.register("ingest", PATIENCE),
            status: Arc::default(),
        };
        let status = ingest.status.clone();
        let task = tokio::spawn(async move { ingest.run(shutdown).await });
        during(status).await;
        trigger.request();
        task.await.expect("the ingest does not panic");
    }
}

async fn a_probe_that_was_held_for_long_is_given_back_once_and_nothing_is_lost(mut rig: Rig) -> Rig {
    let queue = rig.counted();
    let messages: Vec<_> = (0..60).map(|_| rig.message("held", 1)).collect();
    let (before, during) = messages.split_at(30);
    for message in before {
        rig.publish(message.clone()).await;
    }
    rig.ingesting(&queue, async |_| {
        // The window is open by then: more messages than the probe are held when the store goes.
        rig.wait_for_value("held", 30).await;
        rig.store.0.away.store(true, Ordering::Relaxed);
        for message in during {
            rig.publish(message.clone()).await;
        }
        rig.wait_for_value("held", 60).await;
    })
    .await;
    assert_eq!(queue.sessions.load(Ordering::Relaxed), 2);
    let deliveries = queue.deliveries.lock().expect("no panic").clone();
    assert_eq!(deliveries.len(), 60);
    assert!(deliveries.values().all(|count| *count <= 2), "{deliveries:?}");
    let given_back = |message: &Outgoing| deliveries[&message.body] == 2;
    assert!(during.iter().any(given_back) && !before.iter().any(given_back), "{deliveries:?}");
    rig
}

/// The consumer is idle from then on, so no commit of its own shows that the store is there.
async fn a_consumer_whose_probe_another_one_got_does_not_say_that_the_store_is_away(mut rig: Rig) -> Rig {
    let queue = rig.counted();
    rig.store.0.away.store(true, Ordering::Relaxed);
    let message = rig.message("gone", 1);
    rig.publish(message).await;
    rig.ingesting(&queue, async |status| {
        wait_for("the outage is reported", async || status.store_is_away()).await;
        let mut other = rig.backend.queue.subscribe(Lane::Writes, 1).await.expect("subscribed");
        let taken = other.next().await.expect("not lost");
        wait_for("an idle session", async || {
            queue.sessions.load(Ordering::Relaxed) == 2 && status.consuming.load(Ordering::Relaxed)
        })
        .await;
        assert!(!status.store_is_away());
        other.give_back(vec![taken]).await.expect("given back");
        drop(other);
        rig.wait_for_value("gone", 1).await;
    })
    .await;
    rig
}
