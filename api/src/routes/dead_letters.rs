//! Dead letters: what could not be applied, and what an administrator does about it.
//!
//! Answered by the store, past the queue and the caches: whoever looks after them wants to see what
//! is. They show what clients sent, so reading them needs `admin`, too.
use actix_web::web::{Path, Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::event::Event;
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, PAGE_BYTES_MAX, Redrive, RedriveOutcome, Redriven,
    RedrivenPage,
};
use shared::store::StoreError;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::body;
use crate::http::problem::{Invalid, Problem};
use crate::http::query::{self, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, Parameters};
use crate::metrics::metrics;
use crate::rfc3339::rfc3339;
use crate::routes::counters::unavailable;
use crate::state::Shared;
use crate::store_breaker::{attempted, guarded};

/// An item that was set aside, or a whole message that this version could not read.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterBody {
    /// The id of the write. Of a message, one made from its body; it has no receipt.
    id: String,
    #[schema(example = "increment")]
    kind: String,
    #[schema(example = "counter_overflow")]
    reason: String,
    detail: String,
    /// The item, or the message, as it travelled. What is not JSON is shown as text, and what is not
    /// even text as `base64:` with its bytes.
    #[schema(value_type = serde_json::Value, example = json!({"increment": {"counter": "a", "by": 1}}))]
    item: Box<RawValue>,
    /// Of a message, when it was set aside first.
    accepted_at: String,
    /// When it failed last.
    set_aside_at: String,
    /// From then on it is never applied.
    discarded_at: Option<String>,
}

/// Dead letters by id.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLettersBody {
    items: Vec<DeadLetterBody>,
    /// Pass it as `after` to get the next page; null on the last one.
    next: Option<String>,
}

/// For the document: [`list`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct ListParams {
    /// `increment`, `document`, `delete`, `point` or `message`.
    kind: Option<String>,
    /// Why it was set aside, for example `schema_violation`.
    reason: Option<String>,
    /// Those that were discarded instead of the others.
    discarded: Option<bool>,
    /// Dead letters on a page, 1 to 1000. Large ones end a page earlier.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
}

/// What to apply once more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedriveBody {
    /// All of it must match; without it every dead letter does.
    filter: Option<FilterBody>,
    /// How many at most, 1 to 1000; 100 by default.
    #[schema(minimum = 1, maximum = 1000, example = 100)]
    limit: Option<u32>,
    /// `next` of the answer before: passes over what failed again.
    after: Option<String>,
    /// Tells what would come of it, and changes nothing.
    #[serde(default)]
    #[schema(example = true)]
    dry_run: bool,
    /// Applies also what is `too_old`, of which nobody can know whether it was applied before:
    /// without it such items stay as they are.
    #[serde(default)]
    #[schema(example = false)]
    force: bool,
}

/// Which dead letters.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterBody {
    #[schema(example = "document")]
    kind: Option<String>,
    #[schema(example = "schema_violation")]
    reason: Option<String>,
    id: Option<String>,
}

/// What came of a redrive, or would come of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct RedrivenBody {
    dry_run: bool,
    /// Applied, and dead letters no more.
    #[schema(example = 2)]
    redriven: usize,
    /// Dead letters still, with the new reason.
    #[schema(example = 0)]
    failed_again: usize,
    items: Vec<RedrivenItem>,
    /// Pass it as `after` to go on behind these; null when there were no more. Large ones and slow
    /// ones end an answer before `limit`.
    next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RedrivenItem {
    id: String,
    /// `applied` or `failed`.
    #[schema(example = "applied")]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Lists what could not be applied.
///
/// By id: those without an Idempotency-Key come in the order in which they were accepted, the others
/// anywhere between them. Needs `admin`.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    operation_id = "list_dead_letters",
    tag = "dead letters",
    params(ListParams),
    responses(
        (status = 200, description = "one page", body = DeadLettersBody)
    )
)]
pub async fn list(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let mut asked = Parameters::of(request.query_string())?;
    let (kind, reason) = (asked.take("kind"), asked.take("reason"));
    let discarded = asked.take("discarded").map(|text| {
        let truth = text.parse::<bool>();
        truth.map_err(|_| Problem::invalid_parameter("discarded", "must be true or false"))
    });
    let discarded = discarded.transpose()?;
    let limit = query::limit_of(asked.take("limit"))?;
    let after = asked.take("after").as_deref().map(cursor_of).transpose();
    let after = after.map_err(|detail| Problem::invalid_parameter("after", detail))?;
    asked.finish()?;
    let filter = DeadLetterFilter { kind, reason, id: None };
    // One more than asked for tells whether there is a next page.
    let page = DeadLetterPage { filter, discarded: discarded.unwrap_or(false), after, limit: limit + 1 };
    let mut letters = guarded(&shared.store_breaker, shared.dead_letters.dead_letters(page))
        .await
        .map_err(|error| unavailable(&error))?;
    let more = letters.len() > limit as usize;
    letters.truncate(limit as usize);
    let bytes: usize = letters.iter().map(|letter| letter.item.len()).sum();
    let more = more || i64::try_from(bytes).is_ok_and(|bytes| bytes >= PAGE_BYTES_MAX);
    let next = letters.last().filter(|_| more).map(|letter| letter.id.simple().to_string());
    let items = letters.into_iter().map(|letter| shown(&shared, letter)).collect();
    Ok(uncached().json(DeadLettersBody { items, next }))
}

/// Reads one dead letter, discarded or not.
///
/// Needs `admin`.
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    operation_id = "get_dead_letter",
    tag = "dead letters",
    params(("id" = String, Path, description = "its id")),
    responses(
        (status = 200, description = "the dead letter", body = DeadLetterBody),
        (status = 404, description = "there is none with this id", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(
    request: HttpRequest,
    id: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    let id = shared.ids.meant(&id).ok_or_else(no_such_letter)?;
    let letter = guarded(&shared.store_breaker, shared.dead_letters.dead_letter(id))
        .await
        .map_err(|error| unavailable(&error))?
        .ok_or_else(no_such_letter)?;
    Ok(uncached().json(shown(&shared, letter)))
}

/// Applies dead letters once more.
///
/// Each keeps its id, so its receipt turns to `applied`; one that fails again stays, with the new
/// reason. What was deleted meanwhile stays deleted. A message is read again, and applied if this
/// version can do that. Needs `admin`.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/redrive",
    operation_id = "redrive_dead_letters",
    tag = "dead letters",
    request_body(content = RedriveBody),
    responses(
        (status = 202, description = "done, or with `dry_run` what would be done", body = RedrivenBody),
        (status = 503, description = "the store is away: some may have been applied, repeat it", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn redrive(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    let limits = &shared.body_limits;
    let (body, reserved) = body::read_json(&request, payload, limits, &shared.body_budget).await?;
    let asked: RedriveBody = match body {
        Some(json) => body::one(&json, shared.body_limits.item_bytes_max)?,
        None => return Err(Problem::malformed("a redrive is a JSON object; there is no body")),
    };
    drop(reserved);
    let redrive = redrive_of(&shared, asked)?;
    let dry_run = redrive.dry_run;
    // To its end, also when the client has gone: the caches must follow.
    let running = actix_web::rt::spawn(run(shared.0.clone(), redrive));
    let done = running.await.map_err(|_| Problem::internal())?.map_err(|error| unavailable(&error))?;
    let next = done.next.map(|last| last.simple().to_string());
    let items: Vec<_> = done.items.iter().map(|redriven| told(&shared, redriven)).collect();
    let applied = items.iter().filter(|item| item.reason.is_none()).count();
    let failed_again = items.len() - applied;
    Ok(HttpResponse::Accepted().json(RedrivenBody { dry_run, redriven: applied, failed_again, items, next }))
}

/// Discards a dead letter.
///
/// It is never applied: its receipt stays `failed`, and it is listed among the discarded only.
/// Needs `admin`.
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{id}",
    operation_id = "delete_dead_letter",
    tag = "dead letters",
    params(("id" = String, Path, description = "its id")),
    responses(
        (status = 204, description = "discarded, now or before"),
        (status = 404, description = "there is none with this id", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn delete(
    request: HttpRequest,
    id: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    body::check_encoding(request.headers())?;
    let id = shared.ids.meant(&id).ok_or_else(no_such_letter)?;
    let discarded = attempted(&shared.store_breaker, shared.dead_letters.discard(id)).await;
    if discarded.map_err(|error| unavailable(&error))? {
        Ok(HttpResponse::NoContent().finish())
    } else {
        Err(no_such_letter())
    }
}

/// Whatever came of it, some of it may have taken effect: the caches of this replica are old at
/// once, those of the others when the event reaches them, or by their time to live.
async fn run(shared: Shared, redrive: Redrive) -> Result<RedrivenPage, StoreError> {
    let dry_run = redrive.dry_run;
    let redriven = attempted(&shared.store_breaker, shared.dead_letters.redrive(redrive)).await;
    if !dry_run {
        shared.cache.invalidate_all();
        shared.documents.invalidate_all();
        shared.metrics.cache.invalidate_all();
        shared.waiters.doubt_all();
        shared.events.publish(Event::something_changed(rand::random()));
        for Redriven { outcome, .. } in redriven.iter().flat_map(|done| &done.items) {
            let word = if *outcome == RedriveOutcome::Applied { "applied" } else { "failed" };
            metrics().redriven.with_label_values(&[word]).inc();
        }
    }
    redriven
}

fn redrive_of(shared: &Shared, asked: RedriveBody) -> Result<Redrive, Problem> {
    let at = |pointer: &'static str| {
        move |detail| {
            Problem::invalid(vec![Invalid { pointer: Some(pointer.into()), parameter: None, detail }])
        }
    };
    let RedriveBody { filter, limit, after, dry_run, force } = asked;
    let FilterBody { kind, reason, id } = filter.unwrap_or_default();
    let known = |id: String| shared.ids.meant(&id).ok_or_else(|| "this id was never issued".to_owned());
    Ok(Redrive {
        filter: DeadLetterFilter { kind, reason, id: id.map(known).transpose().map_err(at("/filter/id"))? },
        after: after.as_deref().map(cursor_of).transpose().map_err(at("/after"))?,
        limit: limit_of(limit).map_err(at("/limit"))?,
        dry_run,
        force,
    })
}

fn limit_of(limit: Option<u32>) -> Result<u32, String> {
    let limit = limit.unwrap_or(PAGE_LIMIT_DEFAULT);
    let in_range = (1..=PAGE_LIMIT_MAX).contains(&limit);
    if in_range { Ok(limit) } else { Err(format!("must be from 1 to {PAGE_LIMIT_MAX}")) }
}

/// A cursor is the last id before it, without its check.
fn cursor_of(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text)
        .ok()
        .filter(|_| text.len() == 32)
        .ok_or_else(|| "not the `next` of a page".to_owned())
}

fn shown(shared: &Shared, letter: DeadLetter) -> DeadLetterBody {
    let DeadLetter { id, kind, reason, detail, item, .. } = letter;
    let text = |item: &str| to_raw_value(item).expect("text has a JSON form");
    DeadLetterBody {
        id: shared.ids.shown(id),
        kind,
        reason,
        detail,
        item: serde_json::from_str(&item).unwrap_or_else(|_| text(&item)),
        accepted_at: rfc3339(letter.accepted_at_ms),
        set_aside_at: rfc3339(letter.set_aside_at_ms),
        discarded_at: letter.discarded_at_ms.map(rfc3339),
    }
}

fn told(shared: &Shared, redriven: &Redriven) -> RedrivenItem {
    let id = shared.ids.shown(redriven.id);
    match redriven.outcome.failure() {
        None => RedrivenItem { id, status: "applied", reason: None, detail: None },
        Some((reason, detail)) => {
            RedrivenItem { id, status: "failed", reason: Some(reason.into()), detail: Some(detail.into()) }
        }
    }
}

fn uncached() -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header(("Cache-Control", "no-store"));
    response
}

fn no_such_letter() -> Problem {
    Problem::not_found("there is no dead letter with this id")
}
