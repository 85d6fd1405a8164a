//! The consumer: takes queued writes and applies them to the store in large, even batches.
//!
//! [`Consumer::run`] is the whole program but for its command line, so that the API can run it in its own
//! process (the embedded default) and tests can start several. It must not know HTTP or the API.
// The modules in the order of their imports, from the top down:
pub mod dead_letters;
pub mod ingest;
pub mod low_watermark;
pub mod metrics;
pub mod retention;
pub mod status;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shared::config::Config;
use shared::program::backend::Backend;
use shared::runtime::progress::Progress;
use shared::runtime::shutdown::{self, Shutdown};
use shared::store::Reads;
use tokio::task::JoinHandle;

use crate::dead_letters::dead_queue::DeadQueue;
use crate::ingest::announce::Announcer;
use crate::ingest::merge::MergeLimits;
use crate::ingest::session::{Ingest, STOP_PATIENCE};
use crate::ingest::suspects::Pace;
use crate::retention::housekeeping::Housekeeping;
use crate::status::ConsumerStatus;

/// Longest time that housekeeping may go on after the ingest has stopped.
const HOUSEKEEPING_PATIENCE: Duration = Duration::from_secs(2);

/// Longest time for the reader of the dead queue, which gives back messages that the store does not take
/// in time.
const DEAD_QUEUE_PATIENCE: Duration = Duration::from_secs(8);

/// Longest stop of a consumer whose threads run: its parts one after the other, plus a margin.
pub const STOP_MAX: Duration = STOP_PATIENCE
    .saturating_add(HOUSEKEEPING_PATIENCE)
    .saturating_add(DEAD_QUEUE_PATIENCE)
    .saturating_add(Duration::from_secs(3));

/// Consumer that is ready to run.
pub struct Consumer {
    ingest: Ingest,
    dead_queue: DeadQueue,
    announcer: Arc<Announcer>,
    housekeeping: Housekeeping,
    store: Arc<dyn Reads>,
    progress: Progress,
}

impl Consumer {
    /// Builds a consumer. `publisher` names this process among all consumers; draw it at random.
    pub fn new(config: &Config, backend: &Backend, publisher: u64) -> Self {
        let announcer = Arc::new(Announcer::new(backend.events.clone(), publisher));
        let (queue, progress) = (&config.queue, &backend.progress);
        // An attempt may wait for a connection, and then for its transaction.
        let step_ms = config.store.connect_timeout_ms.saturating_add(config.store.write_timeout_ms);
        let in_hand = |name| progress.register(name, Duration::from_millis(step_ms));
        let is_embedded = backend.directory.is_some();
        let pace = Pace::with_connections((!is_embedded).then_some(config.store.connections_max));
        let ingest = Ingest {
            queue: backend.queue.clone(),
            store: backend.store.clone(),
            ids: backend.ids.clone(),
            announcer: announcer.clone(),
            limits: MergeLimits {
                items_max: queue.merge_items_max,
                bytes_max: queue.merge_bytes_max,
                linger_max: Duration::from_millis(queue.linger_ms_max),
            },
            prefetch: queue.prefetch,
            pace,
            in_hand: in_hand("ingest"),
            status: Arc::new(ConsumerStatus::default()),
        };
        let dead_queue = DeadQueue {
            queue: backend.queue.clone(),
            store: backend.store.clone(),
            ids: backend.ids.clone(),
            announcer: announcer.clone(),
            pace,
            in_hand: in_hand("dead_queue"),
            status: ingest.status.clone(),
        };
        let housekeeping = Housekeeping::new(config, backend, ingest.status.clone(), publisher);
        let (store, progress) = (backend.store.clone(), progress.clone());
        Self { ingest, dead_queue, announcer, housekeeping, store, progress }
    }

    pub fn status(&self) -> Arc<ConsumerStatus> {
        self.ingest.status.clone()
    }

    /// Works until the shutdown, then settles or gives back the messages in hand. The ports stay open.
    /// Each part is needed, so the end of one part is the end of all: the caller must watch this future.
    pub async fn run(self, mut shutdown: Shutdown) {
        // Stops after the ingest, which may have a batch to settle.
        let (quiet, until_quiet) = shutdown::channel();
        let (stop, stopping) = shutdown::channel();
        let (announcer, store, status) = (self.announcer.clone(), self.store.clone(), self.status());
        let watched = self.progress;
        let heartbeat = async move { announcer.run(store, status, until_quiet).await };
        let heartbeat = watched.clone().watching("heartbeat", heartbeat);
        let housekeeping = watched.clone().watching("housekeeping", self.housekeeping.run(stopping.clone()));
        let dead_queue = watched.clone().watching("dead_queue", self.dead_queue.run(stopping.clone()));
        let (heartbeat, no_heartbeat) = shutdown::watched(heartbeat);
        let (housekeeping, no_housekeeping) = shutdown::watched(housekeeping);
        let (dead_queue, no_dead_queue) = shutdown::watched(dead_queue);
        let watch = async {
            let ended = shutdown::first_of(vec![no_heartbeat, no_housekeeping, no_dead_queue]);
            if shutdown.unless_requested(ended).await.is_some() {
                tracing::error!("a part of the consumer ended by itself, stopping");
            }
            stop.request();
        };
        tokio::join!(watched.watching("ingest", self.ingest.run(stopping)), watch);
        self.ingest.status.consuming.store(false, Ordering::Relaxed);
        // Housekeeping may be in the middle of a statement; the heartbeats go on until it is done.
        end("housekeeping", housekeeping, HOUSEKEEPING_PATIENCE).await;
        end("dead queue", dead_queue, DEAD_QUEUE_PATIENCE).await;
        quiet.request();
        if let Err(error) = heartbeat.await {
            tracing::error!(%error, "heartbeat task failed");
        }
        self.announcer.goodbye();
        tracing::info!("consumer stopped");
    }
}

/// Waits for a task's end, and aborts it when a server does not answer: the rest is done later.
async fn end(name: &'static str, mut task: JoinHandle<()>, patience: Duration) {
    match tokio::time::timeout(patience, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, task.name = name, "task failed"),
        Err(_) => task.abort(),
    }
}
