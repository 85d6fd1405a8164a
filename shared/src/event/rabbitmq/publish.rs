//! Publisher's side: one task sends the events that were handed over, and drops those that it cannot send
//! now.
//!
//! While the broker blocks the connection (a memory or disk alarm) nothing is kept for later: an event
//! carries the store's time at its publication, and old ones would only mislead. lapin ends a publish
//! when its frames are written, so nothing waits for that while the broker reads nothing.
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::amqp::connection::{ConnectionEvents, Session, SessionError, SessionRetries};
use crate::amqp::settings::RabbitSettings;
use crate::amqp::topology::declare_events;
use crate::event::{Body, Event};
use crate::runtime::metrics::metrics;
use crate::runtime::shutdown::Shutdown;

/// Name of the session in logs and in the broker's tools.
const NAME: &str = "forebay events publisher";

/// Longest time for sending the remaining events at close.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);

/// Routing key that other programs may bind to; this program binds to all.
fn routing_key(body: &Body) -> ShortString {
    match body {
        Body::Committed(_) => "committed",
        Body::Heartbeat { .. } => "heartbeat",
        Body::Defined { .. } => "defined",
        Body::Goodbye => "goodbye",
        Body::Unknown => "unknown",
    }
    .into()
}

/// Works until a stop is requested and the events handed over are sent or dropped.
pub(super) async fn publish_all(
    settings: Arc<RabbitSettings>,
    mut events: mpsc::Receiver<Event>,
    mut stopping: Shutdown,
) {
    let mut retries = SessionRetries::new(NAME);
    while let Some(opened) = drop_during(open(&settings), &mut events, &mut stopping).await {
        match opened {
            Ok(mut sender) => {
                retries.opened();
                match retries.during(sender.run(&mut events, &mut stopping)).await {
                    (Ok(()), _) => return sender.session.close().await,
                    // Nothing is confirmed, so only a session that lasts shows that events are taken.
                    (Err(reason), lasted) => retries.lost(&reason, lasted),
                }
            }
            Err(error) => retries.failed(&error),
        }
        drop_during(retries.pause(), &mut events, &mut stopping).await;
    }
}

async fn open(settings: &RabbitSettings) -> Result<Sender, SessionError> {
    let session = Session::open(settings, NAME).await?;
    let exchange = settings.names().events;
    declare_events(&session, &settings.names()).await?;
    let channel = session.channel().await?;
    let connection_events = session.events();
    Ok(Sender { session, channel, exchange, connection_events })
}

/// Drops events while `work` goes on: after the wait for a session they would be late. `None` when a stop
/// is requested, or no more events can come.
async fn drop_during<T>(
    work: impl Future<Output = T>,
    events: &mut mpsc::Receiver<Event>,
    stopping: &mut Shutdown,
) -> Option<T> {
    let dropped = async {
        while events.recv().await.is_some() {
            metrics().events_dropped.inc();
        }
    };
    tokio::select! {
        biased;
        () = stopping.requested() => None,
        () = dropped => None,
        done = work => Some(done),
    }
}

/// Open session.
struct Sender {
    session: Session,
    channel: Channel,
    exchange: ShortString,
    connection_events: ConnectionEvents,
}

/// Event that keeps a publish from ending.
enum Disturbance {
    /// The session is unusable.
    Broken(String),
    /// The broker takes nothing.
    Blocked,
}

impl Sender {
    /// Works until a stop is requested and the rest is sent, or returns the reason why the session is
    /// lost.
    async fn run(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        stopping: &mut Shutdown,
    ) -> Result<(), String> {
        // A stop does not wait for the event in hand: lapin has its frames, and sends them before the
        // rest or never.
        tokio::select! {
            ended = self.serve(events) => return ended,
            () = stopping.requested() => {}
        }
        events.close();
        let flushed = timeout(FLUSH_TIMEOUT, self.flush(events)).await;
        flushed.unwrap_or_else(|_| Err("no time left to send all events".into()))
    }

    async fn serve(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                disturbance = disturbed(&self.session, &self.channel, &mut self.connection_events) => match disturbance {
                    Disturbance::Broken(reason) => return Err(reason),
                    Disturbance::Blocked => continue,
                },
            };
            match event {
                Some(event) => self.publish(&event).await?,
                None => return Ok(()),
            }
        }
    }

    async fn flush(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
        while let Some(event) = events.recv().await {
            self.publish(&event).await?;
        }
        Ok(())
    }

    /// Sends the event, or drops it while the broker takes nothing.
    async fn publish(&mut self, event: &Event) -> Result<(), String> {
        if self.session.is_blocked() {
            metrics().events_dropped.inc();
            return Ok(());
        }
        let json = serde_json::to_vec(event).expect("an event has string keys only");
        let (exchange, key) = (self.exchange.clone(), routing_key(&event.body));
        let properties = BasicProperties::default().with_content_type("application/json".into());
        // Not mandatory: an event without a subscriber is lost without harm.
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(exchange, key, options, &json, properties);
        tokio::select! {
            // Frames are handed over when the publish is polled.
            biased;
            sent = sent => sent.map(drop).map_err(|error| error.to_string()),
            disturbance = disturbed(&self.session, &self.channel, &mut self.connection_events) => match disturbance {
                Disturbance::Broken(reason) => Err(reason),
                // The event goes out when the broker reads again; the task does not wait for it.
                Disturbance::Blocked => Ok(()),
            },
        }
    }
}

/// Resolves when no publish can end any more, or not for a while.
async fn disturbed(
    session: &Session,
    channel: &Channel,
    connection_events: &mut ConnectionEvents,
) -> Disturbance {
    loop {
        match connection_events.next().await {
            Some(lapin::Event::Error(error)) if !session.is_alive(channel) => {
                return Disturbance::Broken(error.to_string());
            }
            // Unless the block was over before its event was read.
            Some(lapin::Event::ConnectionBlocked(_)) if session.is_blocked() => return Disturbance::Blocked,
            Some(_) => {}
            None => return Disturbance::Broken("the connection has ended".into()),
        }
    }
}
