//! Messages and items that cost too much while everything else is well: a document that the store
//! cannot apply, and documents that a check takes too long for. A trigger stands in for whatever
//! makes a transaction slow or fail. [`crate::beside`] carries these faults out.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::fault::Weight;
use crate::fleet::DATA;
use crate::servers::Servers;

/// The number of a document that the trigger holds up. The traffic draws no such number.
pub const NUMBER: i64 = 14;
/// The number of a document whose check is dear. The trigger keeps it from being applied before
/// its collection is defined.
pub const DEAR: i64 = 15;
const DEAR_LETTERS: u32 = 28_000;
/// Steps of a check grow with the text times the pattern.
pub const DEAR_SCHEMA: &str = r#"{"schema":{"properties":{"log":{"pattern":"a[ab]{9000}c"}}}}"#;
pub const CHEAP_SCHEMA: &str = r#"{"schema":{}}"#;

/// A file may be locked for as long as its writer has for a transaction.
const SWITCH_PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

const ON_POSTGRES: &str = r#"
    create table forebay_chaos_mode (mode text not null);
    create function forebay_chaos_heavy() returns trigger language plpgsql as $$
    declare mode text := (select max(mode.mode) from forebay_chaos_mode as mode);
    begin
        -- A tombstone has no data.
        if mode is null or new.data is null
            or new.data <> '{"number":14}' and new.data not like '{"number":15,%' then
            return new;
        end if;
        case mode
            when 'slow' then perform pg_sleep(600);
            when 'failing' then raise exception 'too heavy' using errcode = 'P0001';
            when 'memory' then raise exception 'out of memory' using errcode = '53200';
            when 'session' then perform pg_terminate_backend(pg_backend_pid());
        end case;
        return new;
    end $$;
    create trigger forebay_chaos_heavy before insert on documents
    for each row execute function forebay_chaos_heavy()"#;

const ON_SQLITE: &str = r#"
    create table forebay_chaos_mode (mode text not null);
    create view forebay_chaos_endless as
        with recursive c (n) as (select 1 union all select n + 1 from c) select n from c where n < 0;
    create trigger forebay_chaos_heavy before insert on documents
    when new.data = '{"number":14}' or new.data like '{"number":15,%'
    begin
        select raise(abort, 'too heavy') from forebay_chaos_mode where mode <> 'slow';
        select (select count(*) from forebay_chaos_endless) from forebay_chaos_mode where mode = 'slow';
    end"#;

/// The database of the run, where the trigger is.
pub enum Switch {
    Postgres(String),
    Sqlite(PathBuf),
}

impl Switch {
    /// Once the programs have made their tables, in the folder of the run or at its servers.
    pub async fn install(servers: Option<&Servers>, folder: &Path) -> anyhow::Result<Self> {
        let (switch, statements) = match servers {
            Some(servers) => (Self::Postgres(servers.postgres.url()), ON_POSTGRES),
            None => (Self::Sqlite(folder.join(DATA).join("store.db")), ON_SQLITE),
        };
        switch.execute(statements.to_owned()).await.context("the trigger of heavy documents")?;
        Ok(switch)
    }

    /// From now on heavy documents are held up.
    pub async fn on(&self, weight: Weight) -> anyhow::Result<()> {
        let mode = match weight {
            Weight::Slow => "slow",
            Weight::Failing => "failing",
            Weight::Memory => "memory",
            Weight::Session => "session",
        };
        self.execute(format!("insert into forebay_chaos_mode values ('{mode}')")).await
    }

    pub async fn off(&self) -> anyhow::Result<()> {
        self.execute("delete from forebay_chaos_mode".to_owned()).await
    }

    /// A trigger of Postgres can hold up a message in ways that the store blames on the server.
    pub fn keeping(&self) -> Weight {
        match self {
            Self::Postgres(_) => Weight::Memory,
            Self::Sqlite(_) => Weight::Failing,
        }
    }

    /// SQLite has one writer, and refuses no single item.
    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    async fn execute(&self, statements: String) -> anyhow::Result<()> {
        let deadline = Instant::now() + SWITCH_PATIENCE;
        loop {
            let executed = match self {
                Self::Postgres(url) => testkit::execute(url, statements.clone()).await,
                Self::Sqlite(file) => testkit::sqlite::execute(file, statements.clone()).await,
            };
            match executed {
                Err(_) if self.is_sqlite() && Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                executed => return executed,
            }
        }
    }
}

/// Its letters are random, so that a pattern has to follow thousands of states.
pub fn dear_document() -> String {
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    let letters: String = (0..DEAR_LETTERS).map(letter).collect();
    format!("{{\"number\":{DEAR},\"log\":\"{letters}\"}}")
}
