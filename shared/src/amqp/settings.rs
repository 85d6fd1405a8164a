//! Settings of the RabbitMQ ports: the server, the names of what is declared, the limits.
use std::fmt;
use std::time::Duration;

use lapin::types::ShortString;
use lapin::uri::AMQPUri;

use crate::config::Config;
use crate::config::queue_limits::QueueLimits;

/// Seconds between heartbeats when the URL does not say; twice of it without a byte ends a session.
const HEARTBEAT_SECONDS: u16 = 10;

/// Messages that may wait for their confirms at once. Beyond a few hundred a quorum queue gains
/// nothing from more.
const IN_FLIGHT_MAX: usize = 1_024;

/// Bytes of messages that may wait for their confirms at once: lapin's buffer has no bound.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Messages that may wait for a session; further callers wait for a place until their deadline.
const WAITING_MAX: usize = 1_024;

/// Settings that both RabbitMQ ports need.
#[derive(Clone)]
pub struct RabbitSettings {
    /// Parsed URL. `None` when it could not be read; connecting then fails with that reason.
    pub(crate) uri: Option<AMQPUri>,
    prefix: String,
    pub(crate) limits: QueueLimits,
    /// Age that a new queue must have before it is published to.
    pub(crate) settle: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) in_flight_bytes_max: usize,
    pub(crate) waiting_max: usize,
}

impl RabbitSettings {
    /// Settings for a queue that is published to at once when it is new. `prefix` begins the name of every
    /// queue and exchange.
    pub fn new(url: &str, prefix: &str, limits: QueueLimits) -> Self {
        let mut uri: Option<AMQPUri> = url.parse().ok();
        if let Some(uri) = &mut uri {
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        }
        Self {
            uri,
            prefix: prefix.into(),
            limits,
            settle: Duration::ZERO,
            in_flight_max: IN_FLIGHT_MAX,
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
            waiting_max: WAITING_MAX,
        }
    }

    pub(crate) fn names(&self) -> Names {
        Names::new(&self.prefix)
    }
}

impl From<&Config> for RabbitSettings {
    fn from(config: &Config) -> Self {
        let settle = Duration::from_millis(config.queue.settle_ms);
        Self {
            settle,
            ..Self::new(&config.queue.url, &config.queue.prefix, QueueLimits::from(&config.queue))
        }
    }
}

/// Shows the server without user and password.
impl fmt::Debug for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.uri.as_ref().map(|uri| {
            format!("{}://{}:{}/{}", uri.scheme, uri.authority.host, uri.authority.port, uri.vhost)
        });
        f.debug_struct("RabbitSettings")
            .field("server", &server)
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .field("settle", &self.settle)
            .field("in_flight_max", &self.in_flight_max)
            .field("in_flight_bytes_max", &self.in_flight_bytes_max)
            .field("waiting_max", &self.waiting_max)
            .finish()
    }
}

/// Names of the queues and exchanges under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub writes: ShortString,
    /// Name of an exchange and of a queue.
    pub dead: ShortString,
    pub events: ShortString,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        let name = |word: &str| ShortString::from(format!("{prefix}.{word}.v1"));
        Self { writes: name("writes"), dead: name("dead"), events: name("events") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { bytes_max: 1, confirm_timeout: Duration::from_secs(1) };

    fn heartbeat(url: &str) -> Option<u16> {
        RabbitSettings::new(url, "p", LIMITS).uri.expect("a URL").query.heartbeat
    }

    #[test]
    fn a_heartbeat_is_asked_for_unless_the_url_does() {
        assert_eq!(heartbeat("amqp://host"), Some(HEARTBEAT_SECONDS));
        assert_eq!(heartbeat("amqp://host/%2f?channel_max=7"), Some(HEARTBEAT_SECONDS));
        assert_eq!(heartbeat("amqp://host/%2f?channel_max=7&heartbeat=3"), Some(3));
    }

    #[test]
    fn neither_user_nor_password_are_shown() {
        for url in ["amqp://anna:geheim@host:1/v", "amqp:anna:geheim@host"] {
            let shown = format!("{:?}", RabbitSettings::new(url, "p", LIMITS));
            assert!(!shown.contains("geheim") && !shown.contains("anna"), "{shown}");
        }
    }
}
