//! Admission of requests: keys and hosts, requests in work, memory, the clock.
pub mod auth;
pub mod clock_skew;
pub mod in_flight;
pub mod memory_budget;
