//! Each part of a consumer is needed. When one is gone the whole consumer ends, so that it is started
//! anew instead of looking healthy, and leaves unapplied messages to the next.
use shared::queue::{Lane, Publisher, Queue, QueueError, Subscription, Waiting};
use shared::store::{Housekept, Retention};

use crate::*;

on_both_pairs! {
    a_consumer_whose_housekeeping_is_gone_ends
    a_consumer_whose_reader_of_the_dead_queue_is_gone_ends
    a_consumer_whose_heartbeat_is_gone_ends
}

/// A store with a defect in a call that only one part makes.
struct Defective {
    store: Arc<dyn Store>,
    in_time: bool,
}

#[async_trait]
impl Layer for Defective {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError> {
        assert!(self.in_time, "on purpose");
        self.store.housekeep(retention).await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        assert!(!self.in_time, "on purpose");
        self.store.now_ms().await
    }
}

struct DefectiveQueue(Arc<dyn Queue>);

#[async_trait]
impl Queue for DefectiveQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        self.0.publisher()
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        assert!(lane != Lane::Dead, "on purpose");
        self.0.subscribe(lane, window).await
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        self.0.waiting(lane).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// It ends without a request.
async fn ends(mut rig: Rig, backend: Backend) -> Rig {
    for _ in 0..10 {
        let message = rig.message("left", 1);
        rig.publish(message).await;
    }
    let (trigger, shutdown) = shutdown::channel();
    let consumer = Consumer::new(&rig.config, &backend, rand::random());
    let ended = tokio::time::timeout(PATIENCE, tokio::spawn(consumer.run(shutdown))).await;
    ended.expect("it ends").expect("what ends it is the end of a part");
    drop(trigger);
    rig.consuming(rig.wait_for_value("left", 10)).await;
    rig
}

async fn with_a_defect(rig: Rig, in_time: bool) -> Rig {
    let store = Arc::new(Layered(Defective { store: rig.backend.store.clone(), in_time }));
    let backend = Backend { store, ..rig.backend.clone() };
    ends(rig, backend).await
}

async fn a_consumer_whose_housekeeping_is_gone_ends(rig: Rig) -> Rig {
    with_a_defect(rig, false).await
}

async fn a_consumer_whose_heartbeat_is_gone_ends(rig: Rig) -> Rig {
    with_a_defect(rig, true).await
}

async fn a_consumer_whose_reader_of_the_dead_queue_is_gone_ends(rig: Rig) -> Rig {
    let queue = Arc::new(DefectiveQueue(rig.backend.queue.clone()));
    let backend = Backend { queue, ..rig.backend.clone() };
    ends(rig, backend).await
}
