//! The kinds of writes, and all that the traffic and the audit must know about each: where it is
//! sent, how an item looks, and what its target holds afterwards.
//!
//! A further kind is a variant and an arm in each function here; plan, traffic, ledger and audit
//! stay as they are. For that every item carries one whole number, and every target shows how many
//! items it holds and what their numbers sum up to.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::{Ledger, Outcome, Write};
use crate::traffic;

/// Sum of the numbers and count of the items that took effect at a target.
pub type State = (i64, i64);

/// What targets hold.
pub type States = BTreeMap<(Kind, String), State>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Increments of a counter: its value is the sum, its version the count.
    Counter,
    /// Documents of a collection, each `{"number":n}`.
    Document,
}

/// What the programs of this build take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Abilities {
    pub kinds: Vec<Kind>,
    /// Whether an Idempotency-Key is accepted, not refused.
    pub keyed: bool,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Counter, Self::Document];

    /// The path as the OpenAPI document has it.
    fn pattern(self) -> &'static str {
        match self {
            Self::Counter => "/v1/counters/{name}/increments",
            Self::Document => "/v1/data/{collection}",
        }
    }

    pub fn path(self, target: &str) -> String {
        match self {
            Self::Counter => format!("/v1/counters/{target}/increments"),
            Self::Document => format!("/v1/data/{target}"),
        }
    }

    /// The JSON of one item.
    pub fn item(self, number: i64) -> String {
        match self {
            Self::Counter => format!("{{\"by\":{number}}}"),
            Self::Document => format!("{{\"number\":{number}}}"),
        }
    }

    /// What targets of this kind hold: all that the service knows, or those that are asked for
    /// where it tells only of what it is asked for.
    async fn read(self, client: &Client, api: SocketAddr, asked: &BTreeSet<&str>) -> anyhow::Result<States> {
        let mut states = States::new();
        match self {
            Self::Counter => {
                for item in pages(client, &format!("http://{api}/v1/counters?limit=1000")).await? {
                    let counter: Counter = serde_json::from_value(item).context("a counter")?;
                    states.insert((self, counter.name), (counter.value, counter.version));
                }
            }
            Self::Document => {
                for target in asked {
                    let mut state = (0, 0);
                    for item in pages(client, &format!("http://{api}/v1/data/{target}?limit=1000")).await? {
                        let number = member(&item, "number").and_then(Value::as_i64);
                        state.0 += number.with_context(|| format!("{target} holds {item}"))?;
                        state.1 += 1;
                    }
                    states.insert((self, (*target).to_owned()), state);
                }
            }
        }
        Ok(states)
    }
}

/// The member of an object or of an object in it, so that it may be wrapped with its id.
fn member<'a>(item: &'a Value, name: &str) -> Option<&'a Value> {
    item.get(name).or_else(|| item.as_object()?.values().find_map(|inner| inner.get(name)))
}

/// Reads what all the targets hold.
pub async fn read(
    client: &Client,
    api: SocketAddr,
    targets: &BTreeSet<(Kind, &str)>,
) -> anyhow::Result<States> {
    let mut states = States::new();
    for kind in Kind::ALL {
        let asked: BTreeSet<_> =
            targets.iter().filter(|(other, _)| *other == kind).map(|(_, name)| *name).collect();
        if !asked.is_empty() {
            states.extend(kind.read(client, api, &asked).await?);
        }
    }
    Ok(states)
}

/// What this build takes: kinds by its own description, keys by a write that is refused where they
/// are not known. That write stands in the ledger.
pub async fn discover(client: &Client, api: SocketAddr, ledger: &Ledger) -> anyhow::Result<Abilities> {
    let document: Value = client.get(format!("http://{api}/openapi.json")).send().await?.json().await?;
    let has = |kind: &Kind| document["paths"][kind.pattern()]["post"].is_object();
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(has).collect();
    ensure!(kinds.contains(&Kind::Counter), "an API without counters");
    let write =
        Write { kind: Kind::Counter, target: "asked".into(), items: vec![1], key: Some("asked".into()) };
    let request = ledger.intend(write.clone()).await?;
    let (outcome, keyed) = match traffic::send(client, api, &write, false).await {
        Ok(outcome) => (outcome, true),
        Err(refused) if refused.to_string().contains("idempotency_unsupported") => (Outcome::NotSent, false),
        Err(other) => return Err(other),
    };
    ledger.settle(request, outcome)?;
    Ok(Abilities { kinds, keyed })
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Counter {
    name: String,
    value: i64,
    version: i64,
}

/// Follows a list to its end.
async fn pages(client: &Client, url: &str) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut after) = (Vec::new(), String::new());
    loop {
        let answer = client.get(format!("{url}{after}")).send().await?.error_for_status()?;
        let page: Page = answer.json().await.context("a page of a list")?;
        items.extend(page.items);
        let Some(next) = page.next else { return Ok(items) };
        after = format!("&after={next}");
    }
}
