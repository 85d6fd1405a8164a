//! Short paths with the answers of the small counter services that Forebay replaces.
use actix_web::http::header::{CACHE_CONTROL, ETAG};
use actix_web::web::{Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::Problem;
use crate::http::query;
use crate::routes::counters::{describe, has, increment_named, read, standing_of};
use crate::state::Shared;
use crate::write::accept::Written;
use crate::write::accepted::Accepted;
use crate::write::preferences::Terms;

/// The counter behind `/counter`.
const NAME: &str = "default";

#[derive(Debug, Serialize, ToSchema)]
pub struct Count {
    #[schema(example = 42)]
    count: i64,
}

/// Adds to the counter `default`, and waits a moment for the count (`server.short_wait_ms`).
#[utoipa::path(
    post,
    path = "/counter",
    operation_id = "compat_increment_counter",
    tag = "short paths",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds, instead of a moment, until it is applied"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry with it has no second effect")
    ),
    request_body(content = crate::routes::counters::IncrementBody, description = "one increment, an array of them, or nothing"),
    responses(
        (status = 200, description = "applied in time: the count that this increment made", body = Count,
         headers(("Forebay-Value" = String, description = "`present`: the count as it is now, because the one that this increment made is not known any more"))),
        (status = 202, description = "durable", body = Accepted, headers(("Location" = String, description = "the receipt")))
    )
)]
pub async fn increment(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let terms = Terms::short(&request, &shared)?;
    match increment_named(&request, payload, NAME, &shared, &terms).await? {
        Written::Answered(response) => Ok(response),
        Written::Applied(applied) => {
            let standing = standing_of(&shared, NAME, &applied).await;
            Ok(applied.answer(standing.map(|(mut response, count, _)| response.json(Count { count }))))
        }
    }
}

/// Reads the counter `default`: 0 before the first increment.
#[utoipa::path(
    get,
    path = "/counter",
    operation_id = "compat_get_counter",
    tag = "short paths",
    params(("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")),
    responses(
        (status = 200, description = "the count", body = Count),
        (status = 304, description = "what the client has is current")
    )
)]
pub async fn get(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    let (cached, outcome) = read(&shared, NAME).await?;
    let (count, version) = cached.counter.as_ref().map_or((0, 0), |counter| (counter.value, counter.version));
    // Another tag than that of the counter: the body is another one, too.
    let etag = format!("\"c{version}\"");
    let known = has(request.headers(), &etag);
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((ETAG, etag)).insert_header((CACHE_CONTROL, "no-cache"));
    describe(&mut response, &cached, outcome);
    Ok(if known { response.finish() } else { response.json(Count { count }) })
}
