//! `cargo run -p chaos -- --kills 50 --pair cluster --seed 7`: the ledger test by hand.
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use chaos::{Pair, Settings};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Clone, Debug, Parser)]
#[command(about = "Kills Forebay's programs while a client writes, then looks for lost and doubled writes")]
struct Arguments {
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Both, one after the other, when absent
    #[arg(long)]
    pair: Option<Pair>,
    /// A random one, which is told, when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of forebay-api and forebay-consumer; that of this program when absent
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Also write the reports into this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let binaries = arguments.binaries.clone().map_or_else(chaos::binaries_beside_this, Ok)?;
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
        // Ending here would look like an interrupt to whoever still waits.
        std::future::pending::<()>().await;
    });
    let (mut reports, mut good) = (Vec::new(), true);
    for pair in pairs {
        let settings = Settings { pair, kills: arguments.kills, seed, binaries: binaries.clone() };
        let report = chaos::run(settings, interrupted.clone()).await?;
        write!(std::io::stdout(), "{report}")?;
        for verdict in [report.check_promises(), report.check_teeth(arguments.kills)] {
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
