//! Opens the backend pair that the configuration names. The only place that knows which pairs
//! exist: embedded queue + SQLite, and RabbitMQ + Postgres.
//!
//! It also guards the embedded pair's directory: one process at a time, readable by its owner
//! only, with the secret that signs ids when the configuration has none.
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rand::rngs::OsRng;
use rand::{Rng, TryRngCore};

use crate::clock;
use crate::config::Config;
use crate::event::Events;
use crate::event::in_process::InProcessEvents;
use crate::event::rabbitmq::RabbitEvents;
use crate::id::{IdFloor, IdKeys};
use crate::progress::Progress;
use crate::queue::embedded::{EmbeddedQueue, pairing};
use crate::queue::rabbitmq::{RabbitQueue, RabbitSettings};
use crate::queue::{Queue, QueueLimits};
use crate::shutdown::Shutdown;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

/// Characters of the secret in the data directory: 256 random bits in hexadecimal.
const SECRET_LENGTH: usize = 64;

/// The three ports, opened, and the keys of the ids. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Backend {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub events: Arc<dyn Events>,
    pub ids: IdKeys,
    /// What this process issues lies above it.
    pub id_floor: IdFloor,
    /// The loops of this process that must move.
    pub progress: Progress,
    /// Held for as long as any clone lives.
    pub directory: Option<Arc<DirectoryLock>>,
}

impl Backend {
    /// What hears the ends of the tasks behind the ports, none of which ends before they are closed.
    pub fn over(&self) -> Vec<Shutdown> {
        [self.queue.over(), self.events.over()].concat()
    }

    /// Asks the store up to which time it has forgotten ids: what is issued stays above it, also when
    /// it lies ahead of the clock.
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

/// The store without its queue, for commands that look after it.
pub struct OpenStore {
    pub store: Arc<dyn Store>,
    pub ids: IdKeys,
    /// Held for as long as this lives.
    pub directory: Option<DirectoryLock>,
}

/// Which pair a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Everything in this process, files in this directory.
    Embedded(PathBuf),
    /// RabbitMQ and Postgres.
    Cluster,
}

/// The queue and the store that are named do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPair {
    #[error("is not set: set AMQP_URL (or FOREBAY__QUEUE__URL)")]
    QueueUnset,
    #[error("is not set: set DATABASE_URL (or FOREBAY__STORE__URL)")]
    StoreUnset,
    #[error("expected amqp://…, amqps://… or embedded:<directory>")]
    QueueUnknown,
    #[error("expected postgres://… or embedded:<directory>")]
    StoreUnknown,
    #[error(
        "names a server while the store is the embedded one: set DATABASE_URL (or FOREBAY__STORE__URL) too"
    )]
    StoreMissing,
    #[error("names a server while the queue is the embedded one: set AMQP_URL (or FOREBAY__QUEUE__URL) too")]
    QueueMissing,
    #[error("names another directory than queue.url")]
    TwoDirectories,
}

impl NoPair {
    /// The setting that is to blame.
    pub fn setting(self) -> &'static str {
        match self {
            Self::QueueUnset | Self::QueueUnknown | Self::StoreMissing => "queue.url",
            Self::StoreUnset | Self::StoreUnknown | Self::QueueMissing | Self::TwoDirectories => "store.url",
        }
    }
}

/// What one URL names.
enum Place<'a> {
    Unset,
    Directory(&'a str),
    Server,
    Unknown,
}

impl<'a> Place<'a> {
    fn of(url: &'a str, schemes: &[&str]) -> Self {
        match url.split_once(':') {
            _ if url.is_empty() => Self::Unset,
            Some(("embedded", directory)) if !directory.is_empty() => Self::Directory(directory),
            Some((scheme, rest)) if schemes.contains(&scheme) && rest.starts_with("//") => Self::Server,
            _ => Self::Unknown,
        }
    }
}

impl Pair {
    pub fn of(config: &Config) -> Result<Self, NoPair> {
        let queue = Place::of(&config.queue.url, &["amqp", "amqps"]);
        let store = Place::of(&config.store.url, &["postgres", "postgresql"]);
        match (queue, store) {
            (Place::Directory(queue), Place::Directory(store)) if queue == store => {
                Ok(Self::Embedded(queue.into()))
            }
            (Place::Server, Place::Server) => Ok(Self::Cluster),
            (Place::Unset, _) => Err(NoPair::QueueUnset),
            (_, Place::Unset) => Err(NoPair::StoreUnset),
            (Place::Unknown, _) => Err(NoPair::QueueUnknown),
            (_, Place::Unknown) => Err(NoPair::StoreUnknown),
            (Place::Server, Place::Directory(_)) => Err(NoPair::StoreMissing),
            (Place::Directory(_), Place::Server) => Err(NoPair::QueueMissing),
            (Place::Directory(_), Place::Directory(_)) => Err(NoPair::TwoDirectories),
        }
    }
}

/// Opens the ports. Servers that are away do not fail it: the ports connect by themselves, for
/// as long as it takes. A data directory that is in use or unreadable does.
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
    let limits = QueueLimits {
        bytes_max: config.queue.bytes_max,
        confirm_timeout: Duration::from_millis(config.queue.confirm_timeout_ms),
    };
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

/// A data directory that belongs to this process. The kernel gives it free when the process ends,
/// however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Creates the directory, for its owner only, when it is missing.
    pub fn take(directory: &Path) -> anyhow::Result<Self> {
        let place = directory.display();
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.with_context(|| format!("cannot create the data directory {place}"))?;
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).mode(0o600).open(directory.join("lock"));
        let file = file.with_context(|| format!("cannot write to the data directory {place}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "the data directory {place} is in use by another process: stop it, or give this one a \
                 directory of its own (FOREBAY__QUEUE__URL=embedded:<directory> and the same for STORE)"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock the data directory {place}"))
            }
        }
    }
}

/// The secret of a data directory, made at its first use. Losing it makes issued ids unknown.
pub fn secret_of(directory: &Path) -> anyhow::Result<String> {
    let path = directory.join("ids.secret");
    let mut secret = String::new();
    match File::open(&path) {
        Ok(mut file) => {
            file.read_to_string(&mut secret).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            secret = write_secret(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let secret = secret.trim();
    let intact = secret.len() == SECRET_LENGTH && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(intact, "{} does not hold {SECRET_LENGTH} hexadecimal digits", path.display());
    Ok(secret.into())
}

/// Under another name first, so that a crash leaves no half of a secret.
fn write_secret(path: &Path) -> anyhow::Result<String> {
    let (high, low): (u128, u128) = (OsRng.unwrap_err().random(), OsRng.unwrap_err().random());
    let secret = format!("{high:032x}{low:032x}");
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(path.parent().context("a file is in a directory")?)?.sync_all()?;
    Ok(secret)
}
