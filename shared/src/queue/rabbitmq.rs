//! RabbitMQ.
use super::{Publisher, Queue, QueueError, Subscription};
use crate::config::Config;
use async_trait::async_trait;
use std::sync::Arc;
#[derive(Clone, Debug)]
pub struct RabbitSettings {}
impl From<&Config> for RabbitSettings {
    fn from(_: &Config) -> Self {
        Self {}
    }
}
pub struct RabbitQueue {}
impl RabbitQueue {
    pub fn start(_settings: RabbitSettings) -> Arc<Self> {
        unreachable!()
    }
}
#[async_trait]
impl Queue for RabbitQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        unreachable!()
    }
    async fn subscribe(&self, _window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        unreachable!()
    }
    async fn close(&self) {}
}
