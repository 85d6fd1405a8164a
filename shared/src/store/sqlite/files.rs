//! The database file: one connection that writes, a few that read, and the way to use both.
//!
//! A write runs as a task of its own to its end, even when its caller stops waiting, so that no transaction
//! is left open; after an error its connection is replaced, so that none is inherited.
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::runtime::metrics::metrics;
use crate::store::StoreError;
use crate::store::rules::checks::Unchecked;
use crate::store::rules::schema::{Ran, compare, not_migrated};
use crate::store::rules::work::{Work, separate};

static MIGRATOR: Migrator = sqlx::migrate!("./migrations/sqlite");

/// Maximum of readers. They never wait for the writer; more of them would wait for the disk.
const READERS_MAX: u32 = 4;
/// Time that a read may wait for a reader.
const READER_TIMEOUT: Duration = Duration::from_secs(2);
/// Operations of a read after which SQLite looks at the clock.
const OPERATIONS_BETWEEN_LOOKS: i32 = 10_000;
/// Time that a write waits for the file, which a backup tool may hold for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns true for SQLITE_TOOBIG, SQLITE_CONSTRAINT and SQLITE_MISMATCH, and for the codes that extend one
/// of them, such as the refusal of a trigger.
fn is_about_values(code: Option<&str>) -> bool {
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| matches!(code & 0xff, 18..=20))
}

/// Code of SQLITE_INTERRUPT.
const INTERRUPTED: &str = "9";

#[derive(Debug, thiserror::Error)]
pub enum SqliteFailure {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// An error that the caller gets as it is.
    #[error(transparent)]
    Decided(#[from] StoreError),
    /// Documents have to be checked first, outside of any transaction.
    #[error("definitions change faster than documents can be checked")]
    Unchecked(Vec<Unchecked>),
    /// The message may have been applied before, and no person has decided.
    #[error("a message is older than what the ledger remembers")]
    TooOld,
}

/// Statements to run on a connection.
pub trait SqliteWork<T>:
    for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, SqliteFailure>> + Send + 'static
{
}

impl<T, F> SqliteWork<T> for F where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, SqliteFailure>> + Send + 'static
{
}

pub struct Files {
    shared: Arc<SharedFiles>,
    runtime: Handle,
    write_timeout: Duration,
}

struct SharedFiles {
    options: SqliteConnectOptions,
    read_timeout: Duration,
    writer: Mutex<WriterConnection>,
    readers: SqlitePool,
    /// Limits the readers that [`Files::list`] uses.
    list_permits: Semaphore,
    schema_verified: AtomicBool,
}

enum WriterConnection {
    Open(SqliteConnection),
    /// Closed after an error; opened again by the next write.
    Broken,
    Closed,
}

impl Files {
    /// Opens the file. A read is ended after `read_timeout`, a write after `write_timeout`. Lists have
    /// `list_readers_max` readers, and one less than all at most.
    pub async fn open(
        directory: &Path,
        read_timeout: Duration,
        write_timeout: Duration,
        list_readers_max: u32,
    ) -> Result<Self, StoreError> {
        let runtime = Handle::current();
        std::fs::create_dir_all(directory).map_err(|error| {
            StoreError::Unavailable(format!("cannot make the data directory: {error}").into())
        })?;
        let options = options(&directory.join("store.db"));
        let writer = options.connect().await.map_err(SqliteFailure::from)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(READER_TIMEOUT)
            // A file does not close connections.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone().read_only(true).create_if_missing(false));
        let shared = SharedFiles {
            options,
            read_timeout,
            writer: Mutex::new(WriterConnection::Open(writer)),
            readers,
            list_permits: Semaphore::new(list_readers_max.clamp(1, READERS_MAX - 1) as usize),
            schema_verified: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), runtime, write_timeout })
    }

    /// Runs `work` in a transaction that holds the write lock from its beginning.
    pub async fn write<T: Send + 'static>(
        &self,
        operation: &str,
        work: impl SqliteWork<T>,
    ) -> Result<T, StoreError> {
        Ok(self.try_write(operation, self.write_timeout, work).await?)
    }

    /// Runs `work` as [`write`](Self::write) does, for a caller that can mend a failure. A statement that
    /// goes on after `limit` is ended by SQLite itself.
    pub async fn try_write<T: Send + 'static>(
        &self,
        operation: &str,
        limit: Duration,
        work: impl SqliteWork<T>,
    ) -> Result<T, SqliteFailure> {
        let shared = Arc::clone(&self.shared);
        let (work, result) = separate(work);
        let write = async move {
            let mut writer = shared.writer.lock().await;
            let outcome = writer.transaction(&shared, limit, work).await;
            if outcome.is_err() {
                writer.replace_later().await;
            }
            outcome
        };
        self.timed(operation, write.boxed()).await?;
        Ok(result.take())
    }

    pub async fn read<T: Send + 'static>(
        &self,
        operation: &str,
        work: impl SqliteWork<T>,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let (work, result) = separate(work);
        self.timed(operation, async move { shared.read(work).await }.boxed()).await?;
        Ok(result.take())
    }

    /// Runs a read that a client can make slow: such reads have a share of the readers.
    pub async fn list<T: Send + 'static>(
        &self,
        operation: &str,
        work: impl SqliteWork<T>,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let (work, result) = separate(work);
        let read = async move {
            let permit = timeout(READER_TIMEOUT, shared.list_permits.acquire()).await;
            let _permit = permit.map_err(|_| sqlx::Error::PoolTimedOut)?.expect("never closed");
            shared.read(work).await
        };
        self.timed(operation, read.boxed()).await?;
        Ok(result.take())
    }

    async fn timed(
        &self,
        operation: &str,
        work: BoxFuture<'static, Result<(), SqliteFailure>>,
    ) -> Result<(), SqliteFailure> {
        let timer = metrics().store_seconds.with_label_values(&[operation]).start_timer();
        let outcome = joined(self.runtime.spawn(work)).await;
        timer.observe_duration();
        outcome
    }

    pub async fn migrate(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let migration = self.runtime.spawn(async move {
            // No other write runs meanwhile.
            let _writer = shared.writer.lock().await;
            let options = shared.options.clone();
            let pool = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
            let migrated = MIGRATOR.run(&pool).await;
            pool.close().await;
            shared.schema_verified.store(false, Ordering::Release);
            Ok(migrated.map_err(|error| not_migrated(&MIGRATOR, &error))?)
        });
        Ok(joined(migration).await?)
    }

    /// Waits for the write under way, moves the log into the database file and closes both.
    pub async fn close(&self) {
        let shared = Arc::clone(&self.shared);
        let closing = self.runtime.spawn(async move {
            // A reader in the middle of its read would keep the log from being emptied.
            shared.readers.close().await;
            let mut writer = shared.writer.lock().await;
            if let WriterConnection::Open(mut connection) =
                std::mem::replace(&mut *writer, WriterConnection::Closed)
            {
                sqlx::query("pragma wal_checkpoint(truncate)").execute(&mut connection).await?;
                connection.close().await?;
            }
            Ok(())
        });
        if let Err(error) = joined(closing).await {
            // No data is lost: the log is read at the next start.
            tracing::warn!(%error, "store was not closed cleanly");
        }
    }
}

impl WriterConnection {
    async fn transaction(
        &mut self,
        shared: &SharedFiles,
        limit: Duration,
        work: Work<SqliteConnection, SqliteFailure>,
    ) -> Result<(), SqliteFailure> {
        if let Self::Broken = self {
            *self = Self::Open(shared.options.connect().await?);
        }
        let Self::Open(connection) = self else {
            return Err(StoreError::Unavailable("closed".into()).into());
        };
        shared.verify_schema(connection).await?;
        // A transaction that began as a reader and then writes is refused at once, without regard to the busy
        // timeout.
        let mut transaction = connection.begin_with("begin immediate").await?;
        let deadline = Instant::now() + limit;
        transaction
            .lock_handle()
            .await?
            .set_progress_handler(OPERATIONS_BETWEEN_LOOKS, move || Instant::now() < deadline);
        work(&mut transaction).await?;
        transaction.lock_handle().await?.remove_progress_handler();
        Ok(transaction.commit().await?)
    }

    /// Closes the connection, which rolls back an open transaction.
    async fn replace_later(&mut self) {
        if let Self::Open(_) = self
            && let Self::Open(connection) = std::mem::replace(self, Self::Broken)
        {
            let _ = connection.close().await;
        }
    }
}

impl SharedFiles {
    async fn read(&self, work: Work<SqliteConnection, SqliteFailure>) -> Result<(), SqliteFailure> {
        let mut reader = self.readers.acquire().await?;
        // Also for a caller that gave up: readers are few, and a stop waits for them.
        let deadline = Instant::now() + self.read_timeout;
        reader
            .lock_handle()
            .await?
            .set_progress_handler(OPERATIONS_BETWEEN_LOOKS, move || Instant::now() < deadline);
        self.verify_schema(&mut reader).await?;
        work(&mut reader).await
    }

    async fn verify_schema(&self, connection: &mut SqliteConnection) -> Result<(), SqliteFailure> {
        if self.schema_verified.load(Ordering::Acquire) {
            return Ok(());
        }
        let tables = "select count(*) from sqlite_schema where name = '_sqlx_migrations'";
        let mut ran = Vec::new();
        if sqlx::query_scalar::<_, i64>(tables).fetch_one(&mut *connection).await? > 0 {
            let rows = "select version, checksum, success from _sqlx_migrations order by version";
            let rows = sqlx::query_as::<_, (i64, Vec<u8>, bool)>(rows).fetch_all(connection).await?;
            let row = |(version, checksum, success)| Ran { version, checksum, success };
            ran = rows.into_iter().map(row).collect();
        }
        compare(&MIGRATOR, &ran)?;
        self.schema_verified.store(true, Ordering::Release);
        Ok(())
    }
}

/// Waits for a task, which goes on when the wait is given up.
async fn joined(task: JoinHandle<Result<(), SqliteFailure>>) -> Result<(), SqliteFailure> {
    match task.await {
        Ok(outcome) => outcome,
        // Not raised again: the supervisor of writes must live on, and pause where all can see it.
        Err(error) if error.is_panic() => {
            tracing::error!(%error, "store operation panicked");
            Err(StoreError::Failed("an operation panicked".into()).into())
        }
        Err(_) => Err(StoreError::Unavailable("the runtime of the store has ended".into()).into()),
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        // Readers and the writer do not wait for each other.
        .journal_mode(SqliteJournalMode::Wal)
        // The log is synced at every commit: an acknowledged message must survive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        // There are none, and a check per row would cost.
        .foreign_keys(false)
        // After a burst the log shrinks again (in bytes).
        .pragma("journal_size_limit", "67108864")
        // Sorting never writes files beside the database.
        .pragma("temp_store", "memory")
        // Durations are a metric, errors are logged where they are handled.
        .disable_statement_logging()
}

impl From<SqliteFailure> for StoreError {
    fn from(failure: SqliteFailure) -> Self {
        match failure {
            SqliteFailure::Decided(error) => error,
            // A file opens at once, so other reads use all readers.
            SqliteFailure::Sql(sqlx::Error::PoolTimedOut) => Self::Busy("no free connection in time".into()),
            SqliteFailure::Sql(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(INTERRUPTED) =>
            {
                Self::Busy("the statement took too long and was ended".into())
            }
            SqliteFailure::Sql(sqlx::Error::Database(error)) if is_about_values(error.code().as_deref()) => {
                Self::Failed(error.message().into())
            }
            other => Self::Unavailable(other.to_string().into()),
        }
    }
}
