//! The consumer's command line.
mod dead_letters_command;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::{Parser, Subcommand};
use consumer::Consumer;
use consumer::status::ConsumerStatus;
use shared::config::load::LoadedConfig;
use shared::config::load::profile::Program;
use shared::config::load::report::check_config_report;
use shared::program::backend;
use shared::program::cli::{self, Options};
use shared::program::ops::{self, Health, HealthStatus};
use shared::runtime::shutdown::{self, Shutdown};
use shared::runtime::signals::Signals;

/// Retains less memory after a burst than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Applies queued writes to the store.
#[derive(Parser)]
#[command(name = "forebay-consumer", version)]
struct ConsumerCli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<ConsumerCommand>,
}

#[derive(Subcommand)]
enum ConsumerCommand {
    /// Consume (the default)
    Run,
    /// Print every setting with its origin
    CheckConfig,
    /// Ask a running consumer whether it is ready
    Healthcheck,
    /// Look after what could not be applied
    DeadLetters {
        #[command(subcommand)]
        command: dead_letters_command::DeadLettersCommand,
    },
}

fn main() -> ExitCode {
    let cli = ConsumerCli::parse();
    let outcome = cli::block_on(dispatch(&cli));
    outcome.map_or_else(|error| cli::exit_with(&error), |()| ExitCode::SUCCESS)
}

async fn dispatch(cli: &ConsumerCli) -> anyhow::Result<()> {
    let options = &cli.options;
    match cli.command.as_ref().unwrap_or(&ConsumerCommand::Run) {
        ConsumerCommand::Run => run(options.start(Program::Consumer)?).await,
        ConsumerCommand::CheckConfig => {
            print!("{}", check_config_report(&options.load(Program::Consumer)?));
            Ok(())
        }
        ConsumerCommand::DeadLetters { command } => dead_letters_command::run(options, command).await,
        ConsumerCommand::Healthcheck => cli::healthcheck(&options.load(Program::Consumer)?.config).await,
    }
}

async fn run(loaded: LoadedConfig) -> anyhow::Result<()> {
    let config = loaded.config;
    let mut signals = Signals::listen(consumer::STOP_MAX).context("cannot listen to signals")?;
    let (trigger, shutdown) = shutdown::channel();
    let start = async {
        let backend = backend::open(&config).await?;
        cli::report_missing_servers(&config).await;
        anyhow::Ok(backend)
    };
    let Some(started) = cli::unless_stopped(&mut signals, start).await else { return Ok(()) };
    let backend = started?;
    tokio::spawn(backend.progress.clone().ticking("runtime"));
    if config.store.migrate {
        tokio::spawn(cli::migrate(backend.store.clone(), shutdown.clone()));
    }
    let consumer = Consumer::new(&config, &backend, rand::random());
    let (host, port) = (config.ops.host.as_str(), config.ops.port.unwrap_or(0));
    let (status, stopping) = (consumer.status(), shutdown.clone());
    let ops = ops::serve(host, port, &backend.progress, Arc::new(move || health(&status, &stopping)))
        .with_context(|| format!("cannot listen on {host}:{port} (ops.host, ops.port)"))?;
    tracing::info!(ops.address = %ops.address(), "consumer started");
    let (task, completion) = shutdown::watched(consumer.run(shutdown));
    let parts = std::iter::once(completion).chain(backend.completions()).collect();
    let stopped = cli::stop_requested(&mut signals, consumer::STOP_MAX, parts).await;
    trigger.request();
    if let Err(error) = task.await {
        tracing::error!(%error, "consumer failed");
    }
    signals.allow(cli::CLOSE_MAX);
    backend.queue.close().await;
    backend.events.close().await;
    backend.store.close().await;
    ops.stop().await?;
    stopped
}

/// Health of the process. A dependency that is away degrades it: nothing is lost meanwhile, and it
/// recovers without help.
fn health(ingesting: &ConsumerStatus, stopping: &Shutdown) -> Health {
    let consuming = ingesting.consuming.load(Ordering::Relaxed);
    let store = !ingesting.store_is_away();
    let word = |healthy| if healthy { "healthy" } else { "unhealthy" };
    Health {
        status: if consuming && store { HealthStatus::Ok } else { HealthStatus::Degraded },
        ready: !stopping.is_requested(),
        components: [("queue", word(consuming)), ("store", word(store))].into(),
        breakers: [].into(),
        consumers: None,
    }
}
