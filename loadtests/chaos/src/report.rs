//! The results of a run, with a check that it could have found anything.
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use crate::ChaosSettings;
use crate::crowd::Crowded;
use crate::fault::{Bound, Class};
use crate::files::Files;
use crate::inject::{ACCEPTED_MIN, Struck};
use crate::kind::{Abilities, Kind};
use crate::ledger::{Entry, Outcome};
use crate::leftovers::Leftovers;

/// Rows of single faults in the text; all of them are in the JSON.
const ROWS_MAX: usize = 60;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub settings: ChaosSettings,
    /// The command that repeats the run.
    pub replay: String,
    pub abilities: Abilities,
    /// Faults that could not be carried out here, with the cause.
    pub skipped: Vec<String>,
    pub requests: Requests,
    pub crowd: Option<Crowded>,
    pub receipts_checked: usize,
    pub faults: Vec<Struck>,
    pub load_seconds: f64,
    pub audit_seconds: f64,
    /// Leftovers at the servers; `None` for the embedded pair, which has none.
    pub leftovers: Option<Leftovers>,
    /// Files of the embedded pair; `None` for the cluster, which has none of its own.
    pub files: Option<Files>,
    pub poison: usize,
    /// Errors of the service; empty when there were none.
    pub findings: Vec<String>,
    /// Folder of logs and ledger; removed when there were no findings.
    pub folder: PathBuf,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Requests {
    pub accepted: usize,
    pub items_accepted: usize,
    /// Accepted requests with an Idempotency-Key.
    pub keyed: usize,
    pub counters: usize,
    pub documents: usize,
    pub deletions: usize,
    pub points: usize,
    /// Accepted requests that were answered with their effect.
    pub waited: usize,
    pub unknown: usize,
    pub not_sent: usize,
}

impl Requests {
    pub fn count(entries: &[Entry]) -> Self {
        let mut requests = Self::default();
        for entry in entries {
            match &entry.outcome {
                taken @ (Outcome::Accepted(_) | Outcome::Applied(_)) => {
                    requests.accepted += 1;
                    requests.items_accepted += entry.write.items.len();
                    requests.keyed += usize::from(entry.write.key.is_some());
                    requests.waited += usize::from(matches!(taken, Outcome::Applied(_)));
                    *requests.of(entry) += 1;
                }
                Outcome::Unknown => requests.unknown += 1,
                Outcome::NotSent => requests.not_sent += 1,
            }
        }
        requests
    }

    fn of(&mut self, entry: &Entry) -> &mut usize {
        match entry.write.kind {
            Kind::Document if entry.write.deletes.is_some() => &mut self.deletions,
            Kind::Counter => &mut self.counters,
            Kind::Document => &mut self.documents,
            Kind::Point => &mut self.points,
        }
    }
}

/// Recovery times of the faults of one class.
#[derive(Debug)]
pub struct RecoverySummary {
    pub class: Class,
    pub count: usize,
    /// Median and maximum.
    pub accepted_ms: (u128, u128),
    pub applied_ms: (u128, u128),
    pub bound: Bound,
    /// Number of recoveries that took longer than wanted.
    pub late: usize,
}

impl Report {
    /// Returns an error when the service lost, doubled or broke something, or was not back in time.
    pub fn check_promises(&self) -> anyhow::Result<()> {
        ensure!(self.findings.is_empty(), "the service broke its promises\n{self}");
        Ok(())
    }

    /// Returns an error when the faults came too late, too early or without load: such a run proves nothing.
    pub fn check_teeth(&self) -> anyhow::Result<()> {
        ensure!(!self.faults.is_empty(), "no fault at all\n{self}");
        let idle = self.faults.iter().find(|fault| fault.accepted_before < ACCEPTED_MIN);
        ensure!(idle.is_none(), "a fault came into silence: {idle:?}\n{self}");
        let kills = self.faults.iter().filter(|fault| fault.class == Class::Kill);
        let apis: Vec<_> = kills.filter(|kill| kill.victim.starts_with("api")).collect();
        let hits = apis.iter().filter(|kill| kill.open > 0).count();
        ensure!(hits * 10 >= apis.len() * 9, "only {hits} of {} APIs had open requests\n{self}", apis.len());
        let Requests { counters, documents, deletions, points, waited, .. } = self.requests;
        let all = [counters, documents, deletions, points, waited];
        ensure!(
            self.faults.len() < 10 || all.iter().all(|count| *count > 0),
            "not all kinds were written\n{self}"
        );
        let is_idle = self.crowd.as_ref().is_some_and(|crowd| crowd.accepted == 0);
        ensure!(!is_idle, "nothing of the crowd was accepted\n{self}");
        ensure!(apis.len() < 10 || self.requests.unknown > 0, "no kill cut off an answer\n{self}");
        Ok(())
    }

    pub fn summaries(&self) -> Vec<RecoverySummary> {
        let mut classes: Vec<_> = self.faults.iter().map(|fault| fault.class).collect();
        classes.sort_unstable();
        classes.dedup();
        let summary = |class| {
            let faults: Vec<_> = self.faults.iter().filter(|fault| fault.class == class).collect();
            RecoverySummary {
                class,
                count: faults.len(),
                accepted_ms: middle_and_most(faults.iter().filter_map(|fault| fault.recovery.accepted_ms)),
                applied_ms: middle_and_most(faults.iter().filter_map(|fault| fault.recovery.applied_ms)),
                bound: faults[0].bound,
                late: faults.iter().filter(|fault| !fault.recovery.is_as_wanted(fault.bound)).count(),
            }
        };
        classes.into_iter().map(summary).collect()
    }

    fn write_faults(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |ms: Option<u128>| ms.map_or_else(|| "never".into(), |ms| ms.to_string());
        writeln!(
            out,
            "\n  {:>7}  {:<27} {:<11} {:>8} {:>9} {:>9}",
            "at s", "fault", "victim", "held ms", "202 ms", "applied"
        )?;
        for fault in self.faults.iter().take(ROWS_MAX) {
            let without = fault.without_node.iter().map(|recovery| format!("  without the node: {recovery}"));
            let beside = fault.beside.iter().map(|beside| format!("  {beside}"));
            let meanwhile = fault.killed_meanwhile.iter().map(|name| format!("  {name} killed meanwhile"));
            writeln!(
                out,
                "  {:>7.1}  {:<27} {:<11} {:>8} {:>9} {:>9}{}",
                Duration::from_millis(u64::try_from(fault.after_ms).unwrap_or(u64::MAX)).as_secs_f64(),
                fault.what,
                fault.victim,
                fault.lasted_ms,
                shown(fault.recovery.accepted_ms),
                shown(fault.recovery.applied_ms),
                meanwhile.chain(without).chain(beside).collect::<String>()
            )?;
        }
        for watched in self.faults.iter().filter_map(|fault| fault.watched.as_ref()) {
            writeln!(out, "  {watched}")?;
        }
        let more = self.faults.len().saturating_sub(ROWS_MAX);
        if more > 0 { writeln!(out, "  and {more} more, see --json") } else { Ok(()) }
    }

    fn write_summaries(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\n  back after the end of the fault, at the slowest API, in ms")?;
        writeln!(
            out,
            "  {:<13} {:>5} {:>17} {:>17} {:>7} {:>5}",
            "class", "count", "202 mid/max", "applied mid/max", "wanted", "late"
        )?;
        for one in self.summaries() {
            let class = format!("{:?}", one.class);
            let both = |(middle, most)| format!("{middle} / {most}");
            let (accepted, applied) = (both(one.accepted_ms), both(one.applied_ms));
            let (count, wanted, late) = (one.count, one.bound.wanted_ms, one.late);
            writeln!(out, "  {class:<13} {count:>5} {accepted:>17} {applied:>17} {wanted:>7} {late:>5}")?;
        }
        Ok(())
    }
}

fn middle_and_most(took: impl Iterator<Item = u128>) -> (u128, u128) {
    let mut took: Vec<_> = took.collect();
    took.sort_unstable();
    (took.get(took.len() / 2).copied().unwrap_or(0), took.last().copied().unwrap_or(0))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, requests, abilities, .. } = self;
        let (faults, load) = (self.faults.len(), self.load_seconds);
        writeln!(out, "{}, seed {}: {faults} faults in {load:.0} s", settings.pair, settings.seed)?;
        let keys = if abilities.keyed { "with and without keys" } else { "without keys" };
        writeln!(out, "  writes {:?}, {keys}", abilities.kinds)?;
        self.skipped.iter().try_for_each(|what| writeln!(out, "  skipped: {what}"))?;
        writeln!(
            out,
            "  {} requests with {} items accepted ({} keyed), {} of unknown fate, {} not sent",
            requests.accepted, requests.items_accepted, requests.keyed, requests.unknown, requests.not_sent
        )?;
        writeln!(
            out,
            "  {} increments, {} documents, {} deletions, {} points; {} answered with their effect",
            requests.counters, requests.documents, requests.deletions, requests.points, requests.waited
        )?;
        if let Some(Crowded { connections, accepted, unknown, accepted_per_second }) = &self.crowd {
            writeln!(
                out,
                "  a crowd of {connections} connections: {accepted} increments accepted ({accepted_per_second:.0}/s), {unknown} of unknown fate"
            )?;
        }
        writeln!(out, "  {} receipts read; audit {:.0} s", self.receipts_checked, self.audit_seconds)?;
        if let Some(left) = &self.leftovers {
            writeln!(
                out,
                "  left over: {} writes, {} dead letters for {} poison messages; connections at Postgres {} idle, {} after",
                left.writes, left.dead, self.poison, left.sessions_idle, left.sessions_after
            )?;
        }
        if let Some(Files { damage, waiting, dead }) = &self.files {
            let integrity = if damage.is_empty() { "ok" } else { "DAMAGED" };
            writeln!(
                out,
                "  left in the files: {waiting} messages, {dead} dead; integrity_check: {integrity}"
            )?;
        }
        self.write_faults(out)?;
        self.write_summaries(out)?;
        if self.findings.is_empty() {
            return writeln!(out, "\n  nothing lost, nothing doubled, nothing left over");
        }
        let count = self.findings.len();
        writeln!(out, "\n  {count} FINDINGS; logs and ledger are in {}", self.folder.display())?;
        self.findings.iter().try_for_each(|finding| writeln!(out, "  - {finding}"))?;
        writeln!(out, "  again: {}", self.replay)
    }
}
