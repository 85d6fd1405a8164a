//! Shapes of what is written and of what becomes of it. Pure: no clock, no I/O.
pub mod api_key;
pub mod collection;
pub mod dead_letter;
pub mod decimal;
pub mod id;
pub mod idempotency;
pub mod json_rules;
pub mod message;
pub mod outcome;
pub mod read_error;
pub mod rollup;
pub mod trace;
pub mod write;
