//! One write of a request, before it has an id.
use shared::model::write::Write;

/// One write of a request, checked.
#[derive(Clone, Debug)]
pub struct Draft {
    pub write: Write,
    /// The item's own `idempotency_key`.
    pub own_key: Option<Box<str>>,
}
