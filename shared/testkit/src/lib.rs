//! Isolation for tests against real servers: a database and queue names for each test, removed
//! afterwards whether the test passed or not. Used by tests and load tests only.
//!
//! Servers are found by `FOREBAY_TEST_AMQP_URL` and `FOREBAY_TEST_DATABASE_URL`, which `./test`
//! sets; without them at their usual loopback ports.
pub mod alone;
pub mod clock;
pub mod inspect;
pub mod private;
pub mod proxy;
pub mod servers;
pub mod sqlite;
pub mod store;
pub mod trouble;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use futures_util::FutureExt;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection as AmqpConnection, ConnectionProperties};
use sqlx::{Connection, Executor, PgConnection};

/// The resources of one test.
#[derive(Clone, Debug)]
pub struct Isolated {
    pub amqp_url: String,
    pub database_url: String,
    /// Value for `queue.prefix`.
    pub prefix: String,
}

/// URL of the broker that tests use.
pub fn amqp_url() -> String {
    std::env::var("FOREBAY_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".into())
}

/// URL of a database on the server that tests use, with the right to create others.
pub fn admin_database_url() -> String {
    std::env::var("FOREBAY_TEST_DATABASE_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".into())
}

const WORD_BYTES_MAX: usize = 24;

/// Makes a name that no other test of this or another run uses.
pub fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let run = std::env::var("FOREBAY_TEST_RUN").unwrap_or_else(|_| "local".into());
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    // A database server cuts names longer than 63 bytes, and the unique part stands last.
    let word = &word[..word.len().min(WORD_BYTES_MAX)];
    format!("forebay_test_{run}_{word}_{process}_{number}")
}

/// Runs `test` with a database and a queue prefix of its own and removes both afterwards.
pub async fn isolated<F, Fut>(word: &str, test: F)
where
    F: FnOnce(Isolated) -> Fut,
    Fut: Future<Output = ()>,
{
    let name = unique(word);
    let database_url = create_database(&name).await.expect("a database for the test");
    let isolated = Isolated { amqp_url: amqp_url(), database_url, prefix: name.clone() };
    let outcome = AssertUnwindSafe(test(isolated)).catch_unwind().await;
    let (queues, database) = (delete_queues(&amqp_url(), &name).await, drop_database(&name).await);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    queues.expect("queues are deleted");
    database.expect("database is dropped");
}

/// Runs `test` with a database role of its own, which may log in and nothing else, and removes it afterwards.
pub async fn role<F, Fut>(test: F)
where
    F: FnOnce(String) -> Fut,
    Fut: Future<Output = ()>,
{
    let (name, admin_url) = (unique("role"), admin_database_url());
    let created = execute(&admin_url, format!("create role \"{name}\" login password '{name}'")).await;
    created.expect("a role for the test");
    let outcome = AssertUnwindSafe(test(name.clone())).catch_unwind().await;
    let dropped = execute(&admin_url, format!("drop role \"{name}\"")).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    dropped.expect("the role is dropped");
}

/// Creates a database and returns its URL.
pub async fn create_database(name: &str) -> anyhow::Result<String> {
    let admin_url = admin_database_url();
    execute(&admin_url, format!("create database \"{name}\"")).await?;
    let (server, _) = admin_url.rsplit_once('/').context("a database URL has a path")?;
    Ok(format!("{server}/{name}"))
}

pub async fn drop_database(name: &str) -> anyhow::Result<()> {
    execute(&admin_database_url(), format!("drop database if exists \"{name}\" with (force)")).await
}

/// Runs one statement on a session of its own.
pub async fn execute(url: &str, statement: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await.context("no Postgres for the tests")?;
    connection.execute(sqlx::AssertSqlSafe(statement)).await?;
    connection.close().await?;
    Ok(())
}

/// Deletes every queue and exchange that Forebay declares under `prefix`.
pub async fn delete_queues(amqp_url: &str, prefix: &str) -> anyhow::Result<()> {
    let connection = AmqpConnection::connect(amqp_url, ConnectionProperties::default())
        .await
        .context("no RabbitMQ for the tests")?;
    let channel = connection.create_channel().await?;
    for queue in ["writes.v1", "dead.v1"] {
        channel.queue_delete(format!("{prefix}.{queue}").into(), QueueDeleteOptions::default()).await?;
    }
    for exchange in ["dead.v1", "events.v1"] {
        let name = format!("{prefix}.{exchange}").into();
        channel.exchange_delete(name, ExchangeDeleteOptions::default()).await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}
