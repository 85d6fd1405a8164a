//! The documents of a request, read and checked: on the worker where that is little, and else on a
//! thread of their own.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use shared::model::collection::{Budget, Checker};
use shared::model::json_rules;
use shared::model::write::{Document, Object, Write};

use crate::http::body::{self, Body, BodyLimits, Items};
use crate::http::problem::Problem;
use crate::http::query::Parameters;
use crate::read::checking::off_worker;
use crate::state::Shared;
use crate::write::idempotency;
use crate::write::new_write::NewWrite;
use crate::write::preferences::OwnKey;

/// Bodies in bytes that are read on the worker where nothing is checked and no fingerprint is made.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Bodies in bytes that are checked, or read with fingerprints, on the worker, and how long checks may take.
/// Longer checks are made again elsewhere.
const INLINE_CHECKED_BYTES_MAX: usize = 8 << 10;
const INLINE_TIME_MAX: Duration = Duration::from_millis(1);

/// Writes of a request.
pub enum NewWrites {
    One(NewWrite),
    Many(Items<NewWrite>),
}

/// How the items of a request are written, for all of them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemForm {
    /// Each is a document. All of its members are data.
    Document,
    /// Each is a [`KeyedDocument`].
    Keyed,
}

impl ItemForm {
    /// Reads it from the query of a request: `items=keyed`, or nothing.
    pub fn of(query: &str) -> Result<Self, Problem> {
        let mut parameters = Parameters::of(query)?;
        let form = match parameters.take("items").as_deref() {
            None => Self::Document,
            Some("keyed") => Self::Keyed,
            Some(_) => return Err(Problem::invalid_parameter("items", "must be keyed, or left out")),
        };
        parameters.finish()?;
        Ok(form)
    }
}

/// A document beside the key of its item. No other member is taken.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyedDocument {
    #[serde(default, deserialize_with = "OwnKey::present")]
    idempotency_key: Option<OwnKey>,
    document: Box<RawValue>,
}

/// Reads the documents of a body. `is_keyed` says that the request has an Idempotency-Key.
pub async fn read(
    body: Body,
    form: ItemForm,
    collection: &str,
    is_keyed: bool,
    shared: &Shared,
) -> Result<NewWrites, Problem> {
    let bytes = match &body {
        Body::Empty => return Err(Problem::malformed("a document is a JSON object; there is no body")),
        Body::One(bytes) | Body::Array(bytes) | Body::Lines(bytes) => bytes.len(),
    };
    let (body, refused) = (Arc::new(body), Arc::<AtomicBool>::default());
    let checker = shared.definitions.checker(collection).await;
    let version = checker.as_ref().map(|checker| checker.version);
    let reader = Reader {
        form,
        is_keyed,
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
async fn read_by(
    reader: Reader,
    body: Arc<Body>,
    bytes: usize,
    shared: &Shared,
) -> Result<NewWrites, Problem> {
    let checks = reader.checker.as_deref().filter(|checker| !checker.takes_all());
    let Some(checks) = checks else {
        let may_have_keys = reader.is_keyed || reader.form == ItemForm::Keyed;
        let inline_bytes_max = if may_have_keys { INLINE_CHECKED_BYTES_MAX } else { INLINE_BYTES_MAX };
        let read = move || reader.read(&body, &Budget::new(Duration::ZERO));
        return if bytes <= inline_bytes_max { read() } else { off_worker(read).await? };
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
    form: ItemForm,
    /// Items without a key of their own have one from the request.
    is_keyed: bool,
    collection: Box<str>,
    /// `None` when the definition is not known soon enough, or not usable here.
    checker: Option<Arc<Checker>>,
    limits: BodyLimits,
    /// Set when a document does not hold the definition.
    refused: Arc<AtomicBool>,
}

impl Reader {
    fn read(&self, body: &Body, budget: &Budget) -> Result<NewWrites, Problem> {
        let draft = |raw: &RawValue| self.draft(raw, budget);
        let items_max = self.limits.items_max;
        match body {
            Body::Empty | Body::One(_) => {
                let json = if let Body::One(json) = body { &json[..] } else { &[] };
                body::one_raw(json, draft).map(NewWrites::One)
            }
            Body::Array(json) => body::array_raw(json, items_max, draft).map(NewWrites::Many),
            Body::Lines(text) => body::lines_raw(text, items_max, draft).map(NewWrites::Many),
        }
    }

    /// Reads one item, and checks its document.
    fn draft(&self, raw: &RawValue, budget: &Budget) -> Result<NewWrite, Problem> {
        if self.form == ItemForm::Document {
            return Ok(self.new_write(self.document(raw, budget)?, None));
        }
        let KeyedDocument { idempotency_key, document } = body::one(raw.get().as_bytes(), usize::MAX)?;
        let write = self.document(&document, budget).map_err(|problem| problem.within("/document"))?;
        Ok(self.new_write(write, idempotency_key.map(OwnKey::into_text)))
    }

    fn new_write(&self, write: Write, own_key: Option<Box<str>>) -> NewWrite {
        let has_key = self.is_keyed || own_key.is_some();
        let fingerprint = has_key.then(|| idempotency::fingerprint(&write));
        NewWrite { write, own_key, fingerprint }
    }

    fn document(&self, raw: &RawValue, budget: &Budget) -> Result<Write, Problem> {
        let text = raw.get();
        body::check_item_size(text.as_bytes(), self.limits.item_bytes_max)?;
        let data =
            Object::from_raw(raw).ok_or_else(|| Problem::invalid_at("", "a document is a JSON object"))?;
        json_rules::check(text)
            .map_err(|flawed| Problem::invalid_at(flawed.pointer, flawed.flaw.to_string()))?;
        if let Some(checker) = &self.checker {
            let checked = checker.check(text, budget);
            checked.map_err(|violation| {
                self.refused.store(true, Ordering::Relaxed);
                Problem::invalid_at(violation.pointer, violation.detail)
            })?;
        }
        let schema_version = self.checker.as_ref().map(|checker| checker.version);
        Ok(Write::Document(Document { collection: self.collection.clone(), schema_version, data }))
    }
}

#[cfg(test)]
mod tests;
