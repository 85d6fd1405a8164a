//! Receipts: what became of a write.
use actix_web::HttpResponse;
use actix_web::web::{Path, ThinData};
use serde::Serialize;
use shared::id::ItemId;
use shared::store::Fate;
use utoipa::ToSchema;

use crate::cache::guarded;
use crate::problem::Problem;
use crate::routes::counters::unavailable;
use crate::server::Shared;
use crate::time_text::rfc3339;

/// What became of a write.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    id: String,
    #[schema(example = "increment")]
    kind: &'static str,
    /// `accepted`: durable, not yet applied. `applied`: took effect. `failed`: set aside.
    #[schema(example = "applied")]
    status: &'static str,
    /// RFC 3339, UTC, by the store's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_at: Option<String>,
    /// Why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "counter_overflow")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Tells what became of a write.
///
/// Every replica recognises an id that any replica issued, before the write is applied.
#[utoipa::path(
    get,
    path = "/v1/receipts/{id}",
    tag = "receipts",
    params(("id" = String, Path, description = "an id from a 202")),
    responses(
        (status = 200, description = "the receipt", body = Receipt),
        (status = 404, description = "never issued", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the store is away", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn get(id: Path<String>, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let id: ItemId = id.parse().map_err(|_| never_issued())?;
    if !shared.ids.recognises(id) {
        return Err(never_issued());
    }
    let key = id.key();
    let fate =
        guarded(&shared.store_breaker, shared.store.fate(key)).await.map_err(|error| unavailable(&error))?;
    let mut receipt = Receipt {
        id: id.to_string(),
        kind: key.kind().name(),
        status: "accepted",
        applied_at: None,
        failed_at: None,
        reason: None,
        detail: None,
    };
    match fate {
        None => {}
        Some(Fate::Applied { at_ms }) => {
            receipt.status = "applied";
            receipt.applied_at = Some(rfc3339(at_ms));
        }
        Some(Fate::Failed { at_ms, reason, detail }) => {
            receipt.status = "failed";
            receipt.failed_at = Some(rfc3339(at_ms));
            receipt.reason = Some(reason);
            receipt.detail = Some(detail);
        }
    }
    Ok(HttpResponse::Ok().insert_header(("Cache-Control", "no-store")).json(receipt))
}

fn never_issued() -> Problem {
    Problem::not_found("this id was never issued")
}
