//! SQLite file of the embedded queue: its opening, its schema and its statements.
//!
//! One [`QueueFile`] writes and one [`QueueReader`] reads; callers and their answers are unknown here.
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::TryStreamExt;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row, SqliteConnection};

use super::ready_buffer::{Range, StoredMessage};
use crate::model::message::Outgoing;
use crate::queue::{Lane, QueueError};
use crate::runtime::clock::now_ms;

/// Layout of the file; a file with a higher number was written by a newer build.
const LAYOUT: i64 = 1;

/// Bytes of one page. A batch of 30 KB takes five frames of this size in the log; it takes nine of the
/// usual 4 096, and 16 384 writes a third more bytes.
const PAGE_BYTES: u32 = 8_192;

/// Messages that the loader reads at once: it bounds how long a checkpoint waits for the loader.
const CHUNK_MESSAGES: usize = 16;

const SCHEMA: &str = "
    create table if not exists message (
        seq integer primary key,
        id blob not null,
        body blob not null
    ) strict;
    create table if not exists dead (
        number integer primary key,
        id blob not null,
        body blob not null,
        rejected_at_ms integer not null
    ) strict;
    create table if not exists probe (number integer primary key, filler blob not null) strict;
    pragma user_version = 1;
";

/// Connection that writes.
pub(super) struct QueueFile {
    connection: SqliteConnection,
}

/// Contents of the file when it was opened.
pub(super) struct FileContents {
    pub last_seq: u64,
    /// Number of the last rejected message.
    pub last_dead: u64,
    /// Bytes of all bodies, rejected ones included.
    pub bytes: u64,
}

/// Changes of one transaction.
#[derive(Default)]
pub(super) struct Group {
    pub new: Vec<NewMessage>,
    pub applied: Vec<u64>,
    pub rejected: Vec<u64>,
    /// Number of the first newly rejected message among the dead ones.
    pub first_dead: u64,
    /// Messages that were rejected earlier and are settled now.
    pub settled_dead: Vec<u64>,
}

pub(super) struct NewMessage {
    pub seq: u64,
    pub message: Outgoing,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Sqlite(#[from] sqlx::Error),
    #[error("the SQLite thread stopped in the middle of a transaction")]
    Cut,
    #[error("the file could not be opened again")]
    NotOpen,
    #[error("a checkpoint could not finish")]
    CheckpointBusy,
}

impl QueueFile {
    pub(super) async fn open(directory: &Path) -> Result<(Self, FileContents), QueueError> {
        let opened = async {
            let mut connection = options(directory).create_if_missing(true).connect().await?;
            let layout =
                sqlx::query("pragma user_version").fetch_one(&mut connection).await?.get::<i64, _>(0);
            // Not each time: it writes, and on a full disk the messages must still be read and settled.
            if layout < LAYOUT {
                connection.execute(SCHEMA).await?;
            }
            if layout <= LAYOUT {
                add_traces(&mut connection).await?;
                // SQLite syncs the directory for its log, but not for the database file itself.
                std::fs::File::open(directory)?.sync_all()?;
            }
            let found = find(&mut connection, 0).await?;
            let dead = "select coalesce(sum(length(body)), 0) from dead";
            let dead = sqlx::query(dead).fetch_one(&mut connection).await?.get::<i64, _>(0);
            let bytes = found.bytes + dead.unsigned_abs();
            anyhow::Ok((Self { connection }, FileContents { bytes, ..found }, layout))
        };
        let opened =
            opened.await.with_context(|| format!("cannot open the queue in {}", directory.display()));
        let (file, found, layout) = opened.map_err(QueueError::Unavailable)?;
        if layout > LAYOUT {
            return Err(QueueError::Misdeclared(format!(
                "the queue in {} was written by a newer build (layout {layout}, this build knows {LAYOUT})",
                directory.display()
            )));
        }
        Ok((file, found))
    }

    /// Opens again a file that failed, and finds its contents after `seq`.
    pub(super) async fn reopen(directory: &Path, seq: u64) -> Result<(Self, FileContents), FileError> {
        let mut connection = options(directory).connect().await?;
        let found = find(&mut connection, seq).await?;
        Ok((Self { connection }, found))
    }

    /// Makes the whole group durable, or nothing of it, or returns an error, after which either may be
    /// true.
    pub(super) async fn commit(&mut self, group: &Group) -> Result<(), FileError> {
        let (sql, statements) = script(group);
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for NewMessage { seq, message } in &group.new {
            let (id, traces) = (message.id.as_uuid().into_bytes().to_vec(), message.traces.as_deref());
            query = query.bind(seq.cast_signed()).bind(id).bind(message.body.to_vec()).bind(traces);
        }
        if !group.rejected.is_empty() {
            let first = group.first_dead.cast_signed();
            query = query.bind(first).bind(now_ms()).bind(json(&group.rejected, &[]));
        }
        if !group.applied.is_empty() || !group.rejected.is_empty() {
            query = query.bind(json(&group.applied, &group.rejected));
        }
        if !group.settled_dead.is_empty() {
            query = query.bind(json(&group.settled_dead, &[]));
        }
        let outcome = run_script(&mut self.connection, query, statements).await;
        if outcome.is_err() {
            // Most errors leave the transaction open; after an end by SQLite this fails.
            let _ = self.connection.execute("rollback").await;
        }
        outcome
    }

    /// Writes about as much as a message does and waits for the disk.
    pub(super) async fn probe(&mut self) -> Result<(), FileError> {
        let sql = "begin immediate;
            insert or replace into probe (number, filler) values (?, randomblob(65536));
            commit";
        let outcome = run_script(&mut self.connection, sqlx::query(sql).bind(1), 3).await;
        if outcome.is_err() {
            let _ = self.connection.execute("rollback").await;
        }
        outcome
    }

    /// Moves the log into the database and begins it anew. There must be no reader.
    pub(super) async fn checkpoint(&mut self) -> Result<(), FileError> {
        let sql = "pragma wal_checkpoint(restart)";
        let busy = sqlx::query(sql).fetch_one(&mut self.connection).await?.get::<i64, _>(0);
        if busy == 0 { Ok(()) } else { Err(FileError::CheckpointBusy) }
    }

    /// Bytes of the pages that settled messages have left free.
    pub(super) async fn reusable_bytes(&mut self) -> Result<u64, FileError> {
        let pages = sqlx::query("pragma freelist_count").fetch_one(&mut self.connection).await?;
        Ok(pages.get::<i64, _>(0).unsigned_abs() * u64::from(PAGE_BYTES))
    }

    /// Empties the log and closes the file.
    pub(super) async fn close(mut self) -> Result<(), FileError> {
        self.connection.execute("pragma wal_checkpoint(truncate)").await?;
        Ok(self.connection.close().await?)
    }
}

/// Connection that reads.
pub(super) struct QueueReader {
    connection: SqliteConnection,
}

impl QueueReader {
    pub(super) async fn open(directory: &Path) -> Result<Self, FileError> {
        Ok(Self { connection: options(directory).read_only(true).connect().await? })
    }

    /// Reads the first messages of `range`; `true` when these were all.
    pub(super) async fn read(
        &mut self,
        lane: Lane,
        range: Range,
    ) -> Result<(Vec<StoredMessage>, bool), FileError> {
        let sql = match lane {
            Lane::Writes => {
                "select seq, body, traces from message where seq > ? and seq <= ? order by seq limit ?"
            }
            Lane::Dead => {
                "select number, body, null from dead where number > ? and number <= ? order by number limit ?"
            }
        };
        let limit = i64::try_from(CHUNK_MESSAGES).expect("it is small");
        let (after, up_to) = (range.after.cast_signed(), range.up_to.cast_signed());
        let query = sqlx::query(sql).bind(after).bind(up_to).bind(limit);
        let rows = query.fetch_all(&mut self.connection).await?;
        let message = |row: &SqliteRow| StoredMessage {
            seq: row.get::<i64, _>(0).cast_unsigned(),
            body: row.get::<Vec<u8>, _>(1).into(),
            traces: row.get::<Option<String>, _>(2).map(Into::into),
        };
        Ok((rows.iter().map(message).collect(), rows.len() < CHUNK_MESSAGES))
    }

    pub(super) async fn close(self) -> Result<(), FileError> {
        Ok(self.connection.close().await?)
    }
}

/// Connection options. Every option is set: durability must not depend on a library's defaults.
fn options(directory: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(directory.join("queue.db"))
        .page_size(PAGE_BYTES)
        // Readers and the writer do not block each other.
        .journal_mode(SqliteJournalMode::Wal)
        // A commit returns after its log is synced: the promise of a publish rests on this line.
        .synchronous(SqliteSynchronous::Full)
        // The reader is a second connection; other processes are kept away by the directory's lock.
        .locking_mode(SqliteLockingMode::Normal)
        // Pages of settled messages are used again, so the file is as large as its largest backlog.
        .auto_vacuum(SqliteAutoVacuum::None)
        // The writer starts checkpoints, so that no reader is in the way and the log cannot grow.
        .pragma("wal_autocheckpoint", "0")
        // The log keeps its length: room for settling messages when the disk is full.
        .pragma("journal_size_limit", "-1")
        // Settled messages need not be overwritten.
        .pragma("secure_delete", "off")
        // 16 MiB: deleting a message walks its pages, which should not be read from the file.
        .pragma("cache_size", "-16384")
        .pragma("mmap_size", "0")
        .pragma("temp_store", "memory")
        .foreign_keys(false)
        // There is no other writer, so a wait here is for a process that should not be there.
        .busy_timeout(Duration::from_millis(250))
        // One script per number of messages and kind of group, prepared once.
        .statement_cache_capacity(128)
        // Bodies do not belong in logs, and formatting statements costs more than running them.
        .disable_statement_logging()
}

/// Adds a column that earlier builds do not create and leave empty, so the layout number stays the same.
async fn add_traces(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let sql = "select count(*) from pragma_table_info('message') where name = 'traces'";
    if sqlx::query(sql).fetch_one(&mut *connection).await?.get::<i64, _>(0) == 0 {
        connection.execute("alter table message add column traces text").await?;
    }
    Ok(())
}

async fn find(connection: &mut SqliteConnection, after: u64) -> Result<FileContents, sqlx::Error> {
    let sql = "select coalesce(max(seq), ?1), coalesce(sum(length(body)), 0), \
        (select coalesce(max(number), 0) from dead) from message where seq > ?1";
    let row = sqlx::query(sql).bind(after.cast_signed()).fetch_one(connection).await?;
    let number = |column| row.get::<i64, _>(column).cast_unsigned();
    Ok(FileContents { last_seq: number(0), bytes: number(1), last_dead: number(2) })
}

/// Builds the transaction as one script, so that it takes one trip to SQLite's thread; returns the text
/// and its number of statements.
fn script(group: &Group) -> (String, usize) {
    let mut sql = String::from("begin immediate;");
    let mut statements = 2;
    if !group.new.is_empty() {
        let rows = ["(?,?,?,?),"].repeat(group.new.len()).concat();
        let _ =
            write!(sql, "insert into message (seq, id, body, traces) values {};", rows.trim_end_matches(','));
        statements += 1;
    }
    if !group.rejected.is_empty() {
        sql.push_str(
            "insert into dead (number, id, body, rejected_at_ms)
                select ? + entry.key, message.id, message.body, ? from json_each(?) as entry
                join message on message.seq = entry.value;",
        );
        statements += 1;
    }
    if !group.applied.is_empty() || !group.rejected.is_empty() {
        sql.push_str("delete from message where seq in (select value from json_each(?));");
        statements += 1;
    }
    if !group.settled_dead.is_empty() {
        sql.push_str("delete from dead where number in (select value from json_each(?));");
        statements += 1;
    }
    sql.push_str("commit");
    (sql, statements)
}

/// Runs all statements of a script. The last one is a commit, and the driver ends its results without an
/// error when its thread dies, so each statement has to be counted.
async fn run_script(
    connection: &mut SqliteConnection,
    query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    statements: usize,
) -> Result<(), FileError> {
    let mut results = connection.fetch_many(query);
    let mut done = 0;
    while let Some(result) = results.try_next().await? {
        done += usize::from(result.is_left());
    }
    if done == statements { Ok(()) } else { Err(FileError::Cut) }
}

fn json(some: &[u64], others: &[u64]) -> String {
    let mut list = String::from("[");
    for seq in some.iter().chain(others) {
        let _ = write!(list, "{}{seq}", if list.len() > 1 { "," } else { "" });
    }
    list.push(']');
    list
}
