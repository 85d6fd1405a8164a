//! Subscriber's side: a task that subscribes again and again, and the stream that reads from it.
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::FutureExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::amqp::connection::{Session, SessionError, SessionRetries, call};
use crate::amqp::settings::{Names, RabbitSettings};
use crate::amqp::topology::declare_events;
use crate::event::{Event, EventStream, SILENCE_MAX, Signal};

/// Name of the session in logs and in the broker's tools.
const NAME: &str = "forebay events subscriber";

/// Maximum of unacknowledged events of one subscriber.
const PREFETCH: u16 = 256;

/// Maximum of events that wait in the broker for one subscriber; the oldest are dropped.
const QUEUE_LENGTH_MAX: i32 = 10_000;

/// Longest time that an event waits in the broker, in milliseconds. Caches do not trust older ones.
const QUEUE_TTL_MS: i32 = 30_000;

pub(super) struct RabbitEventStream {
    pub signals: mpsc::Receiver<Signal>,
    /// Task that follows; `None` once its end is known.
    pub following: Option<JoinHandle<()>>,
}

impl RabbitEventStream {
    /// Waits for the end of the follower, and panics when it did. Safe to cancel.
    async fn ended(&mut self) -> Signal {
        if let Some(following) = &mut self.following {
            let ended = following.await;
            self.following = None;
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        // The runtime stops, and the reader with it.
        std::future::pending().await
    }
}

#[async_trait]
impl EventStream for RabbitEventStream {
    async fn next(&mut self) -> Signal {
        match self.signals.recv().await {
            Some(signal) => signal,
            None => self.ended().await,
        }
    }
}

/// Subscribes again and again, until the reader is gone.
pub(super) async fn follow(settings: Arc<RabbitSettings>, signals: mpsc::Sender<Signal>) {
    let mut retries = SessionRetries::new(NAME);
    while let Some(opened) = while_read(&signals, Listener::open(&settings)).await {
        match opened {
            Ok(mut listener) => {
                retries.opened();
                let forwarding = while_read(&signals, listener.forward(&signals));
                match retries.during(forwarding).await {
                    (Some(Some(reason)), lasted) => retries.lost(&reason, lasted),
                    _ => return listener.session.close().await,
                }
            }
            Err(error) => retries.failed(&error),
        }
        while_read(&signals, retries.pause()).await;
    }
}

/// Runs `work`; `None` when the reader drops its stream before its end.
async fn while_read<T>(signals: &mpsc::Sender<Signal>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = signals.closed() => None,
        done = work => Some(done),
    }
}

/// Open session with a queue of its own.
struct Listener {
    session: Session,
    channel: Channel,
    names: Names,
    queue: ShortString,
    consumer: Consumer,
}

impl Listener {
    async fn open(settings: &RabbitSettings) -> Result<Self, SessionError> {
        let session = Session::open(settings, NAME).await?;
        let names = settings.names();
        declare_events(&session, &names).await?;
        let channel = session.channel().await?;
        let (unnamed, none) = (ShortString::default(), FieldTable::default);
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(QUEUE_LENGTH_MAX));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(QUEUE_TTL_MS));
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let declared = channel.queue_declare(unnamed.clone(), options, arguments);
        let queue = call("queue.declare", declared).await?.name().clone();
        bind(&channel, &queue, &names).await?;
        call("basic.qos", channel.basic_qos(PREFETCH, BasicQosOptions { global: false })).await?;
        let consumer = channel.basic_consume(queue.clone(), unnamed, BasicConsumeOptions::default(), none());
        let consumer = call("basic.consume", consumer).await?;
        Ok(Self { session, channel, names, queue, consumer })
    }

    /// Forwards events until the session is lost; returns the reason, or `None` when the reader is gone.
    async fn forward(&mut self, signals: &mpsc::Sender<Signal>) -> Option<String> {
        // From here on nothing is missed; earlier events may have been.
        signals.send(Signal::Interrupted).await.ok()?;
        let (mut has_warned, mut was_silent) = (false, false);
        let mut unacknowledged = None;
        loop {
            let came = match (self.consumer.next().now_or_never(), unacknowledged) {
                (Some(came), _) => Some(came),
                // Once per burst: all of it has been forwarded.
                (None, Some(last)) => {
                    let acknowledged = self.channel.basic_ack(last, BasicAckOptions { multiple: true });
                    if let Err(error) = call("basic.ack", acknowledged).await {
                        return Some(error.to_string());
                    }
                    unacknowledged = None;
                    continue;
                }
                (None, None) => timeout(SILENCE_MAX, self.consumer.next()).await.ok(),
            };
            let Some(came) = came else {
                // An operator may have deleted the exchange, and the binding with it, without a notice to
                // this session. Publishers make the exchange again, but without this binding. While it is
                // missing this ends the session.
                if let Err(error) = bind(&self.channel, &self.queue, &self.names).await {
                    return Some(error.to_string());
                }
                if !std::mem::replace(&mut was_silent, true) {
                    signals.send(Signal::Interrupted).await.ok()?;
                }
                continue;
            };
            match came {
                Some(Ok(delivery)) => {
                    if std::mem::take(&mut was_silent) {
                        // Perhaps the event came only because this binding was just made again.
                        signals.send(Signal::Interrupted).await.ok()?;
                    }
                    unacknowledged = Some(delivery.delivery_tag);
                    signals.send(read(&delivery.data, &mut has_warned)).await.ok()?;
                }
                Some(Err(error)) => return Some(error.to_string()),
                None => return Some("the broker cancelled the consumer".into()),
            }
        }
    }
}

async fn bind(channel: &Channel, queue: &ShortString, names: &Names) -> Result<(), SessionError> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel.queue_bind(queue.clone(), names.events.clone(), "#".into(), options, none);
    call("queue.bind", bound).await
}

/// Treats an event that cannot be read as missed. Logged once per session, since its publisher would send
/// more of them.
fn read(json: &[u8], has_warned: &mut bool) -> Signal {
    match Event::read(json) {
        Ok(event) => Signal::Event(Arc::new(event)),
        Err(error) => {
            if !std::mem::replace(has_warned, true) {
                tracing::warn!(error.message = %error, "unreadable event");
            }
            Signal::Interrupted
        }
    }
}
