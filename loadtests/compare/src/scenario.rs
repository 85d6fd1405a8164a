//! The order of the measurements. The variants take turns at every number of connections, so that
//! the two sides of each ratio are measured within minutes on the same machine.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use shared::runtime::clock::now_ms;

use crate::ceiling;
use crate::generator::Pace;
use crate::installation::{Installation, Variant, block_on};
use crate::measure::{self, Run, RunPlan};
use crate::month;
use crate::process::ResidentMemory;
use crate::programs::Binaries;
use crate::report;
use crate::rows::{BULK_CONNECTIONS, Measurements};
use crate::stop::Stop;
use crate::work::{Item, SUMMARY_TYPES, Work};

const INCREMENT: Work = Work::Single(Item::Increment);

/// Rows that compare another kind of item than increments with the bare handler.
const ITEM_ROWS: [(&str, Item); 3] =
    [("documents-150", Item::Document150), ("documents-1k", Item::Document1k), ("points", Item::Point)];
const ITEM_CONNECTIONS: usize = 1_000;

/// Connections of the open loops that ask for summaries.
const SUMMARY_CONNECTIONS: usize = 50;

/// The choices on the command line.
#[derive(Clone, Debug)]
pub struct ScenarioSettings {
    pub duration: Duration,
    /// Duration of the run after which the drain is timed.
    pub long_duration: Duration,
    pub rounds: usize,
    /// Names of rows; all when empty.
    pub rows: Vec<String>,
}

impl ScenarioSettings {
    pub fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|name| name == row)
    }

    fn wants_any(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    /// Variants that the wanted rows need in a closed loop with this many connections.
    fn variants(&self, connections: usize) -> Vec<Variant> {
        let needs: &[(Variant, usize, &[&str])] = &[
            (Variant::Bare, 50, &["applied-50"]),
            (Variant::Bare, 1_000, &["applied-1000", "crowd", "cpu"]),
            (Variant::Bare, 5_000, &["applied-5000", "crowd"]),
            (Variant::Unbatched, 50, &["batching"]),
            (Variant::Unbatched, 1_000, &["batching"]),
            (Variant::Unbatched, 5_000, &["batching"]),
            (Variant::Cluster, 50, &["applied-50", "embedded", "batching"]),
            (
                Variant::Cluster,
                1_000,
                &["applied-1000", "batching", "cpu", "crowd", "load", "memory-1000", "embedded"],
            ),
            (Variant::Cluster, 5_000, &["applied-5000", "crowd", "p99-5000", "memory-5000"]),
            (Variant::Embedded, 50, &["embedded"]),
            (Variant::Embedded, 1_000, &["embedded"]),
            (Variant::Embedded, 5_000, &["embedded"]),
        ];
        let wanted = needs.iter().filter(|(_, at, rows)| *at == connections && self.wants_any(rows));
        wanted.map(|(variant, ..)| *variant).collect()
    }
}

/// Runs everything that the wanted rows need.
pub fn run(
    settings: &ScenarioSettings,
    binaries: &Binaries,
    folder: &Path,
    stop: &Stop,
) -> anyhow::Result<Measurements> {
    let mut scenario = Scenario {
        settings,
        binaries,
        folder,
        stop,
        running: BTreeMap::new(),
        measurements: Measurements::default(),
    };
    scenario.closed_loops()?;
    scenario.reads()?;
    scenario.bulk("bulk", Item::Increment)?;
    scenario.open_loops()?;
    scenario.long_run()?;
    // After everything about increments, so that those rows stay comparable.
    scenario.items()?;
    scenario.bulk("bulk-documents", Item::Document150)?;
    scenario.bulk("bulk-points", Item::Point)?;
    scenario.summaries()?;
    for installation in std::mem::take(&mut scenario.running).into_values() {
        let variant = installation.variant;
        let outcome = installation.stop();
        // The bare handler has nothing behind it that a stop could lose.
        if variant != Variant::Bare {
            outcome.with_context(|| format!("stopping {}", variant.name()))?;
        }
    }
    Ok(scenario.measurements)
}

struct Scenario<'a> {
    settings: &'a ScenarioSettings,
    binaries: &'a Binaries,
    folder: &'a Path,
    stop: &'a Stop,
    running: BTreeMap<Variant, Installation>,
    measurements: Measurements,
}

impl Scenario<'_> {
    fn closed_loops(&mut self) -> anyhow::Result<()> {
        for connections in [50, 1_000, 5_000] {
            let variants = self.settings.variants(connections);
            for _ in 0..self.settings.rounds {
                for variant in &variants {
                    let run = self.closed(*variant, INCREMENT, connections)?;
                    self.measurements.runs.push(run);
                }
            }
            // Read before the next, larger crowd comes: the peak never falls.
            if let Some(cluster) = self.running.get(&Variant::Cluster)
                && variants.contains(&Variant::Cluster)
            {
                self.measurements.memory.push((connections, ResidentMemory::of(cluster.api_pid())?));
            }
        }
        Ok(())
    }

    fn reads(&mut self) -> anyhow::Result<()> {
        if !self.settings.wants("get") {
            return Ok(());
        }
        for variant in [Variant::Bare, Variant::Cluster] {
            let stop = self.stop;
            measure::prepare_reads(self.installation(variant)?, stop)?;
            // One unmeasured run: a read puts the value into the cache.
            self.closed(variant, Work::Read, 50)?;
        }
        for _ in 0..self.settings.rounds {
            for variant in [Variant::Bare, Variant::Cluster] {
                let run = self.closed(variant, Work::Read, 1_000)?;
                self.measurements.runs.push(run);
            }
        }
        Ok(())
    }

    fn bulk(&mut self, row: &str, item: Item) -> anyhow::Result<()> {
        if !self.settings.wants(row) {
            return Ok(());
        }
        let work = Work::Bulk(item);
        self.warm_up(Variant::Cluster, work)?;
        for _ in 0..self.settings.rounds {
            let ceiling = block_on(ceiling::unnest_rows_per_second(self.settings.duration, self.stop))?;
            note(&format!("UNNEST ceiling {ceiling:.0} rows/s"));
            self.measurements.unnest_rows_per_second.push((work, ceiling));
            let run = self.closed(Variant::Cluster, work, BULK_CONNECTIONS)?;
            self.measurements.runs.push(run);
        }
        Ok(())
    }

    fn items(&mut self) -> anyhow::Result<()> {
        for (_, item) in ITEM_ROWS.into_iter().filter(|(row, _)| self.settings.wants(row)) {
            let work = Work::Single(item);
            self.warm_up(Variant::Cluster, work)?;
            for _ in 0..self.settings.rounds {
                for variant in [Variant::Bare, Variant::Cluster] {
                    let run = self.closed(variant, work, ITEM_CONNECTIONS)?;
                    self.measurements.runs.push(run);
                }
            }
        }
        Ok(())
    }

    fn summaries(&mut self) -> anyhow::Result<()> {
        if !self.settings.wants_any(&["summary-month", "summary-month-hit"]) {
            return Ok(());
        }
        let stop = self.stop;
        let installation = self.installation(Variant::Cluster)?;
        let store_url = installation.store_url().context("the cluster has a Postgres")?.to_owned();
        note("filling in the rollups of a month");
        block_on(month::fill(&store_url, now_ms(), stop))?;
        // The last type is not requested again, so that every request of the first run misses.
        month::check(self.installation(Variant::Cluster)?, SUMMARY_TYPES - 1)?;
        self.measurements.summary_miss = Some(self.summary(Work::SummaryMiss)?);
        month::check(self.installation(Variant::Cluster)?, 0)?;
        self.measurements.summary_hit = Some(self.summary(Work::SummaryHit)?);
        Ok(())
    }

    fn summary(&mut self, work: Work) -> anyhow::Result<Run> {
        let duration = self.settings.duration;
        let pace = Pace::Open(month::rate(duration));
        let run = self
            .measure(Variant::Cluster, RunPlan { work, connections: SUMMARY_CONNECTIONS, pace, duration })?;
        let lost = run.failed + run.refused + run.unanswered + run.unsent;
        ensure!(lost == 0, "{lost} summaries were not answered 200: their latency says nothing");
        Ok(run)
    }

    fn open_loops(&mut self) -> anyhow::Result<()> {
        if self.settings.wants("load") {
            let capacity = self.capacity(1_000)?;
            self.measurements.tenth_load = Some(self.open(1_000, capacity * 0.1)?);
            self.measurements.nine_tenths_load = Some(self.open(1_000, capacity * 0.9)?);
        }
        if self.settings.wants("p99-5000") {
            let capacity = self.capacity(5_000)?;
            self.measurements.half_load = Some(self.open(5_000, capacity * 0.5)?);
        }
        Ok(())
    }

    fn long_run(&mut self) -> anyhow::Result<()> {
        if self.settings.wants("drain") {
            let duration = self.settings.long_duration;
            let plan = RunPlan { work: INCREMENT, connections: 1_000, pace: Pace::Closed, duration };
            self.measurements.long_run = Some(self.measure(Variant::Cluster, plan)?);
        }
        Ok(())
    }

    /// Items per second that the clustered service accepted and applied in the closed loop.
    fn capacity(&self, connections: usize) -> anyhow::Result<f64> {
        let applied = |run: &Run| run.applied;
        let capacity = self.measurements.median(Variant::Cluster, INCREMENT, connections, applied);
        capacity.context("the closed loop comes before the open one")
    }

    fn closed(&mut self, variant: Variant, work: Work, connections: usize) -> anyhow::Result<Run> {
        let duration = self.settings.duration;
        self.measure(variant, RunPlan { work, connections, pace: Pace::Closed, duration })
    }

    fn open(&mut self, connections: usize, per_second: f64) -> anyhow::Result<Run> {
        let duration = self.settings.duration;
        let plan = RunPlan { work: INCREMENT, connections, pace: Pace::Open(per_second), duration };
        self.measure(Variant::Cluster, plan)
    }

    fn measure(&mut self, variant: Variant, plan: RunPlan) -> anyhow::Result<Run> {
        let stop = self.stop;
        let run = measure::measure(self.installation(variant)?, plan, stop)?;
        note(&report::line(&run));
        Ok(run)
    }

    /// Runs once unmeasured: afterwards tables, plans and connections are as they will stay.
    fn warm_up(&mut self, variant: Variant, work: Work) -> anyhow::Result<()> {
        let stop = self.stop;
        measure::measure(self.installation(variant)?, warm_up(work), stop)?;
        Ok(())
    }

    /// The running installation; the first use starts it and warms it up.
    fn installation(&mut self, variant: Variant) -> anyhow::Result<&mut Installation> {
        if !self.running.contains_key(&variant) {
            let mut installation = Installation::start(variant, self.binaries, self.folder, self.stop)?;
            measure::measure(&mut installation, warm_up(INCREMENT), self.stop)?;
            self.running.insert(variant, installation);
        }
        self.running.get_mut(&variant).context("it was started above")
    }
}

fn warm_up(work: Work) -> RunPlan {
    RunPlan { work, connections: 50, pace: Pace::Closed, duration: Duration::from_secs(1) }
}

/// Writes progress to standard error: standard output gets nothing but the report.
fn note(text: &str) {
    // A closed standard error is no reason to stop measuring.
    let _ = writeln!(std::io::stderr(), "{text}");
}
