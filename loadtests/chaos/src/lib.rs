//! The ledger test: real programs on servers of its own, a client that writes down its requests and
//! their answers, and a seeded plan of faults while it writes. Afterwards every accepted write must
//! have taken effect exactly once, and nothing may be left over.
//!
//! Flow: [`servers`] and [`fleet`] start what the pair needs · [`traffic`] writes and keeps the
//! [`ledger`] · [`inject`] carries the [`plan`] of [`fault`]s out, with [`beside`] those that are a
//! message, and measures each [`recovery`] · [`audit`] compares the ledger with the answers of the
//! service through HTTP, [`leftovers`] and [`rows`] look at the servers, [`files`] at the files of
//! the embedded pair · [`report`] presents the result. Faults strike only what this started.
//! SIGKILL leaves the kernel alive, so this says nothing about power loss.
pub mod audit;
pub mod beside;
pub mod compare;
pub mod crowd;
pub mod dead;
pub mod early;
pub mod fault;
pub mod files;
pub mod fleet;
pub mod heavy;
pub mod holdings;
pub mod inject;
pub mod kind;
pub mod ledger;
pub mod leftovers;
pub mod outage;
pub mod plan;
pub mod programme;
pub mod recovery;
pub mod refused;
pub mod report;
pub mod rows;
pub mod send;
pub mod traffic;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
pub use testkit::servers;
use testkit::{clock, inspect};
use tokio::sync::watch;

use crate::crowd::Crowd;
use crate::fault::Class;
use crate::fleet::{Base, DATA, Fleet};
use crate::heavy::Switch;
use crate::inject::{CarriedOut, Site, WRITES_QUEUE};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::report::{Report, Requests};
use crate::servers::{Programs, Servers};
use crate::traffic::Traffic;

/// The programs and servers of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// One API with everything in its process.
    Embedded,
    /// Two APIs and two consumers on RabbitMQ and Postgres.
    Cluster,
}

impl Pair {
    pub fn members(self) -> usize {
        match self {
            Self::Embedded => 1,
            Self::Cluster => 4,
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Embedded => "embedded",
            Self::Cluster => "cluster",
        })
    }
}

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Each class of fault at least once, in about a minute.
    Short,
    Minutes(f64),
    Steps(usize),
}

/// The settings of one run.
#[derive(Clone, Debug, Serialize)]
pub struct ChaosSettings {
    pub pair: Pair,
    pub length: Length,
    /// Seed of faults, victims, pauses and writes. The behaviour of the programs under them is not
    /// repeatable.
    pub seed: u64,
    /// Classes of faults; all that the pair can suffer when empty.
    pub classes: Vec<Class>,
    /// Nodes of the broker.
    pub nodes: usize,
    /// Minutes that a server is away in the classes that are about this.
    pub outage_minutes: f64,
    /// Connections that write as fast as they are answered, beside the others.
    pub crowd: usize,
    /// Leaves Idempotency-Keys out, for a build that does not know them yet.
    pub without_keys: bool,
    /// Folder of `forebay-api` and `forebay-consumer`.
    pub binaries: PathBuf,
}

impl ChaosSettings {
    /// The command that repeats the run.
    pub fn replay(&self) -> String {
        let mut words = vec![format!("just chaos --pair {} --seed {}", self.pair, self.seed)];
        words.push(match self.length {
            Length::Short => "--short".into(),
            Length::Minutes(minutes) => format!("--minutes {minutes}"),
            Length::Steps(steps) => format!("--steps {steps}"),
        });
        if self.nodes != 1 {
            words.push(format!("--nodes {}", self.nodes));
        }
        if self.classes.iter().any(|class| class.is_on_demand()) {
            words.push(format!("--outage-minutes {}", self.outage_minutes));
        }
        if self.crowd != 0 {
            words.push(format!("--crowd {}", self.crowd));
        }
        if self.without_keys {
            words.push("--without-keys".into());
        }
        let classes = self.classes.iter().filter_map(clap::ValueEnum::to_possible_value);
        words.extend(classes.map(|class| format!("--faults {}", class.get_name())));
        words.join(" ")
    }
}

impl ChaosSettings {
    fn plan(&self, has_clock: bool) -> Plan {
        let outage = Duration::from_secs_f64(self.outage_minutes * 60.0);
        let outage_ms = u64::try_from(outage.as_millis()).unwrap_or(u64::MAX);
        Plan::new(self.pair, self.seed, &self.classes, has_clock).with_outages(outage_ms)
    }

    /// Approximate duration of the faults: long runs write more slowly.
    fn about_lasting(&self) -> Duration {
        const PROGRAM_STEP: Duration = Duration::from_millis(1_500);
        const SERVER_STEP: Duration = Duration::from_secs(12);
        const HEAVY_STEP: Duration = Duration::from_secs(40);
        let is_server = |class: &Class| [Class::StoreCrash, Class::BrokerCrash].contains(class);
        let step = if self.classes.contains(&Class::Heavy) {
            HEAVY_STEP
        } else if self.classes.iter().any(is_server) {
            SERVER_STEP
        } else {
            PROGRAM_STEP
        };
        match self.length {
            Length::Minutes(minutes) => Duration::from_secs_f64(minutes * 60.0),
            Length::Short => Duration::ZERO,
            Length::Steps(steps) => step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX)),
        }
    }
}

/// Starts everything, carries the plan out, audits, ends everything. `Err` means that the run
/// itself broke; errors of the service are in the report.
pub async fn run(settings: ChaosSettings, mut interrupted: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let folder = std::env::temp_dir().join(testkit::unique("chaos"));
    std::fs::create_dir_all(&folder)?;
    let outcome = tokio::select! {
        outcome = run_on_servers(&settings, &folder) => Some(outcome),
        // All that was started is killed with the future that holds it.
        _ = interrupted.wait_for(|interrupted| *interrupted) => None,
    };
    let keep = outcome
        .as_ref()
        .is_some_and(|outcome| outcome.as_ref().map_or(true, |report| !report.findings.is_empty()));
    if !keep {
        servers::remove_folder(&folder).await?;
    }
    let reported =
        || format!("again: {}; logs and ledger are kept in {}", settings.replay(), folder.display());
    outcome.context("interrupted")?.with_context(reported)
}

async fn run_on_servers(settings: &ChaosSettings, folder: &Path) -> anyhow::Result<Report> {
    let mut servers = match settings.pair {
        Pair::Embedded => None,
        Pair::Cluster => Some(Servers::start(&Programs::find()?, folder, settings.nodes).await?),
    };
    let outcome = run_in(settings, servers.as_mut(), folder).await;
    if let Some(servers) = &mut servers {
        servers.stop().await?;
    }
    outcome
}

async fn run_in(
    settings: &ChaosSettings,
    mut servers: Option<&mut Servers>,
    folder: &Path,
) -> anyhow::Result<Report> {
    let faketime = clock::find();
    let base = Base { binaries: &settings.binaries, folder, faketime: faketime.as_deref() };
    let mut fleet = Fleet::start(base, servers.as_deref()).await?;
    if let Some(servers) = servers.as_deref() {
        prepare(servers, settings.nodes).await?;
    }
    let switch = Switch::install(servers.as_deref(), folder).await?;
    let apis = fleet.api_addresses();
    let ledger = Arc::new(Ledger::create(&folder.join("ledger.jsonl"))?);
    let mut abilities = kind::discover(&send::client()?, apis[0], &ledger).await?;
    abilities.keyed &= !settings.without_keys;
    let began = Instant::now();
    let lasting = settings.about_lasting();
    let traffic = Traffic::start(&apis, &ledger, &abilities, settings.seed, lasting)?;
    let crowd = Crowd::start(&apis, settings.crowd);
    let site = Site {
        fleet: &mut fleet,
        servers: servers.as_deref_mut(),
        traffic: &traffic,
        ledger: &ledger,
        switch: &switch,
        poison: Vec::new(),
        findings: Vec::new(),
    };
    let plan = settings.plan(faketime.is_some());
    let carried_out = match settings.length {
        Length::Short => inject::carry_out(site, plan.short().into_iter(), None).await,
        Length::Minutes(_) => inject::carry_out(site, plan, Some(began + lasting)).await,
        Length::Steps(steps) => inject::carry_out(site, plan.take(steps), None).await,
    };
    let mut findings = traffic.stop().await?;
    let (crowded, expected) = crowd.stop().await?;
    let CarriedOut { struck, poison, findings: of_faults } = carried_out?;
    findings.extend(of_faults);
    let ended = Instant::now();
    fleet.await_healthy().await?;
    let entries = ledger.entries();
    let audit = audit::audit(&entries, &apis).await?;
    findings.extend(audit.findings);
    findings.extend(expected.check(&send::client()?, &apis).await?);
    let mut files = None;
    let leftovers = match servers.as_deref() {
        None => {
            findings.extend(fleet.stop().await?);
            let found = files.insert(files::gather(&folder.join(DATA)).await?);
            findings.extend(files::check(found));
            None
        }
        Some(servers) => {
            let idle = leftovers::idle_sessions(servers).await?;
            findings.extend(fleet.stop().await?);
            let left = leftovers::gather(servers, idle, poison.len()).await?;
            findings.extend(leftovers::check(&left, &poison, fleet.members.len()));
            Some(left)
        }
    };
    let rows = read_rows(servers.as_deref(), folder).await?;
    findings.extend(rows::check(&audit.states, &rows));
    let skipped =
        faketime.is_none().then(|| "clock steps: libfaketime is not here (Debian: faketime)".to_owned());
    Ok(Report {
        settings: settings.clone(),
        replay: settings.replay(),
        abilities,
        skipped: skipped.into_iter().collect(),
        requests: Requests::count(&entries),
        crowd: (settings.crowd > 0).then_some(crowded),
        receipts_checked: audit.receipts_checked,
        faults: struck,
        load_seconds: (ended - began).as_secs_f64(),
        audit_seconds: ended.elapsed().as_secs_f64(),
        leftovers,
        files,
        poison: poison.len(),
        findings,
        folder: folder.to_owned(),
    })
}

/// Prepares what needs the administrator of the servers, once the programs have made their tables and queues.
async fn prepare(servers: &Servers, nodes: usize) -> anyhow::Result<()> {
    if nodes > 1 {
        let members = servers.broker.members(WRITES_QUEUE).await?;
        ensure!(members == nodes, "{WRITES_QUEUE} has {members} members on {nodes} nodes");
    }
    testkit::execute(&servers.postgres.url(), refused::TRIGGER.into()).await
}

async fn read_rows(servers: Option<&Servers>, folder: &Path) -> anyhow::Result<inspect::Points> {
    match servers {
        None => inspect::points_in_file(&folder.join(DATA)).await,
        Some(servers) => inspect::points(&servers.postgres.url()).await,
    }
}

/// Finds the folder of the programs that were built with this one: beside an executable, or above
/// `deps` for a test.
pub fn binaries_beside_this() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("own path")?;
    let folder = here.parent().context("an executable lies in a folder")?;
    let above = folder.parent().filter(|_| folder.ends_with("deps"));
    let folder = above.unwrap_or(folder);
    for name in ["forebay-api", "forebay-consumer"] {
        ensure!(
            folder.join(name).is_file(),
            "no {name} in {}: build it with `cargo build -p api -p consumer` in the same profile",
            folder.display()
        );
    }
    Ok(folder.to_owned())
}
