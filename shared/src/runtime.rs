//! Time, stops, liveness and metrics of a process. Knows no port.
pub mod backoff;
pub mod breaker;
pub mod clock;
pub mod metrics;
pub mod progress;
pub mod shutdown;
pub mod signals;
