//! Ties the queue's file to the store's: both carry one number, drawn at random when they first meet.
//!
//! Without it a queue beside another or an empty store would go on working, and everything in the old
//! store would look as if it had never been. The number is SQLite's `application_id`: it is part of the
//! file's header, so files of earlier builds take it without another layout. Backups keep it.
use std::path::Path;

use anyhow::{Context, bail};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};

const QUEUE: &str = "queue.db";
const STORE: &str = "store.db";

/// Number of a file that is tied to no other yet.
const NONE: i32 = 0;

/// Refuses a queue whose store is missing or another one. Creates neither file.
pub async fn check(directory: &Path) -> anyhow::Result<()> {
    let (queue, store) = (number_in(directory, QUEUE).await?, number_in(directory, STORE).await?);
    if queue != NONE && queue != store {
        let what = if store == NONE { "is missing, or is new" } else { "belongs to another queue" };
        bail!(
            "{STORE} in {} {what}: put the store back that belongs to {QUEUE}; or to begin with another store \
             and without what waits in the queue, move {QUEUE} away",
            directory.display()
        );
    }
    if queue == NONE && store != NONE && directory.join(QUEUE).exists() {
        tracing::debug!("the queue does not carry the number of its store yet");
    } else if queue == NONE && store != NONE {
        tracing::warn!("{QUEUE} is missing beside its store: what waited in it is lost, a new one is made");
    }
    Ok(())
}

/// Ties two files that were opened and [checked](check). The store's number is written first: a queue
/// that carries a number alone would be refused.
pub async fn tie(directory: &Path) -> anyhow::Result<()> {
    let mut number = number_in(directory, STORE).await?;
    if number == NONE {
        number = rand::random_range(1..=i32::MAX);
        write(directory, STORE, number).await?;
    }
    if number_in(directory, QUEUE).await? != number {
        write(directory, QUEUE, number).await?;
    }
    Ok(())
}

async fn number_in(directory: &Path, file: &str) -> anyhow::Result<i32> {
    if !directory.join(file).exists() {
        return Ok(NONE);
    }
    // Read-only: a connection that may write would end the log when it closes.
    let mut connection = open(directory, file, true).await?;
    let number = sqlx::query_scalar("pragma application_id").fetch_one(&mut connection).await;
    connection.close().await?;
    number.with_context(|| format!("cannot read {file} in {}", directory.display()))
}

async fn write(directory: &Path, file: &str, number: i32) -> anyhow::Result<()> {
    let mut connection = open(directory, file, false).await?;
    let written = connection.execute(AssertSqlSafe(format!("pragma application_id = {number}"))).await;
    connection.close().await?;
    written.map(drop).with_context(|| format!("cannot write to {file} in {}", directory.display()))
}

async fn open(directory: &Path, file: &str, read_only: bool) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(directory.join(file)).read_only(read_only);
    let opened = options.disable_statement_logging().connect().await;
    opened.with_context(|| format!("cannot open {file} in {}", directory.display()))
}
