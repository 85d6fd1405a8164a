//! Task that writes the embedded queue: it commits all waiting commands as one transaction and answers
//! them. No caller gets `Ok` before COMMIT has returned.
//!
//! When a commit fails it goes on: publishes are refused at once, settlements are still tried, and the
//! file is probed with a back-off. Before the disk is full it takes no new messages, so that the consumer
//! can go on making room.
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout, timeout_at};

use super::file::{FileError, Group, NewMessage, QueueFile};
use super::loader::SharedReader;
use super::ready_buffer::{Lanes, StoredMessage};
use super::room::{FileLink, QueueRoom, Reservation};
use crate::model::message::Outgoing;
use crate::queue::{Lane, Link, Lost, PublishError};
use crate::runtime::backoff::Backoff;
use crate::runtime::metrics::metrics;

/// Maximum of commands in one transaction. Each number of messages is a script of its own.
const GROUP_COMMANDS_MAX: usize = 32;

/// Approximate number of bytes written to the log between two checkpoints.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// Approximate cost of a command in the log besides its body.
const COMMAND_BYTES: u64 = 16 << 10;

/// Space that must be left, on the disk and inside the file, for a message to be taken. It is for moving
/// the log into the database, and for other data on the disk.
const FREE_BYTES_MIN: u64 = 64 << 20;

const DISK_LOOK_EVERY: Duration = Duration::from_secs(1);

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

pub(super) enum WriterCommand {
    Publish(Publish),
    Settle(Settle),
    /// Closes. Earlier commands are still done and answered.
    Close,
}

pub(super) struct Publish {
    pub message: Outgoing,
    pub deadline: Instant,
    pub reservation: Reservation,
    pub reply: oneshot::Sender<Result<(), PublishError>>,
}

/// Settlement of delivered messages.
pub(super) struct Settle {
    pub lane: Lane,
    pub seqs: Vec<u64>,
    pub settlement: Settlement,
    pub reply: oneshot::Sender<Result<(), Lost>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// Removed for good.
    Applied,
    /// Kept in the table of dead messages.
    Rejected,
}

pub(super) struct QueueWriter {
    /// `None` while the file could not be opened again after a failure.
    pub file: Option<QueueFile>,
    pub directory: PathBuf,
    pub commands: mpsc::Receiver<WriterCommand>,
    pub lanes: Lanes,
    pub reader: SharedReader,
    pub room: Arc<QueueRoom>,
    pub link: Arc<FileLink>,
    pub confirm_timeout: Duration,
    pub bytes_since_checkpoint: u64,
    pub disk_low: bool,
}

impl QueueWriter {
    /// Runs until it gets `Close` or no sender of commands is left.
    pub(super) async fn run(mut self) {
        let mut commands = Vec::with_capacity(GROUP_COMMANDS_MAX);
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let received = self.commands.recv_many(&mut commands, GROUP_COMMANDS_MAX);
            // While the link says `Blocked` publishers send nothing, so the disk is looked at again.
            let patience = if self.disk_low { DISK_LOOK_EVERY } else { Duration::MAX };
            match timeout(patience, received).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => self.look_at_disk().await,
            }
            match self.work(&mut commands).await {
                Ok(()) => retry.reset(),
                Err(error) => self.recover(error, &mut retry).await,
            }
        }
        self.finish().await;
    }

    /// Runs one transaction for all `commands`. An error means that publishes failed.
    async fn work(&mut self, commands: &mut Vec<WriterCommand>) -> Result<(), FileError> {
        let (mut publishes, mut settles) = (Vec::new(), Vec::new());
        for command in commands.drain(..) {
            match command {
                WriterCommand::Publish(publish) if publish.deadline <= Instant::now() => {
                    // The caller no longer waits.
                    let _ = publish.reply.send(Err(PublishError::DeadlineExceeded));
                }
                WriterCommand::Publish(publish) => publishes.push(publish),
                WriterCommand::Settle(settle) => settles.push(settle),
                WriterCommand::Close => self.commands.close(),
            }
        }
        // Also beside settlements while space is low: a consumer that drains makes room.
        if self.disk_low || !publishes.is_empty() {
            self.look_at_disk().await;
        }
        if self.disk_low {
            for publish in publishes.drain(..) {
                let _ = publish.reply.send(Err(PublishError::Full));
            }
        }
        if publishes.is_empty() && settles.is_empty() {
            return Ok(());
        }
        let group = self.group(&publishes, &settles);
        match self.commit(&group).await {
            Ok(()) => {
                self.put_in_buffers(group);
                self.answer_published(publishes);
                self.answer_settled(settles);
                self.checkpoint_when_due().await;
                Ok(())
            }
            Err(error) => {
                refuse(publishes, &error);
                self.settle_alone(settles).await;
                Err(error)
            }
        }
    }

    /// Checks the space on the disk. On a disk that is almost full messages are settled, but no new ones
    /// are taken before the pages of settled ones can be used again: a log that cannot be moved into the
    /// database would leave no way to make room.
    async fn look_at_disk(&mut self) {
        let Ok(disk) = rustix::fs::statvfs(&self.directory) else { return };
        let mut free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < FREE_BYTES_MIN
            && let Some(file) = &mut self.file
        {
            free += file.reusable_bytes().await.unwrap_or(0);
        }
        let low = free < FREE_BYTES_MIN;
        if low != self.disk_low {
            self.disk_low = low;
            self.link.set(if low { Link::Blocked } else { Link::Up });
            tracing::warn!(
                disk.free_bytes = free,
                disk.low = low,
                "free space for the embedded queue changed"
            );
        }
    }

    fn group(&self, publishes: &[Publish], settles: &[Settle]) -> Group {
        let mut group = Group { first_dead: self.lanes.dead.committed() + 1, ..Group::default() };
        for (publish, seq) in publishes.iter().zip(self.lanes.writes.committed() + 1..) {
            group.new.push(NewMessage { seq, message: publish.message.clone() });
        }
        for settle in settles {
            let seqs = match (settle.lane, settle.settlement) {
                (Lane::Dead, _) => &mut group.settled_dead,
                (Lane::Writes, Settlement::Applied) => &mut group.applied,
                (Lane::Writes, Settlement::Rejected) => &mut group.rejected,
            };
            seqs.extend_from_slice(&settle.seqs);
        }
        group
    }

    async fn commit(&mut self, group: &Group) -> Result<(), FileError> {
        let file = self.file.as_mut().ok_or(FileError::NotOpen)?;
        let mut committed = std::pin::pin!(file.commit(group));
        if let Ok(outcome) = timeout(self.confirm_timeout, committed.as_mut()).await {
            return outcome;
        }
        // A commit cannot be cancelled and may still succeed; meanwhile no other caller should wait.
        let before = self.link.get();
        self.link.set(Link::Blocked);
        tracing::warn!(timeout_ms = self.confirm_timeout.as_millis(), "embedded queue commit is slow");
        let outcome = committed.await;
        self.link.set(before);
        outcome
    }

    fn put_in_buffers(&self, group: Group) {
        // Rejected messages are read from the file: they are few.
        let rejected = group.rejected.len() as u64;
        self.lanes.dead.add_unseen(group.first_dead.saturating_sub(1) + rejected);
        let messages = group.new.into_iter().map(|NewMessage { seq, message }| StoredMessage {
            seq,
            body: message.body,
            traces: message.traces,
        });
        self.lanes.writes.add(messages);
    }

    fn answer_published(&mut self, publishes: Vec<Publish>) {
        for publish in publishes {
            self.bytes_since_checkpoint += publish.message.body.len() as u64 + COMMAND_BYTES;
            publish.reservation.keep();
            let _ = publish.reply.send(Ok(()));
        }
    }

    fn answer_settled(&mut self, settles: Vec<Settle>) {
        for Settle { lane, seqs, settlement, reply } in settles {
            let bytes = self.lanes.buffer(lane).settle(&seqs);
            if settlement == Settlement::Applied {
                self.room.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            self.bytes_since_checkpoint += COMMAND_BYTES;
            let _ = reply.send(Ok(()));
        }
    }

    /// Settles without the publishes of the transaction that failed. Deleting needs no new room in the
    /// file, so it may succeed on a full disk.
    async fn settle_alone(&mut self, settles: Vec<Settle>) {
        if settles.is_empty() {
            return;
        }
        let group = self.group(&[], &settles);
        match self.commit(&group).await {
            Ok(()) => {
                self.put_in_buffers(group);
                self.answer_settled(settles);
                self.checkpoint_when_due().await;
            }
            Err(error) => {
                let reason: Arc<str> = error.to_string().into();
                for settle in settles {
                    let _ = settle.reply.send(Err(Lost(Arc::clone(&reason))));
                }
            }
        }
    }

    async fn checkpoint_when_due(&mut self) {
        if self.bytes_since_checkpoint < CHECKPOINT_BYTES {
            return;
        }
        let Some(file) = self.file.as_mut() else { return };
        // No reader may be there, or the log could not begin anew and would grow.
        let quiet = self.reader.lock().await;
        let outcome = file.checkpoint().await;
        drop(quiet);
        match outcome {
            Ok(()) => self.bytes_since_checkpoint = 0,
            Err(error) => {
                tracing::warn!(error = %error, "embedded queue checkpoint failed");
                // Not at every commit from now on.
                self.bytes_since_checkpoint = CHECKPOINT_BYTES / 2;
            }
        }
    }

    /// Refuses publishes until the file takes a probe; returns when it does or when it is time to close.
    async fn recover(&mut self, error: FileError, retry: &mut Backoff) {
        self.link.set(Link::Down);
        metrics().queue_sessions_lost.inc();
        tracing::error!(error = %error, "embedded queue cannot be written");
        let mut error = error;
        loop {
            let retry_at = tokio::time::Instant::now() + retry.delay();
            while let Ok(command) = timeout_at(retry_at, self.commands.recv()).await {
                match command {
                    Some(WriterCommand::Publish(publish)) => refuse(vec![publish], &error),
                    Some(WriterCommand::Settle(settle)) => self.settle_alone(vec![settle]).await,
                    Some(WriterCommand::Close) => self.commands.close(),
                    None => return,
                }
            }
            match self.reopen().await {
                Ok(()) => break,
                Err(again) => error = again,
            }
        }
        self.link.set(if self.disk_low { Link::Blocked } else { Link::Up });
        tracing::info!("embedded queue can be written again");
    }

    /// Opens the file again. A connection that failed is not used again, and only the file knows the
    /// result of a commit that failed.
    async fn reopen(&mut self) -> Result<(), FileError> {
        self.file = None;
        let committed = self.lanes.writes.committed();
        let (file, found) = QueueFile::reopen(&self.directory, committed).await?;
        self.room.bytes.fetch_add(found.bytes, Ordering::Relaxed);
        self.lanes.writes.add_unseen(found.last_seq);
        self.lanes.dead.add_unseen(found.last_dead);
        // Kept even if the probe fails: settlements may still succeed.
        self.file.insert(file).probe().await
    }

    async fn finish(mut self) {
        self.link.set(Link::Down);
        self.lanes.writes.close();
        self.lanes.dead.close();
        let reader = self.reader.lock().await.take();
        if let Some(reader) = reader
            && let Err(error) = reader.close().await
        {
            tracing::warn!(error = %error, "embedded queue was not closed cleanly");
        }
        if let Some(file) = self.file.take()
            && let Err(error) = file.close().await
        {
            // Everything that was answered is in the log; the next start reads it.
            tracing::warn!(error = %error, "embedded queue was not closed cleanly");
        }
    }
}

fn refuse(publishes: Vec<Publish>, error: &FileError) {
    let reason: Arc<str> = error.to_string().into();
    for publish in publishes {
        let _ = publish.reply.send(Err(PublishError::Unavailable(Arc::clone(&reason))));
    }
}
