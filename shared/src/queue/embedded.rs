//! The embedded queue: one SQLite file, for the form of Forebay that needs no server.
//!
//! Publishers and subscribers only touch channels and memory; one [`writer`] task owns the file
//! and turns everything that waits into one fsynced transaction (group commit), and one [`loader`]
//! reads ahead of the subscribers. Who was handed what is kept in memory ([`shelf`]), so a restart
//! delivers everything again that was not acknowledged. Only one process may use the directory:
//! [`crate::backend`] holds its lock.
mod file;
mod loader;
mod shelf;
mod subscription;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use self::file::File;
use self::loader::SharedReader;
use self::shelf::Shelf;
use self::subscription::EmbeddedSubscription;
use self::writer::{Command, Publish, Writer};
use super::{Link, PublishError, Publisher, Queue, QueueError, QueueLimits, Subscription};
use crate::message::Outgoing;

/// Commands that may wait for the writer; beyond them publishers wait, until their deadlines.
const COMMANDS_WAITING_MAX: usize = 256;

pub struct EmbeddedQueue {
    publisher: Arc<EmbeddedPublisher>,
    shelf: Arc<Shelf>,
    reader: SharedReader,
    directory: PathBuf,
    next_owner: AtomicU64,
    /// Taken by the first who closes; others wait for it at the lock.
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct EmbeddedPublisher {
    commands: mpsc::Sender<Command>,
    room: Arc<Room>,
    state: Arc<LinkState>,
}

impl EmbeddedQueue {
    /// Opens or creates `queue.db` in `directory`, which must exist. Its tasks run on the runtime
    /// that this is called on, until [`Queue::close`] or until the queue and all that came from
    /// it are dropped.
    pub async fn open(directory: &Path, limits: QueueLimits) -> Result<Arc<Self>, QueueError> {
        let (file, found) = File::open(directory).await?;
        let reader = Arc::new(Mutex::new(None));
        let room = Arc::new(Room { bytes: AtomicU64::new(found.bytes), bytes_max: limits.bytes_max });
        let shelf = Arc::new(Shelf::new(found.last_seq));
        let state = Arc::new(LinkState::default());
        let (commands, waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
        tokio::spawn(loader::run(Arc::clone(&shelf), Arc::clone(&reader), directory.to_owned()));
        let writer = Writer {
            file: Some(file),
            directory: directory.to_owned(),
            commands: waiting,
            shelf: Arc::clone(&shelf),
            reader: Arc::clone(&reader),
            room: Arc::clone(&room),
            link: Arc::clone(&state),
            confirm_timeout: limits.confirm_timeout,
            bytes_since_checkpoint: 0,
            disk_low: false,
        };
        let writer = Mutex::new(Some(tokio::spawn(writer.run())));
        let publisher = Arc::new(EmbeddedPublisher { commands, room, state });
        Ok(Arc::new(Self {
            publisher,
            shelf,
            reader,
            directory: directory.to_owned(),
            next_owner: AtomicU64::new(0),
            writer,
        }))
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn subscribe(&self, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let commands = self.publisher.commands.clone();
        Ok(Box::new(EmbeddedSubscription::new(owner, window, Arc::clone(&self.shelf), commands)))
    }

    async fn has_dead(&self) -> Result<bool, QueueError> {
        loader::has_dead(&self.shelf, &self.reader, &self.directory).await
    }

    async fn close(&self) {
        // It fails when the writer has stopped already.
        let _ = self.publisher.commands.send(Command::Close).await;
        let mut writer = self.writer.lock().await;
        if let Some(writer) = writer.take() {
            // It ends with an error only when its runtime is gone: then there is nothing to wait for.
            let _ = writer.await;
        }
    }
}

#[async_trait]
impl Publisher for EmbeddedPublisher {
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError> {
        if deadline <= Instant::now() {
            return Err(PublishError::DeadlineExceeded);
        }
        let reservation = Reservation::take(&self.room, message.body.len() as u64)?;
        let (reply, answer) = oneshot::channel();
        let publish = Publish { id: message.id, body: message.body, deadline, reservation, reply };
        let confirmed = async {
            self.commands.send(Command::Publish(publish)).await.map_err(|_| closed_to_publish())?;
            answer.await.map_err(|_| closed_to_publish())?
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        tokio::time::timeout_at(deadline, confirmed).await.unwrap_or(Err(PublishError::DeadlineExceeded))
    }

    fn link(&self) -> Link {
        if self.commands.is_closed() { Link::Down } else { self.state.get() }
    }
}

fn closed_to_publish() -> PublishError {
    PublishError::Unavailable("the queue is closed".into())
}

/// The bytes that the queue may hold, and those it holds: waiting messages, those on their way
/// into the file, and rejected ones.
struct Room {
    bytes: AtomicU64,
    bytes_max: u64,
}

/// Bytes that are taken until the message is settled; given back when it never became durable.
struct Reservation {
    room: Arc<Room>,
    bytes: u64,
}

impl Reservation {
    fn take(room: &Arc<Room>, bytes: u64) -> Result<Self, PublishError> {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= room.bytes_max);
        match room.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Self { room: Arc::clone(room), bytes }),
            Err(_) => Err(PublishError::Full),
        }
    }

    /// The message is in the file: its bytes stay taken until somebody settles it.
    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the writer says of its file, readable by every request.
#[derive(Default)]
struct LinkState(AtomicU8);

impl LinkState {
    fn get(&self) -> Link {
        match self.0.load(Ordering::Relaxed) {
            0 => Link::Up,
            1 => Link::Blocked,
            2 => Link::Full,
            _ => Link::Down,
        }
    }

    fn set(&self, link: Link) {
        let word = match link {
            Link::Up => 0,
            Link::Blocked => 1,
            Link::Full => 2,
            Link::Down => 3,
        };
        self.0.store(word, Ordering::Relaxed);
    }
}
