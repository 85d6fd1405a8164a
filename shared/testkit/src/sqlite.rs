//! A look into the files of the embedded form, from outside.
use std::path::Path;

use anyhow::ensure;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};

/// Problems that SQLite finds in a file; none when it is sound.
pub async fn integrity(file: &Path) -> anyhow::Result<Vec<String>> {
    let mut connection = open(file).await?;
    let said: Result<Vec<String>, _> =
        sqlx::query_scalar("pragma integrity_check").fetch_all(&mut connection).await;
    let said = match said {
        Ok(said) => said,
        // Some damage keeps even the check from running.
        Err(error) => vec![error.to_string()],
    };
    connection.close().await?;
    ensure!(!said.is_empty(), "the check of {} said nothing", file.display());
    Ok(said.into_iter().filter(|said| said != "ok").collect())
}

/// Number of rows in a table.
pub async fn count(file: &Path, table: &str) -> anyhow::Result<i64> {
    let mut connection = open(file).await?;
    let count = AssertSqlSafe(format!("select count(*) from \"{table}\""));
    let count = sqlx::query_scalar(count).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count)
}

/// Runs one statement on a session of its own.
pub async fn execute(file: &Path, statement: String) -> anyhow::Result<()> {
    let mut connection = open(file).await?;
    connection.execute(AssertSqlSafe(statement)).await?;
    connection.close().await?;
    Ok(())
}

async fn open(file: &Path) -> anyhow::Result<SqliteConnection> {
    ensure!(file.is_file(), "{} is missing", file.display());
    Ok(SqliteConnectOptions::new().filename(file).connect().await?)
}

/// A lock that keeps all other connections from writing while it lives.
pub struct WriteLock(#[expect(dead_code, reason = "held, not used")] SqliteConnection);

/// Makes a database without a table, in the journal mode of the program's own files, and begins a
/// transaction that writes. In another mode the program would switch, which fails at once beside a
/// lock.
pub async fn create_locked(file: &Path) -> anyhow::Result<WriteLock> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut connection = options.journal_mode(SqliteJournalMode::Wal).connect().await?;
    connection.execute("begin immediate").await?;
    Ok(WriteLock(connection))
}
