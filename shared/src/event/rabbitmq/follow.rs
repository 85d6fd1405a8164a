//! The subscriber's side: a task that subscribes again and again, and the stream that reads from it.
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
use tokio::time::sleep;

use super::{RETRY_FIRST, RETRY_MAX};
use crate::backoff::Backoff;
use crate::event::{Event, EventStream, Signal};
use crate::queue::rabbitmq::{LogOnce, RabbitSettings, Session, SessionError, call, declare_events};

/// The name of the session in logs and in the broker's tools.
const NAME: &str = "forebay events subscriber";

/// Unacknowledged events of one subscriber.
const PREFETCH: u16 = 256;

/// Events that may wait in the broker for one subscriber; the oldest are dropped.
const QUEUE_LENGTH_MAX: i32 = 10_000;

/// How long an event may wait in the broker, in milliseconds. Caches do not trust older ones.
const QUEUE_TTL_MS: i32 = 30_000;

pub(super) struct RabbitEventStream {
    pub signals: mpsc::Receiver<Signal>,
}

#[async_trait]
impl EventStream for RabbitEventStream {
    async fn next(&mut self) -> Signal {
        match self.signals.recv().await {
            Some(signal) => signal,
            // The runtime is going down, and the reader with it.
            None => std::future::pending().await,
        }
    }
}

/// The reader has dropped its stream.
struct ReaderGone;

/// Subscribes again and again, until the reader is gone.
pub(super) async fn follow(settings: Arc<RabbitSettings>, signals: mpsc::Sender<Signal>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut log = LogOnce::default();
    loop {
        let opened = tokio::select! {
            opened = open(&settings) => opened,
            () = signals.closed() => return,
        };
        match opened {
            Ok((session, channel, mut consumer)) => {
                log.opened(NAME);
                let ended = tokio::select! {
                    ended = forward(&channel, &mut consumer, &signals) => ended,
                    () = signals.closed() => Err(ReaderGone),
                };
                match ended {
                    Ok(reason) => log.lost(NAME, &reason),
                    Err(ReaderGone) => return session.close().await,
                }
                backoff.reset();
            }
            Err(error) => log.failed(NAME, &error),
        }
        tokio::select! {
            () = sleep(backoff.delay()) => {}
            () = signals.closed() => return,
        }
    }
}

async fn open(settings: &RabbitSettings) -> Result<(Session, Channel, Consumer), SessionError> {
    let session = Session::open(settings, NAME).await?;
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
