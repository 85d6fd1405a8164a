//! Counters: increments in, values out.
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, VARY,
};
use actix_web::web::{Path, Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use serde::{Deserialize, Serialize};
use shared::model::outcome::{Counter, CounterResult};
use shared::model::write::{Increment, Write};
use shared::store::{NamePage, StoreError};
use utoipa::ToSchema;

use crate::http::body::{self, Body, Items};
use crate::http::connection_state::{ConnectionState, while_there};
use crate::http::header;
use crate::http::problem::Problem;
use crate::http::query::{self, ListParams, check_parameter, page_of};
use crate::metrics::metrics;
use crate::read::cache::CacheOutcome;
use crate::read::counters::CachedCounter;
use crate::rfc3339::rfc3339;
use crate::state::Shared;
use crate::store_breaker::guarded;
use crate::write::accept::{self, AppliedWrite, Written};
use crate::write::accepted::Accepted;
use crate::write::new_write::NewWrite;
use crate::write::preferences::{OwnKey, WritePreferences};
use crate::write::preferences::{PREFERENCE_APPLIED, applied, wait_of};

/// Marks a value that is not the one that the increment made, but the one that was read afterwards.
pub const FOREBAY_VALUE: HeaderName = HeaderName::from_static("forebay-value");

/// One increment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IncrementBody {
    /// What to add; may be negative.
    #[serde(default = "one")]
    #[schema(default = 1)]
    by: i64,
    /// As the header, for this item alone: 1 to 255 printable ASCII characters.
    #[serde(default, deserialize_with = "OwnKey::present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 255, pattern = "^[ -~]+$")]
    idempotency_key: Option<OwnKey>,
}

fn one() -> i64 {
    1
}

/// A counter right after one increment, or as it is now: see the header `Forebay-Value`.
#[derive(Debug, Serialize, ToSchema)]
pub struct StandingBody {
    #[schema(example = "page-views")]
    name: String,
    /// The value that this increment made. The present one where that is not kept: of a retry, or after an
    /// outcome was lost on its way.
    #[schema(example = 42)]
    value: i64,
    #[schema(example = 40)]
    version: i64,
}

/// A counter.
#[derive(Debug, Serialize, ToSchema)]
pub struct CounterBody {
    #[schema(example = "page-views")]
    name: String,
    #[schema(example = 42)]
    value: i64,
    /// How many increments were applied.
    #[schema(example = 40)]
    version: i64,
    /// RFC 3339, UTC, by the store's clock.
    updated_at: String,
}

/// Counters by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct CountersBody {
    items: Vec<CounterBody>,
    /// Pass it as `after` to get the next page; null on the last one.
    next: Option<String>,
}

/// Adds to a counter.
///
/// Send one increment, an array of them, or one per line (NDJSON); no body adds 1. The answer
/// comes once the increments are durable, before they are applied. One request is one unit of
/// durability: of an array all valid increments are accepted, or none.
#[utoipa::path(
    post,
    path = "/v1/counters/{name}/increments",
    operation_id = "increment_counter",
    tag = "counters",
    params(
        ("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answers when it is applied, within N seconds; ignored on arrays"),
        ("Idempotency-Key" = Option<String>, Header, description = "a repetition under the same key has no second effect")
    ),
    request_body(
        content((IncrementBody = "application/json"), (String = "application/x-ndjson")),
        description = "one increment, an array of them, or nothing"
    ),
    responses(
        (status = 200, description = "applied while the request waited, or before", body = StandingBody,
         headers(("Preference-Applied" = String, description = "`wait=N` as granted"),
                 ("Forebay-Value" = String, description = "`present`: the counter as it is now, because the value that this increment made is not known any more"))),
        (status = 202, description = "durable; the items of an array are told by index",
         body = Accepted, headers(("Location" = String, description = "the receipt")))
    )
)]
pub async fn increment(
    request: HttpRequest,
    payload: Payload,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let preferences = WritePreferences::of(&request, &shared)?;
    match increment_named(&request, payload, &name, &shared, &preferences).await? {
        Written::Answered(response) => Ok(response),
        Written::Applied(applied) => {
            let standing = standing_of(&shared, &name, &applied).await;
            let made = standing.map(|(mut response, value, version)| {
                response.json(StandingBody { name: name.into_inner(), value, version })
            });
            Ok(applied.answer(made))
        }
    }
}

/// Begins the answer to an increment that was applied: value and version right after it, or of now.
pub async fn standing_of(
    shared: &Shared,
    name: &str,
    applied: &AppliedWrite,
) -> Option<(HttpResponseBuilder, i64, i64)> {
    let mut response = HttpResponse::Ok();
    if let Some(CounterResult { value, version, .. }) = applied.standing {
        return Some((response, value, version));
    }
    // Not through the cache, which may not have the event of this increment either.
    let counter = guarded(&shared.store_breaker, shared.store.counter(name)).await.ok()??;
    let (value, version) = (counter.value, counter.version);
    shared.cache.apply_update(&[counter]);
    response.insert_header((FOREBAY_VALUE, "present"));
    Some((response, value, version))
}

/// Also behind the short path.
pub async fn increment_named(
    request: &HttpRequest,
    payload: Payload,
    name: &str,
    shared: &Shared,
    preferences: &WritePreferences,
) -> Result<Written, Problem> {
    check_parameter("name", name)?;
    query::none(request.query_string())?;
    shared.check_clock()?;
    let limits = &shared.body_limits;
    let name: Arc<str> = name.into();
    let draft = |item: IncrementBody| NewWrite {
        write: Write::Increment(Increment { counter: name.clone(), by: item.by }),
        own_key: item.idempotency_key.map(OwnKey::into_text),
        fingerprint: None,
    };
    let (body, reserved) = body::read(request, payload, limits, &shared.body_budget).await?;
    let items: Items<IncrementBody> = match body {
        Body::Empty => {
            let item = IncrementBody { by: one(), idempotency_key: None };
            return accept::single(shared, preferences, draft(item)).await;
        }
        Body::One(json) => {
            let item = body::one::<IncrementBody>(&json, limits.item_bytes_max)?;
            // The request may wait for long now, and nothing of its body is needed.
            drop((json, reserved));
            return accept::single(shared, preferences, draft(item)).await;
        }
        Body::Array(json) => body::array(&json, limits)?,
        Body::Lines(text) => body::lines(&text, limits)?,
    };
    let Items { valid, rejected } = items;
    let valid = valid.into_iter().map(|(index, item)| (index, draft(item))).collect();
    drop(reserved);
    accept::many(shared, preferences, Items { valid, rejected }).await.map(Written::Answered)
}

/// Reads a counter.
///
/// Answered from memory; how it was found stands in `Cache-Status`, how old it is in `Age`.
#[utoipa::path(
    get,
    path = "/v1/counters/{name}",
    operation_id = "get_counter",
    tag = "counters",
    params(
        ("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`, with If-None-Match: answers at the next change, after N seconds at the latest")
    ),
    responses(
        (status = 200, description = "the counter", body = CounterBody, headers(
            ("ETag" = String, description = "strong, from the version"),
            ("Age" = u32, description = "seconds since the value was known to be current"),
            ("Cache-Status" = String, description = "RFC 9211")
        )),
        (status = 304, description = "the client's version is current"),
        (status = 404, description = "never written", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(
    request: HttpRequest,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    check_parameter("name", &name)?;
    query::none(request.query_string())?;
    let headers = request.headers();
    let is_known = |cached: &CachedCounter| {
        cached.counter.as_ref().is_some_and(|counter| has(headers, &etag_of(counter)))
    };
    let (mut cached, mut outcome) = read(&shared, &name).await?;
    let wait = wait_of(headers, shared.waits.wait_max).filter(|_| is_known(&cached));
    if let Some(wait) = wait {
        (cached, outcome) = read_changed(&shared, &name, wait, request.conn_data(), &is_known).await?;
    }
    let Some(counter) = &cached.counter else {
        return Err(Problem::not_found("this counter was never written"));
    };
    let known = is_known(&cached);
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((ETAG, etag_of(counter)))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "Prefer"));
    describe(&mut response, &cached, outcome);
    if known {
        return Ok(response.finish());
    }
    if let Some(wait) = wait {
        response.insert_header((PREFERENCE_APPLIED, applied(wait)));
    }
    Ok(response.insert_header((CONTENT_TYPE, "application/json")).body(cached.body(counter)))
}

fn etag_of(counter: &Counter) -> String {
    format!("\"{}\"", counter.version)
}

/// Reads until it is something else than what the client knows, or the time is up. Registers before
/// each reading: a change between the two wakes.
async fn read_changed(
    shared: &Shared,
    name: &str,
    wait: Duration,
    connection: Option<&Rc<ConnectionState>>,
    is_known: &impl Fn(&CachedCounter) -> bool,
) -> Result<(Arc<CachedCounter>, CacheOutcome), Problem> {
    let deadline = Instant::now() + wait;
    loop {
        let waiter = shared.waiters.permit_for_counter().map(|permit| permit.wait_for_counter(name));
        let (cached, outcome) = read(shared, name).await?;
        if !is_known(&cached) {
            return Ok((cached, outcome));
        }
        let Some(mut waiter) = waiter else { return Ok((cached, outcome)) };
        if while_there(connection, waiter.outcome(deadline)).await.is_none() {
            return read(shared, name).await;
        }
    }
}

/// Reads through the cache and counts how.
pub async fn read(shared: &Shared, name: &str) -> Result<(Arc<CachedCounter>, CacheOutcome), Problem> {
    let (cached, outcome) = shared.cache.get(name).await.map_err(|error| unavailable(&error))?;
    count_read(outcome);
    Ok((cached, outcome))
}

/// Counts how a read through a cache was answered.
pub fn count_read(outcome: CacheOutcome) {
    let reads = &metrics().cache_reads_by_outcome;
    match outcome {
        CacheOutcome::Hit => reads.hit.inc(),
        CacheOutcome::Miss => reads.miss.inc(),
        CacheOutcome::Stale => reads.stale.inc(),
    }
}

/// Says how a cached read was answered.
pub fn describe(response: &mut HttpResponseBuilder, cached: &CachedCounter, outcome: CacheOutcome) {
    describe_read(response, cached.read_at, outcome);
}

/// The same for what the store said at that time.
pub fn describe_read(response: &mut HttpResponseBuilder, read_at: std::time::Instant, outcome: CacheOutcome) {
    let status = match outcome {
        CacheOutcome::Hit => "forebay; hit",
        CacheOutcome::Miss => "forebay; fwd=miss",
        CacheOutcome::Stale => "forebay; hit; detail=stale",
    };
    response
        .insert_header(("Cache-Status", status))
        .insert_header(("Age", read_at.elapsed().as_secs().to_string()));
}

/// Lists counters by name.
#[utoipa::path(
    get,
    path = "/v1/counters",
    operation_id = "list_counters",
    tag = "counters",
    params(ListParams),
    responses(
        (status = 200, description = "one page", body = CountersBody)
    )
)]
pub async fn list(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let page = page_of(request.query_string())?;
    let limit = page.limit as usize;
    // One more than asked for tells whether there is a next page.
    let beyond = NamePage { limit: page.limit + 1, ..page };
    let mut counters = guarded(&shared.store_breaker, shared.store.counters(beyond))
        .await
        .map_err(|error| unavailable(&error))?;
    let more = counters.len() > limit;
    counters.truncate(limit);
    let next = counters.last().filter(|_| more).map(|counter| counter.name.to_string());
    let items = counters.into_iter().map(CounterBody::from).collect();
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(CountersBody { items, next }))
}

impl From<Counter> for CounterBody {
    fn from(counter: Counter) -> Self {
        Self {
            name: counter.name.to_string(),
            value: counter.value,
            version: counter.version,
            updated_at: rfc3339(counter.updated_at_ms),
        }
    }
}

/// The store cannot answer, whatever else it said.
pub fn unavailable(error: &StoreError) -> Problem {
    tracing::debug!(%error, "read answered with 503");
    match error {
        StoreError::Busy(_) => Problem::store_busy(),
        StoreError::Unavailable(_) | StoreError::Failed(_) | StoreError::DigestMismatch(_) => {
            Problem::store_unavailable()
        }
    }
}

/// Checks whether the client has what this tag names.
pub fn has(headers: &HeaderMap, etag: &str) -> bool {
    header::names_tag(headers.get_all(IF_NONE_MATCH).map(HeaderValue::as_bytes), etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::counters::render;

    #[test]
    fn the_rendered_counter_is_the_documented_shape() {
        let counter = Counter { name: "a:b".into(), value: i64::MIN, version: 3, updated_at_ms: 0 };
        let rendered: serde_json::Value = serde_json::from_str(&render(&counter)).expect("JSON");
        assert_eq!(rendered, serde_json::to_value(CounterBody::from(counter)).expect("serialises"));
    }
}
