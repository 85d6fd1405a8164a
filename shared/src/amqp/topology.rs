//! Queues and exchanges: their names, their arguments, and how they come to be.
//!
//! Arguments cannot be changed on an existing queue, so the names carry a version. Each object is looked at
//! passively first, so that a user without the right to configure can run against objects that an operator
//! declared. An existing object is declared again to check its arguments. Reasons for these arguments:
//! `docs/decisions/0004-broker-topology.md`.
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use tokio::time::sleep;

use super::connection::{Session, SessionError, call};
use super::settings::Names;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Deliveries after which the broker itself dead-letters a message. So many that it never does: a consumer
/// that crashes in a loop must not turn good messages into dead ones.
const DELIVERY_LIMIT: i32 = 1_000_000;

enum BrokerObject {
    Exchange(ExchangeKind),
    Queue(FieldTable),
}

/// Declares the queues and the objects that they need; runs `settle`, which waits, when a queue is new.
///
/// A broker that is killed within half a second after it made a quorum queue starts it again without a
/// leader and without the messages that it had confirmed. So the exchange of dead letters shows that the
/// queues are older than that: it is deleted before a queue is made, and declared last. A process that does
/// not find it waits, too, whichever process made the queues; hence it is looked for after them. A message
/// that is rejected meanwhile stays in its queue, and no error reports that: a caller that must know which
/// messages are dead checks that the exchange is there ([`check_dead_exchange`]).
pub(crate) async fn declare_queues(
    session: &Session,
    names: &Names,
    bytes_max: u64,
    settle: impl Future<Output = ()>,
) -> Result<(), SessionError> {
    let dead_exchange = BrokerObject::Exchange(ExchangeKind::Direct);
    let dead = BrokerObject::Queue(quorum_arguments(bytes_max));
    let mut writes = quorum_arguments(bytes_max);
    writes.insert("x-dead-letter-exchange".into(), text(names.dead.as_str()));
    writes.insert("x-dead-letter-routing-key".into(), text(names.dead.as_str()));
    // A dead letter leaves its queue only when the dead queue has confirmed it.
    writes.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    let writes = BrokerObject::Queue(writes);
    if !(exists(session, &names.dead, &dead).await? && exists(session, &names.writes, &writes).await?) {
        delete_exchange(session, &names.dead).await?;
    }
    let was_settled = exists(session, &names.dead, &dead_exchange).await?;
    let dead_existed = ensure(session, &names.dead, &dead).await?;
    let writes_existed = ensure(session, &names.writes, &writes).await?;
    if !(was_settled && dead_existed && writes_existed) {
        settle.await;
    }
    ensure(session, &names.dead, &dead_exchange).await?;
    // Objects that an operator declared without giving us the right to bind are bound already.
    bind_dead(session, &names.dead, was_settled && dead_existed).await
}

/// True when the exchange of dead letters is there; then its binding is made again, if permitted.
pub(crate) async fn check_dead_exchange(session: &Session, names: &Names) -> Result<bool, SessionError> {
    let is_there = exists(session, &names.dead, &BrokerObject::Exchange(ExchangeKind::Direct)).await?;
    if is_there {
        bind_dead(session, &names.dead, true).await?;
    }
    Ok(is_there)
}

/// Makes the exchange of dead letters again between queues that are there; makes no queue.
pub(crate) async fn restore_dead_exchange(
    session: &Session,
    names: &Names,
    settle: Duration,
) -> Result<(), SessionError> {
    for queue in [&names.dead, &names.writes] {
        declare(session, queue, &BrokerObject::Queue(FieldTable::default()), true).await?;
    }
    // It may be missing because a queue is new.
    sleep(settle).await;
    ensure(session, &names.dead, &BrokerObject::Exchange(ExchangeKind::Direct)).await?;
    bind_dead(session, &names.dead, false).await
}

/// Declares the exchange that events go through.
pub(crate) async fn declare_events(session: &Session, names: &Names) -> Result<(), SessionError> {
    ensure(session, &names.events, &BrokerObject::Exchange(ExchangeKind::Topic)).await?;
    Ok(())
}

fn quorum_arguments(bytes_max: u64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    // A full queue refuses. Its default is to drop the oldest.
    arguments.insert("x-overflow".into(), text("reject-publish"));
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes_max));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// Declares `name` with these arguments; returns true when it existed before.
async fn ensure(session: &Session, name: &ShortString, object: &BrokerObject) -> Result<bool, SessionError> {
    let existed = exists(session, name, object).await?;
    match declare(session, name, object, false).await {
        Ok(()) => Ok(existed),
        Err(error) if existed && error.code() == Some(ACCESS_REFUSED) => Ok(existed),
        Err(error) if error.code() == Some(PRECONDITION_FAILED) => {
            Err(SessionError::Misdeclared(explain(name, object, &error)))
        }
        Err(error) => Err(error),
    }
}

async fn exists(session: &Session, name: &ShortString, object: &BrokerObject) -> Result<bool, SessionError> {
    match declare(session, name, object, true).await {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Declares on a channel of its own, because an error closes the channel.
async fn declare(
    session: &Session,
    name: &ShortString,
    object: &BrokerObject,
    passive: bool,
) -> Result<(), SessionError> {
    let channel = session.channel().await?;
    match object {
        BrokerObject::Exchange(kind) => {
            let mut options = ExchangeDeclareOptions::default();
            (options.passive, options.durable) = (passive, true);
            let none = FieldTable::default();
            call("exchange.declare", channel.exchange_declare(name.clone(), kind.clone(), options, none))
                .await?;
        }
        BrokerObject::Queue(arguments) => {
            let mut options = QueueDeclareOptions::default();
            (options.passive, options.durable) = (passive, true);
            call("queue.declare", channel.queue_declare(name.clone(), options, arguments.clone())).await?;
        }
    }
    call("channel.close", channel.close(200, "done".into())).await
}

/// Deletes an exchange. Without the right to it the exchange stays: then an operator declares the queues.
async fn delete_exchange(session: &Session, name: &ShortString) -> Result<(), SessionError> {
    let channel = session.channel().await?;
    let deleted = channel.exchange_delete(name.clone(), ExchangeDeleteOptions::default());
    match call("exchange.delete", deleted).await {
        Ok(()) => call("channel.close", channel.close(200, "done".into())).await,
        Err(error) if matches!(error.code(), Some(ACCESS_REFUSED | NOT_FOUND)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Binds the dead queue. Without the right to it that is an error unless both `existed`.
async fn bind_dead(session: &Session, dead: &ShortString, existed: bool) -> Result<(), SessionError> {
    let channel = session.channel().await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel.queue_bind(dead.clone(), dead.clone(), dead.clone(), options, none);
    match call("queue.bind", bound).await {
        Ok(()) => call("channel.close", channel.close(200, "done".into())).await,
        Err(error) if existed && error.code() == Some(ACCESS_REFUSED) => Ok(()),
        Err(error) => Err(error),
    }
}

fn explain(name: &ShortString, object: &BrokerObject, error: &SessionError) -> String {
    match object {
        BrokerObject::Exchange(_) => format!(
            "exchange {name} exists, but with other properties than this build needs ({error}): \
             delete it, and it is declared anew, or use another queue.prefix"
        ),
        BrokerObject::Queue(_) => format!(
            "queue {name} exists, but with other arguments than this build needs ({error}): set \
             queue.bytes_max to what the queue has (a policy may tighten it), or stop the writers, \
             let the queue drain and delete it, and it is declared anew; or use another queue.prefix"
        ),
    }
}
