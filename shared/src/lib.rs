//! What the API and the consumer share: the shapes of writes and messages, the three ports (queue,
//! store, events) with two implementations each, and what every program needs to run.
//!
//! SQL and AMQP stand nowhere else. Nothing here knows HTTP routes or when to merge messages.
pub mod amqp;
pub mod api_key;
pub mod backend;
pub mod backoff;
pub mod breaker;
pub mod clock;
pub mod collection;
pub mod config;
pub mod data_directory;
pub mod decimal;
pub mod event;
pub mod id;
pub mod json;
pub mod keyed;
pub mod message;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod program;
pub mod progress;
pub mod queue;
pub mod read_error;
pub mod rollup;
pub mod shutdown;
pub mod signals;
pub mod store;
pub mod telemetry;
pub mod trace;
pub mod write;
