//! The accept path of every write: check → place in the batch → confirm → 202.
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, LOCATION};
use serde::Serialize;
use shared::id::{IdKeys, Kind};
use utoipa::ToSchema;

use crate::batcher::{Batcher, Placed};
use crate::problem::{Problem, Rejected};

/// Items of one request, encoded as they will stand in the message.
#[derive(Debug, Default)]
pub struct Encoded {
    json: Vec<u8>,
    count: usize,
}

impl Encoded {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { json: Vec::with_capacity(bytes), count: 0 }
    }

    /// Appends one item that `encode` writes.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.count > 0 {
            self.json.push(b',');
        }
        encode(&mut self.json);
        self.count += 1;
    }
}

/// Answer to a single write.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// Names the write in receipts.
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d10000a41")]
    pub id: String,
    #[schema(example = "accepted")]
    pub status: &'static str,
    /// RFC 3339, UTC.
    pub accepted_at: String,
}

/// Answer to an array or NDJSON body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ManyAccepted {
    /// How many items were accepted.
    pub accepted: usize,
    /// Their ids, in the order of the request.
    pub ids: Vec<String>,
    /// The items that were not, by their position in the request.
    pub rejected: Vec<Rejected>,
}

/// Makes one write durable and answers it.
pub async fn single(
    batcher: &Batcher,
    keys: &IdKeys,
    kind: Kind,
    encoded: &Encoded,
) -> Result<HttpResponse, Problem> {
    let placed = batcher.accept(&encoded.json, 1).await?;
    let mut buffer = [0; 36];
    let id = keys.sign(placed.message.item(kind, placed.first)).encode(&mut buffer);
    let Placed { accepted_at, .. } = &placed;
    // By hand, because this is the hottest answer of the service; the test holds the shape.
    let body = [r#"{"id":""#, id, r#"","status":"accepted","accepted_at":""#, accepted_at, r#""}"#].concat();
    let location = ["/v1/receipts/", id].concat();
    Ok(HttpResponse::build(StatusCode::ACCEPTED)
        .insert_header((CONTENT_TYPE, "application/json"))
        .insert_header((LOCATION, location))
        .body(body))
}

/// Makes the valid items of one request durable, as one unit, and answers it.
pub async fn many(
    batcher: &Batcher,
    keys: &IdKeys,
    kind: Kind,
    encoded: &Encoded,
    rejected: Vec<Rejected>,
) -> Result<HttpResponse, Problem> {
    if encoded.count == 0 {
        return Err(Problem::all_rejected(rejected));
    }
    let placed = batcher.accept(&encoded.json, encoded.count).await?;
    let id = |offset| keys.sign(placed.message.item(kind, placed.first + offset)).to_string();
    let ids = (0..encoded.count).map(id).collect();
    Ok(HttpResponse::Accepted().json(ManyAccepted { accepted: encoded.count, ids, rejected }))
}
