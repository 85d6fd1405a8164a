//! Answers to heads that the HTTP library refuses by itself, before there is a request.
//!
//! Such an answer of the library has a status and nothing else. [`Connection`](crate::http::connection) finds it
//! among what is written and sends what [`render`] makes in its place: a problem with an id, as for every
//! other request. Nothing here reads or writes.
use actix_web::http::StatusCode;
use actix_web::web::Bytes;

use crate::http::problem::Problem;
use crate::metrics::NO_ROUTE;

/// Longest target that the library takes, in bytes.
const TARGET_BYTES_MAX: usize = 65_534;

/// Most that an answer of the library has, in bytes.
const REFUSAL_BYTES_MAX: usize = 256;

/// Follows what comes in, to tell a target that is too long from other broken heads: a word behind a
/// method, wherever it stands, since a body has no end of line before the next head.
#[derive(Debug, Default)]
pub struct Targets {
    last: u8,
    word_bytes: usize,
    is_target: bool,
    had_long_one: bool,
}

impl Targets {
    /// Takes what was read.
    pub fn take(&mut self, read: &[u8]) {
        let is_separator = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        for part in read.split_inclusive(is_separator) {
            match part.split_last() {
                Some((separator, word)) if is_separator(separator) => {
                    self.extend(word);
                    self.is_target = *separator == b' ' && self.last.is_ascii_uppercase();
                    self.last = *separator;
                    self.word_bytes = 0;
                }
                _ => self.extend(part),
            }
        }
    }

    fn extend(&mut self, word: &[u8]) {
        let (Some(first), Some(last)) = (word.first(), word.last()) else { return };
        if self.word_bytes == 0 {
            self.is_target &= matches!(first, b'/' | b'h' | b'H' | b'*');
        }
        self.word_bytes += word.len();
        self.last = *last;
        self.had_long_one |= self.is_target && self.word_bytes > TARGET_BYTES_MAX;
    }
}

/// Where in what is written the library's refusal begins, which is always the last answer, and its status.
pub fn find(written: &[u8]) -> Option<(usize, StatusCode)> {
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = written.len().saturating_sub(REFUSAL_BYTES_MAX);
    let start = from + written[from..].windows(7).rposition(|bytes| bytes == b"HTTP/1.")?;
    let head = std::str::from_utf8(&written[start..]).ok()?;
    let status = StatusCode::from_bytes(head.get(9..12)?.as_bytes()).ok()?;
    // Every answer of a handler names its request; no id has a space, so none looks like a status line.
    let is_own = !head.to_ascii_lowercase().contains("\r\nx-request-id:");
    (is_own && (status.is_client_error() || status.is_server_error())).then_some((start, status))
}

/// The answer in its place. Counts it as one to no route.
pub fn render(status: StatusCode, targets: &Targets, request_id: &str) -> Bytes {
    let problem = match status {
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if targets.had_long_one => {
            Problem::target_too_long(TARGET_BYTES_MAX)
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Problem::head_too_large(),
        StatusCode::REQUEST_TIMEOUT => Problem::head_timeout(),
        StatusCode::BAD_REQUEST => {
            Problem::malformed("the head of the request, or the framing of its body, is broken")
        }
        _ => Problem::internal(),
    };
    let (status, body) = (problem.status(), serde_json::to_string(&problem).unwrap_or_default());
    NO_ROUTE.observe(status.as_u16(), std::time::Duration::ZERO);
    let reason = status.canonical_reason().unwrap_or("Error");
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         x-request-id: {request_id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_long_target(chunks: &[&str]) -> bool {
        let mut targets = Targets::default();
        for chunk in chunks {
            targets.take(chunk.as_bytes());
        }
        targets.had_long_one
    }

    #[test]
    fn a_long_target_is_known_however_it_comes_and_whatever_came_before() {
        let long = "a".repeat(TARGET_BYTES_MAX + 1);
        let (first, second) = long.split_at(100);
        let good = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n";
        for chunks in [
            &[&*format!("GET /{long}")][..],
            &["GE", "T ", "/", first, second],
            &[&format!("{good}{good}GET /{first}"), second, " HTTP/1.1"],
            &[&format!("POST /a HTTP/1.1\r\n\r\n{{\"a\":1}}GET http://a/{long}")],
        ] {
            assert!(has_long_target(chunks));
        }
        for chunks in [
            &[&*format!("GET / HTTP/1.1\r\na: {long}")][..],
            &["POST / HTTP/1.1\r\n\r\n", &format!("\"{long}\"")],
            &[&format!("GET /{first}"), " HTTP/1.1\r\n\r\n"],
            &[&long],
            &[],
        ] {
            assert!(!has_long_target(chunks));
        }
    }

    #[test]
    fn a_refusal_of_the_library_is_found_behind_other_answers_and_no_answer_of_a_handler_is_one() {
        let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\nx-request-id: a\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(find(refusal.as_bytes()), Some((0, StatusCode::BAD_REQUEST)));
        let both = [answer, refusal].concat();
        assert_eq!(find(both.as_bytes()), Some((answer.len(), StatusCode::BAD_REQUEST)));
        for other in [
            answer,
            "HTTP/1.1 404 Not Found\r\nX-Request-Id: a\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert_eq!(find(other.as_bytes()), None, "{other}");
        }
    }
}
