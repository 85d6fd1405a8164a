//! The API: a thin HTTP layer that makes writes durable and answers reads from memory.
//!
//! It never waits for the store to accept a write. The consumer is not used here, but for one
//! place: `main.rs` runs it in this process when the queue is the embedded one.
pub mod accept;
pub mod answer;
pub mod auth;
pub mod batcher;
pub mod body;
pub mod cache;
pub mod cache_events;
pub mod checking;
pub mod clock_check;
pub mod connection;
pub mod cors;
pub mod definitions;
pub mod document_cache;
pub mod greeting;
pub mod header;
pub mod key_command;
pub mod measure;
pub mod memory_budget;
pub mod openapi;
pub mod parameters;
pub mod path_prefix;
pub mod period;
pub mod port;
pub mod problem;
pub mod queue_look;
pub mod read_cache;
pub mod refused_head;
pub mod request;
pub mod routes;
pub mod server;
pub mod store_probe;
pub mod time_text;
pub mod waiters;
