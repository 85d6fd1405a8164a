//! A Postgres of one run, which can be crashed and started again on its port.
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use tokio::process::Child;

use super::{Owner, await_answer, command, complete, free_address, in_path, launch, private_folder};
use crate::clock::{self, Clock};
use crate::inspect;

/// A Postgres, killed when this is dropped.
pub struct Postgres {
    programs: PathBuf,
    owner: Option<Owner>,
    home: PathBuf,
    port: u16,
    /// A clock of its own, where libfaketime is installed.
    pub clock: Option<Clock>,
    child: Child,
}

/// The folder with the programs of the newest PostgreSQL of this machine.
pub fn programs() -> Option<PathBuf> {
    let version = |folder: &Path| -> Option<u32> { folder.file_name()?.to_str()?.parse().ok() };
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = installed.map(|entry| entry.path()).filter(|folder| folder.join("bin/initdb").is_file());
    let newest = folders.max_by_key(|folder| version(folder)).map(|folder| folder.join("bin"));
    newest.or_else(|| Some(in_path("initdb")?.canonicalize().ok()?.parent()?.to_owned()))
}

impl Postgres {
    pub async fn create(programs: &Path, home: &Path) -> anyhow::Result<Self> {
        let owner = Owner::of_servers("postgres").await?;
        private_folder(home, owner.as_ref())?;
        let mut initdb = command(&programs.join("initdb"), owner.as_ref(), home);
        initdb.args(["--no-sync", "--username", "postgres", "--auth", "trust", "--encoding", "UTF8"]);
        initdb.args(["--locale", "C.UTF-8", "--pgdata"]).arg(home.join("data"));
        complete(initdb).await?;
        let port = free_address()?.port();
        let folder = home.with_extension("clock");
        let mut clock = clock::find().map(|library| Clock::create(&library, &folder)).transpose()?;
        let child = spawn(programs, owner.as_ref(), home, port, clock.as_mut())?;
        let mut server =
            Self { programs: programs.to_owned(), owner, home: home.to_owned(), port, clock, child };
        server.await_ready().await?;
        Ok(server)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    /// Kills all its processes at once, without a checkpoint.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        let mut stop = command(&self.programs.join("pg_ctl"), self.owner.as_ref(), &self.home);
        stop.args(["stop", "--mode", "immediate", "--silent", "--pgdata"]).arg(self.home.join("data"));
        complete(stop).await?;
        self.child.wait().await?;
        Ok(())
    }

    /// Starts it again after a crash; returns when it answered.
    pub async fn restart(&mut self) -> anyhow::Result<Instant> {
        self.child = spawn(&self.programs, self.owner.as_ref(), &self.home, self.port, self.clock.as_mut())?;
        self.await_ready().await
    }

    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            self.crash().await?;
        }
        Ok(())
    }

    async fn await_ready(&mut self) -> anyhow::Result<Instant> {
        let (url, log) = (self.url(), log_path(&self.home));
        let answers = async || inspect::database_answers(&url).await;
        let ready = await_answer("Postgres", &mut self.child, answers).await;
        ready.with_context(|| format!("see {}", log.display()))
    }
}

fn spawn(
    programs: &Path,
    owner: Option<&Owner>,
    home: &Path,
    port: u16,
    clock: Option<&mut Clock>,
) -> anyhow::Result<Child> {
    // The clock's environment is set for the server only, not for the program that changes the user
    // before it.
    let mut postgres = command(Path::new("/usr/bin/env"), owner, home);
    let environment = clock.as_deref().map(Clock::environment).unwrap_or_default();
    postgres.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
    postgres.arg(programs.join("postgres"));
    postgres.arg("-D").arg(home.join("data")).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    postgres.args(["-c", "unix_socket_directories=", "-c", "max_connections=200"]);
    let child = launch(postgres, &log_path(home))?;
    if let Some(clock) = clock {
        clock.belongs_to(child.id());
    }
    Ok(child)
}

fn log_path(home: &Path) -> PathBuf {
    home.join("log")
}
