//! Events through a RabbitMQ topic exchange.
//!
//! Publisher and each subscriber own a connection and rebuild it for ever. Events are transient,
//! unconfirmed and dropped whenever the channel does not take them: their numbers and heartbeats
//! tell the subscribers that something is missing. The queue of a subscriber is exclusive and
//! named by the server anew in each session, since a name from before cannot be declared again.
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::FutureExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Body, Event, EventStream, Events, Signal};
use crate::backoff::Backoff;
use crate::queue::rabbitmq::{
    ConnectionEvents, LogOnce, Names, RabbitSettings, Session, SessionError, call, declare_events,
};
use crate::shutdown::{self, Shutdown, Trigger};
use crate::telemetry::metrics;

/// Names of the sessions in logs and in the broker's tools.
const PUBLISHER: &str = "forebay events publisher";
const SUBSCRIBER: &str = "forebay events subscriber";

/// Events that may wait for the publisher.
const BUFFER_MAX: usize = 1_024;

/// Signals that may wait for the reader of a stream; beyond them the broker's queue fills.
const SIGNALS_MAX: usize = 1_024;

/// Unacknowledged events of one subscriber.
const PREFETCH: u16 = 256;

/// Events that may wait in the broker for one subscriber; the oldest are dropped.
const QUEUE_LENGTH_MAX: i32 = 10_000;

/// How long an event may wait in the broker, in milliseconds. Caches do not trust older ones.
const QUEUE_TTL_MS: i32 = 30_000;

/// How long `close` may take to send what is left.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The exchange `<prefix>.events.v1`.
pub struct RabbitEvents {
    settings: Arc<RabbitSettings>,
    runtime: Handle,
    buffer: mpsc::Sender<Event>,
    stop: Trigger,
    publisher: Mutex<Option<JoinHandle<()>>>,
    publisher_over: Shutdown,
}

impl RabbitEvents {
    /// Must be called on a tokio runtime, which keeps the sessions. Never fails and never waits.
    pub fn start(settings: RabbitSettings) -> Arc<Self> {
        let (settings, runtime) = (Arc::new(settings), Handle::current());
        let (buffer, events) = mpsc::channel(BUFFER_MAX);
        let (stop, stopping) = shutdown::channel();
        let publishing = publish_all(Arc::clone(&settings), events, stopping);
        let (publisher, publisher_over) = shutdown::watched(publishing);
        let publisher = Mutex::new(Some(publisher));
        Arc::new(Self { settings, runtime, buffer, stop, publisher, publisher_over })
    }
}

impl fmt::Debug for RabbitEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitEvents").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[async_trait]
impl Events for RabbitEvents {
    fn publish(&self, event: Event) {
        if self.buffer.try_send(event).is_err() {
            metrics().events_dropped.inc();
        }
    }

    async fn subscribe(&self) -> Box<dyn EventStream> {
        let (sender, signals) = mpsc::channel(SIGNALS_MAX);
        let following = Some(self.runtime.spawn(follow(Arc::clone(&self.settings), sender)));
        Box::new(RabbitEventStream { signals, following })
    }

    fn over(&self) -> Vec<Shutdown> {
        vec![self.publisher_over.clone()]
    }

    async fn close(&self) {
        self.stop.request();
        let publisher = self.publisher.lock().expect("no code panics while it holds this lock").take();
        if let Some(publisher) = publisher {
            // An error is a panic of the publisher, which the panic hook has told.
            let _ = publisher.await;
        }
    }
}

/// The word that others may bind to; this program binds to all.
fn routing_key(body: &Body) -> ShortString {
    match body {
        Body::Committed(_) => "committed",
        Body::Heartbeat { .. } => "heartbeat",
        Body::Goodbye => "goodbye",
    }
    .into()
}

async fn publish_all(
    settings: Arc<RabbitSettings>,
    mut events: mpsc::Receiver<Event>,
    mut stopping: Shutdown,
) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut log = LogOnce::default();
    while !stopping.is_requested() {
        let opened = tokio::select! {
            opened = open_publisher(&settings) => opened,
            () = drop_all(&mut events) => return,
            () = stopping.requested() => return,
        };
        match opened {
            Ok((session, channel)) => {
                log.opened(PUBLISHER);
                match publish_on(&session, &channel, &settings.names(), &mut events, &mut stopping).await {
                    Ok(()) => return session.close().await,
                    Err(reason) => log.lost(PUBLISHER, &reason),
                }
                backoff.reset();
            }
            Err(error) => log.failed(PUBLISHER, &error),
        }
        tokio::select! {
            () = sleep(backoff.delay()) => {}
            () = drop_all(&mut events) => return,
            () = stopping.requested() => return,
        }
    }
}

async fn open_publisher(settings: &RabbitSettings) -> Result<(Session, Channel), SessionError> {
    let session = Session::open(settings, PUBLISHER).await?;
    declare_events(&session, &settings.names()).await?;
    let channel = session.channel().await?;
    Ok((session, channel))
}

/// An event that waited for a session would be late. Ends when there will be no more.
async fn drop_all(events: &mut mpsc::Receiver<Event>) {
    while events.recv().await.is_some() {
        metrics().events_dropped.inc();
    }
}

/// Until a stop is requested and all is sent, or the reason why the session is lost. While the
/// broker blocks the connection a publish waits and the buffer overflows, as it should.
async fn publish_on(
    session: &Session,
    channel: &Channel,
    names: &Names,
    events: &mut mpsc::Receiver<Event>,
    stopping: &mut Shutdown,
) -> Result<(), String> {
    let mut told = session.events();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => publish_one(session, channel, names, &event, &mut told).await?,
                None => return Ok(()),
            },
            () = stopping.requested() => break,
            reason = broken(session, channel, &mut told) => return Err(reason),
        }
    }
    events.close();
    let flush = async {
        while let Some(event) = events.recv().await {
            publish_one(session, channel, names, &event, &mut told).await?;
        }
        Ok(())
    };
    timeout(FLUSH_TIMEOUT, flush).await.unwrap_or_else(|_| Err("no time left to send all events".into()))
}

async fn publish_one(
    session: &Session,
    channel: &Channel,
    names: &Names,
    event: &Event,
    told: &mut ConnectionEvents,
) -> Result<(), String> {
    let json = serde_json::to_vec(event).expect("an event has string keys only");
    let (exchange, key) = (names.events.clone(), routing_key(&event.body));
    let properties = BasicProperties::default().with_content_type("application/json".into());
    // Not mandatory: an event without a subscriber concerns nobody.
    let sent = channel.basic_publish(exchange, key, BasicPublishOptions::default(), &json, properties);
    tokio::select! {
        sent = sent => sent.map(drop).map_err(|error| error.to_string()),
        reason = broken(session, channel, told) => Err(reason),
    }
}

/// Resolves with the reason once the session is unusable.
async fn broken(session: &Session, channel: &Channel, told: &mut ConnectionEvents) -> String {
    loop {
        match told.next().await {
            Some(lapin::Event::Error(error)) if !session.is_alive(channel) => return error.to_string(),
            Some(_) => {}
            None => return "the connection has ended".into(),
        }
    }
}

struct RabbitEventStream {
    signals: mpsc::Receiver<Signal>,
    /// `None` once it is known how it ended.
    following: Option<JoinHandle<()>>,
}

impl RabbitEventStream {
    /// Goes on panicking when the follower did. Safe to cancel.
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
        // The runtime is going down, and the reader with it.
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

/// The reader has dropped its stream.
struct ReaderGone;

/// Subscribes again and again, until the reader is gone.
async fn follow(settings: Arc<RabbitSettings>, signals: mpsc::Sender<Signal>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut log = LogOnce::default();
    loop {
        let opened = tokio::select! {
            opened = open_subscriber(&settings) => opened,
            () = signals.closed() => return,
        };
        match opened {
            Ok((session, channel, mut consumer)) => {
                log.opened(SUBSCRIBER);
                let ended = tokio::select! {
                    ended = forward(&channel, &mut consumer, &signals) => ended,
                    () = signals.closed() => Err(ReaderGone),
                };
                match ended {
                    Ok(reason) => log.lost(SUBSCRIBER, &reason),
                    Err(ReaderGone) => return session.close().await,
                }
                backoff.reset();
            }
            Err(error) => log.failed(SUBSCRIBER, &error),
        }
        tokio::select! {
            () = sleep(backoff.delay()) => {}
            () = signals.closed() => return,
        }
    }
}

async fn open_subscriber(settings: &RabbitSettings) -> Result<(Session, Channel, Consumer), SessionError> {
    let session = Session::open(settings, SUBSCRIBER).await?;
    let names = settings.names();
    declare_events(&session, &names).await?;
    let channel = session.channel().await?;
    let (unnamed, none) = (ShortString::default(), FieldTable::default);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(QUEUE_LENGTH_MAX));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(QUEUE_TTL_MS));
    let options = QueueDeclareOptions::exclusive().auto_delete();
    let queue = call("queue.declare", channel.queue_declare(unnamed.clone(), options, arguments)).await?;
    let (queue, all) = (queue.name().clone(), "#".into());
    let bound = channel.queue_bind(queue.clone(), names.events, all, QueueBindOptions::default(), none());
    call("queue.bind", bound).await?;
    call("basic.qos", channel.basic_qos(PREFETCH, BasicQosOptions { global: false })).await?;
    let consumer = channel.basic_consume(queue, unnamed, BasicConsumeOptions::default(), none());
    let consumer = call("basic.consume", consumer).await?;
    Ok((session, channel, consumer))
}

/// Hands events on until the session is lost; returns why.
async fn forward(
    channel: &Channel,
    consumer: &mut Consumer,
    signals: &mpsc::Sender<Signal>,
) -> Result<String, ReaderGone> {
    // From here on nothing is missed; what was before is not known.
    signals.send(Signal::Interrupted).await.map_err(|_| ReaderGone)?;
    let mut has_warned = false;
    let mut unacknowledged = None;
    loop {
        let came = match (consumer.next().now_or_never(), unacknowledged) {
            (Some(came), _) => came,
            // Once per burst: all of it has been handed on.
            (None, Some(last)) => {
                let acknowledged = channel.basic_ack(last, BasicAckOptions { multiple: true });
                if let Err(error) = call("basic.ack", acknowledged).await {
                    return Ok(error.to_string());
                }
                unacknowledged = None;
                continue;
            }
            (None, None) => consumer.next().await,
        };
        match came {
            Some(Ok(delivery)) => {
                unacknowledged = Some(delivery.delivery_tag);
                let signal = read(&delivery.data, &mut has_warned);
                signals.send(signal).await.map_err(|_| ReaderGone)?;
            }
            Some(Err(error)) => return Ok(error.to_string()),
            None => return Ok("the broker cancelled the consumer".into()),
        }
    }
}

/// What cannot be read is something that was missed. Told once per session, since a publisher of
/// another version would say it with each event.
fn read(json: &[u8], has_warned: &mut bool) -> Signal {
    match serde_json::from_slice::<Event>(json) {
        Ok(event) => Signal::Event(Arc::new(event)),
        Err(error) => {
            if !std::mem::replace(has_warned, true) {
                tracing::warn!(error.message = %error, "unreadable event");
            }
            Signal::Interrupted
        }
    }
}
