//! The contract of the queue port. Each test of [`contract`] runs against every implementation;
//! tests of RabbitMQ alone are in [`rabbitmq`](self::rabbitmq) and [`private`].
mod contract;
mod private;
mod rabbitmq;
mod silent;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use shared::config::queue_limits::QueueLimits;
use shared::model::id::{IdIssuer, MessageId};
use shared::model::message::{Builder, Outgoing, encode_increment};
use shared::queue::{Delivery, Lane, PublishError, Publisher, Queue, Subscription};

/// Time limit for anything that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(20);

const LIMITS: QueueLimits = QueueLimits { bytes_max: 64 << 20, confirm_timeout: Duration::from_secs(5) };

/// One implementation under test. To reopen it is a restart of the program.
#[async_trait::async_trait]
trait Fixture: Send + Sync {
    async fn open(&self, limits: QueueLimits) -> Arc<dyn Queue>;
}

/// Makes a message with an id of its own and about `bytes` bytes.
fn message(bytes: usize) -> Outgoing {
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let id = IdIssuer::new(u32::from(number), 0).next(1_763_600_000_000 + i64::from(number));
    let mut builder = Builder::new(id, 1_763_600_000_000);
    while builder.bytes() < bytes.max(1) || builder.items() == 0 {
        let mut item = Vec::new();
        encode_increment(&mut item, &"n".repeat(100), 1);
        builder.push(&item, 1);
    }
    builder.finish()
}

fn id_of(delivery: &Delivery) -> MessageId {
    shared::model::message::decode(&delivery.body).expect("a message of these tests").id
}

fn in_time() -> Instant {
    Instant::now() + PATIENCE
}

/// Publishes `count` messages one after the other and returns them.
async fn publish(publisher: &dyn Publisher, count: usize) -> Vec<Outgoing> {
    let mut messages = Vec::new();
    for _ in 0..count {
        let message = message(1);
        publisher.publish(message.clone(), in_time()).await.expect("published");
        messages.push(message);
    }
    messages
}

fn ids(messages: &[Outgoing]) -> BTreeSet<MessageId> {
    messages.iter().map(|message| message.id).collect()
}

fn delivered_ids(deliveries: &[Delivery]) -> BTreeSet<MessageId> {
    deliveries.iter().map(id_of).collect()
}

async fn next(subscription: &mut dyn Subscription) -> Delivery {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("delivered in time").expect("not lost")
}

async fn next_many(subscription: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.push(next(subscription).await);
    }
    deliveries
}

/// Publishes until the queue says that it is full; returns the messages that it took.
async fn fill(publisher: &dyn Publisher, bytes: usize) -> Vec<Outgoing> {
    let (mut taken, begun) = (Vec::new(), Instant::now());
    loop {
        let message = message(bytes);
        match publisher.publish(message.clone(), in_time()).await {
            Ok(()) => taken.push(message),
            Err(PublishError::Full) => return taken,
            Err(other) => panic!("{other}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{} messages and never full", taken.len());
    }
}
