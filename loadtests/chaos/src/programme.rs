//! The programme of long runs, the source of the figures on faults in `docs/guarantees.md`. Each
//! row is a run of its own; together they make one table in markdown.
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::fault::Class;
use crate::report::Report;
use crate::{ChaosSettings, Length, Pair};

/// One row of the programme.
#[derive(Clone, Copy, Debug)]
pub struct ProgrammeRow {
    /// Name for choosing it, and for its report.
    pub name: &'static str,
    pair: Pair,
    /// The class of its faults; all that the pair can suffer when absent.
    class: Option<Class>,
    steps: usize,
    nodes: usize,
    outage_minutes: f64,
    crowd: usize,
}

const fn row(name: &'static str, pair: Pair, class: Class, steps: usize) -> ProgrammeRow {
    ProgrammeRow { name, pair, class: Some(class), steps, nodes: 1, outage_minutes: 1.0, crowd: 0 }
}

/// All rows. Two APIs and two consumers are killed in turns: 600 kills are 300 of each.
pub const ROWS: [ProgrammeRow; 10] = [
    row("kill", Pair::Cluster, Class::Kill, 600),
    row("embedded", Pair::Embedded, Class::Kill, 500),
    row("broker", Pair::Cluster, Class::BrokerCrash, 50),
    row("store", Pair::Cluster, Class::StoreCrash, 50),
    ProgrammeRow { nodes: 3, ..row("leader", Pair::Cluster, Class::BrokerCrash, 30) },
    ProgrammeRow { outage_minutes: 15.0, ..row("broker-away", Pair::Cluster, Class::BrokerOutage, 1) },
    ProgrammeRow { outage_minutes: 10.0, ..row("store-away", Pair::Cluster, Class::StoreOutage, 1) },
    // Five faults: each of the four programs and Postgres once; housekeeping comes each minute.
    ProgrammeRow { outage_minutes: 2.0, ..row("clocks", Pair::Cluster, Class::Adrift, 5) },
    ProgrammeRow { class: None, crowd: 1_000, ..row("crowd", Pair::Cluster, Class::Kill, 60) },
    ProgrammeRow { class: None, crowd: 1_000, ..row("crowd-embedded", Pair::Embedded, Class::Kill, 60) },
];

impl ProgrammeRow {
    /// Settings of the run. `scale` below 1 makes everything shorter, to try the programme itself.
    pub fn settings(&self, seed: u64, scale: f64, binaries: PathBuf) -> ChaosSettings {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let steps = ((self.steps as f64 * scale).ceil() as usize).max(1);
        ChaosSettings {
            pair: self.pair,
            length: Length::Steps(steps),
            seed,
            classes: self.class.into_iter().collect(),
            nodes: self.nodes,
            outage_minutes: self.outage_minutes * scale,
            crowd: self.crowd,
            without_keys: false,
            binaries,
        }
    }
}

/// Formats the results as rows of markdown.
pub fn table(reports: &[Report]) -> String {
    let mut table = String::from(
        "| run | faults | acknowledged | lost | doubled | other findings | applied again after, middle and slowest | \
         later than wanted | memory, MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for report in reports {
        let count = |word: &str| report.findings.iter().filter(|finding| finding.starts_with(word)).count();
        let (lost, doubled) = (count("LOST"), count("DOUBLED"));
        let other = report.findings.len() - lost - doubled;
        let (faults, back, late) = faults(report);
        let _ = writeln!(
            table,
            "| `{}` | {faults} | {} requests, {} items | {lost} | {doubled} | {other} | {back} | {late} | {} |",
            report.replay,
            report.requests.accepted,
            report.requests.items_accepted,
            memory(report)
        );
    }
    table
}

/// Texts about the faults, the recovery times, and the recoveries later than wanted.
fn faults(report: &Report) -> (String, String, String) {
    let struck = |role: &str| {
        let is_of = |name: &str| name.starts_with(role);
        let victims = report.faults.iter().filter(|fault| fault.class == Class::Kill && is_of(&fault.victim));
        let meanwhile = report.faults.iter().filter_map(|fault| fault.killed_meanwhile.as_deref());
        victims.count() + meanwhile.filter(|name| is_of(name)).count()
    };
    let (mut done, mut back, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for summary in report.summaries() {
        done.push(match summary.class {
            Class::Kill => format!("kill: {} of an API, {} of a consumer", struck("api"), struck("consumer")),
            class => format!("{class:?}: {}", summary.count),
        });
        let seconds = |ms: u128| ms as f64 / 1_000.0;
        let (middle, most) = summary.applied_ms;
        back.push(format!("{:.1} s, {:.1} s", seconds(middle), seconds(most)));
        late.push(format!("{} (of {} s)", summary.late, summary.bound.wanted_ms / 1_000));
    }
    let takeovers = report.faults.iter().filter_map(|fault| Some((fault.without_node?, fault.bound)));
    let slowest = takeovers.clone().filter_map(|(recovery, _)| recovery.applied_ms).max();
    if let Some(slowest) = slowest {
        let count = takeovers.filter(|(recovery, bound)| !recovery.is_as_wanted(*bound)).count();
        back.push(format!("without the node at most {:.1} s", slowest as f64 / 1_000.0));
        late.push(format!("{count} without the node"));
    }
    (done.join("; "), back.join("; "), late.join("; "))
}

/// Text about the memory of the programs during an outage that was watched, early and at most.
fn memory(report: &Report) -> String {
    let watched = report.faults.iter().filter_map(|fault| fault.watched.as_ref());
    let memory = watched.flat_map(|watched| &watched.memory);
    let shown = memory.map(|one| format!("{} {} → {}", one.name, one.early_kib >> 10, one.most_kib >> 10));
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programme_reaches_what_it_promises_and_can_be_shortened() {
        let settings = |scale| ROWS.map(|row| row.settings(1, scale, PathBuf::new()));
        let steps = settings(1.0).map(|settings| settings.length);
        assert_eq!(steps, [600, 500, 50, 50, 30, 1, 1, 5, 60, 60].map(Length::Steps));
        for (short, long) in settings(0.01).iter().zip(settings(1.0)) {
            assert!(short.outage_minutes < long.outage_minutes);
            assert!(short.length != Length::Steps(0));
        }
    }
}
