//! Loading of the configuration.
