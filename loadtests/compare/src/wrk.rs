//! A check that this generator is as cheap as `wrk -t1`, where that is installed: both put the same
//! load on the bare handler, in turns.
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::generator::Pace;
use crate::installation::{Installation, Variant};
use crate::measure::{self, RunPlan};
use crate::process;
use crate::programs::Binaries;
use crate::stop::Stop;
use crate::work::{COUNTERS, Item, Work};

/// Prints the figures of both generators and their ratio for every number of connections.
pub fn compare(binaries: &Binaries, folder: &Path, duration: Duration, stop: &Stop) -> anyhow::Result<()> {
    let mut bare = Installation::start(Variant::Bare, binaries, folder, stop)?;
    let bare_address = bare.address;
    let script = folder.join("increments.lua");
    let lua = format!(
        "local n = 0\nwrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n\
         wrk.body = '{{\"by\":1}}'\n\
         local requests = {{}}\n\
         function init(args)\n  for i = 0, {COUNTERS} - 1 do\n    \
         requests[i] = wrk.format(nil, string.format('/v1/counters/c-%04d/increments', i))\n  end\nend\n\
         function request()\n  n = (n + 1) % {COUNTERS}\n  return requests[n]\nend\n"
    );
    fs::write(&script, lua)?;
    for connections in [50, 1_000, 5_000] {
        let plan = RunPlan { work: Work::Single(Item::Increment), connections, pace: Pace::Closed, duration };
        let mut own = || Ok(measure::measure(&mut bare, plan, stop)?.accepted);
        let first = costed(duration, &mut own)?;
        let target = bare_address;
        let wrk = costed(duration, &mut || wrk(target, connections, duration, &script))?;
        let second = costed(duration, &mut own)?;
        let (rate, cost) = (f64::midpoint(first.0, second.0), f64::midpoint(first.1, second.1));
        writeln!(
            std::io::stdout(),
            "{connections:>5} connections: own {rate:>7.0}/s at {cost:.1} µs of CPU each, wrk {:>7.0}/s at {:.1} µs; \
             rate own ÷ wrk {:.2}, CPU own ÷ wrk {:.2}",
            wrk.0,
            wrk.1,
            rate / wrk.0,
            cost / wrk.1
        )?;
    }
    Ok(())
}

/// Measures the rate of a run and the generator's CPU time per request in µs: on a machine with
/// other load the time says more than the rate. wrk counts as a child of this process.
fn costed(duration: Duration, run: &mut impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<(f64, f64)> {
    let before = process::of_process(std::process::id())?;
    let rate = run()?;
    let used = process::of_process(std::process::id())?.saturating_sub(before);
    Ok((rate, used.as_secs_f64() * 1e6 / (rate * duration.as_secs_f64())))
}

fn wrk(target: SocketAddr, connections: usize, duration: Duration, script: &Path) -> anyhow::Result<f64> {
    let seconds = duration.as_secs().max(1);
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
        .arg(script)
        .arg(format!("http://{target}"))
        .output()
        .context("wrk is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    figure
        .and_then(|figure| figure.trim().parse().ok())
        .with_context(|| format!("no figure of wrk in\n{text}"))
}
