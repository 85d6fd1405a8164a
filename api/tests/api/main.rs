//! Black-box tests of the API: whole installations, spoken to by HTTP, on both backend pairs.
mod bad_input;
mod cli;
mod counters;
mod faults;
mod operations;
mod outages;
mod receipts;
mod replicas;
mod support;
