//! Receipts: what became of a write.
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::web::{Path, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use shared::id::{ItemId, ItemKey};
use shared::keyed::Fingerprint;
use shared::store::{DeadLetter, Fate, StoreError};
use utoipa::{IntoParams, ToSchema};

use crate::accept::Target;
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
    /// `accepted`: durable, not yet applied. `applied`: took effect; of a deletion also that its collection
    /// does not hold the document. `failed`: set aside.
    /// `conflict`: another payload was processed under its Idempotency-Key.
    #[schema(example = "applied")]
    status: &'static str,
    /// RFC 3339, UTC: the time in the id, which is that of the 202, or later where the clock of the replica had
    /// been set back. A keyed id has no time: there it is known of what was set aside only.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_at: Option<String>,
    /// Of what was set aside, where its item can be read, and of a refusal, which the request itself names.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
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
            accepted_at: id.key().message().map(|message| rfc3339(message.time_ms())),
            target: None,
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
        let known = match fate_of(shared, item).await {
            Ok(Some(fate)) => Self::of_fate(id, payload, Some(fate)),
            Ok(None) | Err(_) => None,
        };
        let receipt = known.unwrap_or_else(|| Self::of_outcome(id, outcome));
        let letter = receipt.letter(shared, item).await.ok().flatten();
        receipt.with_letter(shared, letter)
    }

    /// Adds what the request itself says of its write.
    pub fn about(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// The dead letter of what was set aside; `None` also when it was redriven meanwhile.
    async fn letter(&self, shared: &Shared, item: ItemKey) -> Result<Option<DeadLetter>, StoreError> {
        if self.status != "failed" {
            return Ok(None);
        }
        guarded(&shared.store_breaker, shared.store.dead_letter(item.as_uuid())).await
    }

    /// Adds what only the dead letter says.
    fn with_letter(self, shared: &Shared, letter: Option<DeadLetter>) -> Self {
        let Some(letter) = letter else { return self };
        let accepted_at = self.accepted_at.or_else(|| Some(rfc3339(letter.accepted_at_ms)));
        Self { accepted_at, target: Target::of_letter(&letter, &shared.ids), ..self }
    }

    fn is_settled(&self) -> bool {
        self.status != "accepted"
    }
}

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
        Some(outcome) => Ok((Receipt::after(shared, id.key(), payload, outcome).await, true)),
        None => Ok((receipt, false)),
    }
}

async fn read(shared: &Shared, id: ItemId, payload: Option<Fingerprint>) -> Result<Receipt, Problem> {
    let fate = fate_of(shared, id.key()).await.map_err(|error| unavailable(&error))?;
    let receipt = Receipt::of_fate(id, payload, fate).ok_or_else(forgotten)?;
    let letter = receipt.letter(shared, id.key()).await.map_err(|error| unavailable(&error))?;
    Ok(receipt.with_letter(shared, letter))
}

async fn fate_of(shared: &Shared, item: ItemKey) -> Result<Option<Fate>, StoreError> {
    let fates = guarded(&shared.store_breaker, shared.store.fates([item].into())).await?;
    Ok(fates.into_iter().next().flatten())
}

/// The fingerprint that a client holds, the only parameter.
pub fn payload_of(query: &str) -> Result<Option<Fingerprint>, Problem> {
    let mut params = Parameters::of(query)?;
    let payload = params.take("payload");
    params.finish()?;
    let parsed = payload.map(|payload| payload.to_ascii_lowercase().parse()).transpose();
    parsed.map_err(|error: shared::keyed::NotAFingerprint| {
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
