//! Short paths with the answers of the small document services that Forebay replaces.
use actix_web::web::{Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};

use crate::http::problem::Problem;
use crate::routes::documents::{self, DocumentBody, list};
use crate::state::Shared;
use crate::write::accepted::Accepted;
use crate::write::preferences::Terms;

/// The collection behind `/data`.
const NAME: &str = "default";

/// Stores documents in the collection `default`.
///
/// Waits a moment by itself, so that a single caller sees the stored document. What a document may be, and where its
/// key stands, is the same as for `POST /v1/data/{collection}`.
#[utoipa::path(
    post,
    path = "/data",
    operation_id = "compat_create_document",
    tag = "short paths",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds, instead of a moment, until it is applied"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry with it has no second effect"),
        ("items" = Option<String>, Query, description = "`keyed`: each item is an object with `document` and, if it has a key of its own, `idempotency_key`")
    ),
    request_body(
        content((Object = "application/json"), (String = "application/x-ndjson")),
        description = "one object, or an array of them"
    ),
    responses(
        (status = 200, description = "a retry of what was stored before and is deleted by now", body = DocumentBody),
        (status = 201, description = "stored while the request waited, or before", body = DocumentBody,
         headers(("Location" = String, description = "the document"))),
        (status = 202, description = "durable", body = Accepted, headers(("Location" = String, description = "the document"))),
        (status = 422, description = "no document that is taken: see `errors` for the place and the limit (64 levels, 1000 digits, exponents to 9999, a name twice, half of a surrogate pair, the schema of the collection); or a parameter is invalid; or, for who waits, set aside or in conflict with another write",
         body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn post(
    request: HttpRequest,
    payload: Payload,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let terms = Terms::short(&request, &shared)?;
    documents::post_into(&request, payload, NAME, &terms, &shared).await
}

/// Lists the documents of the collection `default`, newest first.
#[utoipa::path(
    get,
    path = "/data",
    operation_id = "compat_list_documents",
    tag = "short paths",
    params(list::DocumentsParams),
    responses(
        (status = 200, description = "one page", body = list::DocumentsBody)
    )
)]
pub async fn list(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    list::list_of(&request, NAME, &shared).await
}
