//! The kinds of writes, and all that the traffic must know about each: its path and the form of an
//! item. [`crate::holdings`] reads their effects.
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::heavy;
use crate::ledger::{Ledger, Outcome, Write};
use crate::send;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Increments of a counter: its value is the sum, its version the count.
    Counter,
    /// Documents of a collection, each `{"number":n}`. A deletion takes one away again.
    Document,
    /// Points of a type, each with a whole number as its value.
    Point,
}

/// The features of the programs of this build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Abilities {
    pub kinds: Vec<Kind>,
    /// An Idempotency-Key is accepted, not refused.
    pub keyed: bool,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Counter, Self::Document, Self::Point];

    /// Path in the form of the OpenAPI document.
    fn pattern(self) -> &'static str {
        match self {
            Self::Counter => "/v1/counters/{name}/increments",
            Self::Document => "/v1/data/{collection}",
            Self::Point => "/v1/metrics",
        }
    }

    pub fn path(self, target: &str) -> String {
        match self {
            Self::Counter => format!("/v1/counters/{target}/increments"),
            Self::Document => format!("/v1/data/{target}"),
            Self::Point => "/v1/metrics".into(),
        }
    }

    /// The JSON of one item of a write.
    pub fn item(self, write: &Write, number: i64) -> anyhow::Result<String> {
        Ok(match self {
            Self::Counter => format!("{{\"by\":{number}}}"),
            Self::Document if number == heavy::DEAR => heavy::dear_document(),
            Self::Document => format!("{{\"number\":{number}}}"),
            Self::Point => format!(
                "{{\"type\":\"{}\",\"value\":{number},\"timestamp\":\"{}\"}}",
                write.target,
                rfc3339(write.at_ms)?
            ),
        })
    }
}

/// Time in the form of a query or a point.
pub fn rfc3339(at_ms: i64) -> anyhow::Result<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000)?;
    Ok(at.format(&Rfc3339)?)
}

/// Finds the features of this build: kinds by its own description, keys by a write that is refused
/// where they are not known. That write stands in the ledger.
pub async fn discover(client: &Client, api: SocketAddr, ledger: &Ledger) -> anyhow::Result<Abilities> {
    let document: Value = client.get(format!("http://{api}/openapi.json")).send().await?.json().await?;
    let has = |kind: &Kind| document["paths"][kind.pattern()]["post"].is_object();
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(has).collect();
    ensure!(kinds.contains(&Kind::Counter), "an API without counters");
    let write = Write { key: Some("asked".into()), ..Write::new(Kind::Counter, "asked", vec![1]) };
    let request = ledger.intend(write.clone()).await?;
    let (outcome, keyed) = match send::once(client, api, &write).await {
        Ok(outcome) => (outcome, true),
        Err(refused) if refused.to_string().contains("idempotency_unsupported") => (Outcome::NotSent, false),
        Err(other) => return Err(other).context("a first write"),
    };
    ledger.settle(request, outcome)?;
    Ok(Abilities { kinds, keyed })
}
