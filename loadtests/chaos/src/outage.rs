//! Observation of the service while a server is away for minutes: the answers of each API, and its
//! memory, which must stay flat. While the store is away writes are accepted; while the broker is
//! away they are refused with 503 and `Retry-After`, soon and without piling up.
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::fault::Server;
use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::ledger::{Ledger, Write};
use crate::send::{self, Answer};

const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Time within which an API must notice that the broker has gone; until then any answer is allowed.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// Longest time of an answer: `server.accept_timeout_ms` is 2 s, and the machine may be busy.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// Time within which most requests are answered once the outage was noticed: they do not wait for the server.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Share of those answers, one in this many, that may be slower by more than the machine explains:
/// each was the try by which a breaker finds out.
const TRIES_SHARE: usize = 10;
const TRY_MIN: Duration = Duration::from_secs(1);
/// Share of the outage after which memory is taken as the baseline, or this time at the latest.
const WARM_SHARE: u32 = 5;
const WARM_MAX: Duration = Duration::from_mins(1);
/// Growth of a program's memory that is allowed after that.
const GROWTH_KIB_MAX: u64 = 32 << 10;
const REPORTED_MAX: usize = 5;

/// Observations during one outage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Watched {
    pub seconds: f64,
    pub probes: usize,
    /// Answers 202, and 503 with `Retry-After`.
    pub accepted: usize,
    pub refused: usize,
    pub slowest_ms: u128,
    /// Median time of the answers that came once the outage was noticed.
    pub middle_ms: u128,
    pub memory: Vec<MemoryGrowth>,
    /// Time of each of those answers.
    #[serde(skip)]
    noticed: Vec<Duration>,
    #[serde(skip)]
    pub findings: Vec<String>,
}

/// Resident memory of one program, where this system reports it.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryGrowth {
    pub name: String,
    /// Memory once it was warm.
    pub early_kib: u64,
    pub most_kib: u64,
}

/// Sends requests to every API again and again until the outage has lasted this long.
pub async fn watch(
    fleet: &Fleet,
    ledger: &Arc<Ledger>,
    server: Server,
    lasting: Duration,
) -> anyhow::Result<Watched> {
    let (began, client) = (Instant::now(), send::client()?);
    let mut watched = Watched::default();
    let warm = WARM_MAX.min(lasting / WARM_SHARE);
    while began.elapsed() < lasting {
        for api in fleet.api_addresses() {
            let target = format!("outage-{}", watched.probes);
            let write = Write::new(Kind::Counter, target, vec![1]);
            let request = ledger.intend(write.clone()).await?;
            let since = began.elapsed();
            match send::ask(&client, api, &write).await {
                Ok(answer) => {
                    ledger.settle(request, answer.outcome.clone())?;
                    watched.note(server, &answer, since);
                }
                Err(strange) => watched.find(format!("STRANGE: request {request}: {strange:#}")),
            }
        }
        watched.weigh(fleet, began.elapsed() >= warm);
        tokio::time::sleep(PROBE_EVERY).await;
    }
    watched.seconds = began.elapsed().as_secs_f64();
    watched.check_times(server);
    watched.check_memory();
    Ok(watched)
}

impl Watched {
    fn note(&mut self, server: Server, answer: &Answer, since: Duration) {
        self.probes += 1;
        self.slowest_ms = self.slowest_ms.max(answer.took.as_millis());
        // Any other status is outside the contract, and so is a 503 without Retry-After.
        self.accepted += usize::from(answer.status == Some(202));
        self.refused += usize::from(answer.status == Some(503));
        let wanted = match server {
            Server::Broker => 503,
            Server::Store => 202,
        };
        if since > NOTICED_WITHIN {
            self.noticed.push(answer.took);
            if answer.status != Some(wanted) {
                self.find(format!("WRONG: {:?} after {since:?} without the {server}", answer.status));
            }
        }
        if answer.took > ANSWERED_WITHIN {
            self.find(format!("SLOW: an answer took {:?} without the {server}", answer.took));
        }
    }

    fn check_times(&mut self, server: Server) {
        self.noticed.sort_unstable();
        let Some(&middle) = self.noticed.get(self.noticed.len() / 2) else { return };
        self.middle_ms = middle.as_millis();
        if middle >= AT_ONCE {
            self.find(format!("SLOW: half of the answers took {middle:?} and more without the {server}"));
        }
        let (count, slow) =
            (self.noticed.len(), self.noticed.iter().filter(|took| **took >= TRY_MIN).count());
        // One try is always allowed among them.
        if slow > 1 + count / TRIES_SHARE {
            self.find(format!(
                "SLOW: {slow} of {count} answers took {TRY_MIN:?} and more without the {server}"
            ));
        }
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < REPORTED_MAX {
            self.findings.push(finding);
        }
    }

    fn weigh(&mut self, fleet: &Fleet, is_warm: bool) {
        for member in &fleet.members {
            let Some(now_kib) = member.resident_kib() else { continue };
            let known = self.memory.iter().position(|memory| memory.name == member.name);
            let memory = if let Some(place) = known {
                &mut self.memory[place]
            } else {
                let name = member.name.clone();
                self.memory.push(MemoryGrowth { name, early_kib: now_kib, most_kib: now_kib });
                self.memory.last_mut().expect("it was just pushed")
            };
            memory.most_kib = memory.most_kib.max(now_kib);
            if !is_warm {
                memory.early_kib = memory.most_kib;
            }
        }
    }

    fn check_memory(&mut self) {
        for MemoryGrowth { name, early_kib, most_kib } in self.memory.clone() {
            if most_kib > early_kib + GROWTH_KIB_MAX {
                self.find(format!("GREW: {name} from {early_kib} to {most_kib} KiB"));
            }
        }
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, probes, accepted, refused, slowest_ms, middle_ms, .. } = self;
        write!(
            out,
            "{seconds:.0} s away: of {probes} probes {accepted} × 202, {refused} × 503, slowest {slowest_ms} ms, \
             once noticed {middle_ms} ms in the middle; MiB:"
        )?;
        for memory in &self.memory {
            write!(out, " {} {} → {}", memory.name, memory.early_kib >> 10, memory.most_kib >> 10)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Outcome;

    fn answer(status: Option<u16>, took: Duration) -> Answer {
        Answer { status, took, outcome: Outcome::Unknown }
    }

    #[test]
    fn a_wrong_a_late_and_a_growing_answer_are_found() {
        let soon = Duration::from_millis(10);
        let late = Duration::from_secs(20);
        let mut watched = Watched::default();
        watched.note(Server::Broker, &answer(Some(503), soon), late);
        watched.note(Server::Store, &answer(Some(202), soon), late);
        watched.note(Server::Broker, &answer(None, soon), soon);
        watched.memory = vec![MemoryGrowth { name: "a".into(), early_kib: 1, most_kib: GROWTH_KIB_MAX }];
        watched.check_memory();
        assert_eq!(watched.findings, Vec::<String>::new());
        watched.note(Server::Broker, &answer(Some(202), soon), late);
        watched.note(Server::Store, &answer(Some(503), soon), late);
        watched.note(Server::Broker, &answer(Some(503), late), late);
        watched.memory[0].most_kib = GROWTH_KIB_MAX + 2;
        watched.check_memory();
        assert_eq!(watched.findings.len(), 4, "{:?}", watched.findings);
    }

    #[test]
    fn answers_that_wait_for_a_server_of_which_it_is_known_that_it_is_away_are_found() {
        let findings = |taken: &[u64]| {
            let mut watched = Watched::default();
            // The outage is not noticed yet.
            watched.note(Server::Broker, &answer(Some(503), TRY_MIN * 2), NOTICED_WITHIN);
            for &ms in taken {
                let refused = answer(Some(503), Duration::from_millis(ms));
                watched.note(Server::Broker, &refused, NOTICED_WITHIN * 2);
            }
            watched.check_times(Server::Broker);
            watched.findings.len()
        };
        assert_eq!(findings(&[]), 0);
        assert_eq!(findings(&[199; 30]), 0);
        assert_eq!(findings(&[200; 30]), 1);
        let with_slow = |slow: usize| [vec![5; 20 - slow], vec![1_000; slow]].concat();
        assert_eq!((findings(&with_slow(3)), findings(&with_slow(4))), (0, 1));
        // Every second one waits, as each one would that comes when a breaker tries again.
        assert_eq!(findings(&[5, 2_000].repeat(20)), 2);
    }
}
