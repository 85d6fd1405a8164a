//! Answers to writes that are durable.
use serde::Serialize;
use shared::model::idempotency::Fingerprint;
use utoipa::ToSchema;

use crate::http::problem::Rejected;
use crate::target::Target;

/// Answer to a single write.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// Names the write in receipts.
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d20000a41")]
    pub id: String,
    /// `accepted`, or `applied`: a retry of what is known to have taken effect.
    #[schema(example = "accepted")]
    pub status: &'static str,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    pub target: Target,
}

/// Answer to an array or NDJSON body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ManyAccepted {
    /// How many items were accepted.
    pub accepted: usize,
    /// Their ids, in the order of the request.
    pub ids: Vec<String>,
    /// Beside `ids`, where items have a key: the fingerprint of each that has one, for `?payload=` of
    /// its receipt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<Option<String>>>)]
    pub payloads: Vec<Option<Fingerprint>>,
    /// Where items have a key: the message that brought them, for `?message=` of their receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d00000000")]
    pub message: Option<String>,
    /// The target of all accepted items; left out where points have several types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The items that were not, by their position in the request.
    pub rejected: Vec<Rejected>,
}
