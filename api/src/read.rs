//! Answers from memory: what is cached, and how it is loaded and kept up to date.
pub mod cache;
pub mod checking;
pub mod computed;
pub mod counters;
pub mod definitions;
pub mod documents;
pub mod metric_query;
pub mod period;
pub mod single_flight;
