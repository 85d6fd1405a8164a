//! Metrics: points in; summaries, series and the names of their types out.
//!
//! Reads are answered from rollups, never from points, through the cache of reads.
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use actix_web::web::{self, Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use shared::model::rollup::Rollup;
use shared::model::write::Write;
use shared::runtime::clock;
use shared::store::{Reads, RollupPage, RollupRange, StoreError};
use tokio::time::timeout;

use self::figures::{Filling, Series, Summary};
use self::point::{Point, PointStored};
use tokio::sync::Semaphore;

use crate::http::body::{self, Body};
use crate::http::problem::Problem;
use crate::http::query::{self, ListParams, page_of};
use crate::read::cache::CacheOutcome;
use crate::read::computed::{Answer, ReadKey};
use crate::read::metric_query::{self, Question, Shape};
use crate::read::period::{Buckets, Period, Piece};
use crate::routes::counters::{count_read, describe_read, has, unavailable};
use crate::state::Shared;
use crate::store_breaker::guarded;
use crate::write::accept::{self, Written};
use crate::write::accepted::Accepted;
use crate::write::preferences::WritePreferences;

/// How long a page waits for its turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(2);

pub mod figures;
pub mod point;

/// Takes points.
///
/// Send one point, an array of them, or one per line (NDJSON). The answer comes once the points
/// are durable, before they are applied. One request is one unit of durability: of an array all
/// valid points are accepted, or none.
#[utoipa::path(
    post,
    path = "/v1/metrics",
    operation_id = "record_metric",
    tag = "metrics",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds until a single point is applied"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry under the same key has no second effect")
    ),
    request_body(
        content((Point = "application/json"), (String = "application/x-ndjson")),
        description = "one point or an array of them"
    ),
    responses(
        (status = 201, description = "applied while the request waited", body = PointStored),
        (status = 202, description = "durable; the items of an array are told by index",
         body = Accepted, headers(("Location" = String, description = "the receipt")))
    )
)]
pub async fn record(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    shared.check_clock()?;
    let preferences = WritePreferences::of(&request, &shared)?;
    record_on(&request, payload, &shared, &preferences).await
}

/// Also behind the short path, which waits by itself.
pub async fn record_on(
    request: &HttpRequest,
    payload: Payload,
    shared: &Shared,
    preferences: &WritePreferences,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    let (limits, years_max) = (&shared.body_limits, shared.metrics.point_years_max);
    let (body, reserved) = body::read(request, payload, limits, &shared.body_budget).await?;
    let points = match body {
        Body::Empty => return Err(Problem::malformed("a point is a JSON object; there is no body")),
        Body::One(json) => {
            let draft = body::one::<Point>(&json, limits.item_bytes_max)?.into_new_write(years_max)?;
            // Needed only by an answer that waited.
            let point = preferences.wait.map(|_| draft.write.clone());
            // The request may wait for long now, and nothing of its body is needed.
            drop((json, reserved));
            return Ok(match accept::single(shared, preferences, draft).await? {
                Written::Answered(response) => response,
                Written::Applied(applied) => {
                    let stored = match &point {
                        Some(Write::Point(point)) => Some(PointStored::new(&applied.id(), point)),
                        _ => None,
                    };
                    applied.answer(stored.map(|stored| HttpResponse::Created().json(stored)))
                }
            });
        }
        Body::Array(json) => body::array::<Point>(&json, limits)?,
        Body::Lines(text) => body::lines::<Point>(&text, limits)?,
    };
    let points = points.and_then(|point| point.into_new_write(years_max));
    drop(reserved);
    accept::many(shared, preferences, points).await
}

/// Takes points, waiting a moment for them to be applied.
#[utoipa::path(
    post,
    path = "/api/metrics",
    operation_id = "compat_record_metric",
    tag = "short paths",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds, instead of a moment, until it is applied"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry with it has no second effect")
    ),
    request_body(content = Point, description = "one point, an array of them, or one per line"),
    responses(
        (status = 201, description = "applied", body = PointStored),
        (status = 202, description = "durable", body = Accepted, headers(("Location" = String, description = "the receipt")))
    )
)]
pub async fn record_short(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    shared.check_clock()?;
    let preferences = WritePreferences::short(&request, &shared)?;
    record_on(&request, payload, &shared, &preferences).await
}

/// Summarises the points of one type in a period.
///
/// Either `period`, the current calendar period in UTC, or `from` and `to`. A range whose edges
/// lie where minutes (hours) are no longer kept is widened to whole hours (days); `from` and `to`
/// of the answer tell what was summarised. Points that were older than 48 hours (90 days) when
/// they were accepted are in the figures of whole hours (days) only. Percentiles are those of rank
/// ⌈q × count⌉ within 1 % of the value for magnitudes from 1e-9 to 1e15; within 1e-9 below them,
/// and of a value beyond them they say its sign and a magnitude from 1e15 up to its own. Count,
/// sum and extremes are exact, the sum and the average rounded once. Answered from memory; how it
/// was found stands in `Cache-Status`, how old it is in `Age`.
#[utoipa::path(
    get,
    path = "/v1/metrics/summary",
    operation_id = "get_metric_summary",
    tag = "metrics",
    params(
        metric_query::SummaryParams,
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")
    ),
    responses(
        (status = 200, description = "the summary; of no points the count and the sum are 0 and the other figures null",
         body = Summary, headers(
            ("ETag" = String, description = "strong, from the body"),
            ("Age" = u32, description = "seconds since the store was asked"),
            ("Cache-Status" = String, description = "RFC 9211")
        )),
        (status = 304, description = "what the client has is current")
    )
)]
pub async fn summary(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let question = metric_query::summary(request.query_string(), clock::now_ms(), &shared.metrics.retention)?;
    answer(&request, &shared, &question).await
}

/// The summary under the path of the small service that Forebay replaces.
#[utoipa::path(
    get,
    path = "/api/metrics/summary",
    operation_id = "compat_get_metric_summary",
    tag = "short paths",
    params(
        metric_query::SummaryParams,
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")
    ),
    responses(
        (status = 200, description = "as for `/v1/metrics/summary`", body = Summary),
        (status = 304, description = "what the client has is current")
    )
)]
pub async fn summary_short(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    summary(request, shared).await
}

/// Summarises the points of one type in buckets of equal length.
///
/// Buckets are aligned to multiples of `step` since 1970 in UTC, so the first and the last one may
/// reach beyond the range; 1,000 at most. The figures are those of summaries; points that were
/// older than 48 hours (90 days) when they were accepted are in buckets of whole hours (days) only.
#[utoipa::path(
    get,
    path = "/v1/metrics/series",
    operation_id = "get_metric_series",
    tag = "metrics",
    params(
        metric_query::SeriesParams,
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")
    ),
    responses(
        (status = 200, description = "the buckets, ascending, those without points included", body = Series, headers(
            ("ETag" = String, description = "strong, from the body"),
            ("Age" = u32, description = "seconds since the store was asked"),
            ("Cache-Status" = String, description = "RFC 9211")
        )),
        (status = 304, description = "what the client has is current"),
        (status = 422, description = "a parameter is invalid, there would be too many buckets, or rollups that fine \
         are no longer kept", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn series(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let question = metric_query::series(request.query_string(), clock::now_ms(), &shared.metrics.retention)?;
    answer(&request, &shared, &question).await
}

/// Lists the types that have points, by name.
#[utoipa::path(
    get,
    path = "/v1/metrics/types",
    operation_id = "list_metric_types",
    tag = "metrics",
    params(ListParams),
    responses(
        (status = 200, description = "one page", body = figures::MetricTypes)
    )
)]
pub async fn types(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let mut page = page_of(request.query_string())?;
    let limit = page.limit as usize;
    // One more than asked for tells whether there is a next page.
    page.limit += 1;
    let read = guarded(&shared.store_breaker, shared.store.metric_types(page));
    let mut items = read.await.map_err(|error| unavailable(&error))?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).cloned();
    let types = figures::MetricTypes { items, next };
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(types))
}

/// Answers from the cache, which asks the store when it must.
async fn answer(
    request: &HttpRequest,
    shared: &Shared,
    question: &Question,
) -> Result<HttpResponse, Problem> {
    let load = || {
        let (store, question) = (shared.store.clone(), question.clone());
        let turn = Arc::clone(&shared.metrics.turn);
        async move { compute(&*store, &turn, &question).await }
    };
    let read = shared.metrics.cache.get(question, load).await;
    let (answer, outcome) = read.map_err(|error| unavailable(&error))?;
    Ok(respond(request, &answer, outcome))
}

/// Says what was found and how, or that the client has it.
fn respond(request: &HttpRequest, answer: &Answer, outcome: CacheOutcome) -> HttpResponse {
    count_read(outcome);
    let known = has(request.headers(), answer.etag.to_str().unwrap_or_default());
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((ETAG, answer.etag.clone())).insert_header((CACHE_CONTROL, "no-cache"));
    describe_read(&mut response, answer.read_at, outcome);
    if known {
        return response.finish();
    }
    response.insert_header((CONTENT_TYPE, "application/json")).body(answer.body.clone())
}

/// The body of an answer, from the store.
async fn compute(store: &dyn Reads, turn: &Semaphore, question: &Question) -> Result<Vec<u8>, StoreError> {
    let kind = question.tag();
    let body = match question.shape {
        Shape::Summary(period) => {
            let mut whole = Rollup::default();
            for piece in question.span.pieces() {
                let add = |whole: &mut Rollup, _, rollup: &Rollup| whole.merge(rollup);
                whole = fold(store, turn, (kind, piece), whole, add).await?;
            }
            let name = period.map_or("custom", Period::name);
            serde_json::to_vec(&Summary::new(kind, name, question.span, &whole))
        }
        Shape::Series { step_ms, resolution } => {
            let buckets = Buckets { span: question.span, step_ms, resolution };
            let series = fold(store, turn, (kind, buckets.piece()), Filling::new(buckets), Filling::add);
            serde_json::to_vec(&Series::new(kind, &buckets, series.await?.finish()))
        }
    };
    Ok(body.expect("figures have a JSON form"))
}

/// Adds the rollups of a piece to `whole`, by ascending period. A page is in memory at a time, and
/// added away from the workers; pages of all answers take turns.
async fn fold<T: Send + 'static>(
    store: &dyn Reads,
    turn: &Semaphore,
    (kind, piece): (&str, Piece),
    mut whole: T,
    add: impl Fn(&mut T, i32, &Rollup) + Copy + Send + 'static,
) -> Result<T, StoreError> {
    let Piece { resolution, mut from, below } = piece;
    loop {
        let wait = timeout(TURN_WAIT_MAX, turn.acquire()).await;
        let _turn = wait.map_err(|_| StoreError::Busy("no turn to read rollups in time".into()))?;
        let range = RollupRange { kind: kind.to_owned(), resolution, from, below };
        let RollupPage { rollups, next } = store.rollups(range).await?;
        if !rollups.is_empty() {
            let merging = web::block(move || {
                for (period, rollup) in &rollups {
                    add(&mut whole, *period, rollup);
                }
                whole
            });
            whole = merging.await.map_err(|_| StoreError::Unavailable("merging rollups failed".into()))?;
        }
        match next {
            Some(next) => from = next,
            None => return Ok(whole),
        }
    }
}
