//! Connections, and the one way to use them: borrowed, bounded in time, and given back only after success.
//!
//! Two traps shape this file. A `begin` that is cancelled leaves its connection in a transaction that the
//! pool does not know of: a later write through it returns `Ok` and vanishes. And the pool gives a connection
//! back by asking the server, without a time limit. Therefore a connection is closed, never reused, after an
//! operation that failed, timed out or was cancelled
//! (`an_abandoned_transaction_swallows_nothing_that_is_written_later`,
//! `a_server_that_falls_silent_costs_a_time_out_and_no_connection`).
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Transaction,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::database;
use super::failure::PgFailure;
use super::limits::{Begin, COMMITS, Class, Limit, Limits};
use super::schema::Schema;
use crate::config;
use crate::runtime::metrics::metrics;
use crate::store::StoreError;
use crate::store::rules::work::{Work, separate};

/// Time that a server has to agree that a connection is idle.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle time after which a connection is checked before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Lifetime of a connection: servers and load balancers move on.
const LIFETIME_MAX: Duration = Duration::from_mins(30);
/// Idle time after which a connection is closed, because it costs the server memory.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Time beyond its limit that a statement is waited for, half a second at most: a server ends it by itself,
/// and its answer distinguishes a slow server from a silent one.
const LAST_WORD_MAX: Duration = Duration::from_millis(500);
/// Time limit of a migration, which may rewrite a table and waits for one that another process runs.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(15);

tokio::task_local! {
    /// Beginning of transactions of this task's operation.
    static BEGIN: Arc<Begin>;
}

/// Begins a transaction that may write and wait for locks.
pub async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, PgFailure> {
    let begin = BEGIN.get();
    Ok(connection.begin_with(AssertSqlSafe(begin.write.clone())).await?)
}

/// Begins a transaction with `limit` for each statement and less for each wait for a lock: a statement that
/// waits is not to be taken for a slow one.
pub async fn begin_for(
    connection: &mut PgConnection,
    limit: Duration,
) -> Result<Transaction<'_, Postgres>, PgFailure> {
    Ok(connection.begin_with(AssertSqlSafe(BEGIN.get().within(limit))).await?)
}

/// Runs a statement that must not be within a transaction, for as long as a lock is waited for.
pub async fn alone(connection: &mut PgConnection, statement: String) -> Result<(), PgFailure> {
    let begin = BEGIN.get();
    let Some(limit) = &begin.alone else {
        connection.execute(AssertSqlSafe(statement)).await?;
        return Ok(());
    };
    connection.execute(AssertSqlSafe(limit.clone())).await?;
    let done = connection.execute(AssertSqlSafe(statement)).await;
    connection.execute("reset statement_timeout").await?;
    done?;
    Ok(())
}

pub struct PgSession {
    pool: PgPool,
    /// One permit per connection. The pool's own time-out does not distinguish a pool in use from a server
    /// that opened no connection.
    permits: Arc<Semaphore>,
    /// Limits the permits that [`Class::List`] uses.
    list_permits: Arc<Semaphore>,
    begin: Arc<Begin>,
    /// Runtime of the connections. Callers come from other threads' runtimes, which may end before the store
    /// does.
    runtime: Handle,
    schema: Arc<Schema>,
    /// Options without the time limits of the pool's connections.
    unlimited: PgConnectOptions,
    /// True when a migration may create the database.
    may_create_database: bool,
    connect_timeout: Duration,
}

impl PgSession {
    pub fn new(config: &config::StoreSettings) -> anyhow::Result<Self> {
        let runtime = Handle::try_current().context("a store is opened on a runtime")?;
        // The error of the parser names no part of the URL, which may hold a password.
        let unlimited = PgConnectOptions::from_str(&config.url).context("not a usable postgres:// URL")?;
        let unlimited = plain_on_loopback(unlimited)
            .application_name("forebay")
            // Durations are a metric, errors are logged where they are handled.
            .disable_statement_logging();
        let limits = Limits::new(config);
        let (unlimited, limited) = if config.pooler {
            // Only settings that every pooler knows, and no statement that it would have to remember.
            let plain = unlimited.extra_float_digits(None).statement_cache_capacity(0);
            (plain.clone(), plain)
        } else {
            let unlimited = unlimited.options([COMMITS]);
            (unlimited.clone(), unlimited.options(limits.of_session()))
        };
        let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
        let permits = config.connections_max.max(1);
        let list_permits = config.list_connections_max.clamp(1, (permits - 1).max(1));
        Ok(Self {
            pool: pool(limited, permits, connect_timeout),
            permits: Arc::new(Semaphore::new(permits as usize)),
            list_permits: Arc::new(Semaphore::new(list_permits as usize)),
            begin: Arc::new(if config.pooler { limits.begin_pooled() } else { limits.begin() }),
            runtime,
            schema: Arc::default(),
            unlimited,
            may_create_database: config.create_database,
            connect_timeout,
        })
    }

    /// Runs `work` on a connection, for `limit` at most, after the schema was verified. Dropping the returned
    /// future ends the work and its connection.
    pub async fn run<T, F>(&self, operation: &str, limit: Limit, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, PgFailure>> + Send + 'static,
    {
        let (work, result) = separate(work);
        self.run_work(operation, limit, work).await?;
        Ok(result.take())
    }

    async fn run_work(
        &self,
        operation: &str,
        limit: Limit,
        work: Work<PgConnection, PgFailure>,
    ) -> Result<(), StoreError> {
        let timer = metrics().store_seconds.with_label_values(&[operation]).start_timer();
        let (pool, schema, begin) = (self.pool.clone(), Arc::clone(&self.schema), Arc::clone(&self.begin));
        let mut permits = vec![Arc::clone(&self.permits)];
        if limit.class == Class::List {
            // First, so that waiting for it keeps no permit from other operations.
            permits.insert(0, Arc::clone(&self.list_permits));
        }
        let wait_max = self.connect_timeout;
        let outcome = self.spawned(BEGIN.scope(Arc::clone(&begin), async move {
            let mut borrowed = BorrowedConnection::take(&pool, permits, wait_max).await?;
            let connection = borrowed.connection();
            let bounded = timeout(limit.time + LAST_WORD_MAX.min(limit.time / 4), async {
                begin.verify(&schema, connection).await?;
                begin.run(limit.class, connection, work).await
            });
            let outcome = bounded.await.unwrap_or(Err(PgFailure::TimedOut(limit.time.as_millis())));
            match &outcome {
                Ok(()) => borrowed.give_back(),
                Err(failure) if failure.is_schema_skew() => schema.forget(),
                Err(_) => {}
            }
            outcome
        }));
        let outcome = outcome.await;
        timer.observe_duration();
        outcome
    }

    /// Creates the database when it is missing and may be created, and brings its schema up to date.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let schema = Arc::clone(&self.schema);
        let (options, connect_timeout) = (self.unlimited.clone(), self.connect_timeout);
        let may_create = self.may_create_database;
        let (pool, begin) = (pool(self.unlimited.clone(), 1, connect_timeout), Arc::clone(&self.begin));
        let migration = async move {
            // Two connects at most, and a statement.
            let ensured = timeout(connect_timeout * 3, database::ensure(&options, may_create)).await;
            ensured.unwrap_or(Err(PgFailure::TimedOut(connect_timeout.as_millis() * 3)))?;
            let migrated =
                timeout(MIGRATE_TIMEOUT, async { begin.migrate(&schema, &mut *pool.acquire().await?).await });
            let migrated = migrated.await;
            migrated.unwrap_or(Err(PgFailure::TimedOut(MIGRATE_TIMEOUT.as_millis())))?;
            // A server that does not answer any more closes this connection by itself.
            let _ = timeout(GIVE_BACK_TIMEOUT, pool.close()).await;
            Ok(())
        };
        self.spawned(migration).await
    }

    /// Waits for operations under way, `limit` at most, and closes.
    pub async fn close(&self, limit: Duration) {
        let pool = self.pool.clone();
        // An error means that a server did not answer: its connections end with the process.
        let closing = async move {
            let _ = timeout(limit, pool.close()).await;
            Ok(())
        };
        let _ = self.spawned(closing).await;
    }

    async fn spawned(
        &self,
        work: impl Future<Output = Result<(), PgFailure>> + Send + 'static,
    ) -> Result<(), StoreError> {
        // A set of one: dropping it aborts the task.
        let mut task = JoinSet::new();
        task.spawn_on(work.boxed(), &self.runtime);
        match task.join_next().await.expect("one task was spawned") {
            Ok(outcome) => Ok(outcome?),
            // Not raised again: the supervisor of writes must live on, and pause where all can see it.
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "store operation panicked");
                Err(StoreError::Failed("an operation panicked".into()))
            }
            Err(_) => Err(StoreError::Unavailable("the runtime of the store has ended".into())),
        }
    }
}

/// A borrowed connection and its permits. Dropped without [`give_back`](Self::give_back) it is closed, and
/// its permits are free.
struct BorrowedConnection(Option<(PoolConnection<Postgres>, Vec<OwnedSemaphorePermit>)>);

impl BorrowedConnection {
    /// Waits for the permits, one after the other, for `wait_max`, then for its connection for as long as the
    /// pool does.
    async fn take(
        pool: &PgPool,
        permits: Vec<Arc<Semaphore>>,
        wait_max: Duration,
    ) -> Result<Self, PgFailure> {
        let taken = timeout(wait_max, async {
            let mut taken = Vec::with_capacity(permits.len());
            for permit in permits {
                taken.push(permit.acquire_owned().await.expect("never closed"));
            }
            taken
        });
        let taken = taken.await.map_err(|_| PgFailure::NoFreeConnection(wait_max.as_millis()))?;
        Ok(Self(Some((pool.acquire().await?, taken))))
    }

    fn connection(&mut self) -> &mut PgConnection {
        &mut self.0.as_mut().expect("taken by give_back and drop only").0
    }

    fn give_back(&mut self) {
        if let Some((mut connection, permits)) = self.0.take() {
            tokio::spawn(async move {
                // As a drop would do, with a limit: the pool asks the server first.
                let _ = timeout(GIVE_BACK_TIMEOUT, connection.return_to_pool()).await;
                drop(permits);
            });
        }
    }
}

impl Drop for BorrowedConnection {
    fn drop(&mut self) {
        if let Some((connection, _permits)) = self.0.take() {
            // Closes the socket; the server rolls back an open transaction.
            drop(connection.detach());
        }
    }
}

/// Turns TLS by mere preference off on loopback. It protects nothing there and costs 40 ms per large
/// statement: the library sends it record by record, without TCP_NODELAY, and on an interface with large
/// segments the second record waits for the delayed acknowledgement of the first.
fn plain_on_loopback(options: PgConnectOptions) -> PgConnectOptions {
    let host = options.get_host();
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match options.get_ssl_mode() {
        PgSslMode::Prefer if loopback => options.ssl_mode(PgSslMode::Disable),
        _ => options,
    }
}

fn pool(options: PgConnectOptions, connections_max: u32, connect_timeout: Duration) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max.max(1))
        // An idle process holds no connection.
        .min_connections(0)
        // Covers waiting for a connection in use, checking an old connection and opening a new one.
        .acquire_timeout(connect_timeout)
        .idle_timeout(IDLE_MAX)
        .max_lifetime(LIFETIME_MAX)
        // One round trip less per operation: only a connection that was idle for a while is checked.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED_FOR {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_goes_without_encryption_unless_it_is_asked_for() {
        let mode =
            |url: &str| plain_on_loopback(PgConnectOptions::from_str(url).expect("a URL")).get_ssl_mode();
        for host in ["127.0.0.1", "127.9.9.9", "localhost"] {
            let url = format!("postgres://u@{host}/d");
            assert!(matches!(mode(&url), PgSslMode::Disable), "{host}");
            assert!(matches!(mode(&format!("{url}?sslmode=require")), PgSslMode::Require), "{host}");
        }
        for host in ["db.internal", "10.0.0.1", "localhost.example"] {
            assert!(matches!(mode(&format!("postgres://u@{host}/d")), PgSslMode::Prefer), "{host}");
        }
    }
}
