//! Whether the own generator is as cheap as `wrk -t1`, where that is installed: the same load on
//! the bare handler by both, in turns.
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::generator::Pace;
use crate::installation::{Installation, Variant};
use crate::measure::{self, COUNTERS, Plan, Work};
use crate::programs::Binaries;
use crate::stop::Stop;

/// Prints own and wrk's figures and their ratio for every number of connections.
pub fn compare(binaries: &Binaries, folder: &Path, duration: Duration, stop: &Stop) -> anyhow::Result<()> {
    let mut bare = Installation::start(Variant::Bare, binaries, folder, stop)?;
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
        let plan = Plan { work: Work::Single, connections, pace: Pace::Closed, duration };
        let first = measure::measure(&mut bare, plan, stop)?.accepted;
        let wrk = wrk(&bare, connections, duration, &script)?;
        let second = measure::measure(&mut bare, plan, stop)?.accepted;
        let own = f64::midpoint(first, second);
        let ratio = own / wrk;
        writeln!(
            std::io::stdout(),
            "{connections:>5} connections: own {own:>7.0}/s, wrk {wrk:>7.0}/s, own ÷ wrk {ratio:.2}"
        )?;
    }
    Ok(())
}

fn wrk(bare: &Installation, connections: usize, duration: Duration, script: &Path) -> anyhow::Result<f64> {
    let seconds = duration.as_secs().max(1);
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
        .arg(script)
        .arg(format!("http://{}", bare.address))
        .output()
        .context("wrk is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    figure
        .and_then(|figure| figure.trim().parse().ok())
        .with_context(|| format!("no figure of wrk in\n{text}"))
}
