//! Opens the backend pair that the configuration names. The only place that knows which pairs
//! exist: embedded queue + SQLite, and RabbitMQ + Postgres.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use crate::config::Config;
use crate::event::Events;
use crate::event::in_process::InProcessEvents;
use crate::event::rabbitmq::RabbitEvents;
use crate::queue::embedded::EmbeddedQueue;
use crate::queue::rabbitmq::{RabbitQueue, RabbitSettings};
use crate::queue::{Queue, QueueLimits};
use crate::store::Store;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;

/// The three ports, opened. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Backend {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub events: Arc<dyn Events>,
    pub ids: crate::id::IdKeys,
}

/// Which pair a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Everything in this process, files in this directory.
    Embedded(PathBuf),
    /// RabbitMQ and Postgres.
    Cluster,
}

impl Pair {
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let (queue, store) = (&config.queue.url, &config.store.url);
        match (queue.strip_prefix("embedded:"), store.strip_prefix("embedded:")) {
            (Some(queue), Some(store)) if queue == store => Ok(Self::Embedded(queue.into())),
            (Some(_), Some(_)) => bail!("queue.url and store.url name different directories"),
            (None, None) if queue.starts_with("amqp") && store.starts_with("postgres") => Ok(Self::Cluster),
            (None, None) => bail!("queue.url must be amqp:// or amqps://, store.url postgres://"),
            _ => bail!("the embedded queue and the embedded store go together only"),
        }
    }
}

/// Opens the ports. Servers that are away do not fail it: the ports connect by themselves, for
/// as long as it takes. A data directory that is in use or unreadable does.
pub async fn open(config: &Config) -> anyhow::Result<Backend> {
    match Pair::of(config)? {
        Pair::Embedded(directory) => open_embedded(config, &directory).await,
        Pair::Cluster => {
            let settings = RabbitSettings::from(config);
            Ok(Backend {
                queue: RabbitQueue::start(settings.clone()),
                store: PostgresStore::open(&config.store)?,
                events: RabbitEvents::start(settings),
                ids: crate::id::IdKeys::new(&config.ids.secrets),
            })
        }
    }
}

async fn open_embedded(config: &Config, directory: &Path) -> anyhow::Result<Backend> {
    let limits = QueueLimits {
        bytes_max: config.queue.bytes_max,
        confirm_timeout: Duration::from_millis(config.queue.confirm_timeout_ms),
    };
    Ok(Backend {
        queue: EmbeddedQueue::open(directory, limits).await?,
        store: SqliteStore::open(directory).await?,
        events: InProcessEvents::start(),
        ids: crate::id::IdKeys::new(&config.ids.secrets),
    })
}
