//! Reads request bodies: media type, size, time, and what JSON is in them.
//!
//! Nothing is read from a body that came with a content encoding, and nothing waits for a body
//! longer than the limit. It must not know what the items mean.
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use crate::problem::{Invalid, Problem, Rejected};

/// Longest explanation of one error: it may quote the client.
const DETAIL_LENGTH_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub items_max: usize,
    pub timeout: Duration,
}

/// What a body is, by its media type and first character.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    Empty,
    One(Bytes),
    Array(Bytes),
    Lines(Bytes),
}

/// The items of an array or NDJSON body; both lists carry the position in the request.
#[derive(Debug)]
pub struct Items<T> {
    pub valid: Vec<(usize, T)>,
    pub rejected: Vec<Rejected>,
}

/// Memory for the bodies of all requests in work.
#[derive(Debug)]
pub struct BodyBudget {
    taken: AtomicUsize,
    bytes_max: usize,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reserved<'a> {
    budget: &'a BodyBudget,
    bytes: usize,
}

impl BodyBudget {
    pub fn new(bytes_max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), bytes_max }
    }

    /// Reserves what the request announces; one that announces nothing may send the most.
    pub fn reserve(&self, request: &HttpRequest, limits: &BodyLimits) -> Result<Reserved<'_>, Problem> {
        let headers = request.headers();
        let unannounced = if headers.contains_key(TRANSFER_ENCODING) { limits.bytes_max } else { 0 };
        let bytes = announced_length(headers).unwrap_or(unannounced).min(limits.bytes_max);
        let reserved = Reserved { budget: self, bytes };
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.bytes_max { Err(Problem::overloaded()) } else { Ok(reserved) }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads the whole body within the limits.
pub async fn read(request: &HttpRequest, mut payload: Payload, limits: &BodyLimits) -> Result<Body, Problem> {
    let headers = request.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::unsupported_media_type("content encodings are not accepted on requests"));
    }
    let too_large = || Problem::too_large(format!("a body has {} bytes at most", limits.bytes_max));
    if announced_length(headers).is_some_and(|length| length > limits.bytes_max) {
        return Err(too_large());
    }
    let mut collected = pin!(collect(&mut payload, limits.bytes_max));
    // Most bodies are here with their head: no timer for those.
    let bytes = match collected.as_mut().now_or_never() {
        Some(bytes) => bytes,
        None => actix_web::rt::time::timeout(limits.timeout, collected)
            .await
            .map_err(|_| Problem::body_timeout())?,
    };
    classify(headers, bytes?.ok_or_else(too_large)?)
}

/// Reads one item.
pub fn one<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| explain::<T>(json, &error))
}

/// Reads an array, each item for itself. A syntax error spoils the whole.
pub fn array<T: DeserializeOwned>(json: &[u8], items_max: usize) -> Result<Items<T>, Problem> {
    if let Ok(items) = serde_json::from_slice::<Vec<T>>(json) {
        check_count(items.len(), items_max)?;
        return Ok(Items { valid: items.into_iter().enumerate().collect(), rejected: Vec::new() });
    }
    let raw: Vec<&RawValue> = one_borrowed(json)?;
    check_count(raw.len(), items_max)?;
    Ok(each(raw.into_iter().map(|item| item.get().as_bytes())))
}

/// Reads one item per line, blank lines aside. A syntax error spoils its line.
pub fn lines<T: DeserializeOwned>(text: &[u8], items_max: usize) -> Result<Items<T>, Problem> {
    let blank = |line: &&[u8]| line.iter().all(u8::is_ascii_whitespace);
    let lines = || text.split(|byte| *byte == b'\n').filter(|line| !blank(line));
    check_count(lines().take(items_max + 1).count(), items_max)?;
    Ok(each(lines()))
}

fn each<'a, T: DeserializeOwned>(items: impl Iterator<Item = &'a [u8]>) -> Items<T> {
    let mut read = Items { valid: Vec::new(), rejected: Vec::new() };
    for (index, json) in items.enumerate() {
        match one(json) {
            Ok(item) => read.valid.push((index, item)),
            Err(problem) => read.rejected.push(Rejected { index, problem }),
        }
    }
    read
}

fn check_count(count: usize, items_max: usize) -> Result<(), Problem> {
    if count > items_max {
        Err(Problem::too_large(format!("a request has {items_max} items at most")))
    } else if count == 0 {
        let detail = "at least one item is needed".into();
        Err(Problem::invalid(vec![Invalid { pointer: Some(String::new()), parameter: None, detail }]))
    } else {
        Ok(())
    }
}

fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `None` when it is too large.
async fn collect(payload: &mut Payload, bytes_max: usize) -> Result<Option<Bytes>, Problem> {
    let broken = |_| Problem::malformed("the body could not be read");
    let Some(first) = payload.next().await.transpose().map_err(broken)? else {
        return Ok(Some(Bytes::new()));
    };
    let mut whole: Option<BytesMut> = None;
    while let Some(chunk) = payload.next().await.transpose().map_err(broken)? {
        let whole = whole.get_or_insert_with(|| BytesMut::from(&first[..]));
        if whole.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    let bytes = whole.map_or(first, BytesMut::freeze);
    Ok((bytes.len() <= bytes_max).then_some(bytes))
}

fn classify(headers: &HeaderMap, bytes: Bytes) -> Result<Body, Problem> {
    let media_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let essence = media_type.and_then(|mut parts| parts.next()).map(<[u8]>::trim_ascii);
    let is = |expected: &str| essence.is_some_and(|given| given.eq_ignore_ascii_case(expected.as_bytes()));
    if is("application/x-ndjson") {
        return Ok(Body::Lines(bytes));
    }
    if bytes.is_empty() {
        return Ok(Body::Empty);
    }
    if !is("application/json") {
        let detail = "a body needs Content-Type: application/json or application/x-ndjson";
        return Err(Problem::unsupported_media_type(detail));
    }
    match bytes.trim_ascii_start().first() {
        Some(b'[') => Ok(Body::Array(bytes)),
        _ => Ok(Body::One(bytes)),
    }
}

fn one_borrowed<'a, T: serde::Deserialize<'a>>(json: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::malformed(shorten(&error.to_string()))
}

/// Only now the path of the error is worth finding.
fn explain<T: DeserializeOwned>(json: &[u8], error: &serde_json::Error) -> Problem {
    // 1e999 is good JSON; serde_json files it under syntax all the same.
    let out_of_range = error.to_string().starts_with("number out of range");
    if error.classify() != Category::Data && !out_of_range {
        return malformed(error);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) else {
        return malformed(error);
    };
    let mut pointer = String::new();
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => pointer.extend(["/", &index.to_string()]),
            Segment::Map { key } => {
                pointer.extend(["/", &key.replace('~', "~0").replace('/', "~1")]);
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    let detail = shorten(&error.inner().to_string());
    Problem::invalid(vec![Invalid { pointer: Some(shorten(&pointer)), parameter: None, detail }])
}

/// Cuts what quotes a client.
pub fn shorten(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: i64,
    }

    fn shown(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(problem).expect("serialises")
    }

    #[test]
    fn an_error_points_at_its_field() {
        let problem = shown(&one::<Point>(br#"{"x":"one"}"#).expect_err("a string"));
        assert_eq!(problem["status"], 422);
        assert_eq!(problem["errors"][0]["pointer"], "/x");
        let problem = shown(&one::<Point>(br#"{"x":1"#).expect_err("cut off"));
        assert_eq!(problem["status"], 400);
    }

    #[test]
    fn a_bad_item_of_an_array_is_told_by_its_index_and_the_rest_is_taken() {
        let items = array::<Point>(br#"[{"x":1},{"y":1},{"x":1e3},{"x":4}]"#, 4).expect("an array");
        assert_eq!(items.valid, [(0, Point { x: 1 }), (3, Point { x: 4 })]);
        assert_eq!(items.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_syntax_error_spoils_a_whole_array_but_one_line_only() {
        let problem = array::<Point>(br#"[{"x":1},{"x":]"#, 9).expect_err("broken");
        assert_eq!(problem.status().as_u16(), 400);
        let items = lines::<Point>(b"{\"x\":1}\n\n{\"x\":\r\n{\"x\":3}\n", 9).expect("lines");
        assert_eq!(items.valid, [(0, Point { x: 1 }), (2, Point { x: 3 })]);
        assert_eq!(shown(&items.rejected[0].problem)["status"], json!(400));
    }

    #[test]
    fn the_number_of_items_is_limited_on_both_sides() {
        for (text, status) in [("[]", 422), ("[{\"x\":1},{\"x\":2},{\"x\":3}]", 413)] {
            let problem = array::<Point>(text.as_bytes(), 2).expect_err("out of bounds");
            assert_eq!(problem.status().as_u16(), status, "{text}");
        }
        let problem = lines::<Point>(b"1\n2\n3\n", 2).expect_err("too many");
        assert_eq!(problem.status().as_u16(), 413);
    }

    #[test]
    fn bodies_share_a_budget_and_give_their_part_back() {
        use actix_web::test::TestRequest;
        let limits = BodyLimits { bytes_max: 60, items_max: 1, timeout: Duration::from_secs(1) };
        let budget = BodyBudget::new(100);
        let announced = TestRequest::default().insert_header((CONTENT_LENGTH, "60")).to_http_request();
        let chunked = TestRequest::default().insert_header((TRANSFER_ENCODING, "chunked")).to_http_request();
        let empty = TestRequest::default().to_http_request();
        let held = budget.reserve(&announced, &limits).expect("fits");
        let refused = budget.reserve(&chunked, &limits).expect_err("would be 120 of 100");
        assert_eq!(refused.status().as_u16(), 503);
        budget.reserve(&empty, &limits).expect("needs nothing");
        drop(held);
        budget.reserve(&chunked, &limits).expect("fits again");
    }

    #[test]
    fn quoted_input_is_cut() {
        let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(5_000));
        let problem = shown(&one::<Point>(long.as_bytes()).expect_err("a string"));
        assert!(problem.to_string().len() < 1_000);
    }
}
