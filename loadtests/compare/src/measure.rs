//! Single measurements: load on one installation, then the account of what became of it.
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::control::{Client, Sums};
use crate::generator::{self, Load, Outcome, Pace};
use crate::http;
use crate::installation::{Installation, Variant};
use crate::process::CpuSeconds;
use crate::stop::Stop;

/// Names over which the load is spread, round robin.
pub const COUNTERS: usize = 1_000;
/// How long accepted writes may take to be applied before they count as lost.
const DRAIN_PATIENCE: Duration = Duration::from_mins(2);
/// Nothing changed for so long: what is unknown will not come any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// One increment per request.
    Single,
    /// An array of a hundred increments per request.
    Bulk,
    /// Reads of counters that are in the cache.
    Read,
}

impl Work {
    pub const BULK_ITEMS: u8 = 100;

    fn items(self) -> u64 {
        match self {
            Self::Single => 1,
            Self::Bulk => Self::BULK_ITEMS.into(),
            Self::Read => 0,
        }
    }
}

/// The figures of one run. Rates are items per second.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub variant: Variant,
    pub work: Work,
    pub connections: usize,
    pub seconds: f64,
    /// Open loop: requests per second that were due.
    pub offered: Option<f64>,
    /// Increments that were answered 202 (or reads that were answered 200) per second of load.
    pub accepted: f64,
    /// Increments per second, from the first request until the last one was applied.
    pub applied: f64,
    /// From the end of the load until everything accepted was applied.
    pub drain_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Answers 429 and 503.
    pub refused: u64,
    /// Other answers than 2xx, 429 and 503.
    pub failed: u64,
    pub unanswered: u64,
    /// Requests of an open loop for which no connection became free.
    pub unsent: u64,
    pub cpu: CpuSeconds,
    pub cpu_us_per_item: f64,
}

/// What one run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub work: Work,
    pub connections: usize,
    pub pace: Pace,
    pub duration: Duration,
}

/// Runs the load and accounts for every answer. An accepted increment that is not applied, or
/// one that is applied twice, is an error.
pub fn measure(installation: &mut Installation, plan: Plan, stop: &Stop) -> anyhow::Result<Run> {
    let word = testkit::unique("c").replace("forebay_test_", "");
    // Reads go to the same names each time, so that the first run has filled the cache.
    let word = if plan.work == Work::Read { "read".into() } else { word };
    let requests = requests(installation, plan.work, &word);
    let cpu_before = CpuSeconds::now(installation.api_pid(), installation.consumer_pid())?;
    let load = Load {
        target: installation.address,
        connections: plan.connections,
        requests: &requests,
        pace: plan.pace,
        duration: plan.duration,
    };
    let outcome = generator::run(load, stop).with_context(|| context(installation, plan))?;
    installation.check()?;
    let writes = plan.work != Work::Read && installation.variant != Variant::Bare;
    let drained = if writes {
        await_applied(installation, &outcome, plan.work.items(), &word, stop)
            .with_context(|| context(installation, plan))?
    } else {
        outcome.began + outcome.window
    };
    let cpu = CpuSeconds::now(installation.api_pid(), installation.consumer_pid())?.since(cpu_before);
    Ok(figures(installation.variant, plan, &outcome, drained, cpu))
}

/// Fills the cache with the names that [`Work::Read`] asks for.
pub fn prepare_reads(installation: &Installation, stop: &Stop) -> anyhow::Result<()> {
    if installation.variant == Variant::Bare {
        return Ok(());
    }
    let requests = requests(installation, Work::Single, "read");
    let (target, connections) = (installation.address, 8);
    let (pace, duration) = (Pace::Closed, Duration::from_secs(1));
    let outcome = generator::run(Load { target, connections, requests: &requests, pace, duration }, stop)?;
    await_applied(installation, &outcome, 1, "read", stop)?;
    Ok(())
}

fn context(installation: &Installation, plan: Plan) -> String {
    format!("{}, {:?}, {} connections", installation.variant.name(), plan.work, plan.connections)
}

fn requests(installation: &Installation, work: Work, prefix: &str) -> Vec<Vec<u8>> {
    let address = installation.address;
    let bulk = format!("[{}]", vec![r#"{"by":1}"#; Work::BULK_ITEMS.into()].join(","));
    let build = |number| {
        let path = format!("/v1/counters/{prefix}-{number:04}");
        match work {
            Work::Single => http::post_json(address, &format!("{path}/increments"), r#"{"by":1}"#),
            Work::Bulk => http::post_json(address, &format!("{path}/increments"), &bulk),
            Work::Read => http::get(address, &path),
        }
    };
    (0..COUNTERS).map(build).collect()
}

/// Waits until the counters hold what was accepted and returns when that was seen first. What
/// is unknown may have been applied or not; anything beyond it was applied twice.
fn await_applied(
    installation: &Installation,
    outcome: &Outcome,
    items: u64,
    word: &str,
    stop: &Stop,
) -> anyhow::Result<Instant> {
    let least = i64::try_from(outcome.succeeded * items).context("an absurd number of writes")?;
    let most = i64::try_from((outcome.succeeded + outcome.unknown()) * items)?;
    let mut client = Client::new(installation.address);
    let (mut seen, mut seen_since, mut reached) = (Sums::default(), Instant::now(), None);
    let settled = stop.poll(DRAIN_PATIENCE, PAUSE, || {
        let sums = client.sums(word)?;
        if sums != seen {
            (seen, seen_since) = (sums, Instant::now());
        }
        if sums.value >= least && reached.is_none() {
            reached = Some(Instant::now());
        }
        let done = least == most || seen_since.elapsed() >= SETTLED_AFTER;
        Ok((reached.is_some() && done).then_some(()))
    })?;
    if settled.is_none() && seen.value < least {
        bail!("LOST: {least} increments were accepted, {} are applied after {DRAIN_PATIENCE:?}", seen.value);
    }
    if seen.value > most {
        bail!("DOUBLED: at most {most} increments were sent, {} are applied", seen.value);
    }
    if seen.version != seen.value {
        bail!("versions sum up to {} and values to {}, with increments of one", seen.version, seen.value);
    }
    reached.context("the counters never held what was accepted")
}

fn figures(variant: Variant, plan: Plan, outcome: &Outcome, drained: Instant, cpu: CpuSeconds) -> Run {
    let items = plan.work.items().max(1);
    let accepted_items = outcome.succeeded * items;
    let load_ended = outcome.began + outcome.window;
    let ms = |per_mille| outcome.latency.quantile(per_mille).as_secs_f64() * 1e3;
    let accepted = outcome.per_second() * items as f64;
    let is_write = plan.work != Work::Read && variant != Variant::Bare;
    let applied = if is_write {
        let took = drained.max(load_ended).duration_since(outcome.began);
        accepted_items as f64 / took.as_secs_f64()
    } else {
        accepted
    };
    Run {
        variant,
        work: plan.work,
        connections: plan.connections,
        seconds: outcome.window.as_secs_f64(),
        offered: match plan.pace {
            Pace::Closed => None,
            Pace::Open(per_second) => Some(per_second),
        },
        accepted,
        applied,
        drain_ms: drained.saturating_duration_since(load_ended).as_secs_f64() * 1e3,
        p50_ms: ms(500),
        p95_ms: ms(950),
        p99_ms: ms(990),
        p999_ms: ms(999),
        max_ms: outcome.latency.max().as_secs_f64() * 1e3,
        refused: outcome.refused,
        failed: outcome.failed,
        unanswered: outcome.unanswered,
        unsent: outcome.unsent,
        cpu,
        cpu_us_per_item: cpu.total() * 1e6 / accepted_items.max(1) as f64,
    }
}
