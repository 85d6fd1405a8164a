//! Both programs from the command line to their end: options, logs, the pair, the operations port.
pub mod backend;
pub mod cli;
pub mod data_directory;
pub mod logs;
pub mod ops;
