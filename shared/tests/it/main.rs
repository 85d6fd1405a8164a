//! The shared crate from outside: one contract suite per port, run against every implementation,
//! and what belongs to one of them alone. Needs the servers that `testkit` names.
mod config;
mod embedded;
mod event;
mod layout;
mod ops;
mod queue;
mod store;
mod telemetry;
