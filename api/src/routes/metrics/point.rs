//! Points as clients send them, and as answers show them.
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use shared::model::write::{self, Write, check_name, check_time, check_value};
use shared::runtime::clock;
use utoipa::ToSchema;

use crate::http::problem::Problem;
use crate::http::query::{DOTS, is_dots};
use crate::rfc3339;
use crate::routes::openapi::values::EXAMPLE_TIME;
use crate::write::new_write::NewWrite;
use crate::write::preferences::OwnKey;

/// One measurement.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// When it was measured: RFC 3339 with a zone, from 20 years back (`server.point_years_max`) to one
    /// hour ahead. Kept in milliseconds. A point that is older than 48 hours when it is accepted changes
    /// no figures per minute, one older than 90 days none per hour either: such a past is answered by
    /// summaries and series of whole days.
    #[serde(rename = "timestamp", deserialize_with = "timestamp")]
    #[schema(value_type = String, format = DateTime, example = json!(EXAMPLE_TIME))]
    at_ms: i64,
    /// From -1e290 to 1e290, kept as a 64-bit floating point number.
    #[serde(deserialize_with = "value")]
    #[schema(minimum = -1e290, maximum = 1e290, example = 12.5)]
    value: f64,
    /// What was measured: 1 to 128 characters out of A-Z a-z 0-9 . _ : -
    #[serde(rename = "type", deserialize_with = "kind")]
    #[schema(value_type = String, example = "response_time", pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    kind: Box<str>,
    /// As the header Idempotency-Key, for this item alone: 1 to 255 printable ASCII characters.
    #[serde(default, deserialize_with = "OwnKey::present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 255, pattern = "^[ -~]+$")]
    idempotency_key: Option<OwnKey>,
}

/// A point that was applied.
#[derive(Debug, Serialize, ToSchema)]
pub struct PointStored {
    /// Names the write in receipts.
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d10000a41")]
    id: String,
    /// RFC 3339, UTC.
    #[schema(format = DateTime, example = "2026-11-20T07:00:00.250Z")]
    timestamp: String,
    #[schema(example = 12.5)]
    value: f64,
    #[serde(rename = "type")]
    #[schema(example = "response_time")]
    kind: String,
}

impl PointStored {
    pub fn new(id: &str, point: &write::Point) -> Self {
        let timestamp = rfc3339::rfc3339(point.at_ms);
        Self { id: id.to_owned(), timestamp, value: point.value, kind: point.kind.to_string() }
    }
}

impl Point {
    /// Refuses a time that is more than `years_max` years old, or too far ahead.
    pub fn into_new_write(self, years_max: u32) -> Result<NewWrite, Problem> {
        let Self { at_ms, value, kind, idempotency_key } = self;
        check_time(at_ms, clock::now_ms(), years_max)
            .map_err(|error| Problem::invalid_at("/timestamp", error.to_string()))?;
        let own_key = idempotency_key.map(OwnKey::into_text);
        Ok(NewWrite { write: Write::Point(write::Point { kind, at_ms, value }), own_key, fingerprint: None })
    }
}

fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    rfc3339::parse(&text)
        .ok_or_else(|| D::Error::custom("not a time with a zone, such as 2026-11-20T08:00:00Z (RFC 3339)"))
}

fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    check_value(value).map_err(D::Error::custom)?;
    // Adding zero takes the sign of minus zero away.
    Ok(value + 0.0)
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let kind = Box::<str>::deserialize(deserializer)?;
    check_name(&kind).map_err(D::Error::custom)?;
    if is_dots(&kind) { Err(D::Error::custom(DOTS)) } else { Ok(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body;

    fn read(value: &str) -> Result<write::Point, serde_json::Value> {
        let now = rfc3339::rfc3339(clock::now_ms());
        let json = format!(r#"{{"timestamp":"{now}","value":{value},"type":"t"}}"#);
        let point = body::one::<Point>(json.as_bytes(), 9_000).and_then(|point| point.into_new_write(20));
        match point.map(|draft| draft.write) {
            Ok(Write::Point(point)) => Ok(point),
            Ok(other) => panic!("{other:?}"),
            Err(problem) => Err(serde_json::to_value(problem).expect("serialises")),
        }
    }

    #[test]
    fn values_are_kept_to_the_last_bit_and_minus_zero_is_zero() {
        for value in [0.1, 1e290, -1e290, 5e-324, 1e-9, 123_456_789.123_456_78, 9_007_199_254_740_993.0] {
            assert_eq!(read(&value.to_string()).expect("a point").value.to_bits(), f64::to_bits(value));
        }
        for zero in ["-0.0", "-0", "0", "-0e5", "1e-999"] {
            assert_eq!(read(zero).expect("a point").value.to_bits(), 0, "{zero}");
        }
        assert_eq!(read("18446744073709551615").expect("a point").value.to_bits(), 2_f64.powi(64).to_bits());
    }

    #[test]
    fn what_is_no_number_within_the_range_is_pointed_at() {
        for bad in ["1e308", "-1.1e290", "1e999", "-1e999", "\"5\"", "null", "true", "[1]", "{}"] {
            let problem = read(bad).expect_err(bad);
            assert_eq!(problem["status"], 422, "{bad}");
            assert_eq!(problem["errors"][0]["pointer"], "/value", "{bad}");
        }
    }
}
