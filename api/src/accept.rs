//! The accept path of every write: check → place in the batch → confirm → 202, or for a request
//! that waits: register → confirm or outcome, whichever comes first → 200, 201, 422 or 202.
mod canonical;
pub mod identity;
pub mod terms;

use std::borrow::Cow;
use std::collections::HashMap;
use std::pin::pin;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use shared::id::{ItemKey, MessageId};
use shared::keyed::{Fingerprint, Keyed};
use shared::message;
use shared::store::ItemStanding;
use shared::write::{Increment, Item, Write};
use utoipa::ToSchema;

use self::terms::PREFERENCE_APPLIED;
use crate::batcher::{Load, Pending};
use crate::body::Items;
use crate::cache::guarded;
use crate::connection::while_there;
use crate::problem::{Problem, Rejected};
use crate::routes::receipts::Receipt;
use crate::server::Shared;
use crate::waiters::{Outcome, Waiter};

pub use self::terms::{OwnKey, Terms};

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
    /// `accepted`, or `applied`: a retry of what is known to have taken effect.
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
    /// Beside `ids`, where items have a key: the fingerprint of each that has one, for `?payload=` of
    /// its receipt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<Option<String>>>)]
    pub payloads: Vec<Option<Fingerprint>>,
    /// Where items have a key: the message that brought them, for `?message=` of their receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "019a9c1e-7a10-8c01-9f3c-5a1d00000000")]
    pub message: Option<String>,
    /// The items that were not, by their position in the request.
    pub rejected: Vec<Rejected>,
}

/// One write of a request, checked.
#[derive(Clone, Debug)]
pub struct Draft {
    pub write: Write,
    /// The item's own `idempotency_key`.
    pub own_key: Option<Box<str>>,
}

/// A single write that took effect while its request waited.
#[derive(Debug)]
pub struct Settled<'a> {
    pub item: ItemKey,
    pub id: &'a str,
    pub location: &'a str,
    pub accepted_at: &'a str,
    /// The counter right after an increment; `None` for other writes, and once it is not known any more.
    pub standing: Option<ItemStanding>,
    /// False when an earlier request with the same key may have brought it.
    pub is_own: bool,
}

/// Makes one write durable and answers it: with `present` when it took effect in time (`None` there:
/// what is to be answered cannot be read), else with 202.
pub async fn single(
    shared: &Shared,
    terms: &Terms,
    draft: Draft,
    present: impl AsyncFn(&Settled<'_>) -> Option<HttpResponse>,
) -> Result<HttpResponse, Problem> {
    // Its body may have been on the way for long.
    shared.check_clock()?;
    let keyed = identity::of(terms, &draft, 0);
    if let Some(keyed) = keyed.filter(|keyed| shared.recent_keys.conflicts(*keyed)) {
        return Err(Problem::conflict(Receipt::conflict(shared.ids.sign(keyed.id))));
    }
    let deadline = terms.wait.map(|wait| Instant::now() + wait);
    let seat = deadline.and_then(|_| shared.waiters.seat());
    let (kind, location) = (draft.write.kind(), location_of(&draft.write));
    // Not kept while the request waits.
    let pending = {
        let mut encoded = Encoded::with_capacity(bytes_of(&draft.write));
        encoded.push(|out| encode(out, draft.write, keyed));
        let (is_awaited, trace) = (seat.is_some(), terms.trace);
        shared.batcher.begin(Load { kind, json: &encoded.json, items: 1, is_awaited, trace })?
    };
    let message = pending.placed.message;
    let item = keyed.map_or_else(|| message.item(kind, pending.placed.first), |keyed| keyed.id);
    let accepted = Single { shared, item, keyed, message, location: &location };
    let (Some(seat), Some(deadline)) = (seat, deadline) else {
        let accepted_at = pending.confirmed().await?.accepted_at;
        return Ok(if deadline.is_some() && shared.waiters.consumers_are_missing() {
            Box::pin(accepted.look_up(&accepted_at, terms, present)).await
        } else {
            accepted.answer(&accepted_at)
        });
    };
    // Before anything yields, and with that before anything is sent.
    let waiter = seat.wait_for(item, keyed.map(|keyed| keyed.fingerprint));
    // Apart, so that the future of a request that does not wait stays small.
    Box::pin(accepted.wait(pending, waiter, deadline, terms, present)).await
}

/// A single write that has its place in a message.
struct Single<'a> {
    shared: &'a Shared,
    item: ItemKey,
    keyed: Option<Keyed>,
    message: MessageId,
    location: &'a str,
}

impl Single<'_> {
    /// Answers with the outcome when it comes in time, before the confirm or after it.
    async fn wait(
        self,
        pending: Pending,
        mut waiter: Waiter<Outcome>,
        deadline: Instant,
        terms: &Terms,
        present: impl AsyncFn(&Settled<'_>) -> Option<HttpResponse>,
    ) -> Result<HttpResponse, Problem> {
        let (accepted_at, pace) = (pending.placed.accepted_at.clone(), terms.pace.as_ref());
        let mut confirmed = pin!(pending.confirmed());
        let mut is_confirmed = false;
        let outcome = tokio::select! {
            biased;
            outcome = while_there(pace, waiter.outcome(deadline)) => outcome,
            answer = &mut confirmed => match answer {
                Ok(_) => {
                    is_confirmed = true;
                    while_there(pace, waiter.outcome(deadline)).await
                }
                // It was taken all the same when its outcome is known.
                Err(error) => Some(waiter.told().ok_or(error)?),
            },
        };
        let Some(outcome) = outcome else {
            if !is_confirmed {
                confirmed.await?;
            }
            return Ok(self.look_up(&accepted_at, terms, present).await);
        };
        Ok(self.settled(outcome, &accepted_at, terms, present).await)
    }

    /// Answers a write of which no event told anything. A keyed one may have been applied long ago: one read of
    /// the store tells, unless it is known to be away.
    async fn look_up(
        &self,
        accepted_at: &str,
        terms: &Terms,
        present: impl AsyncFn(&Settled<'_>) -> Option<HttpResponse>,
    ) -> HttpResponse {
        match self.outcome_in_store().await {
            Some(outcome) => self.settled(outcome, accepted_at, terms, present).await,
            None => self.answer(accepted_at),
        }
    }

    async fn outcome_in_store(&self) -> Option<Outcome> {
        let keyed = self.keyed.filter(|_| !self.shared.waiters.store_is_away())?;
        let fates = guarded(&self.shared.store_breaker, self.shared.store.fates([self.item].into()));
        let fate = fates.await.ok()?.pop()??;
        Outcome::of(&fate, Some(keyed.fingerprint), None)
    }

    /// Answers with the outcome.
    async fn settled(
        &self,
        outcome: Outcome,
        accepted_at: &str,
        terms: &Terms,
        present: impl AsyncFn(&Settled<'_>) -> Option<HttpResponse>,
    ) -> HttpResponse {
        let Self { shared, item, keyed, .. } = *self;
        let mut response = match outcome {
            Outcome::Applied { standing, is_own } => {
                if let Some(keyed) = keyed {
                    shared.recent_keys.learn_applied(keyed);
                }
                let mut buffer = [0; 36];
                let id = shared.ids.sign(item).encode(&mut buffer);
                let location = &self.location(id);
                match present(&Settled { item, id, location, accepted_at, standing, is_own }).await {
                    Some(response) => response,
                    None => return self.answer_as("applied", accepted_at),
                }
            }
            failed @ Outcome::Failed { .. } => {
                let payload = keyed.map(|keyed| keyed.fingerprint);
                Problem::set_aside(Receipt::after(shared, item, payload, failed).await).error_response()
            }
            Outcome::Conflict => Problem::conflict(Receipt::conflict(shared.ids.sign(item))).error_response(),
        };
        if let Some(applied) = terms.applied().and_then(|applied| HeaderValue::from_str(&applied).ok()) {
            response.headers_mut().insert(PREFERENCE_APPLIED, applied);
        }
        response
    }

    /// 202, once it is durable.
    fn answer(&self, accepted_at: &str) -> HttpResponse {
        let is_applied = self.keyed.is_some_and(|keyed| self.shared.recent_keys.is_applied(keyed));
        self.answer_as(if is_applied { "applied" } else { "accepted" }, accepted_at)
    }

    fn answer_as(&self, status: &str, accepted_at: &str) -> HttpResponse {
        let mut buffer = [0; 36];
        let id = self.shared.ids.sign(self.item).encode(&mut buffer);
        // By hand, because this is the hottest answer of the service; the test holds the shape.
        let body =
            [r#"{"id":""#, id, r#"","status":""#, status, r#"","accepted_at":""#, accepted_at, r#""}"#]
                .concat();
        HttpResponse::build(StatusCode::ACCEPTED)
            .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .insert_header((LOCATION, self.location(id)))
            .body(body)
    }

    /// With what the id of a keyed write does not say: its payload, and the message that brings it.
    fn location(&self, id: &str) -> String {
        match self.keyed {
            None => [self.location, id].concat(),
            Some(Keyed { fingerprint, .. }) => {
                format!("{}{id}?payload={fingerprint}&message={}", self.location, self.message)
            }
        }
    }
}

/// About how long the parts of an answer to many items are.
const ID_BYTES: usize = 39;
const PAYLOAD_BYTES: usize = 35;
const REJECTED_BYTES: usize = 256;

/// Makes the valid items of one request durable, as one unit, and answers it. It never waits for
/// what becomes of them.
pub async fn many(shared: &Shared, terms: &Terms, drafts: Items<Draft>) -> Result<HttpResponse, Problem> {
    shared.check_clock()?;
    let Items { valid, mut rejected } = drafts;
    let Some((_, first)) = valid.first() else { return Err(Problem::all_rejected(rejected)) };
    let kind = first.write.kind();
    let mut encoded = Encoded::with_capacity(valid.iter().map(|(_, draft)| bytes_of(&draft.write)).sum());
    // Of the accepted items, once one has a key.
    let mut identities: Vec<Option<Keyed>> = Vec::new();
    let mut taken = HashMap::new();
    for (index, draft) in valid {
        let keyed = identity::of(terms, &draft, index);
        if let Some(keyed) = keyed {
            // What is refused takes no key from those behind it.
            let conflicts = shared.recent_keys.conflicts(keyed)
                || *taken.entry(keyed.id).or_insert(keyed.fingerprint) != keyed.fingerprint;
            if conflicts {
                let problem = Problem::conflict(Receipt::conflict(shared.ids.sign(keyed.id)));
                rejected.push(Rejected { index, problem });
                continue;
            }
            identities.resize(encoded.count, None);
            identities.push(Some(keyed));
        }
        encoded.push(|out| encode(out, draft.write, keyed));
    }
    rejected.sort_by_key(|rejected| rejected.index);
    if encoded.count == 0 {
        return Err(Problem::all_rejected(rejected));
    }
    let Encoded { json, count } = encoded;
    if !identities.is_empty() {
        identities.resize(count, None);
    }
    let answer_bytes = count * ID_BYTES + identities.len() * PAYLOAD_BYTES + rejected.len() * REJECTED_BYTES;
    if !terms.has_room_for_answer(answer_bytes) {
        return Err(Problem::overloaded());
    }
    let load = Load { kind, json: &json, items: count, is_awaited: false, trace: terms.trace };
    let pending = shared.batcher.begin(load)?;
    // Not kept until the confirm.
    drop(json);
    let placed = pending.confirmed().await?;
    let id = |offset: usize| {
        let keyed = identities.get(offset).copied().flatten();
        let item = keyed.map_or_else(|| placed.message.item(kind, placed.first + offset), |keyed| keyed.id);
        shared.ids.sign(item).to_string()
    };
    let ids = (0..count).map(id).collect();
    let payloads = identities.iter().map(|keyed| keyed.map(|keyed| keyed.fingerprint)).collect();
    let message = (!identities.is_empty()).then(|| placed.message.to_string());
    Ok(HttpResponse::Accepted().json(ManyAccepted { accepted: count, ids, payloads, message, rejected }))
}

/// About how long a write is as an item of a message.
fn bytes_of(write: &Write) -> usize {
    const AROUND: usize = 64;
    AROUND
        + match write {
            Write::Increment(increment) => increment.counter.len(),
            Write::Document(document) => document.collection.len() + document.data.as_str().len(),
            Write::Delete(delete) => delete.collection.len(),
            Write::Point(point) => point.kind.len(),
        }
}

fn encode(out: &mut Vec<u8>, write: Write, keyed: Option<Keyed>) {
    match (write, keyed) {
        (Write::Increment(Increment { counter, by }), None) => message::encode_increment(out, &counter, by),
        (write, keyed) => message::encode(out, &Item { write, keyed }),
    }
}

/// Where to look for what became of the write, up to its id.
fn location_of(write: &Write) -> Cow<'static, str> {
    match write {
        Write::Document(document) => format!("/v1/data/{}/", document.collection).into(),
        _ => "/v1/receipts/".into(),
    }
}

#[cfg(test)]
mod tests {
    use shared::config::load::ITEM_GROWTH_BYTES_MAX;
    use shared::id::{IdIssuer, Kind};
    use shared::keyed;
    use shared::message::AWAITED_BYTES_MAX;
    use shared::write::{Delete, Document, Object, Point};

    use std::sync::Arc;

    use super::*;

    /// Each with the least bytes that a client can send for it.
    fn longest() -> Vec<(Write, usize)> {
        let name: Box<str> = "x".repeat(128).into();
        let document = IdIssuer::new(1, 1).next(5).item(Kind::Document, 0);
        let data = r#"{"a":1}"#;
        let counter: Arc<str> = (&*name).into();
        let increment = Write::Increment(Increment { counter: counter.clone(), by: 1 });
        let lowest = Write::Increment(Increment { counter, by: i64::MIN });
        let stored = Write::Document(Document {
            collection: name.clone(),
            schema_version: Some(i64::MIN),
            data: Object::from_json(data).expect("an object"),
        });
        let point =
            Write::Point(Point { kind: name.clone(), at_ms: i64::MAX, value: -1.234_567_890_123_456_7e-290 });
        let sent_point = r#"{"type":"","timestamp":"2026-01-01T00:00Z","value":1}"#.len() + name.len();
        vec![
            (increment, "{}".len()),
            (lowest, r#"{"by":-9223372036854775808}"#.len()),
            (stored, data.len()),
            (Write::Delete(Delete { collection: name, document }), 0),
            (point, sent_point),
        ]
    }

    #[test]
    fn no_item_grows_by_more_than_the_limits_of_memory_count_with() {
        for (write, sent) in longest() {
            let id = keyed::id_of("p", write.kind(), "k", 0);
            let keyed = Keyed { id, fingerprint: keyed::fingerprint_of("POST", "a", "{}") };
            let (mut encoded, shown) = (Encoded::default(), format!("{write:?}"));
            encoded.push(|out| encode(out, write.clone(), Some(keyed)));
            encoded.push(|out| encode(out, write, Some(keyed)));
            let each = encoded.json.len().div_ceil(2) + AWAITED_BYTES_MAX;
            assert!(each <= sent + ITEM_GROWTH_BYTES_MAX, "{each} of {sent}: {shown}");
        }
    }
}
