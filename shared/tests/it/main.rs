//! Black-box tests of the shared crate.
mod config;
mod embedded;
mod ops;
mod telemetry;
