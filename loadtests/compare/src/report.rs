//! Figures as text for readers and as JSON for programs.
use std::fmt::Write;

use serde::Serialize;

use crate::installation::Variant;
use crate::measure::Run;
use crate::rows::{BARE_CPU_US, CPU_US, Measurements, TableRow, Verdict};
use crate::work::{BULK_ITEMS, COLLECTIONS, COUNTERS, Item, TYPES, Work};

/// The file that `--json` writes.
#[derive(Serialize)]
pub struct MeasurementReport<'a> {
    pub rows: &'a [TableRow],
    pub measurements: &'a Measurements,
    pub counters: usize,
    pub cores: usize,
    pub debug_build: bool,
}

impl<'a> MeasurementReport<'a> {
    pub fn new(rows: &'a [TableRow], measurements: &'a Measurements) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { rows, measurements, counters: COUNTERS, cores, debug_build: cfg!(debug_assertions) }
    }

    /// Formats the tables for the terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let cores = self.cores;
        let _ = writeln!(
            text,
            "\n{cores} cores, generator included; load spread over {COUNTERS} counters (increments of one), \
             {COLLECTIONS} collections, {TYPES} types; arrays of {BULK_ITEMS}; rates are items per second, \
             medians of the rounds.\n"
        );
        if self.debug_build {
            text.push_str("DEBUG BUILD: these figures say nothing about the service.\n\n");
        }
        self.cpu_table(&mut text);
        let _ = writeln!(text, "{:<62} {:>9} {:>9} {:>9}  verdict", "row", "must", "aim", "measured");
        for row in self.rows {
            let title = format!("{} ({})", row.title, row.name);
            let measured = row.measured.map_or_else(|| "-".into(), |figure| figure_with(figure, row.unit));
            let (must, aim) = (figure_with(row.must, row.unit), figure_with(row.aim, row.unit));
            let verdict = match row.verdict {
                Verdict::Aim => "aim",
                Verdict::Must => "must",
                Verdict::Missed => "MISSED",
                Verdict::NotMeasured => "not measured",
            };
            let _ = writeln!(text, "{title:<62} {must:>9} {aim:>9} {measured:>9}  {verdict}");
        }
        text
    }

    fn cpu_table(&self, text: &mut String) {
        let runs = self
            .measurements
            .runs
            .iter()
            .filter(|run| run.work == Work::Single(Item::Increment) && run.connections == 1_000);
        let _ = writeln!(text, "CPU in µs per increment at 1 000 connections");
        let _ = writeln!(
            text,
            "{:<12} {:>7} {:>9} {:>9} {:>9} {:>7}",
            "", "api", "consumer", "postgres", "rabbitmq", "sum"
        );
        for run in runs {
            let items = run.cpu.total() * 1e6 / run.cpu_us_per_item;
            let each = |seconds: f64| seconds * 1e6 / items;
            let _ = writeln!(
                text,
                "{:<12} {:>7.1} {:>9.1} {:>9.1} {:>9.1} {:>7.1}",
                run.variant.name(),
                each(run.cpu.api),
                each(run.cpu.consumer),
                each(run.cpu.postgres),
                each(run.cpu.rabbitmq),
                run.cpu_us_per_item
            );
        }
        let increments = Work::Single(Item::Increment);
        let cost =
            |variant| self.measurements.median(variant, increments, 1_000, |run: &Run| run.cpu_us_per_item);
        if let (Some(cluster), Some(bare)) = (cost(Variant::Cluster), cost(Variant::Bare)) {
            let (ratio, must, aim) = (cluster / bare, CPU_US[0] / BARE_CPU_US, CPU_US[1] / BARE_CPU_US);
            let _ = writeln!(
                text,
                "cluster ÷ bare {ratio:.2}; the row's microseconds were set where bare took {BARE_CPU_US}, \
                 which makes must {must:.2} and aim {aim:.2}"
            );
        }
        text.push('\n');
    }
}

fn figure_with(figure: f64, unit: &str) -> String {
    match unit {
        "" => format!("{figure:.2}"),
        unit => format!("{figure:.0} {unit}"),
    }
}

/// Formats one run in one line, as progress.
pub fn line(run: &Run) -> String {
    let what = match run.work {
        Work::Single(Item::Increment) => run.variant.name().to_owned(),
        work => format!("{} {}", run.variant.name(), work.name()),
    };
    let offered = run.offered.map_or_else(|| "closed".into(), |rate| format!("{rate:.0}/s"));
    let mut line = format!(
        "{what:<25} {:>5} connections {offered:>8}: {:>7.0} accepted/s {:>7.0} applied/s, drain {:>5.0} ms, \
         p50 {:.1} p95 {:.1} p99 {:.1} p99.9 {:.1} ms",
        run.connections,
        run.accepted,
        run.applied,
        run.drain_ms,
        run.p50_ms,
        run.p95_ms,
        run.p99_ms,
        run.p999_ms
    );
    let trouble = [
        ("refused", run.refused),
        ("failed", run.failed),
        ("unanswered", run.unanswered),
        ("unsent", run.unsent),
    ];
    for (word, count) in trouble.iter().filter(|(_, count)| *count > 0) {
        let _ = write!(line, ", {count} {word}");
    }
    line
}
