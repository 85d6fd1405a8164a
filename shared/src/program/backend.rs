//! Opens the backend pair that the configuration names. The only place that knows which pairs exist:
//! embedded queue + SQLite, and RabbitMQ + Postgres.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::amqp::settings::RabbitSettings;
use crate::config::Config;
use crate::config::pair::Pair;
use crate::config::queue_limits::QueueLimits;
use crate::event::Events;
use crate::event::in_process::InProcessEvents;
use crate::event::rabbitmq::RabbitEvents;
use crate::model::id::{IdFloor, IdKeys};
use crate::program::data_directory::{DirectoryLock, secret_of};
use crate::queue::Queue;
use crate::queue::embedded::{EmbeddedQueue, pairing};
use crate::queue::rabbitmq::RabbitQueue;
use crate::runtime::clock;
use crate::runtime::progress::Progress;
use crate::runtime::shutdown::Shutdown;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

/// The three ports, opened, and the keys of the ids. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Backend {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub events: Arc<dyn Events>,
    pub ids: IdKeys,
    /// Lower bound of all ids that this process issues.
    pub id_floor: IdFloor,
    /// Loops of this process that must move.
    pub progress: Progress,
    /// Lock of the data directory, held for as long as any clone lives.
    pub directory: Option<Arc<DirectoryLock>>,
}

impl Backend {
    /// Completion signals of the tasks behind the ports; none of them completes before the ports are
    /// closed.
    pub fn completions(&self) -> Vec<Shutdown> {
        [self.queue.completions(), self.events.completions()].concat()
    }

    /// Asks the store up to which time it has forgotten ids. Issued ids stay above it, also when it lies
    /// ahead of the clock.
    pub async fn learn_floor(&self) -> Result<(), StoreError> {
        let floor_ms = self.store.floor_ms().await?;
        let ahead_ms = floor_ms.saturating_sub(clock::now_ms());
        if self.id_floor.raise(floor_ms) && ahead_ms > 0 {
            tracing::warn!(
                floor.ahead_ms = ahead_ms,
                "a clock was ahead for long, or is behind: ids are issued ahead"
            );
        }
        Ok(())
    }
}

/// Store without its queue, for commands that look after it.
pub struct OpenStore {
    pub store: Arc<dyn Store>,
    pub ids: IdKeys,
    /// Lock of the data directory, held for as long as this lives.
    pub directory: Option<DirectoryLock>,
}

/// Opens the ports. Servers that are away do not fail it: the ports connect by themselves, for as long as
/// it takes. A data directory that is in use or unreadable fails it.
pub async fn open(config: &Config) -> anyhow::Result<Backend> {
    match Pair::of(config).map_err(|error| anyhow::anyhow!("{} {error}", error.setting()))? {
        Pair::Embedded(directory) => open_embedded(config, &directory).await,
        Pair::Cluster => {
            ensure!(!config.ids.secrets.is_empty(), "ids.secrets is not set");
            let settings = RabbitSettings::from(config);
            Ok(Backend {
                queue: RabbitQueue::start(settings.clone()),
                store: PostgresStore::open_with(&config.store, &config.collections)?,
                events: RabbitEvents::start(settings),
                ids: IdKeys::new(&config.ids.secrets),
                id_floor: IdFloor::default(),
                progress: progress_of(config)?,
                directory: None,
            })
        }
    }
}

/// Opens the store alone, and connects to nothing else. A data directory that is in use fails it.
pub async fn open_store(config: &Config) -> anyhow::Result<OpenStore> {
    match Pair::of(config).map_err(|error| anyhow::anyhow!("{} {error}", error.setting()))? {
        Pair::Embedded(directory) => {
            let lock = DirectoryLock::take(&directory)?;
            let ids = ids_of(config, &directory)?;
            let store: Arc<dyn Store> =
                SqliteStore::open_with(&directory, &config.store, &config.collections).await?;
            Ok(OpenStore { store, ids, directory: Some(lock) })
        }
        Pair::Cluster => {
            ensure!(!config.ids.secrets.is_empty(), "ids.secrets is not set");
            let store: Arc<dyn Store> = PostgresStore::open_with(&config.store, &config.collections)?;
            Ok(OpenStore { store, ids: IdKeys::new(&config.ids.secrets), directory: None })
        }
    }
}

fn progress_of(config: &Config) -> anyhow::Result<Progress> {
    let stuck_after = Duration::from_millis(config.ops.stuck_ms_max);
    Progress::start(stuck_after).context("cannot start the thread that watches the loops")
}

fn ids_of(config: &Config, directory: &Path) -> anyhow::Result<IdKeys> {
    if config.ids.secrets.is_empty() {
        Ok(IdKeys::new(&[secret_of(directory)?]))
    } else {
        Ok(IdKeys::new(&config.ids.secrets))
    }
}

async fn open_embedded(config: &Config, directory: &Path) -> anyhow::Result<Backend> {
    let lock = DirectoryLock::take(directory)?;
    let ids = ids_of(config, directory)?;
    let limits = QueueLimits::from(&config.queue);
    pairing::check(directory).await?;
    let queue = EmbeddedQueue::open(directory, limits).await?;
    let store = SqliteStore::open_with(directory, &config.store, &config.collections).await?;
    if let Err(error) = pairing::tie(directory).await {
        // A full disk must not keep what waits from being applied.
        tracing::warn!(error = format!("{error:#}"), "queue and store could not be tied to each other");
    }
    Ok(Backend {
        queue,
        store,
        events: InProcessEvents::start(),
        ids,
        id_floor: IdFloor::default(),
        progress: progress_of(config)?,
        directory: Some(Arc::new(lock)),
    })
}
