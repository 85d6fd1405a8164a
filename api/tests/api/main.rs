//! Black-box tests of the API: whole installations, spoken to by HTTP, on both backend pairs.
mod bad_input;
mod counters;
mod faults;
mod operations;
mod receipts;
mod replicas;
mod support;
