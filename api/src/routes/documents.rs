//! Documents: any JSON object into a collection, and out again by id or as a list.
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION};
use actix_web::web::{Path, Payload, ThinData};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use serde::Serialize;
use serde_json::value::RawValue;
use shared::model::id::{ItemId, ItemKey, Kind};
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::ItemStatus;
use shared::model::write::{Delete, Write};
use shared::runtime::clock;
use shared::store::{StoreError, Stored};
use utoipa::ToSchema;

use crate::http::body;
use crate::http::problem::Problem;
use crate::http::query::{self, check_parameter};
use crate::read::cache::CacheOutcome;
use crate::read::documents::{CachedDocument, DocumentLookup};
use crate::rfc3339::rfc3339;
use crate::routes::counters::{count_read, describe_read, has, unavailable};
use crate::routes::receipts::{Hints, forgotten};
use crate::state::Shared;
use crate::store_breaker::guarded;
use crate::write::accept::{self, AppliedWrite, Written};
use crate::write::accepted::Accepted;
use crate::write::new_write::NewWrite;
use crate::write::preferences::WritePreferences;
use crate::write::receipts::status_of;

pub mod list;
mod new_writes;

use self::new_writes::{ItemForm, NewWrites};

const DAY: Duration = Duration::from_hours(24);

/// A document, or what is known of one that is not stored.
#[derive(Debug, Serialize, ToSchema)]
pub struct DocumentBody {
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d20000a41")]
    id: String,
    /// `accepted`: durable, not yet stored. `applied`: stored. `failed`: set aside. `conflict`:
    /// another payload came first under its Idempotency-Key. `deleted` answers a deletion.
    #[schema(example = "applied")]
    status: &'static str,
    /// RFC 3339, UTC; of a stored one.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_at: Option<String>,
    /// Why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "schema_violation")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The object as it was sent; of a stored one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    data: Option<Box<RawValue>>,
}

impl DocumentBody {
    fn with(id: &impl ToString, status: &'static str) -> Self {
        Self { id: id.to_string(), status, accepted_at: None, reason: None, detail: None, data: None }
    }

    /// Answer about something that changes by itself.
    fn answer(self) -> HttpResponse {
        HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(self)
    }
}

/// Stores documents.
///
/// Send one JSON object, an array of them, or one per line (NDJSON). The answer comes once they
/// are durable, before they are stored. All members of a document are data, also one named `idempotency_key`:
/// its key comes by the header. With `items=keyed` each item is `{"idempotency_key": "...", "document": {...}}`
/// instead, and its key, which may be left out, wins over the header; no other member is taken, and pointers of errors
/// begin with `/document`. Where the collection has a schema each document is checked against
/// it, within `collections.check_ms_max` of CPU time for the request and by the exact values of its numbers. A
/// document comes back as it was sent. It has `server.item_bytes_max` bytes at most, which bounds its members, too;
/// arrays and objects are nested 64 deep at most; a number has 1000 digits at most and an exponent from -9999 to 9999.
/// A name that stands twice in its object, and half of a surrogate pair, are refused.
#[utoipa::path(
    post,
    path = "/v1/data/{collection}",
    operation_id = "create_document",
    tag = "documents",
    params(
        ("collection" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds until it is stored"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry with it has no second effect"),
        ("items" = Option<String>, Query, description = "`keyed`: each item is an object with `document` and, if it has a key of its own, `idempotency_key`")
    ),
    request_body(
        content((Object = "application/json"), (String = "application/x-ndjson")),
        description = "one object, or an array of them"
    ),
    responses(
        (status = 200, description = "a retry of what was stored before and is deleted by now", body = DocumentBody,
         example = json!({"id": "019a9c1e-7a10-8c01-9f3c-5a1d20000a41", "status": "deleted"})),
        (status = 201, description = "stored while the request waited, or before", body = DocumentBody,
         headers(("Location" = String, description = "the document"), ("Preference-Applied" = String, description = "RFC 7240"))),
        (status = 202, description = "durable; the items of an array are told by index",
         body = Accepted, headers(("Location" = String, description = "the document"))),
        (status = 422, description = "no document that is taken: see `errors` for the place and the limit (64 levels, 1000 digits, exponents to 9999, a name twice, half of a surrogate pair, the schema of the collection); or a parameter is invalid; or, for who waits, set aside or in conflict with another write",
         body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn post(
    request: HttpRequest,
    payload: Payload,
    collection: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let preferences = WritePreferences::of(&request, &shared)?;
    post_into(&request, payload, &collection, &preferences, &shared).await
}

/// Also behind the short path.
pub async fn post_into(
    request: &HttpRequest,
    payload: Payload,
    collection: &str,
    preferences: &WritePreferences,
    shared: &Shared,
) -> Result<HttpResponse, Problem> {
    check_parameter("collection", collection)?;
    let form = ItemForm::of(request.query_string())?;
    shared.check_clock()?;
    let limits = &shared.body_limits;
    let (body, reserved) = body::read(request, payload, limits, &shared.body_budget).await?;
    match new_writes::read(body, form, collection, preferences.key.is_some(), shared).await? {
        NewWrites::One(draft) => {
            drop(reserved);
            // Needed only by an answer that waited, and kept for it only where there is room.
            let mut preferences = preferences.clone();
            let data = preferences.wait.and_then(|_| data_of(&draft));
            let kept = data.as_ref().filter(|data| preferences.has_room_for_answer(data.len()));
            let kept = kept.and_then(|data| shared.waiting_budget.reserve(data.len()));
            preferences.wait = preferences.wait.filter(|_| kept.is_some());
            let data = preferences.wait.and(data).unwrap_or_default();
            match accept::single(shared, &preferences, draft).await? {
                Written::Answered(response) => Ok(response),
                Written::Applied(applied) => {
                    let stored = if applied.is_own {
                        Some(created(&applied, &applied.accepted_at, &data))
                    } else {
                        stored_before(shared, collection, &applied).await
                    };
                    Ok(applied.answer(stored))
                }
            }
        }
        NewWrites::Many(drafts) => {
            drop(reserved);
            accept::many(shared, preferences, drafts).await
        }
    }
}

fn created(applied: &AppliedWrite, accepted_at: &str, data: &str) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((LOCATION, applied.location()))
        .insert_header((CONTENT_TYPE, "application/json"))
        .body(render(&applied.id(), accepted_at, data))
}

/// Answers with what an earlier request brought: it may be spelled otherwise, or deleted since.
async fn stored_before(shared: &Shared, collection: &str, applied: &AppliedWrite) -> Option<HttpResponse> {
    Some(match in_store(shared, collection, applied.item()).await.ok()?? {
        Stored::Document(document) => created(applied, &rfc3339(document.accepted_at_ms), &document.data),
        Stored::Deleted => DocumentBody::with(&applied.id(), "deleted").answer(),
    })
}

/// Reads a document past the cache.
async fn in_store(shared: &Shared, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError> {
    guarded(&shared.store_breaker, shared.store.document(collection, id)).await
}

fn data_of(draft: &NewWrite) -> Option<String> {
    match &draft.write {
        Write::Document(document) => Some(document.data.as_str().to_owned()),
        _ => None,
    }
}

/// Reads a document.
///
/// One that is durable but not stored yet is `accepted`, at every replica.
#[utoipa::path(
    get,
    path = "/v1/data/{collection}/{id}",
    operation_id = "get_document",
    tag = "documents",
    params(
        ("collection" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("id" = String, Path, description = "an id from a 202"),
        ("payload" = Option<String>, Query, description = "as in the `Location` of a write with an Idempotency-Key: tells a conflict"),
        ("message" = Option<String>, Query, description = "as in the same `Location`: tells what is forgotten from what is accepted"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag that the client has")
    ),
    responses(
        (status = 200, description = "the document, or that it is not stored yet and why", body = DocumentBody,
         headers(("ETag" = String, description = "strong; of a stored one"),
                 ("Age" = u32, description = "seconds since the document was known to be there"),
                 ("Cache-Status" = String, description = "RFC 9211")),
         example = json!({"id": "019a9c1e-7a10-8c01-9f3c-5a1d20000a41", "status": "applied",
                          "accepted_at": "2025-11-20T00:53:20.042Z", "data": {"sku": "A-1", "count": 3}})),
        (status = 304, description = "the client has it"),
        (status = 404, description = "never issued, deleted, or in another collection", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "older than the collection keeps documents, or not there and so old that it is no longer known why", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn get(
    request: HttpRequest,
    path: Path<(String, String)>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let (collection, id) = path.into_inner();
    check_parameter("collection", &collection)?;
    let id = issued(&shared, &id)?;
    let hints = Hints::of(request.query_string())?;
    let payload = hints.payload;
    let read = async || {
        let found = shared.documents.get(&collection, id.key()).await;
        found.map_err(|error| unavailable(&error))
    };
    let conflict = || DocumentBody::with(&id, "conflict").answer();
    let gone = async || {
        // It came under its key from one payload, perhaps not from the client's.
        if payload.is_some() && id.key().is_keyed() {
            let status = status_of(&shared, id.key(), None).await.map_err(|error| unavailable(&error))?;
            if status.is_some_and(|status| differs(payload, status.fingerprint())) {
                return Ok(conflict());
            }
        }
        Err(if is_past_retention(&shared, &collection, id, &hints).await? {
            past_retention()
        } else {
            deleted()
        })
    };
    let fate = match read().await? {
        DocumentLookup::Document(cached, outcome) => {
            return Ok(stored(&request, id, payload, &cached, outcome));
        }
        DocumentLookup::Deleted => return gone().await,
        DocumentLookup::Nothing => {
            status_of(&shared, id.key(), hints.message).await.map_err(|error| unavailable(&error))?
        }
    };
    match fate {
        Some(status) if differs(payload, status.fingerprint()) => Ok(conflict()),
        Some(ItemStatus::Failed { reason, detail, .. }) => {
            let body = DocumentBody::with(&id, "failed");
            Ok(DocumentBody { reason: Some(reason), detail: Some(detail), ..body }.answer())
        }
        Some(ItemStatus::Applied { .. }) => match read().await? {
            // It came between the two questions.
            DocumentLookup::Document(cached, outcome) => Ok(stored(&request, id, payload, &cached, outcome)),
            DocumentLookup::Deleted => gone().await,
            DocumentLookup::Nothing if is_past_retention(&shared, &collection, id, &hints).await? => {
                Err(past_retention())
            }
            DocumentLookup::Nothing => Err(not_held()),
        },
        None | Some(ItemStatus::Forgotten) if is_past_retention(&shared, &collection, id, &hints).await? => {
            Err(past_retention())
        }
        // What was stored and not deleted would have been found.
        Some(ItemStatus::Forgotten) => Err(forgotten()),
        None => Ok(DocumentBody::with(&id, "accepted").answer()),
    }
}

/// The id of a document that some replica issued.
fn issued(shared: &Shared, id: &str) -> Result<ItemId, Problem> {
    let id = id.parse::<ItemId>().ok().filter(|id| shared.ids.recognises(*id));
    id.filter(|id| id.key().kind() == Some(Kind::Document))
        .ok_or_else(|| Problem::not_found("this id was never issued for a document"))
}

/// Checks whether the document under a key came from another payload than the client's.
fn differs(payload: Option<Fingerprint>, stored: Option<Fingerprint>) -> bool {
    matches!((payload, stored), (Some(sent), Some(stored)) if sent != stored)
}

fn stored(
    request: &HttpRequest,
    id: ItemId,
    payload: Option<Fingerprint>,
    cached: &CachedDocument,
    outcome: CacheOutcome,
) -> HttpResponse {
    count_read(outcome);
    let document = &cached.document;
    if differs(payload, document.fingerprint) {
        return DocumentBody::with(&id, "conflict").answer();
    }
    // Where it stands is never taken again, not even by the same key after a deletion.
    let etag = format!("\"{}\"", document.place);
    let known = has(request.headers(), &etag);
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((ETAG, etag)).insert_header((CACHE_CONTROL, "no-cache"));
    describe_read(&mut response, cached.read_at, outcome);
    if known {
        return response.finish();
    }
    let body = render(&id.to_string(), &rfc3339(document.accepted_at_ms), &document.data);
    response.insert_header((CONTENT_TYPE, "application/json")).body(body)
}

/// [`DocumentBody`] of a stored document, around the data as it is.
fn render(id: &str, accepted_at: &str, data: &str) -> String {
    let mut body = String::with_capacity(data.len() + 128);
    render_into(&mut body, id, accepted_at, data);
    body
}

fn render_into(body: &mut String, id: &str, accepted_at: &str, data: &str) {
    body.extend([r#"{"id":""#, id, r#"","status":"applied","accepted_at":""#, accepted_at]);
    body.extend([r#"","data":"#, data, "}"]);
}

/// Checks whether the collection keeps nothing of that age. A keyed id has no time, its message has.
async fn is_past_retention(
    shared: &Shared,
    collection: &str,
    id: ItemId,
    hints: &Hints,
) -> Result<bool, Problem> {
    let Some(message) = id.key().message().or(hints.message) else { return Ok(false) };
    let known = shared.definitions.current(collection).await.map_err(|error| unavailable(&error))?;
    let Some(days) = known.collection.definition.retention_days else { return Ok(false) };
    let age = Duration::from_millis(clock::now_ms().saturating_sub(message.time_ms()).max(0).unsigned_abs());
    Ok(age > DAY * days)
}

fn deleted() -> Problem {
    Problem::not_found("this document was deleted")
}

fn not_held() -> Problem {
    Problem::not_found("this collection does not hold the document")
}

fn past_retention() -> Problem {
    Problem::gone("the collection does not keep documents of this age")
}

/// Deletes a document.
///
/// Doing it again changes nothing. A deletion wins over an insert that comes after it. Where the document
/// was stored in another collection it changes nothing either, which only a request that waits is told;
/// the receipt says `applied`.
#[utoipa::path(
    delete,
    path = "/v1/data/{collection}/{id}",
    operation_id = "delete_document",
    tag = "documents",
    params(
        ("collection" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        ("id" = String, Path, description = "an id from a 202"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds until it is deleted"),
        ("Idempotency-Key" = Option<String>, Header, description = "a retry with it has no second effect")
    ),
    responses(
        (status = 200, description = "deleted while the request waited", body = DocumentBody,
         example = json!({"id": "019a9c1e-7a10-8c01-9f3c-5a1d20000a41", "status": "deleted"})),
        (status = 202, description = "the deletion is durable; `id` is its own", body = Accepted,
         headers(("Location" = String, description = "the receipt of the deletion"))),
        (status = 404, description = "never issued; or, to a request that waited, that the collection does not hold the document", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn delete(
    request: HttpRequest,
    path: Path<(String, String)>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    let (collection, id) = path.into_inner();
    check_parameter("collection", &collection)?;
    query::none(request.query_string())?;
    body::check_encoding(request.headers())?;
    let id = issued(&shared, &id)?;
    shared.check_clock()?;
    let preferences = WritePreferences::of(&request, &shared)?;
    let write = Write::Delete(Delete { collection: collection.as_str().into(), document: id.key() });
    let applied =
        match accept::single(&shared, &preferences, NewWrite { write, own_key: None, fingerprint: None })
            .await?
        {
            Written::Answered(response) => return Ok(response),
            Written::Applied(applied) => applied,
        };
    // Its event is on its way; a client that waited must not meet the document again.
    shared.documents.forget([id.key()]);
    let done = match in_store(&shared, &collection, id.key()).await {
        Ok(Some(Stored::Deleted)) => Some(DocumentBody::with(&id, "deleted").answer()),
        // A deletion of what another collection holds leaves no trace.
        Ok(None) => Some(not_held().error_response()),
        Ok(Some(Stored::Document(_))) | Err(_) => None,
    };
    Ok(applied.answer(done))
}

#[cfg(test)]
mod tests;
