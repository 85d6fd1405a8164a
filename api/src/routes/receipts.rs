//! Receipts: what became of a write.
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::web::{Path, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use shared::model::id::ItemId;
use shared::model::idempotency::Fingerprint;
use utoipa::IntoParams;

use crate::http::connection_state::{Pace, while_there};
use crate::http::problem::Problem;
use crate::http::query::Parameters;
use crate::receipt::Receipt;
use crate::routes::counters::unavailable;
use crate::state::Shared;
use crate::write::preferences::{PREFERENCE_APPLIED, applied, wait_of};
use crate::write::receipts::{after, fate_of, with_letter};

/// For the document: [`payload_of`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct ReceiptParams {
    /// The fingerprint in the `Location` of a write with an Idempotency-Key: tells `conflict` when
    /// another payload was processed under the key.
    payload: Option<String>,
}

/// Tells what became of a write.
///
/// Every replica recognises an id that any replica issued, before the write is applied. `target` is told of
/// what was set aside, where its item can be read: the 202 told it of every write, and nothing keeps it for
/// each.
#[utoipa::path(
    get,
    path = "/v1/receipts/{id}",
    operation_id = "get_receipt",
    tag = "receipts",
    params(
        ("id" = String, Path, description = "an id from a 202"),
        ReceiptParams,
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answers when it is settled, after N seconds at the latest")
    ),
    responses(
        (status = 200, description = "the receipt", body = Receipt,
         headers(("Preference-Applied" = String, description = "`wait=N`, when it was settled meanwhile"))),
        (status = 404, description = "never issued", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "so old that it is no longer known what became of it", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(
    request: HttpRequest,
    id: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let id: ItemId = id.parse().map_err(|_| never_issued())?;
    if !shared.ids.recognises(id) {
        return Err(never_issued());
    }
    let payload = payload_of(request.query_string())?;
    let wait = wait_of(request.headers(), shared.waits.wait_max);
    let mut response = HttpResponse::Ok();
    let receipt = match wait {
        None => read(&shared, id, payload).await?,
        Some(wait) => {
            let (receipt, helped) = read_after(&shared, id, payload, wait, request.conn_data()).await?;
            if helped {
                response.insert_header((PREFERENCE_APPLIED, applied(wait)));
            }
            receipt
        }
    };
    Ok(response.insert_header(("Cache-Control", "no-store")).json(receipt))
}

/// Registers, then reads: what comes in between is told, what came before is read.
async fn read_after(
    shared: &Shared,
    id: ItemId,
    payload: Option<Fingerprint>,
    wait: Duration,
    pace: Option<&Rc<Pace>>,
) -> Result<(Receipt, bool), Problem> {
    let deadline = Instant::now() + wait;
    let waiter = shared.waiters.seat().map(|seat| seat.wait_for(id.key(), payload));
    let receipt = read(shared, id, payload).await?;
    let Some(mut waiter) = waiter.filter(|_| !receipt.is_settled()) else { return Ok((receipt, false)) };
    match while_there(pace, waiter.outcome(deadline)).await {
        Some(outcome) => Ok((after(shared, id.key(), payload, outcome).await, true)),
        None => Ok((receipt, false)),
    }
}

async fn read(shared: &Shared, id: ItemId, payload: Option<Fingerprint>) -> Result<Receipt, Problem> {
    let fate = fate_of(shared, id.key()).await.map_err(|error| unavailable(&error))?;
    let receipt = Receipt::of_fate(id, payload, fate).ok_or_else(forgotten)?;
    with_letter(shared, id.key(), receipt).await.map_err(|error| unavailable(&error))
}

/// The fingerprint that a client holds, the only parameter.
pub fn payload_of(query: &str) -> Result<Option<Fingerprint>, Problem> {
    let mut params = Parameters::of(query)?;
    let payload = params.take("payload");
    params.finish()?;
    let parsed = payload.map(|payload| payload.to_ascii_lowercase().parse()).transpose();
    parsed.map_err(|error: shared::model::idempotency::NotAFingerprint| {
        Problem::invalid_parameter("payload", error.to_string())
    })
}

/// Of an id without a key, whose time says that it is older than what is remembered.
pub fn forgotten() -> Problem {
    Problem::gone("so old that it is no longer known what became of it (ids.remembered_for_hours)")
}

fn never_issued() -> Problem {
    Problem::not_found("this id was never issued")
}
