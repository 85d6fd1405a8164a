//! The content of targets, read through the public HTTP interface: of every kind the sum and the
//! count, of documents each one with its id.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde::Deserialize;
use serde_json::Value;

use crate::crowd;
use crate::kind::{Kind, rfc3339};
use crate::ledger::{Entry, SumAndCount};

pub type States = BTreeMap<(Kind, String), SumAndCount>;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holdings {
    pub states: States,
    /// Numbers in documents, by collection and id.
    pub documents: BTreeMap<String, BTreeMap<String, i64>>,
    /// Contradictions within the answers.
    pub contradictions: Vec<String>,
}

/// The targets to read.
#[derive(Debug)]
pub struct Questions<'a> {
    targets: BTreeSet<(Kind, &'a str)>,
    /// First and last time of the points.
    span: (i64, i64),
}

impl<'a> Questions<'a> {
    pub fn of(entries: &'a [Entry]) -> Self {
        let targets = entries.iter().map(|entry| (entry.write.kind, entry.write.target.as_str()));
        let points = entries.iter().filter(|entry| entry.write.kind == Kind::Point);
        let times = points.map(|entry| entry.write.at_ms);
        let span = times.fold((i64::MAX, 0), |(first, last), at| (first.min(at), last.max(at)));
        Self { targets: targets.collect(), span }
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &'a str> {
        self.targets.iter().filter(move |(other, _)| *other == kind).map(|(_, name)| *name)
    }

    /// The span in whole periods, as query parameters.
    fn range(&self, period_ms: i64) -> anyhow::Result<String> {
        let (first, last) = self.span;
        let from = first.div_euclid(period_ms) * period_ms;
        let to = (last.div_euclid(period_ms) + 1) * period_ms;
        Ok(format!("from={}&to={}", rfc3339(from)?, rfc3339(to)?))
    }
}

/// Reads the content of all targets.
pub async fn read(client: &Client, api: SocketAddr, asked: &Questions<'_>) -> anyhow::Result<Holdings> {
    let mut holdings = Holdings::default();
    read_counters(client, api, &mut holdings).await?;
    for collection in asked.of_kind(Kind::Document) {
        read_documents(client, api, collection, &mut holdings).await?;
    }
    for name in asked.of_kind(Kind::Point) {
        read_points(client, api, (name, asked), &mut holdings).await?;
    }
    Ok(holdings)
}

/// Reads all counters of the service, also those that no writer of the run wrote; a crowd checks its own.
async fn read_counters(client: &Client, api: SocketAddr, into: &mut Holdings) -> anyhow::Result<()> {
    for item in pages(client, &format!("http://{api}/v1/counters?limit=1000")).await? {
        let ListedCounter { name, value, version } = serde_json::from_value(item).context("a counter")?;
        if !name.starts_with(crowd::PREFIX) {
            into.states.insert((Kind::Counter, name), (value, version));
        }
    }
    Ok(())
}

async fn read_documents(
    client: &Client,
    api: SocketAddr,
    collection: &str,
    into: &mut Holdings,
) -> anyhow::Result<()> {
    let mut documents = BTreeMap::new();
    for item in pages(client, &format!("http://{api}/v1/data/{collection}?limit=1000")).await? {
        let document: Document = serde_json::from_value(item).context("a document")?;
        let twice = documents.insert(document.id.clone(), document.data.number);
        ensure!(twice.is_none(), "{} is listed twice in {collection}", document.id);
    }
    let count = i64::try_from(documents.len())?;
    into.states.insert((Kind::Document, collection.into()), (documents.values().sum(), count));
    into.documents.insert(collection.into(), documents);
    Ok(())
}

/// Reads points by minutes and by days: these come from different rows and must agree.
async fn read_points(
    client: &Client,
    api: SocketAddr,
    (name, asked): (&str, &Questions<'_>),
    into: &mut Holdings,
) -> anyhow::Result<()> {
    let mut states = Vec::new();
    for period_ms in [DAY_MS, MINUTE_MS] {
        let range = asked.range(period_ms)?;
        let url = format!("http://{api}/v1/metrics/summary?type={name}&{range}");
        let summary: PointSummary = client.get(url).send().await?.error_for_status()?.json().await?;
        #[expect(clippy::cast_possible_truncation, reason = "sums of small whole numbers")]
        states.push((summary.sum as i64, summary.count));
    }
    if states[0] != states[1] {
        let reported =
            format!("WRONG: type {name} is {:?} by days and {:?} by minutes", states[0], states[1]);
        into.contradictions.push(reported);
    }
    into.states.insert((Kind::Point, name.into()), states[0]);
    Ok(())
}

#[derive(Deserialize)]
struct ListPage {
    items: Vec<Value>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct ListedCounter {
    name: String,
    value: i64,
    version: i64,
}

#[derive(Deserialize)]
struct Document {
    id: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    number: i64,
}

#[derive(Deserialize)]
struct PointSummary {
    count: i64,
    sum: f64,
}

/// Follows a list to its end.
pub async fn pages(client: &Client, url: &str) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut after) = (Vec::new(), String::new());
    loop {
        let answer = client.get(format!("{url}{after}")).send().await?.error_for_status()?;
        let page: ListPage = answer.json().await.context("a page of a list")?;
        items.extend(page.items);
        let Some(next) = page.next else { return Ok(items) };
        after = format!("&after={next}");
    }
}
