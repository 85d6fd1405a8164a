//! The load: its kinds, and the bytes of their requests. Pure.
use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Context;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::http;

/// Counters over which increments are spread, round robin.
pub const COUNTERS: usize = 1_000;
/// Collections over which documents are spread.
pub const COLLECTIONS: usize = 10;
/// Types over which points are spread.
pub const TYPES: usize = 100;
/// Types whose summaries are requested.
pub const SUMMARY_TYPES: usize = 10_000;
/// Items in an array.
pub const BULK_ITEMS: usize = 100;

/// Different arrays of documents or points; each has some kilobytes.
const BULK_REQUESTS: usize = 100;
/// Largest distance in time between two points.
const POINTS_SPAN_MS: i64 = 60_000;

/// The kind of one item of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Increment,
    /// JSON objects of 150 bytes.
    Document150,
    /// JSON objects of 1 000 bytes.
    Document1k,
    Point,
}

/// The kind of requests that a run sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One item per request.
    Single(Item),
    /// An array of [`BULK_ITEMS`] per request.
    Bulk(Item),
    /// Reads of counters that are in the cache.
    Read,
    /// Summaries of this month, each of another type.
    SummaryMiss,
    /// The same summary again and again.
    SummaryHit,
}

impl Work {
    /// Number of items in a request; reads have none.
    pub fn items(self) -> u64 {
        match self {
            Self::Single(_) => 1,
            Self::Bulk(_) => BULK_ITEMS as u64,
            Self::Read | Self::SummaryMiss | Self::SummaryHit => 0,
        }
    }

    /// The kind of item that is written, if any.
    pub fn written(self) -> Option<Item> {
        match self {
            Self::Single(item) | Self::Bulk(item) => Some(item),
            Self::Read | Self::SummaryMiss | Self::SummaryHit => None,
        }
    }

    /// Name of the kind in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single(Item::Increment) => "single",
            Self::Single(Item::Document150) => "document_150",
            Self::Single(Item::Document1k) => "document_1k",
            Self::Single(Item::Point) => "point",
            Self::Bulk(Item::Increment) => "bulk",
            Self::Bulk(Item::Document150) => "bulk_document_150",
            Self::Bulk(Item::Document1k) => "bulk_document_1k",
            Self::Bulk(Item::Point) => "bulk_point",
            Self::Read => "read",
            Self::SummaryMiss => "summary_miss",
            Self::SummaryHit => "summary_hit",
        }
    }

    /// Builds the requests of one run. The names of everything that they write begin with `word`;
    /// points lie within a minute before `now_ms`.
    pub fn requests(self, address: SocketAddr, word: &str, now_ms: i64) -> anyhow::Result<Vec<Vec<u8>>> {
        let get = |path: &str| http::get(address, path);
        match self {
            Self::Single(item) => (0..COUNTERS).map(|at| post(address, item, word, now_ms, at, 1)).collect(),
            Self::Bulk(item) => {
                let requests = if item == Item::Increment { COUNTERS } else { BULK_REQUESTS };
                (0..requests).map(|at| post(address, item, word, now_ms, at, BULK_ITEMS)).collect()
            }
            Self::Read => Ok((0..COUNTERS).map(|at| get(&counter(word, at))).collect()),
            Self::SummaryMiss => Ok((0..SUMMARY_TYPES).map(|at| get(&summary_path(at))).collect()),
            Self::SummaryHit => Ok(vec![get(&summary_path(0))]),
        }
    }
}

impl Serialize for Work {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Name of a type whose rollups are put into the store before its summary is requested.
pub fn summary_type(number: usize) -> String {
    format!("summary-{number:05}")
}

pub fn summary_path(number: usize) -> String {
    format!("/v1/metrics/summary?type={}&period=monthly", summary_type(number))
}

fn counter(word: &str, number: usize) -> String {
    format!("/v1/counters/{word}-{number:04}")
}

/// Builds the request with this number: one item, or an array when there are more.
fn post(
    address: SocketAddr,
    item: Item,
    word: &str,
    now_ms: i64,
    number: usize,
    items: usize,
) -> anyhow::Result<Vec<u8>> {
    let path = match item {
        Item::Increment => format!("{}/increments", counter(word, number)),
        Item::Document150 | Item::Document1k => format!("/v1/data/{word}-{}", number % COLLECTIONS),
        Item::Point => "/v1/metrics".to_owned(),
    };
    let texts = (0..items).map(|index| body(item, word, now_ms, number * items + index));
    let texts: Vec<String> = texts.collect::<anyhow::Result<_>>()?;
    let body = if items == 1 { texts.concat() } else { format!("[{}]", texts.join(",")) };
    Ok(http::post_json(address, &path, &body))
}

fn body(item: Item, word: &str, now_ms: i64, number: usize) -> anyhow::Result<String> {
    match item {
        Item::Increment => Ok(r#"{"by":1}"#.to_owned()),
        Item::Document150 => Ok(document(number, 150)),
        Item::Document1k => Ok(document(number, 1_000)),
        Item::Point => point(word, now_ms, number),
    }
}

/// Builds an order with a note that makes it `bytes` long.
fn document(number: usize, bytes: usize) -> String {
    let mut text = format!(
        r#"{{"order":"o-{number:07}","customer":{},"amount":{}.{:02},"currency":"EUR","paid":{},"note":""#,
        number * 7_919 % 10_007,
        number % 900 + 10,
        number % 100,
        number.is_multiple_of(2)
    );
    let words = "left at the door of the neighbour on the second floor ";
    let room = bytes.saturating_sub(text.len() + 2);
    text.extend(words.chars().cycle().skip(number % words.len()).take(room));
    text.push_str("\"}");
    text
}

/// Builds a point with a response time in milliseconds.
fn point(word: &str, now_ms: i64, number: usize) -> anyhow::Result<String> {
    let number_ms = i64::try_from(number)?;
    let at_ms = now_ms - number_ms * 37 % POINTS_SPAN_MS;
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000)?;
    let timestamp = at.format(&Rfc3339).context("a time after 1970 has a text")?;
    let mut text = format!(r#"{{"timestamp":"{timestamp}","value":"#);
    write!(text, "{}.{}", 5 + number * 7_919 % 1_009, number % 10)?;
    write!(text, r#","type":"{word}-{:02}"}}"#, number % TYPES)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const NOW_MS: i64 = 1_763_600_000_000;

    fn requests(work: Work) -> Vec<(String, Value)> {
        let address = "127.0.0.1:80".parse().expect("an address");
        let requests = work.requests(address, "w", NOW_MS).expect("requests");
        let split = |request: Vec<u8>| {
            let text = String::from_utf8(request).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            let path = head.split(' ').nth(1).expect("a path").to_owned();
            (path, if body.is_empty() { Value::Null } else { serde_json::from_str(body).expect("JSON") })
        };
        requests.into_iter().map(split).collect()
    }

    #[test]
    fn documents_are_objects_of_exactly_their_length() {
        for bytes in [150, 1_000] {
            for number in [0, 1, 99, 9_999] {
                let text = document(number, bytes);
                assert_eq!(text.len(), bytes, "{text}");
                assert!(serde_json::from_str::<Value>(&text).expect("JSON").is_object());
            }
        }
    }

    #[test]
    fn an_array_has_as_many_items_as_are_counted_and_a_single_write_has_one() {
        for item in [Item::Increment, Item::Document150, Item::Document1k, Item::Point] {
            for (path, body) in requests(Work::Bulk(item)) {
                assert_eq!(body.as_array().map(|items| items.len() as u64), Some(Work::Bulk(item).items()));
                assert!(path.starts_with(if item == Item::Point { "/v1/metrics" } else { "/v1/" }), "{path}");
            }
            assert!(requests(Work::Single(item)).iter().all(|(_, body)| body.is_object()));
        }
    }

    #[test]
    fn points_lie_within_a_minute_and_are_spread_over_all_types() {
        let bodies = requests(Work::Single(Item::Point)).into_iter().map(|(_, body)| body);
        let mut types = std::collections::BTreeSet::new();
        for body in bodies {
            let text = body["timestamp"].as_str().expect("a time");
            let at = OffsetDateTime::parse(text, &Rfc3339).expect("RFC 3339").unix_timestamp();
            assert!((NOW_MS / 1_000 - 60..=NOW_MS / 1_000).contains(&at), "{text}");
            assert!(body["value"].is_f64());
            types.insert(body["type"].as_str().expect("a type").to_owned());
        }
        assert_eq!(types.len(), TYPES);
        assert!(types.iter().all(|name| name.starts_with("w-")));
    }

    #[test]
    fn documents_are_spread_over_all_collections() {
        let paths = requests(Work::Single(Item::Document150)).into_iter().map(|(path, _)| path);
        let collections: std::collections::BTreeSet<_> = paths.collect();
        assert_eq!(collections.len(), COLLECTIONS);
        assert!(collections.iter().all(|path| path.starts_with("/v1/data/w-")));
    }

    #[test]
    fn each_summary_that_is_to_miss_is_of_another_type() {
        let paths: std::collections::BTreeSet<_> =
            requests(Work::SummaryMiss).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths.len(), SUMMARY_TYPES);
        assert!(paths.contains("/v1/metrics/summary?type=summary-00007&period=monthly"));
        assert_eq!(requests(Work::SummaryHit).len(), 1);
    }
}
