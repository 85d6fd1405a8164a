//! Receipts: what became of a write.
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::web::{Path, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use shared::id::{ItemId, ItemKey, Kind, MessageId};
use shared::keyed::Fingerprint;
use shared::store::{Fate, StoreError};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::accept::terms::{PREFERENCE_APPLIED, applied, wait_of};
use crate::cache::guarded;
use crate::connection::{Pace, while_there};
use crate::parameters::Parameters;
use crate::problem::Problem;
use crate::routes::counters::unavailable;
use crate::server::Shared;
use crate::time_text::rfc3339;
use crate::waiters::Outcome;

/// What became of a write.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Receipt {
    id: String,
    /// `unknown` when only a newer version knows it.
    #[schema(example = "increment")]
    kind: &'static str,
    /// `accepted`: durable, not yet applied; without `message` also of a write with an Idempotency-Key that
    /// was forgotten. `applied`: took effect; of a deletion also that its collection
    /// does not hold the document. `failed`: set aside.
    /// `conflict`: another payload was processed under its Idempotency-Key.
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

impl Receipt {
    fn accepted(id: ItemId) -> Self {
        Self {
            id: id.to_string(),
            kind: id.key().kind_name(),
            status: "accepted",
            applied_at: None,
            failed_at: None,
            reason: None,
            detail: None,
        }
    }

    /// Another payload was processed under the key.
    pub fn conflict(id: ItemId) -> Self {
        Self { status: "conflict", ..Self::accepted(id) }
    }

    /// Of what the store knows. `payload` is the fingerprint that the client holds.
    /// `None` when the store has forgotten it.
    fn of_fate(id: ItemId, payload: Option<Fingerprint>, fate: Option<Fate>) -> Option<Self> {
        let has_other = |processed: Option<Fingerprint>| {
            payload.is_some_and(|own| processed.is_some_and(|processed| processed != own))
        };
        Some(match fate {
            None => Self::accepted(id),
            Some(Fate::Forgotten) => return None,
            Some(Fate::Applied { fingerprint, .. } | Fate::Failed { fingerprint, .. })
                if has_other(fingerprint) =>
            {
                Self::conflict(id)
            }
            Some(Fate::Applied { at_ms, .. }) => {
                Self { status: "applied", applied_at: Some(rfc3339(at_ms)), ..Self::accepted(id) }
            }
            Some(Fate::Failed { at_ms, reason, detail, .. }) => Self {
                status: "failed",
                failed_at: Some(rfc3339(at_ms)),
                reason: Some(reason),
                detail: Some(detail),
                ..Self::accepted(id)
            },
        })
    }

    /// Of what an event told, without what only the store knows.
    fn of_outcome(id: ItemId, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Applied { .. } => Self { status: "applied", ..Self::accepted(id) },
            Outcome::Failed { reason, detail } => Self {
                status: "failed",
                reason: Some(reason.into()),
                detail: Some(detail.into()),
                ..Self::accepted(id)
            },
            Outcome::Conflict => Self::conflict(id),
        }
    }

    /// After `outcome` was told: as the store knows it, or if it cannot be asked just now, as told.
    pub async fn after(
        shared: &Shared,
        item: ItemKey,
        payload: Option<Fingerprint>,
        outcome: Outcome,
    ) -> Self {
        let id = shared.ids.sign(item);
        let known = match fate_of(shared, item, None).await {
            Ok(Some(fate)) => Self::of_fate(id, payload, Some(fate)),
            Ok(None) | Err(_) => None,
        };
        known.unwrap_or_else(|| Self::of_outcome(id, outcome))
    }

    fn is_settled(&self) -> bool {
        self.status != "accepted"
    }
}

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
/// Every replica recognises an id that any replica issued, before the write is applied.
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

/// Registers, then reads: what comes in between is told, what came before is read.
async fn read_after(
    shared: &Shared,
    id: ItemId,
    hints: Hints,
    wait: Duration,
    pace: Option<&Rc<Pace>>,
) -> Result<(Receipt, bool), Problem> {
    let deadline = Instant::now() + wait;
    let waiter = shared.waiters.seat().map(|seat| seat.wait_for(id.key(), hints.payload));
    let receipt = read(shared, id, hints).await?;
    let Some(mut waiter) = waiter.filter(|_| !receipt.is_settled()) else { return Ok((receipt, false)) };
    match while_there(pace, waiter.outcome(deadline)).await {
        Some(outcome) => Ok((Receipt::after(shared, id.key(), hints.payload, outcome).await, true)),
        None => Ok((receipt, false)),
    }
}

async fn read(shared: &Shared, id: ItemId, hints: Hints) -> Result<Receipt, Problem> {
    let fate = fate_of(shared, id.key(), hints.message).await.map_err(|error| unavailable(&error))?;
    Receipt::of_fate(id, hints.payload, fate).ok_or_else(forgotten)
}

/// Fate of an item. A keyed id names no message, so the client does: where that was processed, or is so old
/// that it may have been, and nothing is known of the key, the key was forgotten.
pub async fn fate_of(
    shared: &Shared,
    item: ItemKey,
    message: Option<MessageId>,
) -> Result<Option<Fate>, StoreError> {
    let sent = message.filter(|_| item.is_keyed()).map(|message| message.item(Kind::Document, 0));
    let asked = [item].into_iter().chain(sent).collect();
    let mut fates = guarded(&shared.store_breaker, shared.store.fates(asked)).await?.into_iter();
    let fate = fates.next().flatten();
    Ok(fate.or_else(|| fates.next().flatten().map(|_| Fate::Forgotten)))
}

/// What the `Location` of a keyed write says beside its id.
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
        let payload = payload.map_err(|error: shared::keyed::NotAFingerprint| {
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
