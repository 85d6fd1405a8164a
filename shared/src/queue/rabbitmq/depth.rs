//! Reads the depths of the lanes, on a session of its own that is kept between two reads.
//!
//! Rejected messages are in the dead queue only if the exchange of dead letters exists. Without it, or
//! without its binding, they wait within the broker, where they cannot be seen. The broker sends no
//! notice when it is deleted, and a program that deletes it to make a queue anew may end in the middle of
//! that. So each read of the dead lane also looks for the exchange, and makes it again.
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::Queue;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Mutex;

use crate::amqp::connection::{Session, SessionError, call};
use crate::amqp::settings::{Names, RabbitSettings};
use crate::amqp::topology;
use crate::queue::{Lane, Waiting};

/// Name of the session in the broker's tools.
const NAME: &str = "forebay queue look";

/// Time for which messages may still be on their way after the exchange was missing. The broker retries
/// messages that it could not route every three minutes.
const ON_THEIR_WAY_MAX: Duration = Duration::from_mins(10);

pub(super) struct DepthReader {
    settings: Arc<RabbitSettings>,
    kept: Mutex<KeptSession>,
}

/// State kept between two reads.
#[derive(Default)]
struct KeptSession {
    session: Option<Session>,
    /// Presence of the exchange at the last look.
    was_there: bool,
    /// Last time at which the exchange was missing.
    missed_at: Option<Instant>,
}

impl DepthReader {
    pub fn new(settings: Arc<RabbitSettings>) -> Self {
        Self { settings, kept: Mutex::default() }
    }

    pub async fn waiting(&self, lane: Lane) -> Result<Waiting, SessionError> {
        let mut kept = self.kept.lock().await;
        // A session that fails is not put back, and ends.
        let session = match kept.session.take() {
            Some(session) => session,
            None => Session::open(&self.settings, NAME).await?,
        };
        let names = self.settings.names();
        let more_may_come = lane == Lane::Dead && self.look_for_exchange(&session, &names, &mut kept).await?;
        let found = found(&session, lane.queue(names)).await?;
        kept.session = Some(session);
        let readers = Some(found.consumer_count());
        Ok(Waiting { messages: found.message_count().into(), more_may_come, readers })
    }

    /// Makes a missing exchange again; `true` while messages may be on their way to the dead queue.
    async fn look_for_exchange(
        &self,
        session: &Session,
        names: &Names,
        kept: &mut KeptSession,
    ) -> Result<bool, SessionError> {
        if topology::check_dead_exchange(session, names).await? {
            kept.was_there = true;
        } else {
            kept.missed_at = Some(Instant::now());
            if std::mem::take(&mut kept.was_there) {
                tracing::warn!(exchange = names.dead.as_str(), "exchange is gone, it is declared again");
            }
            topology::restore_dead_exchange(session, names, self.settings.settle).await?;
        }
        Ok(kept.missed_at.is_some_and(|at| at.elapsed() < ON_THEIR_WAY_MAX))
    }

    pub async fn close(&self) {
        let session = self.kept.lock().await.session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }
}

/// Declares the queue passively, on a channel of its own, because an error closes the channel.
async fn found(session: &Session, queue: ShortString) -> Result<Queue, SessionError> {
    let channel = session.channel().await?;
    let mut options = QueueDeclareOptions::default();
    (options.passive, options.durable) = (true, true);
    let declared = channel.queue_declare(queue, options, FieldTable::default());
    let found = call("queue.declare", declared).await?;
    call("channel.close", channel.close(200, "done".into())).await?;
    Ok(found)
}
