//! Leftovers of a run at its servers: messages in the queues, dead letters and connections at
//! Postgres. Clients cannot see them, and operators must be able to rely on them.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use testkit::inspect::{self, Sessions};

use crate::inject::WRITES_QUEUE;
use crate::servers::Servers;

pub const DEAD_QUEUE: &str = "forebay.dead.v1";
/// Connections that one program may have at Postgres: the default of `store.connections_max`.
const POOL_MAX: i64 = 8;
/// Time within which Postgres and the broker notice that a program has gone.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Observations after the programs had stopped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Leftovers {
    pub writes: u32,
    /// Messages in the dead queue.
    pub dead_queue: u32,
    /// Messages among the dead letters.
    pub dead: u32,
    /// Their bodies.
    #[serde(skip)]
    pub dead_bodies: Vec<Vec<u8>>,
    /// Connections at Postgres while all programs ran without work.
    pub sessions_idle: i64,
    pub sessions_idle_in_transaction: i64,
    /// Connections after they had stopped.
    pub sessions_after: i64,
}

/// Looks at Postgres while the programs run. A transaction that is just under way may show up as
/// idle for a moment, so the lowest of several looks counts.
pub async fn idle_sessions(servers: &Servers) -> anyhow::Result<Sessions> {
    let (url, deadline) = (servers.postgres.url(), Instant::now() + PATIENCE);
    loop {
        let sessions = inspect::sessions(&url).await?;
        if sessions.in_transaction == 0 || Instant::now() > deadline {
            return Ok(sessions);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks at both servers after the programs have stopped, until nothing is left or the time is over.
pub async fn gather(servers: &Servers, idle: Sessions, poison: usize) -> anyhow::Result<Leftovers> {
    let (broker, store) = (servers.broker.url(), servers.postgres.url());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sessions = inspect::sessions(&store).await?.open;
        let writes = inspect::waiting(&broker, WRITES_QUEUE).await.context(WRITES_QUEUE)?;
        let dead_queue = inspect::waiting(&broker, DEAD_QUEUE).await.context(DEAD_QUEUE)?;
        let dead_bodies = inspect::dead_messages(&store).await.context("dead_letters")?;
        let is_clean = sessions == 0 && writes == 0 && dead_queue == 0 && dead_bodies.len() >= poison;
        if is_clean || Instant::now() > deadline {
            return Ok(Leftovers {
                writes,
                dead_queue,
                dead: u32::try_from(dead_bodies.len())?,
                dead_bodies,
                sessions_idle: idle.open,
                sessions_idle_in_transaction: idle.in_transaction,
                sessions_after: sessions,
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Findings: things that are left, and dead letters that are missing.
pub fn check(left: &Leftovers, poison: &[Vec<u8>], programs: usize) -> Vec<String> {
    let mut findings = Vec::new();
    if left.writes > 0 {
        findings.push(format!("LEFT OVER: {} messages in {WRITES_QUEUE}", left.writes));
    }
    if left.dead_queue > 0 {
        findings.push(format!("LEFT OVER: {} messages in {DEAD_QUEUE}", left.dead_queue));
    }
    let mut dead: BTreeMap<&[u8], usize> = BTreeMap::new();
    for body in &left.dead_bodies {
        *dead.entry(body).or_default() += 1;
    }
    for body in poison {
        match dead.remove(body.as_slice()) {
            Some(1) => {}
            Some(times) => {
                findings.push(format!("DOUBLED: {} is {times} times among the dead letters", shown(body)));
            }
            None => findings.push(format!("LOST: {} is not among the dead letters", shown(body))),
        }
    }
    findings.extend(dead.keys().map(|body| format!("LEFT OVER: {} among the dead letters", shown(body))));
    let allowed = POOL_MAX * i64::try_from(programs).unwrap_or(i64::MAX);
    if left.sessions_idle > allowed {
        let count = left.sessions_idle;
        findings
            .push(format!("LEAKED: {count} connections at Postgres, {programs} programs may have {allowed}"));
    }
    if left.sessions_idle_in_transaction > 0 {
        let count = left.sessions_idle_in_transaction;
        findings.push(format!("LEAKED: {count} connections at Postgres stay idle within a transaction"));
    }
    if left.sessions_after > 0 {
        let count = left.sessions_after;
        findings.push(format!("LEAKED: {count} connections at Postgres after all programs had stopped"));
    }
    findings
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(poison: &[&str]) -> Leftovers {
        let dead_bodies: Vec<Vec<u8>> = poison.iter().map(|body| body.as_bytes().to_vec()).collect();
        let dead = u32::try_from(dead_bodies.len()).expect("a few");
        Leftovers { dead, dead_bodies, sessions_idle: 16, ..Leftovers::default() }
    }

    fn findings(left: &Leftovers) -> Vec<String> {
        check(left, &[b"one".to_vec(), b"two".to_vec()], 2)
    }

    #[test]
    fn a_clean_end_is_no_finding() {
        assert_eq!(findings(&clean(&["two", "one"])), Vec::<String>::new());
    }

    #[test]
    fn a_leftover_message_is_found() {
        let left = Leftovers { writes: 3, ..clean(&["one", "two"]) };
        assert_eq!(findings(&left), ["LEFT OVER: 3 messages in forebay.writes.v1"]);
        let left = Leftovers { dead_queue: 1, ..clean(&["one", "two"]) };
        assert_eq!(findings(&left), ["LEFT OVER: 1 messages in forebay.dead.v1"]);
    }

    #[test]
    fn each_poison_is_a_dead_letter_once_and_nothing_else_is() {
        for (dead, word) in [
            (&["one"][..], "LOST: two"),
            (&["one", "two", "two"], "DOUBLED: two"),
            (&["one", "two", "a good one"], "LEFT OVER: a good one"),
        ] {
            let found = findings(&clean(dead));
            assert!(found.len() == 1 && found[0].starts_with(word), "{found:?}");
        }
    }

    #[test]
    fn connections_that_stay_are_found() {
        let fine = clean(&["one", "two"]);
        for left in [
            Leftovers { sessions_idle: 17, ..fine.clone() },
            Leftovers { sessions_idle_in_transaction: 1, ..fine.clone() },
            Leftovers { sessions_after: 1, ..fine },
        ] {
            let found = findings(&left);
            assert!(found.len() == 1 && found[0].starts_with("LEAKED"), "{found:?}");
        }
    }
}
