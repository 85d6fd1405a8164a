//! Pair of queue and store that the two URLs name.
use std::path::PathBuf;

use super::Config;

/// Pair that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Everything in this process, files in this directory.
    Embedded(PathBuf),
    /// RabbitMQ and Postgres.
    Cluster,
}

/// Reasons for which the named queue and store do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPair {
    #[error("is not set: set AMQP_URL (or FOREBAY__QUEUE__URL)")]
    QueueUnset,
    #[error("is not set: set DATABASE_URL (or FOREBAY__STORE__URL)")]
    StoreUnset,
    #[error("expected amqp://…, amqps://… or embedded:<directory>")]
    QueueUnknown,
    #[error("expected postgres://… or embedded:<directory>")]
    StoreUnknown,
    #[error(
        "names a server while the store is the embedded one: set DATABASE_URL (or FOREBAY__STORE__URL) too"
    )]
    StoreMissing,
    #[error("names a server while the queue is the embedded one: set AMQP_URL (or FOREBAY__QUEUE__URL) too")]
    QueueMissing,
    #[error("names another directory than queue.url")]
    TwoDirectories,
}

impl NoPair {
    /// Setting that is to blame.
    pub fn setting(self) -> &'static str {
        match self {
            Self::QueueUnset | Self::QueueUnknown | Self::StoreMissing => "queue.url",
            Self::StoreUnset | Self::StoreUnknown | Self::QueueMissing | Self::TwoDirectories => "store.url",
        }
    }
}

/// Kind of backend that one URL names.
enum UrlTarget<'a> {
    Unset,
    Directory(&'a str),
    Server,
    Unknown,
}

impl<'a> UrlTarget<'a> {
    fn of(url: &'a str, schemes: &[&str]) -> Self {
        match url.split_once(':') {
            _ if url.is_empty() => Self::Unset,
            Some(("embedded", directory)) if !directory.is_empty() => Self::Directory(directory),
            Some((scheme, rest)) if schemes.contains(&scheme) && rest.starts_with("//") => Self::Server,
            _ => Self::Unknown,
        }
    }
}

impl Pair {
    pub fn of(config: &Config) -> Result<Self, NoPair> {
        let queue = UrlTarget::of(&config.queue.url, &["amqp", "amqps"]);
        let store = UrlTarget::of(&config.store.url, &["postgres", "postgresql"]);
        match (queue, store) {
            (UrlTarget::Directory(queue), UrlTarget::Directory(store)) if queue == store => {
                Ok(Self::Embedded(queue.into()))
            }
            (UrlTarget::Server, UrlTarget::Server) => Ok(Self::Cluster),
            (UrlTarget::Unset, _) => Err(NoPair::QueueUnset),
            (_, UrlTarget::Unset) => Err(NoPair::StoreUnset),
            (UrlTarget::Unknown, _) => Err(NoPair::QueueUnknown),
            (_, UrlTarget::Unknown) => Err(NoPair::StoreUnknown),
            (UrlTarget::Server, UrlTarget::Directory(_)) => Err(NoPair::StoreMissing),
            (UrlTarget::Directory(_), UrlTarget::Server) => Err(NoPair::QueueMissing),
            (UrlTarget::Directory(_), UrlTarget::Directory(_)) => Err(NoPair::TwoDirectories),
        }
    }
}
