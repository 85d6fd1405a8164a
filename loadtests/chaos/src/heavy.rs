//! Messages and items that cost too much while everything else is well: a document that the store
//! cannot apply, and documents whose check takes too long. A trigger stands for any cause that
//! makes a transaction slow or fail. [`crate::beside`] carries these faults out.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::fault::Weight;
use crate::fleet::DATA;
use crate::servers::Servers;

/// Number in a document that the trigger delays or fails. The traffic draws no such number.
pub const NUMBER: i64 = 14;
/// Number in a document whose check is expensive. The trigger keeps it from being applied before
/// its collection is defined.
pub const DEAR: i64 = 15;
const DEAR_LETTERS: u32 = 28_000;
/// Schema whose check takes steps in proportion to text times pattern.
pub const DEAR_SCHEMA: &str = r#"{"schema":{"properties":{"log":{"pattern":"a[ab]{9000}c"}}}}"#;
pub const CHEAP_SCHEMA: &str = r#"{"schema":{}}"#;

/// Time limit of a switch: a file may be locked for as long as its writer may take for a transaction.
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

/// The database of the run, which holds the trigger.
pub enum Switch {
    Postgres(String),
    Sqlite(PathBuf),
}

impl Switch {
    /// Installs the trigger once the programs have made their tables, in the folder of the run or
    /// at its servers.
    pub async fn install(servers: Option<&Servers>, folder: &Path) -> anyhow::Result<Self> {
        let (switch, statements) = match servers {
            Some(servers) => (Self::Postgres(servers.postgres.url()), ON_POSTGRES),
            None => (Self::Sqlite(folder.join(DATA).join("store.db")), ON_SQLITE),
        };
        switch.execute(statements.to_owned()).await.context("the trigger of heavy documents")?;
        Ok(switch)
    }

    /// Makes the trigger strike heavy documents from now on.
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

    /// The cause that the store does not blame on the message, so that it keeps the message.
    pub fn keeping(&self) -> Weight {
        match self {
            Self::Postgres(_) => Weight::Memory,
            Self::Sqlite(_) => Weight::Failing,
        }
    }

    /// The store is SQLite, which has one writer and refuses no single item.
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

/// Makes a document of random letters, for which a pattern has to follow thousands of states.
pub fn dear_document() -> String {
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    let letters: String = (0..DEAR_LETTERS).map(letter).collect();
    format!("{{\"number\":{DEAR},\"log\":\"{letters}\"}}")
}
