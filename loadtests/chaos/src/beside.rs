//! Faults that are a message: sends it, checks that the writes of others go on being applied,
//! observes its outcome, and heals it. In the end all of it must have been applied.
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Serialize;

use crate::audit::receipt_status;
use crate::compare::shortened;
use crate::crowd;
use crate::dead::{self, Letter};
use crate::fault::{BESIDE_BOUND, BESIDE_ONE_WRITER_BOUND, Bound, Weight};
use crate::heavy::{CHEAP_SCHEMA, DEAR, DEAR_SCHEMA, NUMBER, Switch};
use crate::kind::Kind;
use crate::ledger::{Ledger, Write};
use crate::recovery;
use crate::send;
use crate::traffic::Traffic;

/// Messages per fault, more than there are consumers: each of them gets one.
const MESSAGES: usize = 4;
/// Messages per fault of one writer, which tries one after the other.
const MESSAGES_OF_ONE_WRITER: usize = 1;
const BYSTANDER_EVERY: Duration = Duration::from_millis(100);
/// Time within which a message is dead-lettered. Five failures, at growing intervals and with
/// growing limits, take 80 s; a kill begins them anew.
const SET_ASIDE_PATIENCE: Duration = Duration::from_mins(5);
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);
const NOT_APPLIED: &str = "not_applied";
const CHECK_OVERRUN: &str = "check_overrun";

/// Writes of others during the fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Beside {
    pub bystanders: usize,
    /// Longest time from an attempt to write until it was applied.
    pub slowest_ms: u128,
    /// Items that were dead-lettered, as they had to be.
    pub set_aside: usize,
    #[serde(skip)]
    pub findings: Vec<String>,
}

impl fmt::Display for Beside {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bystanders, slowest_ms, set_aside, .. } = self;
        write!(out, "{set_aside} set aside; slowest of {bystanders} bystanders {slowest_ms} ms")
    }
}

/// Clients and addresses for such a fault.
pub struct Scene<'a> {
    pub number: usize,
    pub apis: Vec<SocketAddr>,
    pub ledger: &'a Arc<Ledger>,
    pub traffic: &'a Traffic,
    pub switch: &'a Switch,
}

/// Ids of items that were sent.
#[derive(Default)]
struct Sent {
    /// Items that have to be dead-lettered.
    bad: BTreeSet<String>,
    good: Vec<String>,
}

impl Scene<'_> {
    /// Sends messages with a document that the store cannot apply, between good ones.
    pub async fn heavy(&self, weight: Weight, lasting: Duration) -> anyhow::Result<Beside> {
        let client = send::client()?;
        self.switch.on(weight).await?;
        let sent = self.send(&client, "heavy", NUMBER, self.switch.is_sqlite()).await?;
        let mut beside = Beside::default();
        if weight.is_given_up() {
            self.watch(&mut beside, async || self.all_failed(&client, &sent).await).await?;
            self.check_letters(&client, (NOT_APPLIED, NUMBER), &sent, &mut beside).await?;
        } else {
            let began = Instant::now();
            self.watch(&mut beside, async || began.elapsed() >= lasting).await?;
            let letters = dead::letters(&client, self.apis[0], Some(NOT_APPLIED)).await?;
            let reported =
                |letter: &Letter| format!("LOST: {} was given up for what names the server", letter.id);
            beside.findings.extend(shortened(letters.iter().map(reported).collect()));
        }
        self.switch.off().await?;
        beside.findings.extend(dead::redrive(&client, self.apis[0], NOT_APPLIED).await?);
        self.await_applied(&client, &sent, &mut beside).await;
        Ok(beside)
    }

    /// Sends documents, then defines their collection so that their check costs too much.
    pub async fn slow_item(&self) -> anyhow::Result<Beside> {
        let (client, collection) = (send::client()?, format!("slow-{}", self.number));
        self.switch.on(self.switch.keeping()).await?;
        let sent = self.send(&client, &collection, DEAR, false).await?;
        self.define(&client, &collection, DEAR_SCHEMA).await?;
        self.switch.off().await?;
        let mut beside = Beside::default();
        self.watch(&mut beside, async || self.all_failed(&client, &sent).await).await?;
        self.check_letters(&client, (CHECK_OVERRUN, DEAR), &sent, &mut beside).await?;
        self.define(&client, &collection, CHEAP_SCHEMA).await?;
        beside.findings.extend(dead::redrive(&client, self.apis[0], CHECK_OVERRUN).await?);
        self.await_applied(&client, &sent, &mut beside).await;
        Ok(beside)
    }

    /// Sends one request after the other, so that each is a message. `all_bad` holds where all
    /// items of a message share one outcome: then no other client may write meanwhile.
    async fn send(
        &self,
        client: &Client,
        collection: &str,
        number: i64,
        all_bad: bool,
    ) -> anyhow::Result<Sent> {
        let _still = if all_bad { Some(self.traffic.still().await) } else { None };
        let mut sent = Sent::default();
        let messages = if self.switch.is_sqlite() { MESSAGES_OF_ONE_WRITER } else { MESSAGES };
        for message in 0..messages {
            let api = self.apis[message % self.apis.len()];
            let deadline = Instant::now() + PATIENCE;
            let ids = loop {
                let write = Write::new(Kind::Document, collection, vec![1, number, 2]);
                let request = self.ledger.intend(write.clone()).await?;
                let outcome = send::once(client, api, &write).await?;
                self.ledger.settle(request, outcome.clone())?;
                if outcome.is_taken() {
                    break outcome.ids().to_vec();
                }
                ensure!(Instant::now() < deadline, "a heavy request was not accepted");
                tokio::time::sleep(PAUSE).await;
            };
            for (index, id) in ids.into_iter().enumerate() {
                if all_bad || index == 1 {
                    sent.bad.insert(id);
                } else {
                    sent.good.push(id);
                }
            }
        }
        Ok(sent)
    }

    async fn define(&self, client: &Client, collection: &str, schema: &'static str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let url = format!("http://{}/v1/collections/{collection}", self.apis[0]);
            let request = client.put(url).header("content-type", "application/json").body(schema);
            let answer = match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < deadline, "{collection} was not defined: {answer}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes at every API again and again until `is_over`; each write must be applied in time.
    async fn watch(&self, beside: &mut Beside, is_over: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let bound = self.bound();
        let began = Instant::now();
        loop {
            let name = format!("bystander-{}-{}", self.number, beside.bystanders);
            let one = recovery::measure(self.ledger, &self.apis, &name, Instant::now(), bound).await?;
            beside.bystanders += 1;
            beside.slowest_ms = beside.slowest_ms.max(one.applied_ms.unwrap_or(bound.failed_ms));
            if !one.is_within(bound) {
                beside.findings.push(format!(
                    "STALLED: step {}: a bystander's write: {one}, must be applied within {} s",
                    self.number,
                    bound.failed_ms / 1_000
                ));
                return Ok(());
            }
            if is_over().await {
                return Ok(());
            }
            if began.elapsed() > SET_ASIDE_PATIENCE {
                let step = self.number;
                beside
                    .findings
                    .push(format!("STUCK: step {step}: nothing set aside within {SET_ASIDE_PATIENCE:?}"));
                return Ok(());
            }
            tokio::time::sleep(BYSTANDER_EVERY).await;
        }
    }

    fn bound(&self) -> Bound {
        if self.switch.is_sqlite() { BESIDE_ONE_WRITER_BOUND } else { BESIDE_BOUND }
    }

    async fn all_failed(&self, client: &Client, sent: &Sent) -> bool {
        for (place, id) in sent.bad.iter().enumerate() {
            if receipt_status(client, self.apis[place % self.apis.len()], id).await != "failed" {
                return false;
            }
        }
        true
    }

    /// Checks that exactly the bad items are dead letters with `reason`. A crowd's increments may
    /// share a message with them, and a request whose answer was lost has more of them.
    async fn check_letters(
        &self,
        client: &Client,
        (reason, number): (&str, i64),
        sent: &Sent,
        beside: &mut Beside,
    ) -> anyhow::Result<()> {
        let letters = dead::letters(client, self.apis[0], Some(reason)).await.context("dead letters")?;
        let found: BTreeSet<&str> = letters.iter().map(|letter| &*letter.id).collect();
        beside.set_aside = found.len();
        if !beside.findings.is_empty() {
            // The watch ended early, so there may be fewer.
            return Ok(());
        }
        let missing = sent.bad.iter().filter(|id| !found.contains(id.as_str()));
        let missing = missing.map(|id| format!("WRONG: {id} must be a dead letter, {reason}"));
        let mut findings: Vec<String> = missing.collect();
        let may_be = |letter: &&Letter| {
            sent.bad.contains(&letter.id)
                || letter.document().is_some_and(|(_, found)| found == number)
                || self.switch.is_sqlite()
                    && letter.counter().is_some_and(|counter| counter.starts_with(crowd::PREFIX))
        };
        let others = letters.iter().filter(|letter| !may_be(letter));
        findings.extend(others.map(|letter| format!("LOST: {} is a dead letter, {reason}", letter.id)));
        beside.findings.extend(shortened(findings));
        Ok(())
    }

    async fn await_applied(&self, client: &Client, sent: &Sent, beside: &mut Beside) {
        let deadline = Instant::now() + PATIENCE;
        for id in sent.bad.iter().chain(&sent.good) {
            loop {
                let status = receipt_status(client, self.apis[0], id).await;
                if status == "applied" {
                    break;
                }
                if Instant::now() > deadline {
                    beside.findings.push(format!("LOST: {id} is {status} after its redrive"));
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
