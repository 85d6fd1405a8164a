//! What a run showed, and whether it could have shown anything.
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use crate::ledger::{Entry, Outcome};
use crate::plan::{ACCEPTED_MIN, Kill};
use crate::{Pair, Settings};

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub pair: Pair,
    pub seed: u64,
    pub requests_accepted: usize,
    pub items_accepted: usize,
    pub requests_unknown: usize,
    pub requests_not_sent: usize,
    pub kills: Vec<Kill>,
    pub load_seconds: f64,
    pub audit_seconds: f64,
    /// What the service did wrong. Empty: nothing.
    pub findings: Vec<String>,
    /// Logs and ledger; removed when nothing was found.
    pub folder: PathBuf,
}

impl Report {
    pub fn new(
        settings: &Settings,
        entries: &[Entry],
        kills: Vec<Kill>,
        findings: Vec<String>,
        load: Duration,
        audit: Duration,
        folder: &Path,
    ) -> Self {
        let count =
            |wanted: fn(&Outcome) -> bool| entries.iter().filter(|entry| wanted(&entry.outcome)).count();
        let accepted = |outcome: &Outcome| matches!(outcome, Outcome::Accepted(_));
        let accepted_entries = entries.iter().filter(|entry| accepted(&entry.outcome));
        Self {
            pair: settings.pair,
            seed: settings.seed,
            requests_accepted: count(accepted),
            items_accepted: accepted_entries.map(|entry| entry.items.len()).sum(),
            requests_unknown: count(|outcome| *outcome == Outcome::Unknown),
            requests_not_sent: count(|outcome| *outcome == Outcome::NotSent),
            kills,
            load_seconds: load.as_secs_f64(),
            audit_seconds: audit.as_secs_f64(),
            findings,
            folder: folder.to_owned(),
        }
    }

    /// An error when the service lost, doubled or broke something.
    pub fn check_promises(&self) -> anyhow::Result<()> {
        ensure!(self.findings.is_empty(), "the service broke its promises\n{self}");
        Ok(())
    }

    /// An error when the kills came too late, too early or into silence: such a run proves nothing.
    pub fn check_teeth(&self, kills: usize) -> anyhow::Result<()> {
        ensure!(self.kills.len() == kills, "only {} kills\n{self}", self.kills.len());
        let idle = self.kills.iter().find(|kill| kill.accepted_before < ACCEPTED_MIN);
        ensure!(idle.is_none(), "a kill came into silence: {idle:?}\n{self}");
        let apis: Vec<_> = self.kills.iter().filter(|kill| kill.is_api).collect();
        let hits = apis.iter().filter(|kill| kill.open > 0).count();
        ensure!(hits * 10 >= apis.len() * 9, "only {hits} of {} APIs had open requests\n{self}", apis.len());
        ensure!(apis.len() < 10 || self.requests_unknown > 0, "no kill cut off an answer\n{self}");
        Ok(())
    }

    fn recovery(&self, is_api: bool) -> Option<(u128, u128)> {
        let kills = self.kills.iter().filter(|kill| kill.is_api == is_api);
        let mut took: Vec<_> = kills.map(|kill| kill.recovery_ms).collect();
        took.sort_unstable();
        Some((*took.get(took.len() / 2)?, *took.last()?))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pair = match self.pair {
            Pair::Embedded => "embedded",
            Pair::Cluster => "cluster",
        };
        writeln!(
            out,
            "{pair}, seed {}: {} kills in {:.0} s",
            self.seed,
            self.kills.len(),
            self.load_seconds
        )?;
        writeln!(
            out,
            "  {} requests with {} increments accepted, {} of unknown fate, {} not sent; audit {:.0} s",
            self.requests_accepted,
            self.items_accepted,
            self.requests_unknown,
            self.requests_not_sent,
            self.audit_seconds
        )?;
        let least = self.kills.iter().map(|kill| kill.accepted_before).min().unwrap_or(0);
        writeln!(out, "  at least {least} requests accepted between two kills")?;
        if let Some((median, max)) = self.recovery(true) {
            writeln!(out, "  API back (restart to its next 202): median {median} ms, at most {max} ms")?;
        }
        if let Some((median, max)) = self.recovery(false) {
            writeln!(out, "  consumer back (restart to ready): median {median} ms, at most {max} ms")?;
        }
        if self.findings.is_empty() {
            return writeln!(out, "  nothing lost, nothing doubled");
        }
        writeln!(
            out,
            "  {} FINDINGS; logs and ledger are in {}",
            self.findings.len(),
            self.folder.display()
        )?;
        self.findings.iter().try_for_each(|finding| writeln!(out, "  - {finding}"))
    }
}
