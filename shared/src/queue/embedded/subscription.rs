//! Subscriber of the embedded queue: a window over the ready buffer. It holds only the number by which
//! the buffer knows its leases.
use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::ready_buffer::{LeasedMessage, ReadyBuffer};
use super::writer::{Settle, Settlement, WriterCommand};
use crate::queue::{Delivery, Lane, Lost, REJECTED_TWICE, Subscription};

pub(super) struct EmbeddedSubscription {
    owner: u64,
    window: u16,
    /// Messages delivered before the last change of the window and not settled: they stay on top of it.
    earlier: HashSet<u64>,
    lane: Lane,
    buffer: Arc<ReadyBuffer>,
    commands: mpsc::Sender<WriterCommand>,
    /// Set once a settlement could not be made durable: the messages it held were taken back.
    lost: Option<Lost>,
}

impl EmbeddedSubscription {
    pub(super) fn new(
        owner: u64,
        window: u16,
        lane: Lane,
        buffer: Arc<ReadyBuffer>,
        commands: mpsc::Sender<WriterCommand>,
    ) -> Self {
        Self { owner, window, earlier: HashSet::new(), lane, buffer, commands, lost: None }
    }

    async fn settle(&mut self, deliveries: Vec<Delivery>, settlement: Settlement) -> Result<(), Lost> {
        self.check()?;
        if deliveries.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let seqs: Vec<u64> = deliveries.iter().map(|delivery| delivery.tag).collect();
        self.earlier.retain(|seq| !seqs.contains(seq));
        let command = WriterCommand::Settle(Settle { lane: self.lane, seqs, settlement, reply });
        let settled = async {
            self.commands.send(command).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        settled.await.map_err(|lost| self.lose(lost))
    }

    fn lose(&mut self, lost: Lost) -> Lost {
        self.lost = Some(lost.clone());
        self.buffer.release(self.owner);
        lost
    }

    fn check(&self) -> Result<(), Lost> {
        self.lost.clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next(&mut self) -> Result<Delivery, Lost> {
        let buffer = Arc::clone(&self.buffer);
        loop {
            let mut arrived = pin!(buffer.arrived());
            arrived.as_mut().enable();
            if let Some(delivery) = self.try_next()? {
                return Ok(delivery);
            }
            arrived.await;
        }
    }

    fn try_next(&mut self) -> Result<Option<Delivery>, Lost> {
        self.check()?;
        let window = usize::from(self.window) + self.earlier.len();
        let taken = self.buffer.take(self.owner, window)?;
        Ok(taken.map(|LeasedMessage { seq, body, traces, redelivered }| Delivery {
            body,
            traces,
            redelivered,
            tag: seq,
        }))
    }

    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.settle(deliveries, Settlement::Applied).await
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.check()?;
        let seqs: Vec<u64> = deliveries.iter().map(|delivery| delivery.tag).collect();
        self.earlier.retain(|seq| !seqs.contains(seq));
        self.buffer.give_back(&seqs);
        Ok(())
    }

    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost> {
        match self.lane {
            Lane::Writes => self.settle(vec![delivery], Settlement::Rejected).await,
            Lane::Dead => Err(self.lose(Lost(REJECTED_TWICE.into()))),
        }
    }

    async fn waiting(&mut self) -> Result<u64, Lost> {
        self.check()?;
        Ok(self.buffer.waiting().messages)
    }

    async fn set_window(&mut self, window: u16) -> Result<(), Lost> {
        self.check()?;
        self.window = window;
        self.earlier = self.buffer.held_by(self.owner).into_iter().collect();
        Ok(())
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.buffer.release(self.owner);
    }
}

fn closed() -> Lost {
    Lost("the queue is closed".into())
}
