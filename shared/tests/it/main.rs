//! One contract suite per port, run against every implementation.
mod store;
