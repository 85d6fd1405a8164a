//! Single measurements: load on one installation, then the account of its items.
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use shared::runtime::clock::now_ms;

use crate::account::Account;
use crate::generator::{self, Load, LoadResult, Pace};
use crate::installation::{Installation, Variant};
use crate::process::CpuSeconds;
use crate::stop::Stop;
use crate::work::{Item, Work};

/// The figures of one run. Rates are items per second.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub variant: Variant,
    pub work: Work,
    pub connections: usize,
    pub seconds: f64,
    /// Requests per second that were due, in an open loop.
    pub offered: Option<f64>,
    /// Items that were answered 202 (or reads that were answered 200) per second of load.
    pub accepted: f64,
    /// Items per second, from the first request until the last one was applied.
    pub applied: f64,
    /// Milliseconds from the end of the load until everything accepted was applied.
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

/// The settings of one run.
#[derive(Clone, Copy, Debug)]
pub struct RunPlan {
    pub work: Work,
    pub connections: usize,
    pub pace: Pace,
    pub duration: Duration,
}

/// Runs the load and accounts for every answer. An accepted item that is not applied, or one that
/// is applied twice, is an error.
pub fn measure(installation: &mut Installation, plan: RunPlan, stop: &Stop) -> anyhow::Result<Run> {
    let word = testkit::unique("c").replace("forebay_test_", "");
    // Reads go to the same names each time, so that the first run has filled the cache.
    let word = if plan.work == Work::Read { "read".into() } else { word };
    let requests = plan.work.requests(installation.address, &word, now_ms())?;
    let mut account = match plan.work.written() {
        Some(item) if installation.variant != Variant::Bare => {
            Some(Account::open(installation, item, &word).with_context(|| context(installation, plan))?)
        }
        _ => None,
    };
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
    ensure!(
        outcome.succeeded > 0,
        "{}: not one request succeeded; {} were refused, {} failed, {} got no answer",
        context(installation, plan),
        outcome.refused,
        outcome.failed,
        outcome.unanswered
    );
    let drained = match &mut account {
        Some(account) => account
            .await_applied(&outcome, plan.work.items(), stop)
            .with_context(|| context(installation, plan))?,
        None => outcome.began + outcome.window,
    };
    let cpu = CpuSeconds::now(installation.api_pid(), installation.consumer_pid())?.since(cpu_before);
    Ok(figures(installation.variant, plan, &outcome, drained, cpu))
}

/// Fills the cache with the names that [`Work::Read`] asks for.
pub fn prepare_reads(installation: &Installation, stop: &Stop) -> anyhow::Result<()> {
    if installation.variant == Variant::Bare {
        return Ok(());
    }
    let requests = Work::Single(Item::Increment).requests(installation.address, "read", now_ms())?;
    let mut account = Account::open(installation, Item::Increment, "read")?;
    let (target, connections) = (installation.address, 8);
    let (pace, duration) = (Pace::Closed, Duration::from_secs(1));
    let outcome = generator::run(Load { target, connections, requests: &requests, pace, duration }, stop)?;
    account.await_applied(&outcome, 1, stop)?;
    Ok(())
}

fn context(installation: &Installation, plan: RunPlan) -> String {
    format!("{}, {}, {} connections", installation.variant.name(), plan.work.name(), plan.connections)
}

fn figures(variant: Variant, plan: RunPlan, outcome: &LoadResult, drained: Instant, cpu: CpuSeconds) -> Run {
    let items = plan.work.items().max(1);
    let accepted_items = outcome.succeeded * items;
    let load_ended = outcome.began + outcome.window;
    let ms = |per_mille| outcome.latency.quantile(per_mille).as_secs_f64() * 1e3;
    let accepted = outcome.per_second() * items as f64;
    let is_write = plan.work.written().is_some() && variant != Variant::Bare;
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
