//! Common parts of both command lines: options, configuration, logs, migration, health checks.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::logs;
use crate::config::Config;
use crate::config::load::problem::ConfigError;
use crate::config::load::profile::Program;
use crate::config::load::{LoadedConfig, Sources, load};
use crate::config::pair::Pair;
use crate::runtime::backoff::Backoff;
use crate::runtime::shutdown::{self, Shutdown};
use crate::runtime::signals::Signals;
use crate::store::Store;

/// Time that a server may take to answer before the operator gets a hint that it does not.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Settings file; by default ./config.yaml if it exists
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Profile: local, dev, preprod or prod
    #[arg(long, global = true, value_name = "PROFILE")]
    env: Option<String>,
    /// One setting, for example server.port=8081; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected section.key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Options {
    pub fn load(&self, program: Program) -> Result<LoadedConfig, ConfigError> {
        load(&Sources {
            config_path: self.config.clone(),
            env_profile: self.env.clone(),
            flags: self.set.clone(),
            ..Sources::of_process(program)
        })
    }

    /// Loads the configuration, begins to log, and lets the process open as many files as it may.
    pub fn start(&self, program: Program) -> anyhow::Result<LoadedConfig> {
        let loaded = self.load(program)?;
        logs::init_logs(&loaded.config.telemetry);
        if let Some(path) = &loaded.env_file {
            tracing::info!(path = %path.display(), "variables were read from a file");
        }
        for warning in &loaded.warnings {
            tracing::warn!(warning, "configuration");
        }
        raise_file_limit();
        Ok(loaded)
    }
}

/// Raises the limit of open files. A connection is a file; soft limits of 1 024 are common and the hard
/// limit is ours to use.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "file limit could not be raised");
    }
}

/// Brings the schema up to date, and waits for the store for as long as it takes.
pub async fn migrate(store: Arc<dyn Store>, mut shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut is_logged = false;
    while let Err(error) = store.migrate().await {
        if !std::mem::replace(&mut is_logged, true) {
            tracing::warn!(%error, "schema cannot be brought up to date yet");
        }
        if shutdown.unless_requested(tokio::time::sleep(backoff.delay())).await.is_none() {
            return;
        }
    }
    tracing::info!("schema is up to date");
}

/// Runs a program on a runtime of its own. Work that is left on blocking threads at its end has no caller
/// any more, and is not waited for.
pub fn block_on(program: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(program);
    runtime.shutdown_background();
    outcome
}

/// Time to close the connections and files of a backend at the end of a stop. A silent broker is given up
/// after ten seconds.
pub const CLOSE_MAX: Duration = Duration::from_secs(15);

/// Runs `start`, which may take long; `None` when a signal to stop came before its end.
pub async fn unless_stopped<T>(signals: &mut Signals, start: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        started = start => Some(started),
        signal = signals.first() => {
            tracing::info!(signal, "stopping before the start was complete");
            None
        }
    }
}

/// Waits for the signal to stop. An error when one of `parts` completes before it: the program must then
/// end too, within `stop_max`, and be started anew by its supervisor.
pub async fn stop_requested(
    signals: &mut Signals,
    stop_max: Duration,
    parts: Vec<Shutdown>,
) -> anyhow::Result<()> {
    tokio::select! {
        signal = signals.first() => {
            tracing::info!(signal, "stopping");
            Ok(())
        }
        () = shutdown::first_of(parts) => {
            signals.allow(stop_max);
            tracing::error!("a part of the program ended by itself, stopping");
            Err(anyhow!("a part of the program ended by itself"))
        }
    }
}

/// Looks whether the servers of a cluster answer, and says what to do about those that do not.
pub async fn report_missing_servers(config: &Config) {
    if Pair::of(config) != Ok(Pair::Cluster) {
        return;
    }
    if let Some((host, port)) = amqp_place(&config.queue.url)
        && !answers(&host, port).await
    {
        tracing::warn!(
            "no RabbitMQ at {host}:{port}. Start one (Debian: apt-get install rabbitmq-server; Docker: \
                 docker run -p 5672:5672 rabbitmq:4) or name one: AMQP_URL=amqp://user:password@host:5672/vhost. \
                 This program goes on and connects as soon as it is there"
        );
    }
    if let Some((host, port)) = postgres_place(&config.store.url)
        && !answers(&host, port).await
    {
        tracing::warn!(
            "no Postgres at {host}:{port}. Start one (Debian: apt-get install postgresql; Docker: \
                 docker run -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:17) or name one: \
                 DATABASE_URL=postgres://user:password@host:5432/database. \
                 This program goes on and connects as soon as it is there"
        );
    }
}

fn amqp_place(url: &str) -> Option<(String, u16)> {
    let uri: lapin::uri::AMQPUri = url.parse().ok()?;
    Some((uri.authority.host, uri.authority.port))
}

fn postgres_place(url: &str) -> Option<(String, u16)> {
    let options: sqlx::postgres::PgConnectOptions = url.parse().ok()?;
    // A path is a socket, and set on purpose: it gets no hint.
    (!options.get_host().starts_with('/')).then(|| (options.get_host().to_owned(), options.get_port()))
}

async fn answers(host: &str, port: u16) -> bool {
    matches!(timeout(LOOK_TIMEOUT, TcpStream::connect((host, port))).await, Ok(Ok(_)))
}

/// Asks the operations port of a running program whether it is ready.
pub async fn healthcheck(config: &Config) -> anyhow::Result<()> {
    let port = config.ops.port.context("ops.port is not set")?;
    let address: SocketAddr = tokio::net::lookup_host((config.ops.host.as_str(), port))
        .await?
        .next()
        .context("ops.host has no address")?;
    let asked = timeout(Duration::from_secs(2), ask_ready(address)).await;
    let status = asked.with_context(|| format!("{address} does not answer"))??;
    if status != "200" {
        bail!("not ready: {status}");
    }
    Ok(())
}

async fn ask_ready(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(4_096).read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text.split(' ').nth(1).context("no HTTP answer")?.to_owned())
}

/// Prints a configuration error in plain lines, and ends the program.
pub fn exit_with(error: &anyhow::Error) -> std::process::ExitCode {
    eprintln!("error: {error:#}");
    std::process::ExitCode::FAILURE
}
