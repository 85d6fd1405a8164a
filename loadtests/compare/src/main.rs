//! Measures Forebay against the ceilings of this machine and prints the table of targets.
//!
//! Starts the bare handler and Forebay in three forms on free loopback ports, loads them in
//! turns, accounts for every accepted write, and stops and removes everything it made, also when
//! it is interrupted. `loadtests/README.md` says what each row answers.
mod account;
mod ceiling;
mod connection;
mod control;
mod generator;
mod histogram;
mod http;
mod installation;
mod measure;
mod month;
mod process;
mod programs;
mod report;
mod rows;
mod scenario;
mod stop;
mod work;
mod wrk;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::programs::Binaries;
use crate::report::MeasurementReport;
use crate::rows::Verdict;
use crate::scenario::ScenarioSettings;
use crate::stop::Stop;

/// File descriptors for both ends of the largest crowd, and some files.
const FILES_MIN: u64 = 6_000;

#[derive(Clone, Debug, Parser)]
#[command(about = "Measures Forebay against the ceilings of this machine")]
struct CompareArguments {
    /// Short runs and one round: shows that everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Seconds of each run
    #[arg(long)]
    seconds: Option<u64>,
    /// Times that each closed loop is run; the figure is the median
    #[arg(long)]
    rounds: Option<usize>,
    /// Rows to measure, by name; all when absent
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Also write everything that was measured into this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail when a row misses what it must reach
    #[arg(long)]
    strict: bool,
    /// Folder for logs and the embedded data; a folder of its own in the system's place for temporary files when absent
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Only compare the own generator with wrk on the bare handler
    #[arg(long)]
    check_generator: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = CompareArguments::parse();
    for row in &arguments.rows {
        let known: Vec<_> = rows::names().collect();
        ensure!(known.contains(&row.as_str()), "no row `{row}`; there are {}", known.join(", "));
    }
    let stop = Stop::default();
    let work = {
        let stop = stop.clone();
        tokio::task::spawn_blocking(move || work(&arguments, &stop))
    };
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let listener = tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.request();
    });
    // The work cleans up by itself when it is asked to stop.
    let outcome = work.await.context("the measuring thread panicked")?;
    listener.abort();
    outcome
}

fn work(arguments: &CompareArguments, stop: &Stop) -> anyhow::Result<ExitCode> {
    raise_file_limit()?;
    let binaries = Binaries::find_or_build()?;
    let own_folder = std::env::temp_dir().join(testkit::unique("compare"));
    let folder = arguments.folder.clone().unwrap_or_else(|| own_folder.clone());
    fs::create_dir_all(&folder)?;
    let outcome = work_in(arguments, &binaries, &folder, stop);
    if own_folder.exists() {
        fs::remove_dir_all(&own_folder)?;
    }
    outcome
}

fn work_in(
    arguments: &CompareArguments,
    binaries: &Binaries,
    folder: &std::path::Path,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let (seconds, long_seconds, rounds) = if arguments.quick { (2, 5, 1) } else { (8, 30, 2) };
    let duration = Duration::from_secs(arguments.seconds.unwrap_or(seconds).max(1));
    if arguments.check_generator {
        wrk::compare(binaries, folder, duration, stop)?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = ScenarioSettings {
        duration,
        long_duration: Duration::from_secs(long_seconds),
        rounds: arguments.rounds.unwrap_or(rounds).max(1),
        rows: arguments.rows.clone(),
    };
    let measurements = scenario::run(&settings, binaries, folder, stop)?;
    let rows = rows::judge(&measurements, |name| settings.wants(name));
    let report = MeasurementReport::new(&rows, &measurements);
    std::io::stdout().write_all(report.text().as_bytes())?;
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed = rows.iter().any(|row| row.verdict == Verdict::Missed);
    Ok(if arguments.strict && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn raise_file_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("cannot raise the file limit")?;
    ensure!(
        maximum.is_none_or(|files| files >= FILES_MIN),
        "5 000 connections need a limit of {FILES_MIN} open files (ulimit -Hn)"
    );
    Ok(())
}
