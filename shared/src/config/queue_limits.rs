//! Limits of a queue, as both implementations take them.
use std::time::Duration;

use super::QueueSettings;

/// Limits of one queue, the same for both implementations.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Bytes that may wait in the queue; beyond them publishes are refused.
    pub bytes_max: u64,
    /// Time that one confirm may take before the session counts as broken.
    pub confirm_timeout: Duration,
}

impl From<&QueueSettings> for QueueLimits {
    fn from(queue: &QueueSettings) -> Self {
        Self { bytes_max: queue.bytes_max, confirm_timeout: Duration::from_millis(queue.confirm_timeout_ms) }
    }
}
