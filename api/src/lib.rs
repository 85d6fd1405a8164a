//! The API: a thin HTTP layer that makes writes durable and answers reads from memory.
//!
//! It never waits for the store to accept a write. The consumer is not used here, but for one
//! place: `main.rs` runs it in this process when the queue is the embedded one.
pub mod admission;
pub mod banner;
pub mod health;
pub mod http;
pub mod keys_command;
pub mod metrics;
pub mod read;
pub mod receipt;
pub mod routes;
pub mod server;
pub mod state;
pub mod wait;
pub mod write;
