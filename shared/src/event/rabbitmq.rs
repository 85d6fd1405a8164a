//! RabbitMQ.
use super::{Event, EventStream, Events};
use crate::queue::rabbitmq::RabbitSettings;
use async_trait::async_trait;
use std::sync::Arc;
pub struct RabbitEvents {}
impl RabbitEvents {
    pub fn start(_settings: RabbitSettings) -> Arc<Self> {
        unreachable!()
    }
}
#[async_trait]
impl Events for RabbitEvents {
    fn publish(&self, _event: Event) {}
    async fn subscribe(&self) -> Box<dyn EventStream> {
        unreachable!()
    }
    async fn close(&self) {}
}
