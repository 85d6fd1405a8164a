//! The rows of the table: title, thresholds, and the formula from runs to a figure. Pure: figures
//! in, verdicts out.
use serde::Serialize;

use crate::installation::Variant;
use crate::measure::Run;
use crate::process::ResidentMemory;
use crate::work::{Item, Work};

/// All measured figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measurements {
    pub runs: Vec<Run>,
    /// Rows per second that Postgres took at the same time as the bulk runs of each kind.
    pub unnest_rows_per_second: Vec<(Work, f64)>,
    /// Memory of the clustered API after closed loops, by connections.
    pub memory: Vec<(usize, ResidentMemory)>,
    pub half_load: Option<Run>,
    pub tenth_load: Option<Run>,
    pub nine_tenths_load: Option<Run>,
    pub long_run: Option<Run>,
    pub summary_miss: Option<Run>,
    pub summary_hit: Option<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Aim,
    Must,
    Missed,
    NotMeasured,
}

/// One row with its result.
#[derive(Clone, Debug, Serialize)]
pub struct TableRow {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub must: f64,
    pub aim: f64,
    pub measured: Option<f64>,
    pub verdict: Verdict,
}

struct RowTarget {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    must: f64,
    aim: f64,
    measured: fn(&Measurements) -> Option<f64>,
}

/// All rows of the table. More is better where the aim is above the must.
const TARGETS: &[RowTarget] = &[
    target("applied-50", "applied ÷ bare, 50 connections", "", 0.22, 0.30, |all| all.applied_to_bare(50)),
    target("applied-1000", "applied ÷ bare, 1 000 connections", "", 0.50, 0.62, |all| {
        all.applied_to_bare(1_000)
    }),
    target("applied-5000", "applied ÷ bare, 5 000 connections", "", 0.50, 0.62, |all| {
        all.applied_to_bare(5_000)
    }),
    target("batching", "applied ÷ one message per request, 1 000", "", 2.0, 3.0, |all| {
        Some(all.applied(Variant::Cluster, 1_000)? / all.applied(Variant::Unbatched, 1_000)?)
    }),
    target("cpu", "CPU per accepted and applied increment, 1 000", "µs", CPU_US[0], CPU_US[1], |all| {
        all.median(Variant::Cluster, INCREMENT, 1_000, |run| run.cpu_us_per_item)
    }),
    target("p99-5000", "p99, 5 000, open loop at half of capacity", "ms", 500.0, 150.0, |all| {
        Some(all.half_load.as_ref()?.p99_ms)
    }),
    target("crowd", "(5 000 ÷ 1 000) of ours ÷ the same of bare", "", 0.90, 1.0, |all| {
        Some(all.applied_to_bare(5_000)? / all.applied_to_bare(1_000)?)
    }),
    target("load", "p95 at 0.9 − p95 at 0.1 of capacity, open loop", "ms", 50.0, 20.0, |all| {
        Some(all.nine_tenths_load.as_ref()?.p95_ms - all.tenth_load.as_ref()?.p95_ms)
    }),
    target("bulk", "bulk of 100 applied ÷ UNNEST ceiling", "", 0.6, 1.2, |all| {
        all.bulk_to_ceiling(Item::Increment)
    }),
    target("drain", "drain after a long run at full load", "ms", 2_000.0, 1_000.0, |all| {
        Some(all.long_run.as_ref()?.drain_ms)
    }),
    target("get", "GET of a cached counter ÷ bare GET, 1 000", "", 0.75, 0.90, |all| {
        let rate = |variant| all.median(variant, Work::Read, 1_000, |run| run.accepted);
        Some(rate(Variant::Cluster)? / rate(Variant::Bare)?)
    }),
    target("memory-1000", "peak memory of the API, 1 000 connections", "MB", 130.0, 90.0, |all| {
        all.peak_mb(1_000)
    }),
    target("memory-5000", "peak memory of the API, 5 000 connections", "MB", 280.0, 220.0, |all| {
        all.peak_mb(5_000)
    }),
    target("embedded", "embedded accepted ÷ RabbitMQ accepted, 1 000", "", 0.8, 1.0, |all| {
        let rate = |variant| all.median(variant, INCREMENT, 1_000, |run| run.accepted);
        Some(rate(Variant::Embedded)? / rate(Variant::Cluster)?)
    }),
    target("documents-150", "documents of 150 B applied ÷ bare, 1 000", "", 0.50, 0.62, |all| {
        all.item_to_bare(Item::Document150, 1_000)
    }),
    target("documents-1k", "documents of 1 kB applied ÷ bare, 1 000", "", 0.50, 0.62, |all| {
        all.item_to_bare(Item::Document1k, 1_000)
    }),
    target("points", "points applied ÷ bare, 1 000", "", 0.50, 0.62, |all| {
        all.item_to_bare(Item::Point, 1_000)
    }),
    target("bulk-documents", "bulk of 100 documents ÷ UNNEST ceiling", "", 0.4, 0.6, |all| {
        all.bulk_to_ceiling(Item::Document150)
    }),
    target("bulk-points", "bulk of 100 points ÷ UNNEST ceiling", "", 0.2, 0.35, |all| {
        all.bulk_to_ceiling(Item::Point)
    }),
    target("summary-month", "p99 of a month's summary from the store", "ms", 100.0, 20.0, |all| {
        Some(all.summary_miss.as_ref()?.p99_ms)
    }),
    target("summary-month-hit", "p99 of a month's summary from the cache", "ms", 20.0, 5.0, |all| {
        Some(all.summary_hit.as_ref()?.p99_ms)
    }),
];

const INCREMENT: Work = Work::Single(Item::Increment);

/// CPU per increment in µs, must and aim, and the bare handler's on the machine where they were
/// set. A slower or busier machine needs more of both.
pub const CPU_US: [f64; 2] = [22.0, 17.0];
pub const BARE_CPU_US: f64 = 9.5;

/// Connections of the bulk run: with them five thousand items are in flight, as many as the crowd has.
pub const BULK_CONNECTIONS: usize = 100;

const fn target(
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    must: f64,
    aim: f64,
    measured: fn(&Measurements) -> Option<f64>,
) -> RowTarget {
    RowTarget { name, title, unit, must, aim, measured }
}

pub fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|target| target.name)
}

/// Judges the wanted rows.
pub fn judge(measurements: &Measurements, wanted: impl Fn(&str) -> bool) -> Vec<TableRow> {
    let judge = |target: &RowTarget| {
        let measured = (target.measured)(measurements).filter(|figure| figure.is_finite());
        let RowTarget { name, title, unit, must, aim, .. } = *target;
        TableRow { name, title, unit, must, aim, measured, verdict: verdict(must, aim, measured) }
    };
    TARGETS.iter().filter(|target| wanted(target.name)).map(judge).collect()
}

fn verdict(must: f64, aim: f64, measured: Option<f64>) -> Verdict {
    let Some(measured) = measured else { return Verdict::NotMeasured };
    let reaches = |limit: f64| if aim > must { measured >= limit } else { measured <= limit };
    if reaches(aim) {
        Verdict::Aim
    } else if reaches(must) {
        Verdict::Must
    } else {
        Verdict::Missed
    }
}

impl Measurements {
    /// Median of all closed-loop runs of one kind.
    pub fn median(
        &self,
        variant: Variant,
        work: Work,
        connections: usize,
        figure: impl Fn(&Run) -> f64,
    ) -> Option<f64> {
        let same = |run: &&Run| run.variant == variant && run.work == work && run.connections == connections;
        median(self.runs.iter().filter(same).map(figure).collect())
    }

    fn applied(&self, variant: Variant, connections: usize) -> Option<f64> {
        self.median(variant, INCREMENT, connections, |run| run.applied)
    }

    fn applied_to_bare(&self, connections: usize) -> Option<f64> {
        self.item_to_bare(Item::Increment, connections)
    }

    fn item_to_bare(&self, item: Item, connections: usize) -> Option<f64> {
        let applied = |variant| self.median(variant, Work::Single(item), connections, |run| run.applied);
        Some(applied(Variant::Cluster)? / applied(Variant::Bare)?)
    }

    fn bulk_to_ceiling(&self, item: Item) -> Option<f64> {
        let work = Work::Bulk(item);
        let bulk = self.median(Variant::Cluster, work, BULK_CONNECTIONS, |run| run.applied)?;
        let ceilings = self.unnest_rows_per_second.iter().filter(|(beside, _)| *beside == work);
        Some(bulk / median(ceilings.map(|(_, rows)| *rows).collect())?)
    }

    fn peak_mb(&self, connections: usize) -> Option<f64> {
        self.memory.iter().find(|(at, _)| *at == connections).map(|(_, memory)| memory.peak_mb)
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_in_the_direction_of_its_aim() {
        assert_eq!(verdict(0.5, 0.6, Some(0.7)), Verdict::Aim);
        assert_eq!(verdict(0.5, 0.6, Some(0.55)), Verdict::Must);
        assert_eq!(verdict(0.5, 0.6, Some(0.4)), Verdict::Missed);
        assert_eq!(verdict(50.0, 20.0, Some(-1.0)), Verdict::Aim);
        assert_eq!(verdict(50.0, 20.0, Some(30.0)), Verdict::Must);
        assert_eq!(verdict(50.0, 20.0, Some(51.0)), Verdict::Missed);
        assert_eq!(verdict(0.5, 0.6, None), Verdict::NotMeasured);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn without_measurements_every_row_is_there_and_says_so() {
        let rows = judge(&Measurements::default(), |_| true);
        assert_eq!(rows.len(), names().count());
        assert!(rows.iter().all(|row| row.verdict == Verdict::NotMeasured));
        assert_eq!(judge(&Measurements::default(), |name| name == "cpu").len(), 1);
    }
}
