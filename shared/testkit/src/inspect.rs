//! A look into a broker and a database from outside, for tests that check what a run has left
//! behind. It also puts messages into a queue that no API would send.
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection as AmqpConnection, ConnectionProperties, ExchangeKind,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tokio::time::timeout;

/// Time limit for the check that a server answers. A server that is there answers soon, except on a
/// busy machine; neither client gives up by itself.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for everything else.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sessions of clients at a database, without the one that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sessions {
    pub open: i64,
    /// Sessions among them that are idle within a transaction.
    pub in_transaction: i64,
}

/// Puts a persistent message straight into `queue`; returns once the broker has confirmed it.
pub async fn publish(amqp_url: &str, queue: &str, body: &[u8]) -> anyhow::Result<()> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm =
            channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await?;
        ensure!(matches!(confirm, Confirmation::Ack(None)), "{queue} did not take a message: {confirm:?}");
        connection.close(200, "done".into()).await?;
        Ok(())
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Sends a transient message through `exchange`, to whatever is bound to it.
pub async fn send(amqp_url: &str, exchange: &str, body: &[u8]) -> anyhow::Result<()> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish(exchange.into(), "later".into(), options, body, properties).await?.await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Checks that a broker accepts a connection; false after a while without an answer.
pub async fn broker_answers(amqp_url: &str) -> bool {
    let asked = async {
        let (connection, _) = open(amqp_url).await?;
        anyhow::Ok(connection.close(200, "done".into()).await?)
    };
    timeout(ANSWER_PATIENCE, asked).await.is_ok_and(|answered| answered.is_ok())
}

/// Checks that a database accepts a connection; false after a while without an answer.
pub async fn database_answers(database_url: &str) -> bool {
    timeout(ANSWER_PATIENCE, sessions(database_url)).await.is_ok_and(|answered| answered.is_ok())
}

/// Messages that wait in `queue`, without those that a consumer holds. The queue must exist.
pub async fn waiting(amqp_url: &str, queue: &str) -> anyhow::Result<u32> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(declared.message_count())
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// The bodies of all messages that wait in `queue`. They go back into it.
pub async fn bodies(amqp_url: &str, queue: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        let mut bodies = Vec::new();
        // Not acknowledged: closing the connection gives them back.
        while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
            bodies.push(message.delivery.data);
        }
        connection.close(200, "done".into()).await?;
        Ok(bodies)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// The bodies of whole messages among the dead letters of a database, as they are stored.
pub async fn dead_messages(database_url: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let asked = async {
        let mut connection = PgConnection::connect(database_url).await?;
        let items = sqlx::query_scalar::<_, String>("select item from dead_letters where kind = 'message'");
        let items = items.fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(items.into_iter().map(String::into_bytes).collect())
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Delivery count of each message that waits in `queue`. This look is one more delivery.
pub async fn delivery_counts(amqp_url: &str, queue: &str) -> anyhow::Result<Vec<i64>> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        let mut counts = Vec::new();
        // Not acknowledged: closing the connection gives them back.
        while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
            let headers = message.delivery.properties.headers().as_ref();
            let count = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
            counts.push(match count {
                None => 0,
                Some(AMQPValue::LongLongInt(count)) => *count,
                Some(AMQPValue::LongInt(count)) => i64::from(*count),
                Some(AMQPValue::ShortShortInt(count)) => i64::from(*count),
                Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
                Some(other) => anyhow::bail!("a delivery count that is no number: {other:?}"),
            });
        }
        connection.close(200, "done".into()).await?;
        Ok(counts)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Deletes `queue` with all that is in it.
pub async fn delete_queue(amqp_url: &str, queue: &str) -> anyhow::Result<()> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Deletes an exchange with its bindings; its clients get no notice.
pub async fn delete_exchange(amqp_url: &str, exchange: &str) -> anyhow::Result<()> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Checks that an exchange of this name exists.
pub async fn exchange_exists(amqp_url: &str, exchange: &str) -> anyhow::Result<bool> {
    let asked = async {
        let (connection, channel) = open(amqp_url).await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(exchange.into(), ExchangeKind::Direct, options, FieldTable::default());
        let is_there = declared.await.is_ok();
        connection.close(200, "done".into()).await?;
        Ok(is_there)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Reads the sessions at the database that the URL names.
pub async fn sessions(database_url: &str) -> anyhow::Result<Sessions> {
    let asked = async {
        let mut connection = PgConnection::connect(database_url).await?;
        let (open, in_transaction) = sqlx::query_as(
            "select count(*), count(*) filter (where state like 'idle in transaction%') from pg_stat_activity \
             where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()",
        )
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        Ok(Sessions { open, in_transaction })
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Points by type: the name, the number of rows and the sum of the values.
pub type Points = Vec<(String, i64, f64)>;

/// Reads the points in Postgres.
pub async fn points(database_url: &str) -> anyhow::Result<Points> {
    let asked = async {
        let mut connection = PgConnection::connect(database_url).await?;
        let points = sqlx::query_as(
            "select name, count(*), sum(value) from points join metric_types on id = type group by name",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        Ok(points)
    };
    timeout(PATIENCE, asked).await.context("a server does not answer")?
}

/// Reads the points in the directory of an embedded program that has stopped.
pub async fn points_in_file(directory: &Path) -> anyhow::Result<Points> {
    let options = SqliteConnectOptions::new().filename(directory.join("store.db")).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    // One table for each day.
    let tables: Vec<String> = sqlx::query_scalar(
        "select name from sqlite_master where type = 'table' and name glob 'points_[0-9]*'",
    )
    .fetch_all(&mut connection)
    .await?;
    let mut points = Points::new();
    for table in tables {
        let count = format!(
            "select name, count(*), sum(value) from {table} join metric_types on id = type group by name"
        );
        let of_day: Points = sqlx::query_as(AssertSqlSafe(count)).fetch_all(&mut connection).await?;
        points.extend(of_day);
    }
    connection.close().await?;
    Ok(points)
}

async fn open(amqp_url: &str) -> anyhow::Result<(AmqpConnection, Channel)> {
    let connection =
        AmqpConnection::connect(amqp_url, ConnectionProperties::default()).await.context("no RabbitMQ")?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}
