//! Preferences of a request for its writes, read from its headers: `Prefer` (RFC 7240),
//! `Idempotency-Key` and `traceparent` (W3C Trace Context).
use std::rc::Rc;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderMap, HeaderName};
use serde::{Deserialize, Deserializer};
use shared::model::api_key::Principal;
use shared::model::idempotency::KEY_LENGTH_MAX;
use shared::model::trace::TraceParent;

use crate::admission::auth::principal_of;
use crate::http::connection_state::ConnectionState;
use crate::http::header;
use crate::http::large_answer::PART_BYTES_MAX;
use crate::http::problem::Problem;
use crate::state::Shared;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The answer to `Prefer`.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Preferences of a request for its writes, from its headers.
#[derive(Clone, Debug, Default)]
pub struct WritePreferences {
    /// Longest wait for the outcome; `None` answers as soon as the write is durable.
    pub wait: Option<Duration>,
    pub key: Option<Box<str>>,
    /// Principal of the API key; `None` where requests need no API key.
    pub principal: Option<Principal>,
    /// The client asked for the wait.
    pub is_preferred: bool,
    /// Trace of the request, if its sender sampled it.
    pub trace: Option<TraceParent>,
    /// The connection on which an answer may wait; `None` in tests without one.
    pub connection: Option<Rc<ConnectionState>>,
}

impl WritePreferences {
    /// Reads `Prefer`, `Idempotency-Key` and `traceparent`.
    pub fn of(request: &HttpRequest, shared: &Shared) -> Result<Self, Problem> {
        let headers = request.headers();
        let wait = wait_of(headers, shared.waits.wait_max);
        Ok(Self {
            wait,
            key: key_of(headers)?,
            principal: principal_of(request),
            is_preferred: wait.is_some(),
            trace: trace_of(headers),
            connection: request.conn_data().cloned(),
        })
    }

    /// Preferences of a request to one of the short paths, which wait by themselves.
    pub fn short(request: &HttpRequest, shared: &Shared) -> Result<Self, Problem> {
        let preferences = Self::of(request, shared)?;
        let short = shared.waits.short_wait;
        Ok(Self { wait: preferences.wait.or((!short.is_zero()).then_some(short)), ..preferences })
    }

    /// Returns true when an answer of so many bytes finds room. Checked before a write is done, so that its
    /// answer is not refused afterwards.
    pub fn has_room_for_answer(&self, bytes: usize) -> bool {
        bytes <= PART_BYTES_MAX
            || self.connection.as_ref().is_none_or(|connection| connection.answers().has_room(bytes))
    }

    /// `wait=N` for `Preference-Applied`, when the client asked for the wait.
    pub fn applied(&self) -> Option<String> {
        self.wait.filter(|_| self.is_preferred).map(applied)
    }
}

/// `wait=N` with the time that was granted, in whole seconds.
pub fn applied(granted: Duration) -> String {
    format!("wait={}", granted.as_millis().div_ceil(1_000))
}

/// Wait that the client asks for, as far as it is granted. Anything that is no preference for a wait is
/// ignored, as RFC 7240 requires.
pub fn wait_of(headers: &HeaderMap, wait_max: Duration) -> Option<Duration> {
    headers
        .get_all(PREFER)
        .find_map(|value| wait_in(value.as_bytes()))
        .map(|seconds| Duration::from_secs(seconds).min(wait_max))
        .filter(|wait| !wait.is_zero())
}

/// The first `wait` with a number of seconds in one header.
fn wait_in(value: &[u8]) -> Option<u64> {
    // Parameters follow a semicolon; `wait` has none.
    let first = |preference| header::parts(preference, b';').next();
    header::parts(value, b',').filter_map(first).find_map(|preference| {
        let (name, value) = header::parameter(preference)?;
        let digits = String::from_utf8(header::unquoted(value)?.into_owned()).ok()?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // A number that does not fit is more than is granted.
        (name.eq_ignore_ascii_case(b"wait") && is_number).then(|| digits.parse().unwrap_or(u64::MAX))
    })
}

/// Trace of a request. A header that is no trace context, or comes more than once, is ignored, as the
/// specification requires; a trace that is not sampled could not be looked up.
fn trace_of(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TRACEPARENT);
    let value = given.next()?;
    let parent = TraceParent::parse(value.as_bytes()).filter(|_| given.next().is_none());
    parent.filter(|parent| parent.is_sampled)
}

fn key_of(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY);
    let Some(value) = given.next() else { return Ok(None) };
    let refuse = |why: &str| Problem::malformed(format!("Idempotency-Key {why}"));
    if given.next().is_some() {
        return Err(refuse("is given more than once"));
    }
    let value = value.as_bytes().trim_ascii();
    let key = if value.starts_with(b"\"") { header::item_string(value) } else { bare(value) };
    let key = key
        .filter(|key| is_key(key))
        .ok_or_else(|| refuse("needs 1 to 255 printable ASCII characters, best between double quotes"))?;
    Ok(Some(key.into()))
}

/// Returns true for a key, of the header or of an item: a text that a string of RFC 8941 can hold, not too
/// long.
fn is_key(key: &str) -> bool {
    let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    (1..=KEY_LENGTH_MAX).contains(&key.len()) && key.bytes().all(printable)
}

/// A key without quotes around or in it: all of it, semicolons included.
fn bare(value: &[u8]) -> Option<String> {
    let is_bare = |byte: &u8| byte.is_ascii_graphic() && *byte != b'"';
    value.iter().all(is_bare).then(|| String::from_utf8_lossy(value).into_owned())
}

/// `idempotency_key` of an item, in the same key space as the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKey(Box<str>);

impl OwnKey {
    pub fn into_text(self) -> Box<str> {
        self.0
    }

    /// Deserializes a member that may be left out, but is no null when it is there.
    pub fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Self::deserialize(deserializer).map(Some)
    }
}

impl<'de> Deserialize<'de> for OwnKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = Box::<str>::deserialize(deserializer)?;
        if is_key(&key) {
            Ok(Self(key))
        } else {
            Err(serde::de::Error::custom("a key has 1 to 255 printable ASCII characters"))
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        headers
    }

    #[test]
    fn a_wait_is_found_among_other_preferences_and_capped() {
        let wait = |values: &[&str]| wait_of(&headers(&PREFER, values), Duration::from_secs(30));
        for (values, seconds) in [
            (&["wait=10"][..], 10),
            (&["WAIT=10"], 10),
            (&["wait = 10"], 10),
            (&["wait=\"10\""], 10),
            (&["respond-async, wait=10"], 10),
            (&["respond-async", "handling=lenient, wait=10; foo=bar"], 10),
            (&["foo=\"a, wait=5\", wait=10"], 10),
            (&["foo=\"a\\\", wait=5\", wait=10"], 10),
            (&["wait=10, wait=5"], 10),
            (&["wait=soon, wait=10"], 10),
            (&["wait=31"], 30),
            (&["wait=99999999999999999999999"], 30),
        ] {
            assert_eq!(wait(values), Some(Duration::from_secs(seconds)), "{values:?}");
        }
        for values in [
            &[""][..],
            &["wait"],
            &["wait="],
            &["wait=-1"],
            &["wait=+1"],
            &["wait=1.5"],
            &["wait=0"],
            &["waiting=1"],
            &["foo; wait=10"],
            &["foo=\"wait=10"],
            &["ä=1"],
            &[],
        ] {
            assert_eq!(wait(values), None, "{values:?}");
        }
    }

    #[test]
    fn what_was_granted_is_told_in_whole_seconds() {
        assert_eq!(applied(Duration::from_secs(7)), "wait=7");
        assert_eq!(applied(Duration::from_millis(400)), "wait=1");
    }

    #[test]
    fn a_trace_is_carried_when_it_is_sampled_and_anything_else_is_ignored() {
        let trace = |values: &[&str]| trace_of(&headers(&TRACEPARENT, values));
        let sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace(&[sampled]), TraceParent::parse(sampled.as_bytes()));
        assert!(trace(&[sampled]).is_some());
        let not_sampled = sampled.replace("-01", "-00");
        for ignored in [&[][..], &[&*not_sampled], &["", sampled], &[sampled, sampled], &["x"], &["ä"]] {
            assert_eq!(trace(ignored), None, "{ignored:?}");
        }
    }

    #[test]
    fn a_key_is_a_string_or_a_bare_word() {
        let key = |values: &[&str]| key_of(&headers(&IDEMPOTENCY_KEY, values));
        let long = "x".repeat(KEY_LENGTH_MAX);
        for (value, expected) in [
            ("abc", "abc"),
            ("\"abc\"", "abc"),
            (" \"a b\" ", "a b"),
            ("\"a\\\"b\\\\c\"", "a\"b\\c"),
            ("a;b=c\\", "a;b=c\\"),
            (&long, &long),
            (&format!("\"{long}\""), &long),
        ] {
            assert_eq!(key(&[value]).expect("a key").as_deref(), Some(expected), "{value}");
        }
        assert_eq!(key(&[]).expect("none"), None);
        let too_long = format!("{long}x");
        for bad in ["", "\"\"", "\"", "\"a", "a\"b", "\"a\"b\"", "\"a\\b\"", "a b", "ä", "\"ä\"", &too_long]
        {
            let problem = key(&[bad]).expect_err(bad);
            assert_eq!(problem.status().as_u16(), 400, "{bad}");
            assert!(problem.to_string().contains("Idempotency-Key"), "{problem}");
        }
        assert!(key(&["a", "a"]).is_err());
    }

    #[test]
    fn an_items_own_key_is_what_the_header_takes() {
        for (json, good) in [
            ("\"k\"", true),
            ("\"a b\\\"~\"", true),
            ("\"\"", false),
            ("1", false),
            ("null", false),
            ("\"ä\"", false),
            ("\"a\\nb\"", false),
            ("\"\\u0000\"", false),
            ("\"\\u007f\"", false),
        ] {
            assert_eq!(serde_json::from_str::<OwnKey>(json).is_ok(), good, "{json}");
        }
        let longest = format!("\"{}\"", "k".repeat(KEY_LENGTH_MAX));
        assert!(serde_json::from_str::<OwnKey>(&longest).is_ok());
        let too_long = format!("\"{}\"", "k".repeat(KEY_LENGTH_MAX + 1));
        assert!(serde_json::from_str::<OwnKey>(&too_long).is_err());
    }
}
