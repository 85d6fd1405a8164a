//! The API: a thin HTTP layer that makes writes durable and answers reads from memory.
//!
//! It never waits for the store to accept a write. The consumer is not used here, but for one
//! place: `main.rs` runs it in this process when the queue is the embedded one.
//!
//! The modules in the order of their imports, from the top down:
pub mod banner;
pub mod keys_command;
pub mod server;
// One row per route; handlers translate between HTTP and the layers below.
pub mod routes;
// The accept path, and receipts of writes.
pub mod write;
// Tasks beside the requests.
pub mod event_feed;
pub mod health;
// State that handlers use.
pub mod state;
// Requests become messages.
pub mod batcher;
// Answers from memory.
pub mod read;
// HTTP as such.
pub mod http;
pub mod receipt;
// Requests that wait.
pub mod wait;
// Limits on clients and on load.
pub mod admission;
pub mod metrics;
pub mod rfc3339;
pub mod store_breaker;
pub mod target;
