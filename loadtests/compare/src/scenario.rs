//! What is measured in which order. The variants take turns at every number of connections, so
//! that each ratio comes from minutes that lie next to each other on the same machine.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::ceiling;
use crate::generator::Pace;
use crate::installation::{Installation, Variant, block_on};
use crate::measure::{self, Plan, Run, Work};
use crate::process::Memory;
use crate::programs::Binaries;
use crate::report;
use crate::rows::{BULK_CONNECTIONS, Measurements};
use crate::stop::Stop;

/// What was asked for on the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    pub duration: Duration,
    /// Of the run after which the drain is timed.
    pub long_duration: Duration,
    pub rounds: usize,
    /// Names of rows; empty: all.
    pub rows: Vec<String>,
}

impl Settings {
    pub fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|name| name == row)
    }

    fn wants_any(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    /// Which variants the wanted rows need in a closed loop of so many connections.
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
    settings: &Settings,
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
    scenario.bulk()?;
    scenario.open_loops()?;
    scenario.long_run()?;
    for installation in std::mem::take(&mut scenario.running).into_values() {
        let variant = installation.variant;
        let outcome = installation.stop();
        // The handler without anything behind it has nothing to lose at a stop.
        if variant != Variant::Bare {
            outcome.with_context(|| format!("stopping {}", variant.name()))?;
        }
    }
    Ok(scenario.measurements)
}

struct Scenario<'a> {
    settings: &'a Settings,
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
                    let run = self.closed(*variant, Work::Single, connections)?;
                    self.measurements.runs.push(run);
                }
            }
            // The peak never falls, so it is read before the next, larger crowd comes.
            if let Some(cluster) = self.running.get(&Variant::Cluster)
                && variants.contains(&Variant::Cluster)
            {
                self.measurements.memory.push((connections, Memory::of(cluster.api_pid())?));
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
            // Once unmeasured: a read puts the value into the cache.
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

    fn bulk(&mut self) -> anyhow::Result<()> {
        if !self.settings.wants("bulk") {
            return Ok(());
        }
        for _ in 0..self.settings.rounds {
            let ceiling = block_on(ceiling::unnest_rows_per_second(self.settings.duration, self.stop))?;
            note(&format!("UNNEST ceiling {ceiling:.0} rows/s"));
            self.measurements.unnest_rows_per_second.push(ceiling);
            let run = self.closed(Variant::Cluster, Work::Bulk, BULK_CONNECTIONS)?;
            self.measurements.runs.push(run);
        }
        Ok(())
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
            let plan = Plan { work: Work::Single, connections: 1_000, pace: Pace::Closed, duration };
            self.measurements.long_run = Some(self.measure(Variant::Cluster, plan)?);
        }
        Ok(())
    }

    /// What the clustered service accepted and applied per second in the closed loop.
    fn capacity(&self, connections: usize) -> anyhow::Result<f64> {
        let applied = |run: &Run| run.applied;
        let capacity = self.measurements.median(Variant::Cluster, Work::Single, connections, applied);
        capacity.context("the closed loop comes before the open one")
    }

    fn closed(&mut self, variant: Variant, work: Work, connections: usize) -> anyhow::Result<Run> {
        let duration = self.settings.duration;
        self.measure(variant, Plan { work, connections, pace: Pace::Closed, duration })
    }

    fn open(&mut self, connections: usize, per_second: f64) -> anyhow::Result<Run> {
        let duration = self.settings.duration;
        let plan = Plan { work: Work::Single, connections, pace: Pace::Open(per_second), duration };
        self.measure(Variant::Cluster, plan)
    }

    fn measure(&mut self, variant: Variant, plan: Plan) -> anyhow::Result<Run> {
        let stop = self.stop;
        let run = measure::measure(self.installation(variant)?, plan, stop)?;
        note(&report::line(&run));
        Ok(run)
    }

    /// The running installation; the first use starts it and warms it up.
    fn installation(&mut self, variant: Variant) -> anyhow::Result<&mut Installation> {
        if !self.running.contains_key(&variant) {
            let mut installation = Installation::start(variant, self.binaries, self.folder, self.stop)?;
            let (pace, duration) = (Pace::Closed, Duration::from_secs(1));
            let warm_up = Plan { work: Work::Single, connections: 50, pace, duration };
            measure::measure(&mut installation, warm_up, self.stop)?;
            self.running.insert(variant, installation);
        }
        self.running.get_mut(&variant).context("it was started above")
    }
}

/// Progress, apart from the report, which is all that standard output gets.
fn note(text: &str) {
    // Nobody listening is no reason to stop measuring.
    let _ = writeln!(std::io::stderr(), "{text}");
}
