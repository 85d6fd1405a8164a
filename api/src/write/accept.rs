//! The accept path of every write: check → place in the batch → confirm → 202, or for a request
//! that waits: register → confirm or outcome, whichever comes first → 200, 201, 422 or 202.
use std::collections::HashMap;
use std::pin::pin;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use actix_web::{HttpResponse, ResponseError};
use shared::model::id::{ItemId, ItemKey, Kind, MessageId};
use shared::model::idempotency::Keyed;
use shared::model::message;
use shared::model::outcome::CounterResult;
use shared::model::write::{Increment, Item, Write};

use crate::batcher::{BatchEntry, Pending};
use crate::http::body::Items;
use crate::http::connection_state::while_there;
use crate::http::problem::{Problem, Rejected};
use crate::receipt::Receipt;
use crate::state::Shared;
use crate::store_breaker::guarded;
use crate::target::Target;
use crate::wait::outcome::Outcome;
use crate::wait::waiters::Waiter;
use crate::write::accepted::ManyAccepted;
use crate::write::idempotency;
use crate::write::new_write::NewWrite;
use crate::write::preferences::{PREFERENCE_APPLIED, WritePreferences};
use crate::write::receipts;

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

/// Result of a single write, before its request is answered.
#[derive(Debug)]
pub enum Written {
    /// The write is durable, or its outcome is known and needs nothing else: this is the answer.
    Answered(HttpResponse),
    /// The write took effect: the handler answers with what the write made.
    Applied(Box<AppliedWrite>),
}

/// A single write that took effect while its request waited.
#[derive(Debug)]
pub struct AppliedWrite {
    named: Named,
    pub accepted_at: String,
    /// The counter right after an increment; `None` for other writes, and once it is not known any more.
    pub standing: Option<CounterResult>,
    /// False when an earlier request with the same key may have brought the write.
    pub is_own: bool,
    preference: Option<HeaderValue>,
}

impl AppliedWrite {
    pub fn item(&self) -> ItemKey {
        self.named.id.key()
    }

    /// Text of the write's id.
    pub fn id(&self) -> String {
        self.named.id.to_string()
    }

    /// Path of the document, or of the receipt.
    pub fn location(&self) -> String {
        self.named.location(&self.id())
    }

    /// Answers with what the write made, or with 202 when that cannot be read.
    pub fn answer(self, made: Option<HttpResponse>) -> HttpResponse {
        let Some(mut response) = made else { return self.named.accepted("applied", &self.accepted_at) };
        if let Some(preference) = self.preference {
            response.headers_mut().insert(PREFERENCE_APPLIED, preference);
        }
        response
    }
}

/// Identity of a single write in answers.
#[derive(Clone, Debug)]
struct Named {
    id: ItemId,
    keyed: Option<Keyed>,
    /// The message that brings it.
    message: MessageId,
    kind: Kind,
    target: Target,
}

impl Named {
    /// 202, with the status that is known.
    fn accepted(&self, status: &str, accepted_at: &str) -> HttpResponse {
        let mut buffer = [0; 36];
        let id = self.id.encode(&mut buffer);
        // By hand, because this is the hottest answer of the service; the test holds the shape.
        let (at, target) = (r#"","accepted_at":""#, self.target.to_json());
        let body =
            [r#"{"id":""#, id, r#"","status":""#, status, at, accepted_at, r#"","target":"#, &target, "}"]
                .concat();
        HttpResponse::build(StatusCode::ACCEPTED)
            .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .insert_header((LOCATION, self.location(id)))
            .body(body)
    }

    /// Path of the write. A keyed id holds neither its payload nor its message: the query adds both.
    fn location(&self, id: &str) -> String {
        let path = self.target.path(self.kind);
        match self.keyed {
            None => [&*path, id].concat(),
            Some(Keyed { fingerprint, .. }) => {
                format!("{path}{id}?payload={fingerprint}&message={}", self.message)
            }
        }
    }
}

/// Makes one write durable, and waits for its outcome if the request asks for that.
pub async fn single(
    shared: &Shared,
    preferences: &WritePreferences,
    new_write: NewWrite,
) -> Result<Written, Problem> {
    // The body may have been on the way for long.
    shared.check_clock()?;
    let keyed = idempotency::of(preferences, &new_write, 0);
    let (kind, target) = (new_write.write.kind(), Target::of(&new_write.write, &shared.ids));
    if let Some(keyed) = keyed.filter(|keyed| shared.recent_keys.conflicts(*keyed)) {
        return Err(Problem::conflict(Receipt::conflict(shared.ids.sign(keyed.id)).about(target)));
    }
    let deadline = preferences.wait.map(|wait| Instant::now() + wait);
    let permit = deadline.and_then(|_| shared.waiters.permit());
    // The encoded item is not kept while the request waits.
    let pending = {
        let mut encoded = Encoded::with_capacity(new_write.write.length_hint());
        encoded.push(|out| encode(out, new_write.write, keyed));
        let (is_awaited, trace) = (permit.is_some(), preferences.trace);
        shared.batcher.begin(BatchEntry { kind, json: &encoded.json, items: 1, is_awaited, trace })?
    };
    let message = pending.placed.message;
    let item = keyed.map_or_else(|| message.item(kind, pending.placed.first), |keyed| keyed.id);
    let named = Named { id: shared.ids.sign(item), keyed, message, kind, target };
    let write = Single { shared, preferences, named };
    let (Some(permit), Some(deadline)) = (permit, deadline) else {
        let accepted_at = pending.confirmed().await?.accepted_at;
        return Ok(if deadline.is_some() && shared.waiters.consumers_are_missing() {
            Box::pin(write.look_up(&accepted_at)).await
        } else {
            Written::Answered(write.answer(&accepted_at))
        });
    };
    // Registers before anything yields, so before anything is sent.
    let waiter = permit.wait_for(item, keyed.map(|keyed| keyed.fingerprint));
    // Boxed, so that the future of a request that does not wait stays small.
    Box::pin(write.wait(pending, waiter, deadline)).await
}

/// A single write that has its place in a message.
struct Single<'a> {
    shared: &'a Shared,
    preferences: &'a WritePreferences,
    named: Named,
}

impl Single<'_> {
    /// Answers with the outcome if it comes in time, before the confirm or after it.
    async fn wait(
        self,
        pending: Pending,
        mut waiter: Waiter<Outcome>,
        deadline: Instant,
    ) -> Result<Written, Problem> {
        let (accepted_at, connection) =
            (pending.placed.accepted_at.clone(), self.preferences.connection.as_ref());
        let mut confirmed = pin!(pending.confirmed());
        let mut is_confirmed = false;
        let outcome = tokio::select! {
            biased;
            outcome = while_there(connection, waiter.outcome(deadline)) => outcome,
            answer = &mut confirmed => match answer {
                Ok(_) => {
                    is_confirmed = true;
                    while_there(connection, waiter.outcome(deadline)).await
                }
                // A write with a known outcome was taken all the same.
                Err(error) => Some(waiter.reported().ok_or(error)?),
            },
        };
        let Some(outcome) = outcome else {
            if !is_confirmed {
                confirmed.await?;
            }
            return Ok(self.look_up(&accepted_at).await);
        };
        Ok(self.respond(outcome, &accepted_at).await)
    }

    /// Looks for the outcome of a write that no event reported. A keyed write may have been applied long ago:
    /// one read of the store shows that, unless the store is known to be away.
    async fn look_up(&self, accepted_at: &str) -> Written {
        match self.outcome_in_store().await {
            Some(outcome) => self.respond(outcome, accepted_at).await,
            None => Written::Answered(self.answer(accepted_at)),
        }
    }

    async fn outcome_in_store(&self) -> Option<Outcome> {
        let keyed = self.named.keyed.filter(|_| !self.shared.waiters.store_is_away())?;
        let statuses = guarded(
            &self.shared.store_breaker,
            self.shared.store.item_statuses([self.named.id.key()].into()),
        );
        let status = statuses.await.ok()?.pop()??;
        Outcome::of(&status, Some(keyed.fingerprint), None)
    }

    async fn respond(&self, outcome: Outcome, accepted_at: &str) -> Written {
        let (shared, named) = (self.shared, &self.named);
        let keyed = named.keyed;
        let preference = self.preferences.applied().and_then(|applied| HeaderValue::from_str(&applied).ok());
        let applied = |standing, is_own, preference| {
            if let Some(keyed) = keyed {
                shared.recent_keys.note_applied(keyed);
            }
            let (named, accepted_at) = (named.clone(), accepted_at.to_owned());
            Written::Applied(Box::new(AppliedWrite { named, accepted_at, standing, is_own, preference }))
        };
        let problem = match outcome {
            Outcome::Applied { standing, is_own } => return applied(standing, is_own, preference),
            failed @ Outcome::Failed { .. } => {
                let payload = keyed.map(|keyed| keyed.fingerprint);
                let receipt = receipts::after(shared, named.id.key(), payload, failed).await;
                // Redriven since the event.
                if receipt.is_applied() {
                    return applied(None, false, preference);
                }
                Problem::set_aside(receipt.about(named.target.clone()))
            }
            Outcome::Conflict => Problem::conflict(Receipt::conflict(named.id).about(named.target.clone())),
        };
        let mut response = problem.error_response();
        if let Some(preference) = preference {
            response.headers_mut().insert(PREFERENCE_APPLIED, preference);
        }
        Written::Answered(response)
    }

    /// 202 for a durable write.
    fn answer(&self, accepted_at: &str) -> HttpResponse {
        let is_applied = self.named.keyed.is_some_and(|keyed| self.shared.recent_keys.is_applied(keyed));
        let status = if is_applied { "applied" } else { "accepted" };
        self.named.accepted(status, accepted_at)
    }
}

/// Approximate lengths of the parts of an answer to many items.
const ID_BYTES: usize = 39;
const PAYLOAD_BYTES: usize = 35;
const REJECTED_BYTES: usize = 256;

/// Makes the valid items of one request durable, as one unit, and answers it. It never waits for
/// their outcomes.
pub async fn many(
    shared: &Shared,
    preferences: &WritePreferences,
    new_writes: Items<NewWrite>,
) -> Result<HttpResponse, Problem> {
    shared.check_clock()?;
    let Items { valid, mut rejected } = new_writes;
    let Some((_, first)) = valid.first() else { return Err(Problem::all_rejected(rejected)) };
    let kind = first.write.kind();
    let mut encoded =
        Encoded::with_capacity(valid.iter().map(|(_, new_write)| new_write.write.length_hint()).sum());
    // Identities of the accepted items; empty while no item has a key.
    let mut identities: Vec<Option<Keyed>> = Vec::new();
    let mut taken = HashMap::new();
    let (mut target, mut is_shared) = (None::<Target>, true);
    for (index, new_write) in valid {
        let keyed = idempotency::of(preferences, &new_write, index);
        if let Some(keyed) = keyed {
            // A refused item takes no key from the items after it.
            let conflicts = shared.recent_keys.conflicts(keyed)
                || *taken.entry(keyed.id).or_insert(keyed.fingerprint) != keyed.fingerprint;
            if conflicts {
                let target = Target::of(&new_write.write, &shared.ids);
                let problem = Problem::conflict(Receipt::conflict(shared.ids.sign(keyed.id)).about(target));
                rejected.push(Rejected { index, problem });
                continue;
            }
            identities.resize(encoded.count, None);
            identities.push(Some(keyed));
        }
        is_shared &= target.as_ref().is_none_or(|target| target.is_shared_by(&new_write.write));
        target.get_or_insert_with(|| Target::of(&new_write.write, &shared.ids));
        encoded.push(|out| encode(out, new_write.write, keyed));
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
    if !preferences.has_room_for_answer(answer_bytes) {
        return Err(Problem::overloaded());
    }
    let entry = BatchEntry { kind, json: &json, items: count, is_awaited: false, trace: preferences.trace };
    let pending = shared.batcher.begin(entry)?;
    // The encoded items are not kept until the confirm.
    drop(json);
    let placed = pending.confirmed().await?;
    let id = |offset: usize| {
        let keyed = identities.get(offset).copied().flatten();
        let item = keyed.map_or_else(|| placed.message.item(kind, placed.first + offset), |keyed| keyed.id);
        shared.ids.sign(item).to_string()
    };
    let (ids, target) = ((0..count).map(id).collect(), target.filter(|_| is_shared));
    let payloads = identities.iter().map(|keyed| keyed.map(|keyed| keyed.fingerprint)).collect();
    let message = (!identities.is_empty()).then(|| placed.message.to_string());
    let answer = ManyAccepted { accepted: count, ids, payloads, message, target, rejected };
    Ok(HttpResponse::Accepted().json(answer))
}

fn encode(out: &mut Vec<u8>, write: Write, keyed: Option<Keyed>) {
    match (write, keyed) {
        (Write::Increment(Increment { counter, by }), None) => message::encode_increment(out, &counter, by),
        (write, keyed) => message::encode(out, &Item { write, keyed }),
    }
}

#[cfg(test)]
mod tests {
    use shared::config::load::check::ITEM_GROWTH_BYTES_MAX;
    use shared::model::id::{IdIssuer, Kind};
    use shared::model::idempotency;
    use shared::model::message::AWAITED_BYTES_MAX;
    use shared::model::write::{Delete, Document, Object, Point};

    use std::sync::Arc;

    use super::*;

    /// The longest writes, each with the least bytes that a client can send for it.
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
            let id = idempotency::id_of("p", write.kind(), "k", 0);
            let keyed = Keyed { id, fingerprint: idempotency::fingerprint_of("POST", "a", "{}") };
            let (mut encoded, shown) = (Encoded::default(), format!("{write:?}"));
            encoded.push(|out| encode(out, write.clone(), Some(keyed)));
            encoded.push(|out| encode(out, write, Some(keyed)));
            let each = encoded.json.len().div_ceil(2) + AWAITED_BYTES_MAX;
            assert!(each <= sent + ITEM_GROWTH_BYTES_MAX, "{each} of {sent}: {shown}");
        }
    }
}
