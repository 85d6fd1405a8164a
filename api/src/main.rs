//! The API's command line, and the one place where the consumer runs in the API's process: the
//! embedded default.
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use api::admission::auth::keys::Keys;
use api::banner::{self, Facts};
use api::keys_command::KeysCommand;
use api::routes::openapi;
use api::server::Server;
use clap::{Parser, Subcommand};
use shared::config::Config;
use shared::config::load::LoadedConfig;
use shared::config::load::profile::Program;
use shared::config::load::report::check_config_report;
use shared::config::pair::Pair;
use shared::program::backend::{self, Backend};
use shared::program::cli::{self, Options};
use shared::runtime::shutdown::{self, Shutdown};
use shared::runtime::signals::Signals;

/// Retains less memory after a burst than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes writes over HTTP, makes each one durable, answers reads from memory.
#[derive(Parser)]
#[command(name = "forebay-api", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP (the default)
    Serve,
    /// Bring the store's schema up to date
    Migrate,
    /// Print every setting with its origin
    CheckConfig,
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running API whether it is ready
    Healthcheck,
    /// Keys of clients
    #[command(subcommand)]
    Keys(KeysCommand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = cli::block_on(run(&cli));
    outcome.map_or_else(|error| cli::exit_with(&error), |()| ExitCode::SUCCESS)
}

async fn run(cli: &Cli) -> anyhow::Result<()> {
    let options = &cli.options;
    match cli.command.as_ref().unwrap_or(&Command::Serve) {
        Command::Serve => serve(options.start(Program::Api)?).await,
        Command::Migrate => {
            let backend = backend::open(&options.start(Program::Api)?.config).await?;
            backend.store.migrate().await?;
            close(backend).await;
            println!("the schema is up to date");
            Ok(())
        }
        Command::CheckConfig => check_config(&options.load(Program::Api)?),
        Command::Openapi => {
            println!("{:#}", openapi::document());
            Ok(())
        }
        Command::Keys(KeysCommand::New(new)) => new.print(),
        Command::Healthcheck => cli::healthcheck(&options.load(Program::Api)?.config).await,
    }
}

/// Prints the configuration. Stricter than a start: the operator can still mend it.
fn check_config(loaded: &LoadedConfig) -> anyhow::Result<()> {
    print!("{}", check_config_report(loaded));
    let expired = Keys::read(&loaded.config.auth)?.expired();
    let names = expired.into_iter().collect::<Vec<_>>().join(", ");
    anyhow::ensure!(names.is_empty(), "auth: these keys have expired and open nothing: {names}");
    Ok(())
}

async fn serve(loaded: LoadedConfig) -> anyhow::Result<()> {
    let config = loaded.config;
    // Signals are handled before anything is accepted that one could cut off.
    let stop_max = Server::stop_max(&config);
    let mut signals = Signals::listen(stop_max).context("cannot listen to signals")?;
    let (trigger, shutdown) = shutdown::channel();
    let embedded = matches!(Pair::of(&config), Ok(Pair::Embedded(_)));
    let opening = open(&config, embedded, &shutdown);
    // Nothing was accepted yet: open parts need no more care than after a crash.
    let Some(opened) = cli::unless_stopped(&mut signals, opening).await else { return Ok(()) };
    let backend = opened?;
    tokio::spawn(backend.progress.clone().ticking("runtime"));
    let server = Server::start(&config, &backend)?;
    #[cfg(feature = "embedded")]
    let consumer = embedded.then(|| {
        let consumer = consumer::Consumer::new(&config, &backend, rand::random());
        shutdown::watched(consumer.run(shutdown.clone()))
    });
    // Parts that must run are watched: a program without them would look healthy and do nothing.
    #[cfg(feature = "embedded")]
    let consumer_completion = consumer.as_ref().map(|(_, completion)| completion.clone());
    #[cfg(not(feature = "embedded"))]
    let consumer_completion = None;
    let parts =
        server.completions().into_iter().chain(backend.completions()).chain(consumer_completion).collect();
    print_banner(&config, &server, embedded);
    let stopped = cli::stop_requested(&mut signals, stop_max, parts).await;
    server.stop().await;
    trigger.request();
    #[cfg(feature = "embedded")]
    if let Some((consumer, _)) = consumer {
        signals.allow(consumer::STOP_MAX);
        if let Err(error) = consumer.await {
            tracing::error!(%error, "consumer failed");
        }
    }
    signals.allow(cli::CLOSE_MAX);
    close(backend).await;
    tracing::info!("stopped");
    stopped
}

/// Opens the backend and prepares it for the first request.
async fn open(config: &Config, embedded: bool, shutdown: &Shutdown) -> anyhow::Result<Backend> {
    let backend = backend::open(config).await?;
    if embedded {
        let without = "this build has no embedded form: set AMQP_URL and DATABASE_URL";
        anyhow::ensure!(cfg!(feature = "embedded"), without);
        let at = || format!("the store in {}", config.store.url);
        backend.store.migrate().await.with_context(at)?;
        // The floor is needed before the first id.
        backend.learn_floor().await?;
    } else {
        cli::report_missing_servers(config).await;
        if config.store.migrate {
            tokio::spawn(cli::migrate(backend.store.clone(), shutdown.clone()));
        }
    }
    Ok(backend)
}

async fn close(backend: Backend) {
    backend.queue.close().await;
    backend.events.close().await;
    backend.store.close().await;
}

/// Logs the addresses, and prints the banner for a person that started the API by hand.
fn print_banner(config: &Config, server: &Server, embedded: bool) {
    let (address, ops) = (server.address, server.ops_address);
    tracing::info!(
        http.address = %address,
        ops.address = %ops,
        queue = if embedded { "embedded" } else { "rabbitmq" },
        "listening"
    );
    if config.auth.is_open() {
        let beyond = if address.ip().is_loopback() { "" } else { ", and it is more than loopback" };
        tracing::warn!("no API keys: whoever reaches {address} may read and write{beyond}");
    }
    let facts = Facts { address, ops, is_in_container: banner::is_in_container() };
    let text = banner::text(config, facts);
    // The reader of standard output may be gone already: no reason to stop.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
