//! The ledger test: real programs, a client that writes down what it asked for and what it was
//! answered, and a seeded plan that kills programs with SIGKILL while it writes. Afterwards every
//! accepted write must have taken effect exactly once.
//!
//! Flow: [`fleet`] starts the programs of a pair · [`traffic`] writes and keeps the [`ledger`] ·
//! [`plan`] kills and restarts · [`audit`] compares the ledger with what the service says ·
//! [`report`] tells. It must not look into queues or databases: what a client cannot see is no
//! promise. SIGKILL leaves the kernel alive, so this says nothing about power loss.
pub mod audit;
pub mod fleet;
pub mod ledger;
pub mod plan;
pub mod report;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use testkit::Isolated;
use tokio::sync::{oneshot, watch};

use crate::fleet::Fleet;
use crate::ledger::Ledger;
use crate::plan::Kill;
use crate::report::Report;
use crate::traffic::Traffic;

/// Which programs run, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// One API with everything in its process.
    Embedded,
    /// Two APIs and two consumers on RabbitMQ and Postgres.
    Cluster,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pair: Pair,
    pub kills: usize,
    /// Decides victims, pauses and writes. What the programs do meanwhile is not repeatable.
    pub seed: u64,
    /// Where `forebay-api` and `forebay-consumer` are.
    pub binaries: PathBuf,
}

/// Starts everything, kills as planned, audits, cleans up. `Err` means that the run itself broke;
/// what the service did wrong stands in the report.
pub async fn run(settings: Settings, interrupted: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let (sender, receiver) = oneshot::channel();
    match settings.pair {
        Pair::Embedded => {
            let _ = sender.send(run_on(settings, None, interrupted).await);
        }
        Pair::Cluster => {
            // Cleans up the database and the queues after an interrupt, too.
            testkit::isolated("chaos", async move |isolated: Isolated| {
                let _ = sender.send(run_on(settings, Some(isolated), interrupted).await);
            })
            .await;
        }
    }
    receiver.await.context("the run ended without a report")?
}

async fn run_on(
    settings: Settings,
    isolated: Option<Isolated>,
    mut interrupted: watch::Receiver<bool>,
) -> anyhow::Result<Report> {
    let folder = std::env::temp_dir().join(testkit::unique("chaos"));
    std::fs::create_dir_all(&folder)?;
    let outcome = tokio::select! {
        outcome = run_in(&settings, isolated.as_ref(), &folder) => Some(outcome),
        _ = interrupted.wait_for(|interrupted| *interrupted) => None,
    };
    let keep = outcome
        .as_ref()
        .is_some_and(|outcome| outcome.as_ref().map_or(true, |report| !report.findings.is_empty()));
    if !keep {
        std::fs::remove_dir_all(&folder)?;
    }
    let seed = settings.seed;
    outcome
        .context("interrupted")?
        .with_context(|| format!("seed {seed}; logs and ledger are kept in {}", folder.display()))
}

async fn run_in(settings: &Settings, isolated: Option<&Isolated>, folder: &Path) -> anyhow::Result<Report> {
    let began = Instant::now();
    let mut fleet = Fleet::start(&settings.binaries, isolated, folder).await?;
    let ledger = Arc::new(Ledger::create(&folder.join("ledger.jsonl"))?);
    let traffic = Traffic::start(fleet.api_addresses(), &ledger, settings.seed)?;
    let kills = plan::carry_out(settings, &mut fleet, &traffic).await;
    let mut findings = traffic.stop().await?;
    let kills: Vec<Kill> = kills?;
    let ended_load = Instant::now();
    fleet.await_healthy().await?;
    let entries = ledger.entries();
    let audit = audit::audit(&entries, fleet.api_addresses()).await?;
    findings.extend(audit.findings);
    findings.extend(fleet.stop().await?);
    Ok(Report::new(settings, &entries, kills, findings, ended_load - began, ended_load.elapsed(), folder))
}

/// The folder of the programs that were built with this one: beside an executable, or above
/// `deps` for a test.
pub fn binaries_beside_this() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("own path")?;
    let folder = here.parent().context("an executable lies in a folder")?;
    let above = folder.parent().filter(|_| folder.ends_with("deps"));
    let folder = above.unwrap_or(folder);
    for name in ["forebay-api", "forebay-consumer"] {
        anyhow::ensure!(
            folder.join(name).is_file(),
            "no {name} in {}: build it with `cargo build -p api -p consumer` in the same profile",
            folder.display()
        );
    }
    Ok(folder.to_owned())
}
