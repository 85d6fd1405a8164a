//! Limits that the server keeps by itself when the client has vanished: a statement ends, a transaction
//! without a further statement ends and its locks with it, and a wait for a lock ends early enough for
//! another attempt.
//!
//! A connection without a pooler has them from its start: a read needs no further round trip. One behind a
//! pooler may lead to another session with each transaction, so each transaction sets them, and no statement
//! runs outside of one: the client library prepares in one round trip and executes in the next. Statements
//! that other clients prepared in a session are forgotten first, because the names may be the same.
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::failure::PgFailure;
use super::schema::Schema;
use crate::config;
use crate::store::StoreError;
use crate::store::rules::work::Work;

/// Setting for commits. A commit is followed by an acknowledgement: it must survive the server's crash even
/// where the server, the database or the role says `off`.
pub const COMMITS: (&str, &str) = ("synchronous_commit", "on");

/// Settings for plans. Statements look rows up by key. A plan that was kept from when a partition was almost
/// empty would read all of it for each key, until it is analysed. Where there is no other way, reading a
/// table then looks so expensive that it would be compiled first.
const PLANS: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// Beginning of a transaction. Stricter levels, should they be a default somewhere, would only fail more
/// often, and not see rows that were committed while a lock was waited for.
const LEVEL: &str = "begin isolation level read committed";

/// Any number that no other lock uses; the same in every build.
const ADVISORY_LOCK: i64 = 0x666f_7265_6261_7919;

/// Kind of an operation, which decides its connections and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Finds rows by key; one transaction.
    Read,
    /// A read that a client can make slow: such reads have a share of the connections.
    List,
    /// Begins transactions of its own, by [`begin`](super::session::begin).
    Write,
}

/// Class and time limit of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub class: Class,
    pub time: Duration,
}

impl Limit {
    pub fn new(class: Class, time_ms: u64) -> Self {
        Self { class, time: Duration::from_millis(time_ms) }
    }

    /// Returns the same class with another time.
    pub fn within(self, time: Duration) -> Self {
        Self { time, ..self }
    }
}

/// Limits of statements in milliseconds.
pub struct Limits {
    read_ms: u64,
    write_ms: u64,
}

impl Limits {
    pub fn new(config: &config::StoreSettings) -> Self {
        Self { read_ms: config.read_timeout_ms.max(1), write_ms: config.write_timeout_ms.max(1) }
    }

    /// Returns the settings of a session. It begins with the limit of reads, because a read must not go
    /// on after its caller gave up.
    pub fn of_session(&self) -> Vec<(&'static str, String)> {
        let plans = PLANS.map(|(name, value)| (name, value.to_owned()));
        let mut options =
            vec![("statement_timeout", self.read_ms.to_string()), ("forebay.session", "on".to_owned())];
        options.extend(self.of_locks());
        options.extend(plans);
        options
    }

    fn of_locks(&self) -> [(&'static str, String); 2] {
        [
            ("idle_in_transaction_session_timeout", self.write_ms.to_string()),
            ("lock_timeout", (self.write_ms / 4).max(1).to_string()),
        ]
    }

    /// Returns the beginnings of transactions on connections that have the limits of a session.
    pub fn begin(&self) -> Begin {
        let write = format!("{LEVEL}; set local statement_timeout = {}", self.write_ms);
        let alone = format!("set statement_timeout = {}", (self.write_ms / 4).max(1));
        Begin { read: None, write, write_ms: self.write_ms, alone: Some(alone) }
    }

    /// Returns the beginnings of transactions on connections to a pooler.
    pub fn begin_pooled(&self) -> Begin {
        let fixed = [COMMITS].into_iter().chain(PLANS).map(|(name, value)| (name, value.to_owned()));
        let settings =
            fixed.chain(self.of_locks()).map(|(name, value)| format!("; set local {name} = {value}"));
        let common = settings.collect::<Vec<_>>().concat();
        let with =
            |limit_ms| format!("{LEVEL}; deallocate all; set local statement_timeout = {limit_ms}{common}");
        let write_ms = self.write_ms;
        Begin { read: Some(with(self.read_ms)), write: with(write_ms), write_ms, alone: None }
    }
}

/// Checks that the session has its settings, which a pooler may leave out without an error.
async fn is_ours(connection: &mut PgConnection) -> Result<(), PgFailure> {
    let is_ours = sqlx::query_scalar!(r#"select current_setting('forebay.session', true) = 'on' as "is?""#);
    if is_ours.fetch_one(connection).await? == Some(true) {
        return Ok(());
    }
    let lost = "the session lacks its settings; a pooler stands before the server: set store.pooler to true";
    Err(StoreError::Unavailable(lost.into()).into())
}

/// Beginnings of transactions, in one round trip.
pub struct Begin {
    /// Beginning of a read; `None` when reads need no transaction.
    read: Option<String>,
    pub write: String,
    write_ms: u64,
    /// Limit for the statement that comes next, outside of a transaction; none behind a pooler.
    pub alone: Option<String>,
}

impl Begin {
    /// Returns the beginning of a transaction that writes, with `limit` for each statement and half of it for
    /// each lock at most.
    pub fn within(&self, limit: Duration) -> String {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).clamp(2, self.write_ms.max(2));
        let lock_ms = (self.write_ms / 4).min(limit_ms / 2).max(1);
        let write = &self.write;
        format!("{write}; set local statement_timeout = {limit_ms}; set local lock_timeout = {lock_ms}")
    }

    /// Runs the work of an operation, within a transaction where it needs one and begins none itself.
    pub async fn run(
        &self,
        class: Class,
        connection: &mut PgConnection,
        work: Work<PgConnection, PgFailure>,
    ) -> Result<(), PgFailure> {
        match &self.read {
            Some(read) if class != Class::Write => {
                let mut transaction = connection.begin_with(AssertSqlSafe(read.clone())).await?;
                work(&mut transaction).await?;
                Ok(transaction.commit().await?)
            }
            _ => work(connection).await,
        }
    }

    pub async fn verify(&self, schema: &Schema, connection: &mut PgConnection) -> Result<(), PgFailure> {
        if schema.is_verified() {
            return Ok(());
        }
        let Some(read) = &self.read else {
            is_ours(connection).await?;
            return schema.verify(connection).await;
        };
        let mut transaction = connection.begin_with(AssertSqlSafe(read.clone())).await?;
        let verified = schema.verify(&mut transaction).await;
        transaction.rollback().await?;
        verified
    }

    /// Migrates the schema. Behind a pooler it does so in one transaction; its lock outlives the library's.
    pub async fn migrate(&self, schema: &Schema, connection: &mut PgConnection) -> Result<(), PgFailure> {
        if self.read.is_none() {
            return schema.migrate(connection).await;
        }
        let begin = format!("{LEVEL}; deallocate all; select pg_advisory_xact_lock({ADVISORY_LOCK})");
        let mut transaction = connection.begin_with(AssertSqlSafe(begin)).await?;
        schema.migrate(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }
}
