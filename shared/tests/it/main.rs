//! Tests of the shared crate from outside: one contract suite per port, run against every
//! implementation, and tests of one of them alone. They need the servers that `testkit` names.
mod config;
mod embedded;
mod event;
mod language;
mod layout;
mod ops;
mod queue;
mod store;
mod telemetry;
