//! Code that the API and the consumer share: the shapes of writes and messages, the three ports (queue,
//! store, events) with two implementations each, and the frame that runs a program.
//!
//! The modules stand in the order of the flow: each imports only those above it. SQL and AMQP stand nowhere
//! else. Nothing here knows HTTP routes or when to merge messages.

// Shapes: ids, items, messages, collections, rollups, outcomes.
pub mod model;
// Clock, stops, liveness, metrics.
pub mod runtime;
// Settings, and where their values come from.
pub mod config;
// RabbitMQ: sessions, and what is declared.
pub mod amqp;
// Port: the durable queue between API and consumer.
pub mod queue;
// Port: ledger, effects, reads.
pub mod store;
// Port: what changed, numbered, for caches and waiters.
pub mod event;
// Command lines, logs, the pair that is configured, the operations port.
pub mod program;
