//! Receipts: what became of a write.
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::web::{Path, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use shared::model::id::{ItemId, MessageId};
use shared::model::idempotency::Fingerprint;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::http::connection_state::{ConnectionState, while_there};
use crate::http::problem::Problem;
use crate::http::query::Parameters;
use crate::receipt::Receipt;
use crate::routes::counters::unavailable;
use crate::state::Shared;
use crate::write::preferences::{PREFERENCE_APPLIED, applied, wait_of};
use crate::write::receipts::{after, status_of, with_letter};

/// For the document: [`Hints::of`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct ReceiptParams {
    /// The fingerprint in the `Location` of a write with an Idempotency-Key: tells `conflict` when
    /// another payload was processed under the key.
    payload: Option<String>,
    /// The message in the same `Location`: tells what is forgotten from what is accepted.
    message: Option<String>,
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
    let hints = Hints::of(request.query_string())?;
    let wait = wait_of(request.headers(), shared.waits.wait_max);
    let mut response = HttpResponse::Ok();
    let receipt = match wait {
        None => read(&shared, id, hints).await?,
        Some(wait) => {
            let (receipt, helped) = read_after(&shared, id, hints, wait, request.conn_data()).await?;
            if helped {
                response.insert_header((PREFERENCE_APPLIED, applied(wait)));
            }
            receipt
        }
    };
    Ok(response.insert_header(("Cache-Control", "no-store")).json(receipt))
}

/// Registers, then reads: an outcome in between comes as an event, an earlier one is read.
async fn read_after(
    shared: &Shared,
    id: ItemId,
    hints: Hints,
    wait: Duration,
    connection: Option<&Rc<ConnectionState>>,
) -> Result<(Receipt, bool), Problem> {
    let deadline = Instant::now() + wait;
    let waiter = shared.waiters.permit().map(|permit| permit.wait_for(id.key(), hints.payload));
    let receipt = read(shared, id, hints).await?;
    let Some(mut waiter) = waiter.filter(|_| !receipt.is_settled()) else { return Ok((receipt, false)) };
    match while_there(connection, waiter.outcome(deadline)).await {
        Some(outcome) => Ok((after(shared, id.key(), hints.payload, outcome).await, true)),
        None => Ok((receipt, false)),
    }
}

async fn read(shared: &Shared, id: ItemId, hints: Hints) -> Result<Receipt, Problem> {
    let status = status_of(shared, id.key(), hints.message).await.map_err(|error| unavailable(&error))?;
    let receipt = Receipt::of_status(id, hints.payload, status).ok_or_else(forgotten)?;
    with_letter(shared, id.key(), receipt).await.map_err(|error| unavailable(&error))
}

/// Parameters in the `Location` of a keyed write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    /// The fingerprint of what the client sent.
    pub payload: Option<Fingerprint>,
    /// The message that brought it.
    pub message: Option<MessageId>,
}

impl Hints {
    /// Reads a query that has no other parameters.
    pub fn of(query: &str) -> Result<Self, Problem> {
        let mut params = Parameters::of(query)?;
        let (payload, message) = (params.take("payload"), params.take("message"));
        params.finish()?;
        let payload = payload.map(|payload| payload.to_ascii_lowercase().parse()).transpose();
        let payload = payload.map_err(|error: shared::model::idempotency::NotAFingerprint| {
            Problem::invalid_parameter("payload", error.to_string())
        })?;
        let is_canonical = |text: &String| text.len() == 36;
        let message = message.map(|text| {
            let uuid = Some(text).filter(is_canonical).and_then(|text| Uuid::try_parse(&text).ok());
            uuid.and_then(MessageId::from_uuid)
                .ok_or_else(|| Problem::invalid_parameter("message", "is not the id of a message"))
        });
        Ok(Self { payload, message: message.transpose()? })
    }
}

/// Answer of an id whose time, or that of its message, says that it is older than what is remembered.
pub fn forgotten() -> Problem {
    Problem::gone("so old that it is no longer known what became of it (ids.remembered_for_hours)")
}

fn never_issued() -> Problem {
    Problem::not_found("this id was never issued")
}
