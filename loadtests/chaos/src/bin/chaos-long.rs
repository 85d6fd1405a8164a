//! `just chaos-long`: the whole programme of long runs, a report in JSON for each, and one table.
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use chaos::programme::{ProgrammeRow, ROWS, table};
use clap::Parser;
use tokio::sync::watch;

#[derive(Debug, Parser)]
#[command(about = "Carries out the long runs of faults, one after the other, and prints a table of them")]
struct ChaosLongArguments {
    /// Seed of all runs; a random one, which is printed, when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Run only these rows: kill, embedded, broker, store, leader, broker-away, store-away, clocks,
    /// crowd, crowd-embedded
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Factor of the length; below 1: fewer faults and shorter outages
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Folder of forebay-api and forebay-consumer; that of this program when absent
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Folder for a report of each run
    #[arg(long, default_value = "target/chaos-long")]
    reports: PathBuf,
}

impl ChaosLongArguments {
    fn rows(&self) -> anyhow::Result<Vec<ProgrammeRow>> {
        let unknown = self.rows.iter().find(|name| !ROWS.iter().any(|row| row.name == **name));
        ensure!(unknown.is_none(), "no such row: {unknown:?}");
        let is_wanted =
            |row: &&ProgrammeRow| self.rows.is_empty() || self.rows.iter().any(|name| name == row.name);
        Ok(ROWS.iter().filter(is_wanted).copied().collect())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = ChaosLongArguments::parse();
    ensure!(arguments.scale > 0.0 && arguments.scale <= 1.0, "--scale must be more than 0, and 1 at most");
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let binaries = arguments.binaries.clone().map_or_else(chaos::binaries_beside_this, Ok)?;
    std::fs::create_dir_all(&arguments.reports)?;
    let (interrupt, interrupted) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupt.send_replace(true);
        }
        // An end here would look like an interrupt to the runs that still wait.
        std::future::pending::<()>().await;
    });
    let (mut reports, mut good) = (Vec::new(), true);
    for row in arguments.rows()? {
        let settings = row.settings(seed, arguments.scale, binaries.clone());
        writeln!(std::io::stderr(), "{}", settings.replay())?;
        let report = chaos::run(settings, interrupted.clone()).await?;
        let path = arguments.reports.join(row.name).with_extension("json");
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        for verdict in [report.check_promises(), report.check_teeth()] {
            if let Err(error) = verdict {
                writeln!(std::io::stderr(), "{error:#}")?;
                good = false;
            }
        }
        reports.push(report);
    }
    write!(std::io::stdout(), "{}", table(&reports))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
