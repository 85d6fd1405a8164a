//! Looks at what waits in the dead queue, on a session of its own that is kept between two looks.
use std::sync::Arc;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::Mutex;

use super::{RabbitSettings, Session, SessionError, call};

/// The name of the session in the broker's tools.
const NAME: &str = "forebay queue look";

pub(super) struct Look {
    settings: Arc<RabbitSettings>,
    session: Mutex<Option<Session>>,
}

impl Look {
    pub fn new(settings: Arc<RabbitSettings>) -> Self {
        Self { settings, session: Mutex::default() }
    }

    /// Whether messages are ready in the dead queue.
    pub async fn has_dead(&self) -> Result<bool, SessionError> {
        let mut kept = self.session.lock().await;
        // One that fails is not put back, and ends.
        let session = match kept.take() {
            Some(session) => session,
            None => Session::open(&self.settings, NAME).await?,
        };
        let ready = self.count(&session).await?;
        *kept = Some(session);
        Ok(ready > 0)
    }

    /// By a passive declare, on a channel of its own, because an error closes the channel.
    async fn count(&self, session: &Session) -> Result<u32, SessionError> {
        let channel = session.channel().await?;
        let mut options = QueueDeclareOptions::default();
        (options.passive, options.durable) = (true, true);
        let declared = channel.queue_declare(self.settings.names().dead, options, FieldTable::default());
        let ready = call("queue.declare", declared).await?.message_count();
        call("channel.close", channel.close(200, "done".into())).await?;
        Ok(ready)
    }

    pub async fn close(&self) {
        if let Some(session) = self.session.lock().await.take() {
            session.close().await;
        }
    }
}
