//! `cargo run -p chaos -- --minutes 5 --pair cluster --seed 7`: the ledger test by hand.
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use chaos::fault::Class;
use chaos::{ChaosSettings, Length, Pair};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Clone, Debug, Parser)]
#[command(
    about = "Strikes Forebay's programs and their servers while a client writes, then looks for lost and doubled writes"
)]
struct ChaosArguments {
    /// Minutes of faults
    #[arg(long, default_value_t = 5.0, conflicts_with_all = ["steps", "short"])]
    minutes: f64,
    /// Number of faults, instead of minutes
    #[arg(long, conflicts_with = "short")]
    steps: Option<usize>,
    /// Each class of fault at least once, as the test does
    #[arg(long)]
    short: bool,
    /// The pair; both, one after the other, when absent
    #[arg(long)]
    pair: Option<Pair>,
    /// Seed of the plan; a random one, which is printed, when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Use only these classes of faults; may be repeated
    #[arg(long = "faults", value_delimiter = ',')]
    classes: Vec<Class>,
    /// Nodes of the broker: the one that leads the queue is killed
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Minutes that a server is away in the classes broker-outage, store-outage and adrift
    #[arg(long, default_value_t = 1.0)]
    outage_minutes: f64,
    /// Connections that write as fast as they are answered, beside the others
    #[arg(long, default_value_t = 0)]
    crowd: usize,
    /// Leave Idempotency-Keys out, for a build that does not know them yet
    #[arg(long)]
    without_keys: bool,
    /// Folder of forebay-api and forebay-consumer; that of this program when absent
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Also write the reports into this file
    #[arg(long)]
    json: Option<PathBuf>,
}

impl ChaosArguments {
    fn settings(&self, pair: Pair, seed: u64) -> anyhow::Result<ChaosSettings> {
        ensure!(self.minutes.is_finite() && self.minutes > 0.0, "--minutes must be more than 0");
        ensure!(
            self.outage_minutes.is_finite() && self.outage_minutes > 0.0,
            "--outage-minutes must be more than 0"
        );
        ensure!((1..=7).contains(&self.nodes), "--nodes must be 1 to 7");
        let length = match self.steps {
            Some(steps) => Length::Steps(steps),
            None if self.short => Length::Short,
            None => Length::Minutes(self.minutes),
        };
        let binaries = self.binaries.clone().map_or_else(chaos::binaries_beside_this, Ok)?;
        let Self { classes, nodes, outage_minutes, crowd, without_keys, .. } = self.clone();
        Ok(ChaosSettings {
            pair,
            length,
            seed,
            classes,
            nodes,
            outage_minutes,
            crowd,
            without_keys,
            binaries,
        })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = ChaosArguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let pairs = arguments.pair.map_or(vec![Pair::Embedded, Pair::Cluster], |pair| vec![pair]);
    let (interrupt, interrupted) = watch::channel(false);
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        interrupt.send_replace(true);
        // An end here would look like an interrupt to the runs that still wait.
        std::future::pending::<()>().await;
    });
    let (mut reports, mut good) = (Vec::new(), true);
    for pair in pairs {
        let settings = arguments.settings(pair, seed)?;
        writeln!(std::io::stdout(), "{}", settings.replay())?;
        let report = chaos::run(settings, interrupted.clone()).await?;
        write!(std::io::stdout(), "{report}")?;
        for verdict in [report.check_promises(), report.check_teeth()] {
            if let Err(error) = verdict {
                writeln!(std::io::stderr(), "{error:#}")?;
                good = false;
            }
        }
        reports.push(report);
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&reports)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
