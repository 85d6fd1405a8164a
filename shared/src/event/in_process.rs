//! In process.
use super::{Event, EventStream, Events};
use async_trait::async_trait;
use std::sync::Arc;
pub struct InProcessEvents {}
impl InProcessEvents {
    pub fn start() -> Arc<Self> {
        unreachable!()
    }
}
#[async_trait]
impl Events for InProcessEvents {
    fn publish(&self, _event: Event) {}
    async fn subscribe(&self) -> Box<dyn EventStream> {
        unreachable!()
    }
    async fn close(&self) {}
}
