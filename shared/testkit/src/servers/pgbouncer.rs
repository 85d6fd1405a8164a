//! A PgBouncer in front of a Postgres, for one test.
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::process::Child;

use super::{Owner, await_answer, command, free_address, in_path, launch, private_folder};
use crate::servers::remove_folder;

/// A PgBouncer, killed when this is dropped.
pub struct PgBouncer {
    address: std::net::SocketAddr,
    home: PathBuf,
    child: Child,
}

/// Path of the program. Says so on the terminal where it is not installed.
pub fn program() -> Option<PathBuf> {
    let found = in_path("pgbouncer").or_else(|| Some(PathBuf::from("/usr/sbin/pgbouncer")));
    let found = found.filter(|file| file.is_file());
    if found.is_none() {
        // Written past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no PgBouncer is installed here (Debian: pgbouncer)");
    }
    found
}

impl PgBouncer {
    /// Starts one in front of the server of `database_url`, with these settings beside the ones
    /// that are always needed.
    pub async fn create(
        program: &Path,
        database_url: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let home = std::env::temp_dir().join(crate::unique("pgbouncer"));
        let owner = Owner::of_servers("postgres").await?;
        private_folder(&home, owner.as_ref())?;
        let address = free_address()?;
        let server = url::Url::parse(database_url)?;
        let (host, user) = (server.host_str().context("a host")?, server.username());
        let mut text = format!(
            "[databases]\n* = host={host} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = users.txt\n",
            server.port().unwrap_or(5432),
            address.port()
        );
        for (name, value) in settings {
            writeln!(text, "{name} = {value}")?;
        }
        std::fs::write(home.join("pgbouncer.ini"), text)?;
        let password = server.password().unwrap_or_default();
        std::fs::write(home.join("users.txt"), format!("\"{user}\" \"{password}\"\n"))?;
        let mut pooler = command(program, owner.as_ref(), &home);
        pooler.arg("pgbouncer.ini");
        let mut child = launch(pooler, &home.join("log"))?;
        let answers = async || tokio::net::TcpStream::connect(address).await.is_ok();
        let ready = await_answer("PgBouncer", &mut child, answers).await;
        ready.with_context(|| std::fs::read_to_string(home.join("log")).unwrap_or_default())?;
        Ok(Self { address, home, child })
    }

    /// URL of the same database through it.
    pub fn url(&self, database_url: &str) -> anyhow::Result<String> {
        let mut url = url::Url::parse(database_url)?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(self.address.port())).ok().context("a URL with a port")?;
        Ok(url.into())
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        remove_folder(&self.home).await
    }
}
