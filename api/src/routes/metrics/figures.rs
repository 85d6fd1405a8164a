//! Answers about metrics, as JSON.
use std::sync::Arc;

use serde::Serialize;
use shared::model::rollup::Rollup;
use utoipa::ToSchema;

use crate::read::period::{Buckets, Span};
use crate::rfc3339::rfc3339;

/// What is known of some points. Of no points the count and the sum are 0, the others null.
#[derive(Debug, Serialize, ToSchema)]
pub struct Figures {
    #[schema(example = 3)]
    count: u64,
    /// The exact sum divided by the count, rounded once.
    #[schema(example = 15.0)]
    average_value: Option<f64>,
    #[schema(example = 10.0)]
    min: Option<f64>,
    #[schema(example = 25.0)]
    max: Option<f64>,
    /// The exact sum, rounded once.
    #[schema(example = 45.0)]
    sum: f64,
    /// The value of rank ⌈0.5 × count⌉, within 1 % for magnitudes from 1e-9 to 1e15.
    #[schema(example = 10.0)]
    p50: Option<f64>,
    /// The value of rank ⌈0.95 × count⌉, within 1 % for magnitudes from 1e-9 to 1e15.
    #[schema(example = 25.0)]
    p95: Option<f64>,
    /// The value of rank ⌈0.99 × count⌉, within 1 % for magnitudes from 1e-9 to 1e15.
    #[schema(example = 25.0)]
    p99: Option<f64>,
}

impl Figures {
    fn of(rollup: &Rollup) -> Self {
        Self {
            count: rollup.count(),
            average_value: rollup.mean(),
            min: rollup.min(),
            max: rollup.max(),
            // An empty sum may be minus zero.
            sum: rollup.sum() + 0.0,
            p50: rollup.quantile(0.5),
            p95: rollup.quantile(0.95),
            p99: rollup.quantile(0.99),
        }
    }
}

/// The points of one type in a period.
#[derive(Debug, Serialize, ToSchema)]
pub struct Summary {
    #[serde(rename = "type")]
    #[schema(example = "response_time")]
    kind: String,
    /// `hourly`, `daily`, `weekly`, `monthly`, or `custom` for a range.
    #[schema(example = "daily")]
    period: &'static str,
    /// Beginning of what was summarised: RFC 3339, UTC.
    #[schema(format = DateTime, example = "2026-11-20T00:00:00.000Z")]
    from: String,
    /// End of what was summarised, itself outside.
    #[schema(format = DateTime, example = "2026-11-21T00:00:00.000Z")]
    to: String,
    #[serde(flatten)]
    figures: Figures,
    external_data: ExternalData,
}

/// What another service says about the type.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExternalData {
    /// `disabled`: no such service is configured.
    #[schema(example = "disabled")]
    status: &'static str,
    #[schema(value_type = serde_json::Value, required = false)]
    external_metric_context: Option<serde_json::Value>,
}

impl Summary {
    pub fn new(kind: &str, period: &'static str, span: Span, rollup: &Rollup) -> Self {
        Self {
            kind: kind.to_owned(),
            period,
            from: rfc3339(span.from_ms),
            to: rfc3339(span.to_ms),
            figures: Figures::of(rollup),
            external_data: ExternalData { status: "disabled", external_metric_context: None },
        }
    }
}

/// The points of one type in buckets of equal length.
#[derive(Debug, Serialize, ToSchema)]
pub struct Series {
    #[serde(rename = "type")]
    #[schema(example = "response_time")]
    kind: String,
    /// Length of a bucket in seconds.
    #[schema(example = 300)]
    step_seconds: i64,
    /// Beginning of the first bucket: RFC 3339, UTC.
    #[schema(format = DateTime)]
    from: String,
    /// End of the last bucket, itself outside.
    #[schema(format = DateTime)]
    to: String,
    buckets: Vec<Bucket>,
}

/// One bucket of a series.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bucket {
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    #[serde(flatten)]
    figures: Figures,
}

impl Bucket {
    pub fn new(span: Span, rollup: &Rollup) -> Self {
        Self { from: rfc3339(span.from_ms), to: rfc3339(span.to_ms), figures: Figures::of(rollup) }
    }
}

/// The buckets of a series while rollups are added by ascending period: only the last one that has
/// points is a rollup, those before it are figures already.
pub struct Filling {
    buckets: Buckets,
    done: Vec<Bucket>,
    current: Rollup,
}

impl Filling {
    pub fn new(buckets: Buckets) -> Self {
        Self { buckets, done: Vec::new(), current: Rollup::default() }
    }

    pub fn add(&mut self, period: i32, rollup: &Rollup) {
        if let Some(index) = self.buckets.index_of(period) {
            self.finish_before(index);
            self.current.merge(rollup);
        }
    }

    pub fn finish(mut self) -> Vec<Bucket> {
        let count = self.buckets.spans().count();
        self.finish_before(count);
        self.done
    }

    /// Closes the current bucket and adds empty ones, until `index` is the next one to be closed.
    fn finish_before(&mut self, index: usize) {
        let missing = index.saturating_sub(self.done.len());
        for span in self.buckets.spans().skip(self.done.len()).take(missing) {
            let rollup = std::mem::take(&mut self.current);
            self.done.push(Bucket::new(span, &rollup));
        }
    }
}

impl Series {
    pub fn new(kind: &str, buckets: &Buckets, items: Vec<Bucket>) -> Self {
        Self {
            kind: kind.to_owned(),
            step_seconds: buckets.step_ms / 1_000,
            from: rfc3339(buckets.span.from_ms),
            to: rfc3339(buckets.span.to_ms),
            buckets: items,
        }
    }
}

/// Types that have points.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricTypes {
    #[schema(value_type = Vec<String>, example = json!(["errors", "response_time"]))]
    pub items: Vec<Arc<str>>,
    /// Pass it as `after` to get the next page; null on the last one.
    #[schema(value_type = Option<String>)]
    pub next: Option<Arc<str>>,
}
