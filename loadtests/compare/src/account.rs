//! The account of a run: how much of what was accepted is applied, and the proof that nothing is
//! lost or applied twice. It runs beside the load, so it stays cheap until the end.
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use shared::model::rollup::{Resolution, Rollup};
use sqlx::{Connection, PgConnection};

use crate::control::Client;
use crate::generator::LoadResult;
use crate::installation::{Installation, block_on};
use crate::stop::Stop;
use crate::work::Item;

/// Time within which accepted writes must be applied; later they count as lost.
const DRAIN_PATIENCE: Duration = Duration::from_mins(2);
/// Time without a change after which no unknown item is expected any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// The account, opened before the load with the word that begins the names of all its writes.
pub struct Account {
    word: String,
    source: Source,
}

enum Source {
    /// Sums of the counters: exact and cheap.
    Counters(Client),
    /// Rows of the tables. Counting them during the load would disturb the measurement, so the
    /// consumer's own count says when to look and the tables give the result.
    Tables { tables: Tables, consumer: Client, metric: String, before: i64, store_url: String },
}

#[derive(Clone, Copy)]
enum Tables {
    Documents,
    Points,
}

impl Account {
    pub fn open(installation: &Installation, item: Item, word: &str) -> anyhow::Result<Self> {
        let word = word.to_owned();
        let (tables, kind) = match item {
            Item::Increment => {
                return Ok(Self { word, source: Source::Counters(Client::new(installation.address)) });
            }
            Item::Document150 | Item::Document1k => (Tables::Documents, "document"),
            Item::Point => (Tables::Points, "point"),
        };
        let only_there = "documents and points are counted in Postgres only";
        let ops = installation.consumer_ops().context(only_there)?;
        let store_url = installation.store_url().context(only_there)?.to_owned();
        let metric = format!("forebay_consumer_items_applied_total{{kind=\"{kind}\"}}");
        let mut consumer = Client::new(ops);
        let before = read_metric(&mut consumer, &metric)?;
        Ok(Self { word, source: Source::Tables { tables, consumer, metric, before, store_url } })
    }

    /// Waits until what was accepted is applied and returns when that was seen first. Items with an
    /// unknown outcome may be applied or not; anything beyond them was applied twice.
    pub fn await_applied(
        &mut self,
        outcome: &LoadResult,
        items: u64,
        stop: &Stop,
    ) -> anyhow::Result<Instant> {
        let least = i64::try_from(outcome.succeeded * items).context("an absurd number of writes")?;
        let most = i64::try_from((outcome.succeeded + outcome.unknown()) * items)?;
        let (mut seen, mut seen_since, mut reached) = (0, Instant::now(), None);
        let settled = stop.poll(DRAIN_PATIENCE, PAUSE, || {
            let applied = self.applied()?;
            if applied != seen {
                (seen, seen_since) = (applied, Instant::now());
            }
            if applied >= least && reached.is_none() {
                reached = Some(Instant::now());
            }
            let done = least == most || seen_since.elapsed() >= SETTLED_AFTER;
            Ok((reached.is_some() && done).then_some(()))
        })?;
        let held = self.held()?;
        if held < least {
            let waited = if settled.is_none() { " in time" } else { "" };
            bail!("LOST: {least} were accepted, {held} are applied{waited}");
        }
        if held > most {
            bail!("DOUBLED: at most {most} were sent, {held} are applied");
        }
        reached.with_context(|| format!("{held} are applied, but the consumer never said so"))
    }

    /// Cheap estimate of the items that the run has applied.
    fn applied(&mut self) -> anyhow::Result<i64> {
        match &mut self.source {
            Source::Counters(client) => Ok(client.sums(&self.word)?.value),
            Source::Tables { consumer, metric, before, .. } => Ok(read_metric(consumer, metric)? - *before),
        }
    }

    /// Number of items that the store holds, checked in every place where an item shows.
    fn held(&mut self) -> anyhow::Result<i64> {
        match &mut self.source {
            Source::Counters(client) => {
                let sums = client.sums(&self.word)?;
                ensure!(
                    sums.version == sums.value,
                    "versions sum up to {} and values to {}, with increments of one",
                    sums.version,
                    sums.value
                );
                Ok(sums.value)
            }
            Source::Tables { tables, store_url, .. } => {
                let (tables, store_url, word) = (*tables, store_url.as_str(), self.word.as_str());
                block_on(async {
                    let mut store = PgConnection::connect(store_url).await.context("no Postgres")?;
                    let held = match tables {
                        Tables::Documents => documents(&mut store, word).await?,
                        Tables::Points => points(&mut store, word).await?,
                    };
                    store.close().await?;
                    Ok(held)
                })
            }
        }
    }
}

async fn documents(store: &mut PgConnection, word: &str) -> anyhow::Result<i64> {
    let rows = "select count(*) from documents where starts_with(collection, $1) and data is not null";
    sqlx::query_scalar(rows).bind(word).fetch_one(store).await.context("counting documents")
}

/// Number of points, which must equal the count in their rollups of days.
async fn points(store: &mut PgConnection, word: &str) -> anyhow::Result<i64> {
    let rows =
        "select count(*) from points where type in (select id from metric_types where starts_with(name, $1))";
    let rows: i64 =
        sqlx::query_scalar(rows).bind(word).fetch_one(&mut *store).await.context("counting points")?;
    let rollups = "select data from rollups where resolution = $2 \
                   and type in (select id from metric_types where starts_with(name, $1))";
    let rollups = sqlx::query_scalar::<_, Vec<u8>>(rollups).bind(word).bind(Resolution::Day as i16);
    let mut counted = 0;
    for data in rollups.fetch_all(store).await.context("reading rollups")? {
        counted += Rollup::decode(&data)?.count();
    }
    ensure!(
        i64::try_from(counted) == Ok(rows),
        "there are {rows} points, and the rollups of days count {counted}"
    );
    Ok(rows)
}

/// Reads a metric; 0 before the first item of the kind.
fn read_metric(client: &mut Client, metric: &str) -> anyhow::Result<i64> {
    let answer = client.get("/metrics")?;
    ensure!(answer.status == 200, "the consumer's metrics: {}", answer.status);
    let text = String::from_utf8_lossy(&answer.body);
    sample(&text, metric).map_or(Ok(0), |value| value.parse().with_context(|| format!("{metric} {value}")))
}

/// The value of the sample with exactly this name and these labels.
fn sample<'a>(text: &'a str, metric: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_by_its_whole_name_and_labels() {
        let text = "# TYPE a_total counter\na_total{kind=\"document\"} 12\na_total{kind=\"documents\"} 9\nb_total 7\n";
        assert_eq!(sample(text, "a_total{kind=\"document\"}"), Some("12"));
        assert_eq!(sample(text, "a_total{kind=\"point\"}"), None);
        assert_eq!(sample(text, "b_total"), Some("7"));
        assert_eq!(sample(text, "a_total"), None);
    }
}
