//! Execution of the plan: begins each fault, holds it, ends it, and measures how soon writes are
//! accepted and applied again. It waits for writes between two faults, so that each fault strikes a
//! service at work.
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use testkit::inspect;
use tokio::time::timeout;

use crate::beside::{Beside, Scene};
use crate::fault::{Bound, Class, Fault, Link, LinkFault, Poison, Server, Whose};
use crate::fleet::{Fleet, Member};
use crate::heavy::Switch;
use crate::kind::Kind;
use crate::ledger::{Ledger, Write};
use crate::outage::{self, Watched};
use crate::plan::Step;
use crate::recovery::{self, Recovery};
use crate::refused;
use crate::send;
use crate::servers::Servers;
use crate::traffic::{ApiCounts, Traffic};

/// Accepted requests between two faults.
pub const ACCEPTED_MIN: u64 = 10;
/// Longest time without that many accepted requests.
const ACCEPTED_PATIENCE: Duration = Duration::from_mins(1);
/// Time limit of the wait for a moment in which the victim has open requests.
const OPEN_PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(2);
const DEAD_PATIENCE: Duration = Duration::from_secs(30);
const DELAY: Duration = Duration::from_millis(50);
const DAY_SECONDS: i64 = 24 * 60 * 60;
pub const WRITES_QUEUE: &str = "forebay.writes.v1";

/// One fault that was carried out.
#[derive(Clone, Debug, Serialize)]
pub struct Struck {
    pub step: Step,
    pub class: Class,
    /// The fault in words.
    pub what: String,
    pub victim: String,
    pub killed_meanwhile: Option<String>,
    pub after_ms: u128,
    /// Requests that were accepted since the recovery from the fault before.
    pub accepted_before: u64,
    /// Requests that were open at the victim when it is an API, or at all APIs.
    pub open: usize,
    /// Time from its beginning to its end, which for a server is its first answer.
    pub lasted_ms: u128,
    pub recovery: Recovery,
    /// Recovery measured from the loss of the node that led the queue, where other nodes are left:
    /// they must take over.
    pub without_node: Option<Recovery>,
    pub bound: Bound,
    /// Observations of an outage that was watched.
    pub watched: Option<Watched>,
    /// Writes of others beside a fault that is a message.
    pub beside: Option<Beside>,
}

/// The targets of all faults.
pub struct Site<'a> {
    pub fleet: &'a mut Fleet,
    pub servers: Option<&'a mut Servers>,
    pub traffic: &'a Traffic,
    pub ledger: &'a Arc<Ledger>,
    pub switch: &'a Switch,
    /// Bodies that were put into the queue, each different from all others.
    pub poison: Vec<Vec<u8>>,
    /// Findings about the stops of programs.
    pub findings: Vec<String>,
}

/// Results of the execution, also after an early end.
#[derive(Debug)]
pub struct CarriedOut {
    pub struck: Vec<Struck>,
    pub poison: Vec<Vec<u8>>,
    pub findings: Vec<String>,
}

/// Carries steps out until there are no more of them, the time is up, or the service is not back
/// within its bound, which is a finding. An error means that the run itself broke.
pub async fn carry_out(
    mut site: Site<'_>,
    steps: impl Iterator<Item = Step>,
    until: Option<Instant>,
) -> anyhow::Result<CarriedOut> {
    let (began, mut struck) = (Instant::now(), Vec::new());
    for (number, step) in steps.enumerate() {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        let strike = site.strike(number, step, began).await;
        let one = strike.with_context(|| format!("step {number}, {}", step.fault))?;
        let is_back = one.recovery.is_within(one.bound);
        if !is_back {
            site.findings.push(format!(
                "SLOW: step {number}, {} of {}: {}, must be back within {} s",
                one.what,
                one.victim,
                one.recovery,
                one.bound.failed_ms / 1_000
            ));
        }
        let is_dead = one.recovery.applied_ms.is_none();
        struck.push(one);
        if is_dead {
            break;
        }
    }
    Ok(CarriedOut { struck, poison: site.poison, findings: site.findings })
}

impl Site<'_> {
    async fn strike(&mut self, number: usize, step: Step, began: Instant) -> anyhow::Result<Struck> {
        let accepted = self.traffic.accepted();
        tokio::time::sleep(Duration::from_millis(step.pause_ms)).await;
        self.await_accepted(accepted + ACCEPTED_MIN).await?;
        let accepted_before = self.traffic.accepted() - accepted;
        let victim = step.fault.member();
        let open = self.open_requests(victim).await;
        let struck_at = Instant::now();
        let node = self.begin(number, step.fault).await?;
        if let Some(member) = step.killed_meanwhile {
            self.kill_and_restart(member).await?;
        }
        let without_node = self.recovery_without_node(number, step.fault, struck_at).await?;
        let (watched, beside) = self.hold(number, step.fault).await?;
        let ended = self.end(step.fault, node).await?;
        let name = |member: usize| self.fleet.members[member].name.clone();
        let recovery = recovery::measure(
            self.ledger,
            &self.fleet.api_addresses(),
            &format!("recovery-{number}"),
            ended,
            step.fault.bound(),
        )
        .await?;
        Ok(Struck {
            step,
            class: step.fault.class(),
            what: step.fault.to_string(),
            victim: victim.map_or_else(|| "all".into(), name),
            killed_meanwhile: step.killed_meanwhile.map(name),
            after_ms: (struck_at - began).as_millis(),
            accepted_before,
            open,
            lasted_ms: (ended - struck_at).as_millis(),
            recovery,
            without_node,
            bound: step.fault.bound(),
            watched,
            beside,
        })
    }

    async fn hold(
        &mut self,
        number: usize,
        fault: Fault,
    ) -> anyhow::Result<(Option<Watched>, Option<Beside>)> {
        let lasting = Duration::from_millis(fault.ms());
        let server = match fault {
            Fault::Outage { server, .. } => server,
            Fault::Heavy { .. } | Fault::SlowItem => {
                let (apis, traffic) = (self.fleet.api_addresses(), self.traffic);
                let scene = Scene { number, apis, ledger: self.ledger, traffic, switch: self.switch };
                let beside = match fault {
                    Fault::Heavy { weight, .. } => scene.heavy(weight, lasting).await?,
                    _ => scene.slow_item().await?,
                };
                self.findings.extend(beside.findings.iter().cloned());
                return Ok((None, Some(beside)));
            }
            _ => {
                tokio::time::sleep(lasting).await;
                return Ok((None, None));
            }
        };
        self.traffic.slow(true);
        let watched = outage::watch(self.fleet, self.ledger, server, lasting).await?;
        self.traffic.slow(false);
        self.findings.extend(watched.findings.iter().cloned());
        Ok((Some(watched), None))
    }

    async fn recovery_without_node(
        &mut self,
        number: usize,
        fault: Fault,
        lost: Instant,
    ) -> anyhow::Result<Option<Recovery>> {
        let is_left = self.servers.as_ref().is_some_and(|servers| servers.broker.addresses().len() > 2);
        if fault.class() != Class::BrokerCrash || !is_left {
            return Ok(None);
        }
        let (apis, name) = (self.fleet.api_addresses(), format!("takeover-{number}"));
        let recovery = recovery::measure(self.ledger, &apis, &name, lost, fault.bound()).await?;
        if !recovery.is_within(fault.bound()) {
            self.findings.push(format!("SLOW: step {number}, a node of the broker less: {recovery}"));
        }
        Ok(Some(recovery))
    }

    /// Begins a fault. Returns the node of the broker that it struck, if it did.
    async fn begin(&mut self, number: usize, fault: Fault) -> anyhow::Result<usize> {
        match fault {
            Fault::Kill { member } => self.fleet.members[member].kill().await?,
            Fault::Terminate { member } => {
                let finding = self.fleet.members[member].terminate().await?;
                self.findings.extend(finding);
            }
            Fault::Freeze { member, .. } => self.fleet.members[member].freeze(true)?,
            Fault::Clock { whose, seconds, .. } => self.step_clock(whose, seconds)?,
            Fault::Adrift { whose, days, .. } => self.step_clock(whose, days * DAY_SECONDS)?,
            Fault::Network { member, link, trouble, .. } => {
                set_trouble(&self.fleet.members[member], link, trouble, true)?;
            }
            Fault::StoreCrash { .. } | Fault::Outage { server: Server::Store, .. } => {
                self.servers()?.postgres.crash().await?;
            }
            Fault::BrokerCrash { .. } | Fault::Outage { server: Server::Broker, .. } => {
                let broker = &mut self.servers()?.broker;
                let leader = broker.leader(WRITES_QUEUE).await?;
                broker.kill(leader).await?;
                return Ok(leader);
            }
            Fault::MemoryAlarm { .. } => self.servers()?.broker.memory_alarm(true).await?,
            // These are sent, watched and healed while they last.
            Fault::Heavy { .. } | Fault::SlowItem => {}
            Fault::Poison { poison: Poison::Refused } => self.send_refused(number).await?,
            Fault::Poison { poison } => {
                let body = poison_body(number, poison);
                let url = self.servers()?.broker.url();
                inspect::publish(&url, WRITES_QUEUE, &body).await?;
                self.poison.push(body);
            }
        }
        Ok(0)
    }

    /// Ends a fault; returns the time when it was over.
    async fn end(&mut self, fault: Fault, node: usize) -> anyhow::Result<Instant> {
        match fault {
            Fault::Kill { member } | Fault::Terminate { member } => {
                return self.fleet.members[member].restart();
            }
            Fault::Freeze { member, .. } => self.fleet.members[member].freeze(false)?,
            Fault::Clock { whose, .. } | Fault::Adrift { whose, .. } => self.step_clock(whose, 0)?,
            Fault::Network { member, link, trouble, .. } => {
                set_trouble(&self.fleet.members[member], link, trouble, false)?;
            }
            Fault::StoreCrash { .. } | Fault::Outage { server: Server::Store, .. } => {
                return self.servers()?.postgres.restart().await;
            }
            Fault::BrokerCrash { .. } | Fault::Outage { server: Server::Broker, .. } => {
                return self.servers()?.broker.restart(node).await;
            }
            Fault::MemoryAlarm { .. } => self.servers()?.broker.memory_alarm(false).await?,
            // The audit checks their outcome.
            Fault::Poison { poison: Poison::Refused } | Fault::Heavy { .. } | Fault::SlowItem => {}
            Fault::Poison { .. } => self.await_dead().await?,
        }
        Ok(Instant::now())
    }

    /// Sends a valid request to an API, with one document that the store does not take.
    async fn send_refused(&self, number: usize) -> anyhow::Result<()> {
        let (client, apis) = (send::client()?, self.fleet.api_addresses());
        let deadline = Instant::now() + ACCEPTED_PATIENCE;
        loop {
            let write = Write::new(Kind::Document, "refused", vec![1, refused::NUMBER, 2]);
            let request = self.ledger.intend(write.clone()).await?;
            let outcome = send::once(&client, apis[number % apis.len()], &write).await?;
            self.ledger.settle(request, outcome.clone())?;
            if outcome.is_taken() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "a request with an item to refuse was not accepted");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until all bodies that were put into the queue are among the dead letters.
    async fn await_dead(&mut self) -> anyhow::Result<()> {
        let (url, sent) = (self.servers()?.postgres.url(), self.poison.len());
        let deadline = Instant::now() + DEAD_PATIENCE;
        while inspect::dead_messages(&url).await?.len() < sent {
            if Instant::now() > deadline {
                let finding = format!("SLOW: poison was no dead letter within {DEAD_PATIENCE:?}");
                self.findings.push(finding);
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn kill_and_restart(&mut self, member: usize) -> anyhow::Result<()> {
        let member = &mut self.fleet.members[member];
        member.kill().await?;
        member.restart()?;
        Ok(())
    }

    /// Puts a clock this many seconds off the real time.
    fn step_clock(&mut self, whose: Whose, seconds: i64) -> anyhow::Result<()> {
        let clock = match whose {
            Whose::Member(member) => self.fleet.members[member].clock.as_ref(),
            Whose::Store => self.servers()?.postgres.clock.as_ref(),
        };
        clock.context("no clock of its own")?.step(seconds)
    }

    fn servers(&mut self) -> anyhow::Result<&mut Servers> {
        self.servers.as_deref_mut().context("a fault that needs servers")
    }

    async fn await_accepted(&self, wanted: u64) -> anyhow::Result<()> {
        let wait = async {
            while self.traffic.accepted() < wanted {
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(ACCEPTED_PATIENCE, wait).await.with_context(|| {
            format!("the service did not accept {ACCEPTED_MIN} requests within {ACCEPTED_PATIENCE:?}")
        })
    }

    /// Waits for a moment in which requests are open at the victim.
    async fn open_requests(&self, victim: Option<usize>) -> usize {
        let api = victim.and_then(|member| self.fleet.members[member].api);
        let target: Option<&Arc<ApiCounts>> =
            self.traffic.targets.iter().find(|target| Some(target.address) == api);
        let Some(target) = target else {
            return self.traffic.targets.iter().map(|target| *target.open.borrow()).sum();
        };
        let mut open = target.open.subscribe();
        match timeout(OPEN_PATIENCE, open.wait_for(|open| *open > 0)).await {
            Ok(Ok(open)) => *open,
            _ => 0,
        }
    }
}

fn set_trouble(member: &Member, link: Link, trouble: LinkFault, on: bool) -> anyhow::Result<()> {
    let links = member.links.as_ref().context("a program without proxies")?;
    let proxy = match link {
        Link::Broker => &links.broker,
        Link::Store => &links.store,
    };
    match trouble {
        LinkFault::Cut if on => proxy.cut(),
        LinkFault::HalfOpen if on => proxy.half_open(),
        // These are over at once.
        LinkFault::Cut | LinkFault::HalfOpen => {}
        LinkFault::CutAfter(bytes) if on => proxy.cut_after(bytes),
        LinkFault::CutAfter(_) => proxy.cut_never(),
        LinkFault::Delay => proxy.delay(if on { DELAY } else { Duration::ZERO }),
        LinkFault::Mute => proxy.mute(on),
        LinkFault::BlackHole => proxy.black_hole(on),
        LinkFault::Down => proxy.down(on),
    }
    Ok(())
}

fn poison_body(number: usize, poison: Poison) -> Vec<u8> {
    match poison {
        Poison::Undecodable | Poison::Refused => format!("poison {number}, which is not a message"),
        Poison::UnknownVersion => {
            format!(
                "{{\"v\":4000000000,\"id\":\"00000000-0000-8000-8000-00000000{number:04x}\",\
                 \"accepted_at_ms\":0,\"items\":[]}}"
            )
        }
    }
    .into_bytes()
}
