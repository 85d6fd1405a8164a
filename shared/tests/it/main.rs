//! The shared crate from outside: one contract suite per port, run against every implementation,
//! and what belongs to one of them alone.
mod config;
mod embedded;
mod store;
