//! The contract of the events port.
