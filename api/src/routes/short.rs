//! Short paths with the answers of the small counter services that Forebay replaces.
use actix_web::web::{Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::accept::Accepted;
use crate::problem::Problem;
use crate::routes::counters::{describe, increment_named, read};
use crate::server::Shared;

/// The counter behind `/counter`.
const NAME: &str = "default";

#[derive(Debug, Serialize, ToSchema)]
pub struct Count {
    #[schema(example = 42)]
    count: i64,
}

/// Adds to the counter `default`.
#[utoipa::path(
    post,
    path = "/counter",
    tag = "short paths",
    request_body(content = Option<crate::routes::counters::IncrementBody>),
    responses(
        (status = 202, description = "durable", body = Accepted, headers(("Location" = String, description = "the receipt"))),
        (status = "4XX", description = "as for increments", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "not known to be durable", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn increment(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    increment_named(&request, payload, NAME, &shared).await
}

/// Reads the counter `default`: 0 before the first increment.
#[utoipa::path(
    get,
    path = "/counter",
    tag = "short paths",
    responses(
        (status = 200, description = "the count", body = Count),
        (status = 503, description = "the store is away", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let (cached, outcome) = read(&shared, NAME).await?;
    let count = cached.counter.as_ref().map_or(0, |counter| counter.value);
    let mut response = HttpResponse::Ok();
    describe(&mut response, &cached, outcome);
    Ok(response.json(Count { count }))
}
