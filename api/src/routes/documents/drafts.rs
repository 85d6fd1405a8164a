//! The documents of a request, read and checked: on the worker where that is little, and else on a
//! thread that nobody waits for.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use shared::model::collection::{Budget, Checker};
use shared::model::write::{Document, Object, Write};
use shared::model::{json_rules, read_error};

use crate::http::body::{self, Body, BodyLimits, Items};
use crate::http::problem::Problem;
use crate::read::checking::off_worker;
use crate::state::Shared;
use crate::write::draft::Draft;
use crate::write::preferences::OwnKey;

/// Bodies in bytes that are read on the worker where nothing is checked.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Bodies in bytes that are checked on the worker, and how long that may take. What takes longer is
/// checked again elsewhere.
const INLINE_CHECKED_BYTES_MAX: usize = 8 << 10;
const INLINE_TIME_MAX: Duration = Duration::from_millis(1);

/// What a request holds.
pub enum Drafts {
    One(Draft),
    Many(Items<Draft>),
}

/// Reads the documents of a body.
pub async fn read(body: Body, collection: &str, shared: &Shared) -> Result<Drafts, Problem> {
    let bytes = match &body {
        Body::Empty => return Err(Problem::malformed("a document is a JSON object; there is no body")),
        Body::One(bytes) | Body::Array(bytes) | Body::Lines(bytes) => bytes.len(),
    };
    let (body, refused) = (Arc::new(body), Arc::<AtomicBool>::default());
    let checker = shared.definitions.checker(collection).await;
    let version = checker.as_ref().map(|checker| checker.version);
    let reader = Reader {
        collection: collection.into(),
        checker,
        limits: shared.body_limits,
        refused: refused.clone(),
    };
    let drafts = read_by(reader.clone(), body.clone(), bytes, shared).await;
    let Some(version) = version.filter(|_| refused.load(Ordering::Relaxed)) else { return drafts };
    // Another replica may have replaced the definition a moment ago.
    match shared.definitions.newer_checker(collection, version).await {
        Some(newer) => read_by(Reader { checker: Some(newer), ..reader }, body, bytes, shared).await,
        None => drafts,
    }
}

/// Reads and checks where that keeps no worker.
async fn read_by(reader: Reader, body: Arc<Body>, bytes: usize, shared: &Shared) -> Result<Drafts, Problem> {
    let checks = reader.checker.as_deref().filter(|checker| !checker.takes_all());
    let Some(checks) = checks else {
        let read = move || reader.read(&body, &Budget::new(Duration::ZERO));
        return if bytes <= INLINE_BYTES_MAX { read() } else { off_worker(read).await? };
    };
    if checks.ends_at_once() && bytes <= INLINE_CHECKED_BYTES_MAX {
        let budget = Budget::new(INLINE_TIME_MAX);
        let drafts = reader.read(&body, &budget);
        if !budget.left().is_zero() {
            return drafts;
        }
    }
    shared.checking.check(move |budget| reader.read(&body, budget)).await?
}

#[derive(Clone)]
struct Reader {
    collection: Box<str>,
    /// `None` when the definition is not known soon enough, or not usable here.
    checker: Option<Arc<Checker>>,
    limits: BodyLimits,
    /// Set when a document does not hold the definition.
    refused: Arc<AtomicBool>,
}

impl Reader {
    fn read(&self, body: &Body, budget: &Budget) -> Result<Drafts, Problem> {
        let draft = |raw: &RawValue| self.draft(raw, budget);
        let items_max = self.limits.items_max;
        match body {
            Body::Empty | Body::One(_) => {
                let json = if let Body::One(json) = body { &json[..] } else { &[] };
                body::one_raw(json, draft).map(Drafts::One)
            }
            Body::Array(json) => body::array_raw(json, items_max, draft).map(Drafts::Many),
            Body::Lines(text) => body::lines_raw(text, items_max, draft).map(Drafts::Many),
        }
    }

    /// One document, checked.
    fn draft(&self, raw: &RawValue, budget: &Budget) -> Result<Draft, Problem> {
        let text = raw.get();
        body::check_item_size(text.as_bytes(), self.limits.item_bytes_max)?;
        let data =
            Object::from_raw(raw).ok_or_else(|| Problem::invalid_at("", "a document is a JSON object"))?;
        json_rules::check(text)
            .map_err(|flawed| Problem::invalid_at(flawed.pointer, flawed.flaw.to_string()))?;
        let own_key = own_key(text)?;
        if let Some(checker) = &self.checker {
            let checked = checker.check(text, budget);
            checked.map_err(|violation| {
                self.refused.store(true, Ordering::Relaxed);
                Problem::invalid_at(violation.pointer, violation.detail)
            })?;
        }
        let schema_version = self.checker.as_ref().map(|checker| checker.version);
        let collection = self.collection.clone();
        Ok(Draft { write: Write::Document(Document { collection, schema_version, data }), own_key })
    }
}

/// The document's own `idempotency_key`.
fn own_key(text: &str) -> Result<Option<Box<str>>, Problem> {
    #[derive(Deserialize)]
    struct Own<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        idempotency_key: Option<&'a RawValue>,
    }

    /// Keeps a null apart from none.
    fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Some)
    }

    // Most documents have none, and need not be read once more. The name may be written in escapes.
    if !text.contains("idempotency_key") && !text.contains('\\') {
        return Ok(None);
    }
    let own: Own<'_> = serde_json::from_str(text)
        .map_err(|error| Problem::invalid_at("", body::shorten(&read_error::plain(&error.to_string()))))?;
    let read = |raw: &RawValue| {
        serde_json::from_str(raw.get()).map(OwnKey::into_text).map_err(|error| {
            Problem::invalid_at("/idempotency_key", body::shorten(&read_error::plain(&error.to_string())))
        })
    };
    own.idempotency_key.map(read).transpose()
}

#[cfg(test)]
mod tests;
