//! One write of a request, before it has an id.
use shared::model::idempotency::Fingerprint;
use shared::model::write::Write;

/// One write of a request, checked.
#[derive(Clone, Debug)]
pub struct NewWrite {
    pub write: Write,
    /// The item's own `idempotency_key`.
    pub own_key: Option<Box<str>>,
    /// Fingerprint that was computed while the write was read, away from the worker where that takes long.
    pub fingerprint: Option<Fingerprint>,
}
