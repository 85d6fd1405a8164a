//! Collections: which documents they take, what of them can be searched for, how long they stay.
//!
//! The only synchronous writes of the API: they go to the store, past the queue, because whoever
//! defines a collection wants to know that it holds from now on.
use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Path, Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::model::collection::{Checker, Collection, Definition};
use shared::store::NamePage;
use utoipa::ToSchema;

use crate::http::body;
use crate::http::problem::{Invalid, Problem};
use crate::http::query::{self, ListParams, check_parameter, page_of};
use crate::routes::counters::unavailable;
use crate::routes::documents::list::TIME_PARAMETERS;
use crate::state::Shared;
use crate::store_breaker::guarded;

/// The schema of a collection that is defined without one: it takes every object.
const ANY: &str = "{}";

/// Definitions that are read at once: their schemas fit into memory for many requests.
const ROWS_AT_ONCE: u32 = 64;

/// What an owner says about a collection.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefinitionBody {
    /// JSON Schema, draft 2020-12 unless `$schema` says otherwise, 64 KiB at most. Formats are not
    /// asserted. Patterns run in linear time: no look-around, no back-references, 250000 states at
    /// most together. References are `#` or `#/…`; a schema that doubles its work with each level
    /// of a document is refused.
    #[schema(value_type = Option<serde_json::Value>, example = json!({"required": ["sku"]}))]
    schema: Option<Box<RawValue>>,
    /// Up to 8 top-level members that documents can be filtered by.
    #[schema(max_items = 8, example = json!(["sku"]))]
    indexed: Option<Vec<String>>,
    /// Days that documents are kept, 1 to 36500; without it for ever.
    #[schema(minimum = 1, maximum = 36500, example = 30)]
    retention_days: Option<u32>,
}

/// A collection that is defined.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionBody {
    #[schema(example = "orders")]
    name: String,
    #[schema(value_type = Option<serde_json::Value>, example = json!({"required": ["sku"]}))]
    schema: Option<Box<RawValue>>,
    #[schema(example = json!(["sku"]))]
    indexed: Vec<String>,
    #[schema(example = 30)]
    retention_days: Option<u32>,
    /// Grows with every change.
    #[schema(example = 3)]
    version: i64,
}

/// Collections by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionsBody {
    items: Vec<CollectionBody>,
    /// Pass it as `after` to get the next page; null on the last one.
    next: Option<String>,
}

/// Defines a collection.
///
/// Replaces what was defined before; what the body leaves out, or gives as null, is not set: no
/// schema, no fields, no end. Documents that are there stay, also those that do not hold the new
/// schema, and are indexed before the answer comes. Needs `admin`.
#[utoipa::path(
    put,
    path = "/v1/collections/{name}",
    operation_id = "put_collection",
    tag = "collections",
    params(("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -")),
    request_body(content = DefinitionBody),
    responses(
        (status = 200, description = "it holds from now on", body = CollectionBody)
    )
)]
pub async fn put(
    request: HttpRequest,
    payload: Payload,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    check_parameter("name", &name)?;
    query::none(request.query_string())?;
    let limits = &shared.body_limits;
    let (body, reserved) = body::read_json(&request, payload, limits, &shared.body_budget).await?;
    let definition = match body {
        Some(json) => definition_of(body::one(&json, shared.body_limits.bytes_max)?),
        None => return Err(Problem::malformed("a definition is a JSON object; there is no body")),
    };
    let definition = shared.checking.compile(|| check_definition(definition)).await??;
    // Many may wait for a compiler; the store has a time of its own.
    drop(reserved);
    let known = shared.definitions.define(&name, definition).await.map_err(|error| unavailable(&error))?;
    Ok(HttpResponse::Ok().json(shown(&name, &known.collection)))
}

/// A definition that says nothing would be none.
fn definition_of(body: DefinitionBody) -> Definition {
    let DefinitionBody { schema, indexed, retention_days } = body;
    let (schema, indexed) = (schema.map(|schema| schema.get().to_owned()), indexed.unwrap_or_default());
    let definition = Definition { schema, indexed, retention_days };
    if definition == Definition::default() {
        return Definition { schema: Some(ANY.into()), ..definition };
    }
    definition
}

fn check_definition(definition: Definition) -> Result<Definition, Problem> {
    let collection = Collection { definition, ..Collection::default() };
    let refused = |pointer, detail| Problem::invalid(vec![Invalid { pointer, parameter: None, detail }]);
    // Not of a stored definition, whose documents would be set aside.
    let mut indexed = collection.definition.indexed.iter();
    if let Some(index) = indexed.position(|field| TIME_PARAMETERS.contains(&&**field)) {
        let detail = "a parameter of lists has this name".to_owned();
        return Err(refused(Some(format!("/indexed/{index}")), detail));
    }
    Checker::new(&collection).map_err(|bad| refused(Some(bad.pointer), bad.detail))?;
    Ok(collection.definition)
}

/// Reads the definition of a collection.
///
/// Needs `admin`.
#[utoipa::path(
    get,
    path = "/v1/collections/{name}",
    operation_id = "get_collection",
    tag = "collections",
    params(("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -")),
    responses(
        (status = 200, description = "the definition", body = CollectionBody),
        (status = 404, description = "not defined; it takes every document", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(
    request: HttpRequest,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    let defined = defined(&shared, &name).await?;
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(defined))
}

/// Lists the collections that are defined, by name.
///
/// A collection that was never defined is not listed, whatever documents it holds. A page ends early,
/// with `next`, where its schemas grow larger than `server.page_bytes_max`. Needs `admin`.
#[utoipa::path(
    get,
    path = "/v1/collections",
    operation_id = "list_collections",
    tag = "collections",
    params(ListParams),
    responses(
        (status = 200, description = "one page", body = CollectionsBody)
    )
)]
pub async fn list(request: HttpRequest, shared: ThinData<Shared>) -> Result<HttpResponse, Problem> {
    let NamePage { prefix, mut after, limit } = page_of(request.query_string())?;
    let (mut items, mut bytes) = (Vec::new(), 0);
    let has_next = 'page: loop {
        // One more than asked for tells whether there is a next page.
        let rows = (limit + 1).min(ROWS_AT_ONCE);
        let asked = NamePage { prefix: prefix.clone(), after: after.clone(), limit: rows };
        let found = guarded(&shared.store_breaker, shared.store.collections(asked)).await;
        let found = found.map_err(|error| unavailable(&error))?;
        let is_last = found.len() < rows as usize;
        for (name, collection) in found {
            bytes += collection.definition.schema.as_ref().map_or(0, String::len);
            let is_full = items.len() >= limit as usize || bytes > shared.page_bytes_max;
            if is_full && !items.is_empty() {
                break 'page true;
            }
            items.push(shown(&name, &collection));
            after = Some(name);
        }
        if is_last {
            break false;
        }
    };
    let body = CollectionsBody { items, next: after.filter(|_| has_next) };
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(body))
}

/// Removes the definition of a collection.
///
/// Its documents stay, for ever, and cannot be filtered any more. The answer is the definition
/// that was removed. Needs `admin`.
#[utoipa::path(
    delete,
    path = "/v1/collections/{name}",
    operation_id = "delete_collection",
    tag = "collections",
    params(("name" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -")),
    responses(
        (status = 200, description = "the definition as it was", body = CollectionBody),
        (status = 404, description = "not defined", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn delete(
    request: HttpRequest,
    name: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    query::none(request.query_string())?;
    body::check_encoding(request.headers())?;
    let removed = defined(&shared, &name).await?;
    let none = Definition::default();
    shared.definitions.define(&name, none).await.map_err(|error| unavailable(&error))?;
    Ok(HttpResponse::Ok().json(removed))
}

async fn defined(shared: &Shared, name: &str) -> Result<CollectionBody, Problem> {
    check_parameter("name", name)?;
    let known = shared.definitions.read(name).await.map_err(|error| unavailable(&error))?;
    if known.collection.is_defined {
        Ok(shown(name, &known.collection))
    } else {
        Err(Problem::not_found("this collection is not defined; it takes every document"))
    }
}

fn shown(name: &str, collection: &Collection) -> CollectionBody {
    let Definition { schema, indexed, retention_days } = collection.definition.clone();
    // It was JSON when it was stored.
    let schema = schema.and_then(|schema| RawValue::from_string(schema).ok());
    CollectionBody { name: name.to_owned(), schema, indexed, retention_days, version: collection.version }
}
