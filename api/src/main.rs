//! The API's command line, and the one place where the consumer runs in the API's process: the
//! embedded default.
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use shared::backend::{self, Pair};
use shared::config::Config;
use shared::shutdown;

/// Retains less memory after a burst than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
