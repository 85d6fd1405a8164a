//! The API's own metrics. Labels are route names, status classes and fixed words.
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, histogram_opts, opts};
use prometheus::{
    register_gauge, register_histogram, register_histogram_vec, register_int_counter,
    register_int_counter_vec, register_int_gauge,
};
use shared::model::id::Kind;
use shared::runtime::metrics::LATENCY_BUCKETS;

/// Reason for which a message was closed. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyFlushed {
    Idle,
    Confirmed,
    Items,
    Bytes,
}

impl WhyFlushed {
    pub const ALL: [Self; 4] = [Self::Idle, Self::Confirmed, Self::Items, Self::Bytes];

    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Confirmed => "confirmed",
            Self::Items => "items",
            Self::Bytes => "bytes",
        }
    }
}

/// Reasons for which a request is refused before its handler sees it.
const REFUSALS: [&str; 9] =
    ["no_key", "malformed", "unknown", "expired", "scope", "admin_off", "no_host", "host", "origin"];

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Times of the requests to one route by status class. A class appears with its first request.
#[derive(Debug)]
pub struct RouteSeconds {
    label: &'static str,
    by_class: [OnceLock<Histogram>; 5],
}

/// Times of the requests to no route.
pub static NO_ROUTE: RouteSeconds = RouteSeconds::new("other");

impl RouteSeconds {
    pub const fn new(label: &'static str) -> Self {
        Self { label, by_class: [const { OnceLock::new() }; 5] }
    }

    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Notes the time of an answer with this status.
    pub fn observe(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let of_class = self.by_class[class]
            .get_or_init(|| metrics().request_seconds.with_label_values(&[self.label, CLASSES[class]]));
        of_class.observe(took.as_secs_f64());
    }
}

/// Ends of a wait: a reported result, a release of all waits, the end of its time, or a request that went
/// away or needed no answer.
const WAITS: [&str; 7] = ["applied", "failed", "conflict", "changed", "released", "time_up", "left"];

/// Counters of reads through the cache, resolved once.
pub struct CacheReads {
    pub hit: IntCounter,
    pub miss: IntCounter,
    pub stale: IntCounter,
}

impl CacheReads {
    fn of(reads: &IntCounterVec) -> Self {
        let by = |outcome| reads.with_label_values(&[outcome]);
        Self { hit: by("hit"), miss: by("miss"), stale: by("stale") }
    }
}

/// Metrics of the room that clients take.
pub struct RoomMetrics {
    /// Requests refused because too many were in work.
    pub shed: IntCounter,
    /// Bodies refused because others needed the room of what had arrived.
    pub bodies_refused: IntCounter,
    /// Large answers that are not sent yet, in bytes.
    pub answers_bytes: IntGauge,
    /// Large answers refused because too many were not sent yet.
    pub answers_refused: IntCounter,
    /// Connections closed because their client took nothing of an answer.
    pub unread_closed: IntCounter,
}

pub struct Metrics {
    /// Items answered with 202, by `kind`.
    pub accepted: IntCounterVec,
    /// Time from the publish of a message to its confirm.
    pub confirm_seconds: Histogram,
    pub batch_items: Histogram,
    /// Messages, by `why` they were closed.
    pub batches: IntCounterVec,
    /// Traces that found no room in their message.
    pub traces_dropped: IntCounter,
    pub in_flight: IntGauge,
    pub room: RoomMetrics,
    pub cache_reads_by_outcome: CacheReads,
    /// Requests that were refused before their handlers, by `reason`.
    pub refused: IntCounterVec,
    /// Keys in force.
    pub api_keys: IntGauge,
    /// Readings of `auth.keys_file` after the first, by `outcome`.
    pub key_reloads: IntCounterVec,
    /// Dead letters that were tried once more by HTTP, by `outcome`.
    pub redriven: IntCounterVec,
    /// Times that events were or may have been missed.
    pub event_holes: IntCounter,
    /// Difference of this replica's clock to the store's.
    pub clock_skew_seconds: Gauge,
    /// Consumers with events that arrive.
    pub consumers: IntGauge,
    /// Requests that wait for an outcome or a change.
    pub waiters: IntGauge,
    /// Requests that may not wait: too many do, the store is known to be away, or no consumer runs.
    pub waits_refused: IntCounter,
    /// Waits by how they ended, in the order of `WAITS`.
    waits: Vec<Histogram>,
    request_seconds: HistogramVec,
}

impl Metrics {
    /// Notes the end of a wait. `word` is one of `WAITS`.
    pub fn waited(&self, word: &'static str, took: Duration) {
        if let Some(index) = WAITS.iter().position(|wait| *wait == word) {
            self.waits[index].observe(took.as_secs_f64());
        }
    }
}

/// Metrics of this process, registered at first use with Prometheus' default registry.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| register().expect("metric names are distinct"));
    &METRICS
}

fn register() -> prometheus::Result<Metrics> {
    let items = vec![1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1_000.0, 4_000.0];
    let request_seconds: HistogramVec = register_histogram_vec!(
        histogram_opts!(
            "forebay_http_request_seconds",
            "time from the request's head to the response's, by route and status class",
            LATENCY_BUCKETS.to_vec()
        ),
        &["route", "status"]
    )?;
    let waits = register_histogram_vec!(
        histogram_opts!(
            "forebay_api_wait_seconds",
            "how long requests waited for an outcome or a change, by how it ended",
            LATENCY_BUCKETS.to_vec()
        ),
        &["outcome"]
    )?;
    let [accepted, batches, refused, key_reloads, redriven] = register_counted()?;
    Ok(Metrics {
        accepted,
        confirm_seconds: register_histogram!(histogram_opts!(
            "forebay_api_confirm_seconds",
            "from the publish of a message to its confirm",
            LATENCY_BUCKETS.to_vec()
        ))?,
        batch_items: register_histogram!(histogram_opts!(
            "forebay_api_batch_items",
            "items per message",
            items
        ))?,
        batches,
        traces_dropped: register_int_counter!(
            "forebay_api_traces_dropped_total",
            "traces of requests that found no room in their message"
        )?,
        in_flight: register_int_gauge!("forebay_http_in_flight", "requests in work")?,
        room: register_room()?,
        cache_reads_by_outcome: CacheReads::of(&counted(
            "forebay_api_cache_reads_total",
            "reads through the cache by outcome",
            "outcome",
            &[],
        )?),
        refused,
        api_keys: register_int_gauge!("forebay_api_keys", "API keys in force, expired ones included")?,
        key_reloads,
        redriven,
        event_holes: register_int_counter!(
            "forebay_api_event_holes_total",
            "times that events were or may have been missed and cached values became old"
        )?,
        clock_skew_seconds: register_gauge!(
            "forebay_api_clock_skew_seconds",
            "this replica's clock minus the store's"
        )?,
        consumers: register_int_gauge!("forebay_consumers", "consumers whose events arrive")?,
        waiters: register_int_gauge!("forebay_api_waiters", "requests that wait for an outcome or a change")?,
        waits_refused: register_int_counter!(
            "forebay_api_waits_refused_total",
            "requests that were answered at once because too many wait or nothing is applied for now"
        )?,
        waits: WAITS.iter().map(|word| waits.with_label_values(&[*word])).collect(),
        request_seconds,
    })
}

/// Registers a counter by one label. Each of `values` begins at 0, so that its first increase is seen.
fn counted(name: &str, help: &str, label: &str, values: &[&str]) -> prometheus::Result<IntCounterVec> {
    let counters = register_int_counter_vec!(opts!(name, help), &[label])?;
    for value in values {
        counters.with_label_values(&[value]);
    }
    Ok(counters)
}

/// Registers the counters that have a label.
fn register_counted() -> prometheus::Result<[IntCounterVec; 5]> {
    Ok([
        counted(
            "forebay_api_items_accepted_total",
            "items that were made durable and answered with 202",
            "kind",
            &Kind::ALL.map(Kind::name),
        )?,
        counted(
            "forebay_api_batches_total",
            "messages by why they were closed",
            "why",
            &WhyFlushed::ALL.map(WhyFlushed::name),
        )?,
        counted(
            "forebay_api_refused_total",
            "requests refused for key, host or origin",
            "reason",
            &REFUSALS,
        )?,
        counted(
            "forebay_api_key_reloads_total",
            "changed or broken keys files read",
            "outcome",
            &["loaded", "failed"],
        )?,
        counted(
            "forebay_api_items_redriven_total",
            "dead letters that were tried once more by HTTP",
            "outcome",
            &["applied", "failed"],
        )?,
    ])
}

fn register_room() -> prometheus::Result<RoomMetrics> {
    Ok(RoomMetrics {
        shed: register_int_counter!(
            "forebay_http_shed_total",
            "requests refused because too many were in work"
        )?,
        bodies_refused: register_int_counter!(
            "forebay_http_bodies_refused_total",
            "bodies refused because others needed the room of what had arrived"
        )?,
        answers_bytes: register_int_gauge!(
            "forebay_http_answers_bytes",
            "room taken by large answers that are not sent yet"
        )?,
        answers_refused: register_int_counter!(
            "forebay_http_answers_refused_total",
            "large answers refused because too many were not sent yet"
        )?,
        unread_closed: register_int_counter!(
            "forebay_http_unread_closed_total",
            "connections closed because their clients took nothing of an answer"
        )?,
    })
}
