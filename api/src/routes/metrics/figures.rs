//! Answers about metrics, as JSON.
use std::sync::Arc;

use serde::Serialize;
use shared::rollup::Rollup;
use utoipa::ToSchema;

use crate::period::{Buckets, Span};
use crate::time_text::rfc3339;

/// What is known of some points. Of no points the count and the sum are 0, the others null.
#[derive(Debug, Serialize, ToSchema)]
pub struct Figures {
    #[schema(example = 3)]
    count: u64,
    /// The exact sum divided by the count.
    #[schema(example = 15.0)]
    average_value: Option<f64>,
    #[schema(example = 10.0)]
    min: Option<f64>,
    #[schema(example = 25.0)]
    max: Option<f64>,
    /// The exact sum, rounded once.
    #[schema(example = 45.0)]
    sum: f64,
    /// The value of rank ⌈0.5 × count⌉, within 1 %.
    #[schema(example = 10.0)]
    p50: Option<f64>,
    /// The value of rank ⌈0.95 × count⌉, within 1 %.
    #[schema(example = 25.0)]
    p95: Option<f64>,
    /// The value of rank ⌈0.99 × count⌉, within 1 %.
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
