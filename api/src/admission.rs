//! Who and how much comes in: keys and hosts, requests in work, memory, the clock.
pub mod auth;
pub mod clock_skew;
pub mod in_flight;
pub mod memory_budget;
