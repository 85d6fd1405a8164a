//! The four variants that are compared, each complete with its own database and queues.
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use tokio::runtime::Handle;

use crate::programs::{Binaries, Program, free_address};
use crate::stop::Stop;

/// The program that answers the requests of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// The bare HTTP handler: the ceiling.
    Bare,
    /// Forebay with RabbitMQ and Postgres, as configured by default.
    Cluster,
    /// The same cluster with one message per request instead of batches.
    Unbatched,
    /// Forebay in one process, with SQLite.
    Embedded,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Cluster => "cluster",
            Self::Unbatched => "unbatched",
            Self::Embedded => "embedded",
        }
    }
}

/// One running variant.
pub struct Installation {
    pub variant: Variant,
    pub address: SocketAddr,
    api: Program,
    consumer: Option<Program>,
    /// Address of the consumer's health and metrics.
    consumer_ops: Option<SocketAddr>,
    servers: Option<DatabaseAndQueues>,
}

/// The database and queues of a variant on servers that others use, too.
struct DatabaseAndQueues {
    name: String,
    store_url: String,
}

type ProgramSettings = Vec<(&'static str, String)>;

impl Installation {
    pub fn start(variant: Variant, binaries: &Binaries, folder: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let folder = folder.join(variant.name());
        match variant {
            Variant::Bare => Self::start_bare(binaries, &folder, stop),
            Variant::Embedded => {
                let url = format!("embedded:{}", folder.join("data").display());
                let settings = vec![("QUEUE__URL", url.clone()), ("STORE__URL", url)];
                let (api, address) = start_api(binaries, settings, &folder, stop)?;
                Ok(Self { variant, address, api, consumer: None, consumer_ops: None, servers: None })
            }
            Variant::Cluster | Variant::Unbatched => Self::start_cluster(variant, binaries, &folder, stop),
        }
    }

    fn start_bare(binaries: &Binaries, folder: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let address = free_address()?;
        let (arguments, ready) = ([address.port().to_string()], (address, "/v1/counters/ready"));
        let api = Program::start(&binaries.bare, "bare", &arguments, &[], folder, ready, stop)?;
        Ok(Self { variant: Variant::Bare, address, api, consumer: None, consumer_ops: None, servers: None })
    }

    fn start_cluster(
        variant: Variant,
        binaries: &Binaries,
        folder: &Path,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let name = testkit::unique(&format!("compare_{}", variant.name()));
        let store = block_on(testkit::create_database(&name))?;
        // From here on, dropping `servers` cleans up, whatever fails.
        let servers = DatabaseAndQueues { name: name.clone(), store_url: store.clone() };
        let mut settings: ProgramSettings = vec![
            ("QUEUE__URL", testkit::amqp_url()),
            ("QUEUE__PREFIX", name),
            ("STORE__URL", store),
            ("STORE__MIGRATE", "true".into()),
            ("IDS__SECRETS", "a-secret-for-load-tests-on-loopback-only".into()),
        ];
        if variant == Variant::Unbatched {
            settings.extend(unbatched());
        }
        let ops = free_address()?;
        let mut own = settings.clone();
        own.push(("OPS__PORT", ops.port().to_string()));
        let ready = (ops, "/readyz");
        let consumer = Program::start(&binaries.consumer, "consumer", &[], &own, folder, ready, stop)?;
        let (api, address) = start_api(binaries, settings, folder, stop)?;
        let (consumer, consumer_ops) = (Some(consumer), Some(ops));
        Ok(Self { variant, address, api, consumer, consumer_ops, servers: Some(servers) })
    }

    pub fn api_pid(&self) -> u32 {
        self.api.pid()
    }

    pub fn consumer_pid(&self) -> Option<u32> {
        self.consumer.as_ref().map(Program::pid)
    }

    pub fn consumer_ops(&self) -> Option<SocketAddr> {
        self.consumer_ops
    }

    /// URL of its Postgres database, if it has one.
    pub fn store_url(&self) -> Option<&str> {
        self.servers.as_ref().map(|servers| servers.store_url.as_str())
    }

    /// Checks its programs; an error once one of them has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.api.check()?;
        self.consumer.as_mut().map_or(Ok(()), Program::check)
    }

    /// Stops the programs in the order of the flow. Its database and queues are removed even when a
    /// stop fails.
    pub fn stop(self) -> anyhow::Result<()> {
        let Self { api, consumer, servers, .. } = self;
        let api = api.stop();
        let consumer = consumer.map_or(Ok(()), Program::stop);
        drop(servers);
        api.and(consumer)
    }
}

/// Settings with one item per message, and as many publishes at once as a broker can use: the
/// comparison must be fair.
fn unbatched() -> ProgramSettings {
    vec![
        ("QUEUE__MESSAGE_ITEMS_MAX", "1".into()),
        ("QUEUE__PUBLISHES_IN_FLIGHT_MAX", "1024".into()),
        ("QUEUE__MESSAGES_WAITING_MAX", "8192".into()),
        ("QUEUE__PREFETCH", "1000".into()),
        ("QUEUE__PREFETCH_BYTES_MAX", (4_u64 << 30).to_string()),
    ]
}

fn start_api(
    binaries: &Binaries,
    mut settings: ProgramSettings,
    folder: &Path,
    stop: &Stop,
) -> anyhow::Result<(Program, SocketAddr)> {
    let (address, ops) = (free_address()?, free_address()?);
    settings.push(("SERVER__PORT", address.port().to_string()));
    settings.push(("OPS__PORT", ops.port().to_string()));
    // Ready comes before the broker is reached; healthy means that writes are accepted.
    let ready = (ops, "/health");
    let program = Program::start(&binaries.api, "api", &[], &settings, folder, ready, stop)?;
    Ok((program, address))
}

/// Runs `work` on the measuring thread, which is no worker of the runtime.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    Handle::try_current().context("called outside of the runtime")?.block_on(work)
}

impl Drop for DatabaseAndQueues {
    fn drop(&mut self) {
        let outcome = block_on(async {
            let queues = testkit::delete_queues(&testkit::amqp_url(), &self.name).await;
            testkit::drop_database(&self.name).await.and(queues)
        });
        if let Err(error) = outcome {
            eprintln!("{} is not cleaned up: {error:#}", self.name);
        }
    }
}
