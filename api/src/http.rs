//! HTTP as such: connections, bodies, headers, problems. Knows no resource.
pub mod body;
pub mod connection;
pub mod connection_state;
pub mod cors;
pub mod header;
pub mod large_answer;
pub mod listener;
pub mod middleware;
pub mod path_prefix;
pub mod problem;
pub mod query;
pub mod refused_head;
pub mod request_id;
