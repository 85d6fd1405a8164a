//! Counters: increments in, values out.
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use actix_web::web::{Path, Payload, Query, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use shared::id::Kind;
use shared::message::encode_increment;
use shared::store::{Counter, CounterPage, StoreError};
use shared::write::check_name;
use utoipa::{IntoParams, ToSchema};

use crate::accept::{self, Accepted, Encoded};
use crate::body::{self, Body, Items};
use crate::cache::{Cached, Outcome, guarded};
use crate::measure::metrics;
use crate::problem::Problem;
use crate::server::Shared;
use crate::time_text::rfc3339;

const PAGE_LIMIT_DEFAULT: u32 = 100;
const PAGE_LIMIT_MAX: u32 = 1_000;

/// One increment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IncrementBody {
    /// What to add; may be negative.
    #[serde(default = "one")]
    #[schema(default = 1)]
    by: i64,
}

fn one() -> i64 {
    1
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

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    /// Counters on a page, 1 to 1000.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only names that begin like this.
    prefix: Option<String>,
}

/// Adds to a counter.
///
/// Send one increment, an array of them, or one per line (NDJSON); no body adds 1. The answer
/// comes once the increments are durable, before they are applied. One request is one unit of
/// durability: of an array all valid increments are accepted, or none.
#[utoipa::path(
    post,
    path = "/v1/counters/{name}/increments",
    tag = "counters",
    params(("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -")),
    request_body(
        content((IncrementBody = "application/json"), (String = "application/x-ndjson")),
        description = "one increment, an array of them, or nothing"
    ),
    responses(
        (status = 202, description = "durable; the items of an array are told by index",
         body = Accepted, headers(("Location" = String, description = "the receipt"))),
        (status = 400, description = "malformed", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body took too long", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "too large, or too many items", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "media type or content encoding", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "well-formed but invalid", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "not known to be durable: repeat it after `Retry-After`", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn increment(
    request: HttpRequest,
    payload: Payload,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    increment_named(&request, payload, &name, &shared).await
}

/// Also behind the short path.
pub async fn increment_named(
    request: &HttpRequest,
    payload: Payload,
    name: &str,
    shared: &Shared,
) -> Result<HttpResponse, Problem> {
    check_parameter("name", name)?;
    if request.headers().contains_key("idempotency-key") {
        return Err(Problem::idempotency_unsupported());
    }
    shared.check_clock()?;
    let limits = &shared.body_limits;
    let _reserved = shared.body_budget.reserve(request, limits)?;
    let items: Items<IncrementBody> = match body::read(request, payload, limits).await? {
        Body::Empty => return single(name, one(), shared).await,
        Body::One(json) => return single(name, body::one::<IncrementBody>(&json)?.by, shared).await,
        Body::Array(json) => body::array(&json, limits.items_max)?,
        Body::Lines(text) => body::lines(&text, limits.items_max)?,
    };
    let mut encoded = Encoded::with_capacity(items.valid.len() * (name.len() + 48));
    for (_, item) in &items.valid {
        encoded.push(|out| encode_increment(out, name, item.by));
    }
    accept::many(&shared.batcher, &shared.ids, Kind::Increment, &encoded, items.rejected).await
}

async fn single(name: &str, by: i64, shared: &Shared) -> Result<HttpResponse, Problem> {
    let mut encoded = Encoded::with_capacity(name.len() + 64);
    encoded.push(|out| encode_increment(out, name, by));
    accept::single(&shared.batcher, &shared.ids, Kind::Increment, &encoded).await
}

/// Reads a counter.
///
/// Answered from memory; how it was found stands in `Cache-Status`, how old it is in `Age`.
#[utoipa::path(
    get,
    path = "/v1/counters/{name}",
    tag = "counters",
    params(
        ("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")
    ),
    responses(
        (status = 200, description = "the counter", body = CounterBody, headers(
            ("ETag" = String, description = "strong, from the version"),
            ("Age" = u32, description = "seconds since the value was known to be current"),
            ("Cache-Status" = String, description = "RFC 9211")
        )),
        (status = 304, description = "the client's version is current"),
        (status = 404, description = "never written", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "not a name", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the store is away and the value is not known", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn get(
    request: HttpRequest,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    check_parameter("name", &name)?;
    let (cached, outcome) = read(&shared, &name).await?;
    let Some(counter) = &cached.counter else {
        return Err(Problem::not_found("this counter was never written"));
    };
    let etag = format!("\"{}\"", counter.version);
    let known = request.headers().get_all(IF_NONE_MATCH).any(|given| matches_etag(given.as_bytes(), &etag));
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((ETAG, etag)).insert_header((CACHE_CONTROL, "no-cache"));
    describe(&mut response, &cached, outcome);
    if known {
        return Ok(response.finish());
    }
    Ok(response.insert_header((CONTENT_TYPE, "application/json")).body(cached.body(counter)))
}

/// Reads through the cache and counts how.
pub async fn read(shared: &Shared, name: &str) -> Result<(std::sync::Arc<Cached>, Outcome), Problem> {
    let (cached, outcome) = shared.cache.get(name).await.map_err(|error| unavailable(&error))?;
    let reads = &metrics().cache_reads_by_outcome;
    match outcome {
        Outcome::Hit => reads.hit.inc(),
        Outcome::Miss => reads.miss.inc(),
        Outcome::Stale => reads.stale.inc(),
    }
    Ok((cached, outcome))
}

/// Says how a cached read was answered.
pub fn describe(response: &mut actix_web::HttpResponseBuilder, cached: &Cached, outcome: Outcome) {
    let status = match outcome {
        Outcome::Hit => "forebay; hit",
        Outcome::Miss => "forebay; fwd=miss",
        Outcome::Stale => "forebay; hit; detail=stale",
    };
    response
        .insert_header(("Cache-Status", status))
        .insert_header(("Age", cached.read_at.elapsed().as_secs().to_string()));
}

/// Lists counters by name.
#[utoipa::path(
    get,
    path = "/v1/counters",
    tag = "counters",
    params(ListParams),
    responses(
        (status = 200, description = "one page", body = CountersBody),
        (status = 422, description = "a parameter is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the store is away", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn list(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let page = page_of(request.query_string())?;
    let limit = page.limit as usize;
    // One more than asked for tells whether there is a next page.
    let beyond = CounterPage { limit: page.limit + 1, ..page };
    let mut counters = guarded(&shared.store_breaker, shared.store.counters(beyond))
        .await
        .map_err(|error| unavailable(&error))?;
    let more = counters.len() > limit;
    counters.truncate(limit);
    let next = counters.last().filter(|_| more).map(|counter| counter.name.to_string());
    let items = counters.into_iter().map(CounterBody::from).collect();
    Ok(HttpResponse::Ok().json(CountersBody { items, next }))
}

fn page_of(query: &str) -> Result<CounterPage, Problem> {
    let params = Query::<ListParams>::from_query(query)
        .map_err(|error| Problem::invalid_parameter("query", body::shorten(&error.to_string())))?
        .into_inner();
    let limit = params.limit.unwrap_or(PAGE_LIMIT_DEFAULT);
    if !(1..=PAGE_LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid_parameter("limit", format!("must be from 1 to {PAGE_LIMIT_MAX}")));
    }
    let prefix = params.prefix.unwrap_or_default();
    if !prefix.is_empty() {
        check_parameter("prefix", &prefix)?;
    }
    if let Some(after) = &params.after {
        check_parameter("after", after)?;
    }
    Ok(CounterPage { prefix, after: params.after, limit })
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

fn check_parameter(parameter: &'static str, name: &str) -> Result<(), Problem> {
    check_name(name).map_err(|error| Problem::invalid_parameter(parameter, error.to_string()))
}

/// The store cannot answer, whatever else it said.
pub fn unavailable(error: &StoreError) -> Problem {
    tracing::debug!(%error, "read answered with 503");
    Problem::store_unavailable()
}

/// `If-None-Match` compares weakly: `W/` does not matter.
fn matches_etag(header: &[u8], etag: &str) -> bool {
    header.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| {
        let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
        tag == b"*" || tag == etag.as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::render;

    #[test]
    fn the_rendered_counter_is_the_documented_shape() {
        let counter = Counter { name: "a:b".into(), value: i64::MIN, version: 3, updated_at_ms: 0 };
        let rendered: serde_json::Value = serde_json::from_str(&render(&counter)).expect("JSON");
        assert_eq!(rendered, serde_json::to_value(CounterBody::from(counter)).expect("serialises"));
    }

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_the_star() {
        for yes in ["\"7\"", "W/\"7\"", "\"1\", \"7\"", "*"] {
            assert!(matches_etag(yes.as_bytes(), "\"7\""), "{yes}");
        }
        for no in ["\"8\"", "7", ""] {
            assert!(!matches_etag(no.as_bytes(), "\"7\""), "{no}");
        }
    }

    #[test]
    fn a_page_is_bounded_and_unknown_parameters_are_refused() {
        assert_eq!(page_of("limit=2&after=a&prefix=b").expect("a page").limit, 2);
        for bad in ["limit=0", "limit=1001", "limit=x", "after=a%20b", "prefix=%00", "sort=up"] {
            assert!(page_of(bad).is_err(), "{bad}");
        }
    }
}
