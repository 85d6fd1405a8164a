//! The embedded queue.
use super::{Publisher, Queue, QueueError, QueueLimits, Subscription};
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
pub struct EmbeddedQueue {}
impl EmbeddedQueue {
    pub async fn open(_directory: &Path, _limits: QueueLimits) -> Result<Arc<Self>, QueueError> {
        unreachable!()
    }
}
#[async_trait]
impl Queue for EmbeddedQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        unreachable!()
    }
    async fn subscribe(&self, _window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        unreachable!()
    }
    async fn close(&self) {}
}
