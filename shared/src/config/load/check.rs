//! Values that no program can run with. Pure: settings in, names and reasons out.
use std::net::IpAddr;

use tracing_subscriber::EnvFilter;

use super::ranges;
use crate::config::Config;
use crate::model::api_key::KeyRing;
use crate::model::dead_letter::BODY_BYTES_MAX;
use crate::model::message::ENVELOPE_BYTES_MAX;

/// Least length in bytes of a secret where others depend on it.
pub(super) const SECRET_BYTES_MIN: usize = 16;

/// Bytes that an item can be longer in a message than in its request, at most: its names, its id and the
/// words around them.
pub const ITEM_GROWTH_BYTES_MAX: usize = 384;

pub(super) const CONSUMER_NEEDS_SERVERS: &str = "the embedded queue lives inside the api, which consumes it \
    by itself: give the consumer AMQP_URL and DATABASE_URL, or `--env local`";

impl Config {
    /// Upper bound of a message of the API in bytes: a message that is nearly full takes one more request.
    pub fn message_bytes_bound(&self) -> usize {
        let request = self.server.items_max.saturating_mul(ITEM_GROWTH_BYTES_MAX);
        let request = request.saturating_add(self.server.body_bytes_max);
        request.saturating_add(self.queue.message_bytes_max).saturating_add(ENVELOPE_BYTES_MAX)
    }
}

/// Lists the settings with values that no program can run with, each with the reason.
pub(super) fn values(config: &Config) -> Vec<(&'static str, String)> {
    let mut found = ranges::outside(config);
    let mut demand = |key, holds: bool, reason: String| {
        if !holds {
            found.push((key, reason));
        }
    };
    let (server, queue) = (&config.server, &config.queue);
    let waits = format!("leaves no room for others in server.in_flight_max, {}", server.in_flight_max);
    demand("server.waiters_max", server.waiters_max < server.in_flight_max, waits);
    let largest = config.message_bytes_bound();
    let held = largest.saturating_mul(queue.prefetch.into());
    let reason = format!(
        "is less than queue.prefetch × the largest message, {} × {largest} = {held} bytes; lower \
         queue.prefetch, queue.message_bytes_max or server.body_bytes_max, or raise it",
        queue.prefetch
    );
    demand("queue.prefetch_bytes_max", held <= queue.prefetch_bytes_max, reason);
    let kept = format!("makes messages of {largest} bytes, more than the {BODY_BYTES_MAX} of a dead letter");
    demand("queue.message_bytes_max", largest <= BODY_BYTES_MAX, kept);
    let room = queue.bytes_max >= largest as u64;
    demand("queue.bytes_max", room, format!("does not hold the largest message, {largest} bytes"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let named = (1..=100).contains(&queue.prefix.len()) && queue.prefix.bytes().all(plain);
    demand("queue.prefix", named, "expected 1 to 100 characters out of A-Z a-z 0-9 . _ -".into());
    let is_host = |name: &String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    let hosts = server.allowed_hosts.iter().all(|name| is_host(name) || name.parse::<IpAddr>().is_ok());
    demand("server.allowed_hosts", hosts, "expected names or addresses, without scheme and port".into());
    let prefix = &server.path_prefix;
    let is_prefix = prefix.is_empty() || is_path(prefix);
    demand(
        "server.path_prefix",
        is_prefix,
        "expected a path such as /forebay, without a slash at its end".into(),
    );
    let origins = config.auth.cors_origins.iter().all(|origin| is_origin(origin));
    let expected = "expected origins such as https://app.example, without a path".into();
    demand("auth.cors_origins", origins, expected);
    let ring = KeyRing::new(config.auth.keys.iter().cloned());
    demand("auth.keys", ring.is_ok(), ring.err().unwrap_or_default());
    let filter = check_filter(&config.telemetry.log_filter);
    demand("telemetry.log_filter", filter.is_ok(), filter.err().unwrap_or_default());
    found
}

fn is_path(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    let is_step = |step: &str| !["", ".", ".."].contains(&step) && step.bytes().all(plain);
    text.strip_prefix('/').is_some_and(|steps| steps.split('/').all(is_step))
}

/// Checks an origin as browsers send it: scheme, host and a port that is not the scheme's own.
fn is_origin(text: &str) -> bool {
    url::Url::parse(text)
        .is_ok_and(|url| url.has_host() && url.origin().ascii_serialization().eq_ignore_ascii_case(text))
}

/// True when ids are signed with a secret that is guessed sooner than it is rotated. A secret that only
/// verifies may be short: an installation keeps the ids that it has issued.
pub(super) fn signs_with_short_secret(config: &Config) -> bool {
    config.ids.secrets.first().is_some_and(|secret| secret.len() < SECRET_BYTES_MIN)
}

/// True when a URL can mean only this machine.
pub(super) fn is_loopback(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Reads a log filter; an error says what cannot be read.
fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(|_| ()).map_err(|error| error.to_string())
}
