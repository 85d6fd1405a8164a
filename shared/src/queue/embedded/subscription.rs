//! A subscriber of the embedded queue: a window over the shelf. It holds nothing but the number
//! by which the shelf knows its leases.
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::shelf::{Shelf, Taken};
use super::writer::{Command, Fate, Settle};
use crate::queue::{Delivery, Lost, Subscription};

pub(super) struct EmbeddedSubscription {
    owner: u64,
    window: u16,
    shelf: Arc<Shelf>,
    commands: mpsc::Sender<Command>,
    /// Set once a fate could not be made durable: what it held was taken back.
    lost: Option<Lost>,
}

impl EmbeddedSubscription {
    pub(super) fn new(owner: u64, window: u16, shelf: Arc<Shelf>, commands: mpsc::Sender<Command>) -> Self {
        Self { owner, window, shelf, commands, lost: None }
    }

    async fn settle(&mut self, deliveries: Vec<Delivery>, fate: Fate) -> Result<(), Lost> {
        self.check()?;
        if deliveries.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let seqs = deliveries.iter().map(|delivery| delivery.tag).collect();
        let command = Command::Settle(Settle { seqs, fate, reply });
        let settled = async {
            self.commands.send(command).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let settled = settled.await;
        if let Err(lost) = &settled {
            self.lost = Some(lost.clone());
            self.shelf.release(self.owner);
        }
        settled
    }

    fn check(&self) -> Result<(), Lost> {
        self.lost.clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next(&mut self) -> Result<Delivery, Lost> {
        let stock = Arc::clone(&self.shelf);
        loop {
            let mut arrived = pin!(stock.arrived());
            arrived.as_mut().enable();
            if let Some(delivery) = self.try_next()? {
                return Ok(delivery);
            }
            arrived.await;
        }
    }

    fn try_next(&mut self) -> Result<Option<Delivery>, Lost> {
        self.check()?;
        let taken = self.shelf.take(self.owner, self.window)?;
        Ok(taken.map(|Taken { seq, body, traces, redelivered }| Delivery {
            body,
            traces,
            redelivered,
            tag: seq,
        }))
    }

    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.settle(deliveries, Fate::Applied).await
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        self.check()?;
        let seqs: Vec<u64> = deliveries.iter().map(|delivery| delivery.tag).collect();
        self.shelf.give_back(&seqs);
        Ok(())
    }

    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost> {
        self.settle(vec![delivery], Fate::Rejected).await
    }

    async fn set_window(&mut self, window: u16) -> Result<(), Lost> {
        self.check()?;
        self.window = window;
        Ok(())
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.shelf.release(self.owner);
    }
}

fn closed() -> Lost {
    Lost("the queue is closed".into())
}
