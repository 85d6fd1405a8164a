//! Reads request bodies: media type, size, time, and what JSON is in them.
//!
//! Nothing is read from a body that came with a content encoding, and nothing waits for a body
//! longer than the limit. It must not know what the items mean.
mod object;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING,
};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;
use shared::model::json_rules::{self, Flaw};
use shared::model::read_error;

use self::object::OfObject;
use crate::admission::memory_budget::{Arriving, MemoryBudget, NoRoom};
use crate::http::connection_state::ConnectionState;
use crate::http::header;
use crate::http::problem::{Problem, Rejected};
use crate::metrics::metrics;

/// The mark of UTF-8, which some editors and spreadsheets write before every text (RFC 8259, 8.1).
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Longest explanation of one error: it may quote the client.
const DETAIL_LENGTH_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub items_max: usize,
    pub item_bytes_max: usize,
    pub timeout: Duration,
}

/// Form of a body, by its media type and first character.
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

impl<T> Items<T> {
    /// Checks or changes the valid items further; those that fail are rejected, too.
    pub fn and_then<U>(self, take: impl Fn(T) -> Result<U, Problem>) -> Items<U> {
        let Self { valid, mut rejected } = self;
        let mut taken = Vec::with_capacity(valid.len());
        for (index, item) in valid {
            match take(item) {
                Ok(item) => taken.push((index, item)),
                Err(problem) => rejected.push(Rejected { index, problem }),
            }
        }
        rejected.sort_by_key(|rejected| rejected.index);
        Items { valid: taken, rejected }
    }
}

/// Reads the whole body within the limits, with the room that it takes.
pub async fn read<'a>(
    request: &HttpRequest,
    payload: Payload,
    limits: &BodyLimits,
    budget: &'a MemoryBudget,
) -> Result<(Body, Arriving<'a>), Problem> {
    read_as(Taken::All, request, payload, limits, budget).await
}

/// Reads a body that is one JSON text, with the room that it takes; `None` without a body.
pub async fn read_json<'a>(
    request: &HttpRequest,
    payload: Payload,
    limits: &BodyLimits,
    budget: &'a MemoryBudget,
) -> Result<(Option<Bytes>, Arriving<'a>), Problem> {
    let (body, arriving) = read_as(Taken::Json, request, payload, limits, budget).await?;
    let json = match body {
        Body::One(json) | Body::Array(json) | Body::Lines(json) => Some(json),
        Body::Empty => None,
    };
    Ok((json, arriving))
}

async fn read_as<'a>(
    taken: Taken,
    request: &HttpRequest,
    mut payload: Payload,
    limits: &BodyLimits,
    budget: &'a MemoryBudget,
) -> Result<(Body, Arriving<'a>), Problem> {
    let headers = request.headers();
    check_encoding(headers)?;
    let length = length_of(headers);
    if matches!(length, Length::Announced(length) if length > limits.bytes_max) {
        return Err(too_large(limits));
    }
    let media_type = MediaType::of(headers, taken)?;
    if matches!(length, Length::Announced(0)) {
        return Ok((media_type.classify(Bytes::new(), taken)?, budget.arriving()));
    }
    // A client that asks before it sends is spared the sending.
    if media_type == MediaType::Other && request.head().expect() {
        return Err(MediaType::unread(taken));
    }
    let mut arriving = budget.arriving();
    let bytes = {
        let state = request.conn_data::<Rc<ConnectionState>>().map(|state| &**state);
        let mut collected = pin!(collect(&mut payload, length, limits, &mut arriving, state));
        // Most bodies are here with their head: no timer for those.
        match collected.as_mut().now_or_never() {
            Some(bytes) => bytes,
            None => actix_web::rt::time::timeout(limits.timeout, collected)
                .await
                .map_err(|_| Problem::body_timeout())?,
        }
    };
    Ok((media_type.classify(bytes?, taken)?, arriving))
}

/// Refuses what is sent in an encoding, even where no body is read.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(CONTENT_ENCODING) { Err(Problem::unsupported_encoding()) } else { Ok(()) }
}

/// Refuses an item that is larger than items may be, as it stands in its request.
pub fn check_item_size(item: &[u8], item_bytes_max: usize) -> Result<(), Problem> {
    if item.len() <= item_bytes_max {
        Ok(())
    } else {
        Err(Problem::too_large(format!("an item has {item_bytes_max} bytes at most")))
    }
}

/// Reads one item, an object.
pub fn one<T: DeserializeOwned>(json: &[u8], item_bytes_max: usize) -> Result<T, Problem> {
    check_item_size(json.trim_ascii(), item_bytes_max)?;
    let read = serde_json::from_slice::<OfObject<T>>(json);
    read.map(|OfObject(item)| item).map_err(|_| explain::<OfObject<T>>(json))
}

/// Reads an array, each item for itself. A syntax error spoils the whole.
pub fn array<T: DeserializeOwned>(json: &[u8], limits: &BodyLimits) -> Result<Items<T>, Problem> {
    let &BodyLimits { items_max, item_bytes_max, .. } = limits;
    // No item is larger than the whole.
    if json.len() <= item_bytes_max
        && let Ok(items) = serde_json::from_slice::<Vec<OfObject<T>>>(json)
    {
        check_count(items.len(), items_max)?;
        let valid = items.into_iter().map(|OfObject(item)| item).enumerate().collect();
        return Ok(Items { valid, rejected: Vec::new() });
    }
    let raw: Vec<&RawValue> = one_borrowed(json)?;
    check_count(raw.len(), items_max)?;
    Ok(each(raw.into_iter().map(|item| item.get().as_bytes()), |item| one(item, item_bytes_max)))
}

/// Reads one item per line, blank lines aside. A syntax error spoils its line.
pub fn lines<T: DeserializeOwned>(text: &[u8], limits: &BodyLimits) -> Result<Items<T>, Problem> {
    let read = |line| one(line, limits.item_bytes_max);
    Ok(each(lines_of(text, limits.items_max)?, |line| line.read(read)))
}

/// Takes one item as the client wrote it.
pub fn one_raw<T>(json: &[u8], take: impl Fn(&RawValue) -> Result<T, Problem>) -> Result<T, Problem> {
    one_borrowed::<&RawValue>(json).and_then(take)
}

/// Takes the items of an array as the client wrote them. A syntax error spoils the whole.
pub fn array_raw<T>(
    json: &[u8],
    items_max: usize,
    take: impl Fn(&RawValue) -> Result<T, Problem>,
) -> Result<Items<T>, Problem> {
    let raw: Vec<&RawValue> = one_borrowed(json)?;
    check_count(raw.len(), items_max)?;
    Ok(each(raw.into_iter(), take))
}

/// Takes one item per line as the client wrote it. A syntax error spoils its line.
pub fn lines_raw<T>(
    text: &[u8],
    items_max: usize,
    take: impl Fn(&RawValue) -> Result<T, Problem>,
) -> Result<Items<T>, Problem> {
    Ok(each(lines_of(text, items_max)?, |line| line.read(|text| one_raw(text, &take))))
}

/// A line of a body, and which it is, from 1.
struct Line<'a> {
    text: &'a [u8],
    number: usize,
}

impl<'a> Line<'a> {
    /// Reads it; where it is no JSON the problem names the place in the body.
    fn read<T>(&self, read: impl Fn(&'a [u8]) -> Result<T, Problem>) -> Result<T, Problem> {
        read(self.text).map_err(|problem| {
            // A size is refused before anything is read.
            let broken = serde_json::from_slice::<&RawValue>(self.text).err();
            match broken.filter(|_| problem.status() == StatusCode::BAD_REQUEST) {
                Some(error) => not_json(self.text, &error, self.number),
                None => problem,
            }
        })
    }
}

/// The lines that hold something.
fn lines_of(text: &[u8], items_max: usize) -> Result<impl Iterator<Item = Line<'_>>, Problem> {
    let blank = |line: &Line<'_>| line.text.iter().all(u8::is_ascii_whitespace);
    let line = |(index, text)| Line { text, number: index + 1 };
    let all = move || text.split(|byte| *byte == b'\n').enumerate().map(line);
    let lines = move || all().filter(move |line| !blank(line));
    check_count(lines().take(items_max + 1).count(), items_max)?;
    Ok(lines())
}

fn each<I, T>(items: impl Iterator<Item = I>, take: impl Fn(I) -> Result<T, Problem>) -> Items<T> {
    let mut read = Items { valid: Vec::new(), rejected: Vec::new() };
    for (index, item) in items.enumerate() {
        match take(item) {
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
        Err(Problem::invalid_at("", "at least one item is needed"))
    } else {
        Ok(())
    }
}

/// How long a body is.
#[derive(Clone, Copy, Debug)]
enum Length {
    Announced(usize),
    Chunked,
}

fn length_of(headers: &HeaderMap) -> Length {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Length::Chunked;
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    Length::Announced(announced.unwrap_or(0))
}

fn too_large(limits: &BodyLimits) -> Problem {
    Problem::too_large(format!("a body has {} bytes at most", limits.bytes_max))
}

/// Ends with the announced length: behind an unwanted `Upgrade` the server knows of no other end.
async fn collect(
    payload: &mut Payload,
    length: Length,
    limits: &BodyLimits,
    arriving: &mut Arriving<'_>,
    state: Option<&ConnectionState>,
) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut whole: Option<BytesMut> = None;
    let mut bytes = 0;
    loop {
        let missing = if let Length::Announced(length) = length { length - bytes } else { 0 };
        let want = || state.into_iter().for_each(|state| state.want(missing));
        let Some(mut chunk) = next_chunk(payload, arriving, want).await? else { break };
        if let Length::Announced(length) = length {
            chunk.truncate(length - bytes);
        }
        bytes += chunk.len();
        if bytes > limits.bytes_max {
            return Err(too_large(limits));
        }
        arriving.grow(chunk.len()).map_err(no_room)?;
        if first.is_empty() {
            first = chunk;
        } else {
            whole.get_or_insert_with(|| BytesMut::from(&first[..])).extend_from_slice(&chunk);
        }
        if matches!(length, Length::Announced(length) if length == bytes) {
            break;
        }
    }
    Ok(whole.map_or(first, BytesMut::freeze))
}

/// Gives up when the room of what has arrived is needed for others. Calls `want` when it has to wait.
async fn next_chunk(
    payload: &mut Payload,
    arriving: &mut Arriving<'_>,
    want: impl Fn(),
) -> Result<Option<Bytes>, Problem> {
    let next = poll_fn(|cx| match payload.poll_next_unpin(cx) {
        Poll::Ready(chunk) => Poll::Ready(Ok(chunk)),
        Poll::Pending => {
            want();
            arriving.poll_refused(cx).map(Err)
        }
    });
    next.await.map_err(no_room)?.transpose().map_err(|_| Problem::malformed("the body could not be read"))
}

fn no_room(_: NoRoom) -> Problem {
    metrics().room.bodies_refused.inc();
    Problem::overloaded()
}

/// Media types that a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    All,
    Json,
}

impl Taken {
    /// Returns the value of `Accept`; every type that ends with `+json` is taken, too.
    fn media_types(self) -> &'static str {
        match self {
            Self::All => "application/json, application/x-ndjson, application/ndjson, application/jsonl",
            Self::Json => "application/json",
        }
    }
}

/// The media type that a body is sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MediaType {
    Json,
    Lines,
    /// Nothing, or something that is not read: without a body it does not matter.
    Other,
}

impl MediaType {
    fn of(headers: &HeaderMap, taken: Taken) -> Result<Self, Problem> {
        let mut given = headers.get_all(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let mut parts = header::parts(given.next().unwrap_or_default(), b';');
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refuse = |detail| Err(Problem::unsupported_media_type(detail, taken.media_types()));
        if given.next().is_some() {
            return refuse("Content-Type is given more than once");
        }
        for part in parts {
            let (name, value) = header::parameter(part).unwrap_or((part, b""));
            match header::unquoted(value) {
                None => return refuse("a parameter of Content-Type has quotes that are no quoted string"),
                Some(value)
                    if name.eq_ignore_ascii_case(b"charset") && !value.eq_ignore_ascii_case(b"utf-8") =>
                {
                    return refuse("the only charset is utf-8");
                }
                Some(_) => {}
            }
        }
        Ok(match &*essence {
            b"application/json" => Self::Json,
            b"application/x-ndjson" | b"application/ndjson" | b"application/jsonl" if taken == Taken::All => {
                Self::Lines
            }
            essence if has_json_suffix(essence) => Self::Json,
            _ => Self::Other,
        })
    }

    fn classify(self, mut bytes: Bytes, taken: Taken) -> Result<Body, Problem> {
        if self != Self::Other && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes = bytes.slice(BYTE_ORDER_MARK.len()..);
        }
        match self {
            Self::Lines => Ok(Body::Lines(bytes)),
            _ if bytes.is_empty() => Ok(Body::Empty),
            Self::Other => Err(Self::unread(taken)),
            Self::Json if bytes.trim_ascii_start().first() == Some(&b'[') => Ok(Body::Array(bytes)),
            Self::Json => Ok(Body::One(bytes)),
        }
    }

    fn unread(taken: Taken) -> Problem {
        let detail = match taken {
            Taken::All => {
                "a body needs the header Content-Type: application/json, or application/x-ndjson for one item \
                 per line (curl: -H 'Content-Type: application/json')"
            }
            Taken::Json => {
                "a body needs the header Content-Type: application/json here \
                 (curl: -H 'Content-Type: application/json')"
            }
        };
        Problem::unsupported_media_type(detail, taken.media_types())
    }
}

/// A type of JSON with a meaning of its own, as `application/cloudevents+json` (RFC 6839).
fn has_json_suffix(essence: &[u8]) -> bool {
    let is_name = |text: &[u8]| {
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(byte);
        !text.is_empty() && text.iter().all(part)
    };
    let mut halves = essence.splitn(2, |byte| *byte == b'/');
    let (name, rest) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    is_name(name) && rest.strip_suffix(b"+json").is_some_and(is_name)
}

fn one_borrowed<'a, T: serde::Deserialize<'a>>(json: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| not_json(json, &error, 1))
}

fn not_json(json: &[u8], error: &serde_json::Error, line: usize) -> Problem {
    match misplaced_mark(json) {
        Some(detail) => Problem::malformed(detail),
        None => Problem::malformed(shorten(&read_error::syntax(error, line))),
    }
}

/// Explains a byte order mark where JSON should begin. The mark of UTF-8 is ignored before a body.
fn misplaced_mark(json: &[u8]) -> Option<&'static str> {
    let starts_with = |marks: &[&[u8]]| marks.iter().any(|mark| json.trim_ascii_start().starts_with(mark));
    if starts_with(&[BYTE_ORDER_MARK]) {
        Some("a byte order mark stands here; it is ignored only where a body begins, once")
    } else if starts_with(&[b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"]) {
        Some("a byte order mark says that this is UTF-16 or UTF-32; a body is UTF-8")
    } else {
        None
    }
}

/// Why an item could not be read. Only now the path of the error is worth finding.
fn explain<T: DeserializeOwned>(json: &[u8]) -> Problem {
    // Broken JSON is malformed, whatever a reader stumbles over before it comes to the break.
    let whole: &RawValue = match one_borrowed(json) {
        Ok(whole) => whole,
        Err(problem) => return problem,
    };
    // Of these a reader says too little, and other things than the check of documents.
    if let Err(flawed) = json_rules::check(whole.get())
        && matches!(flawed.flaw, Flaw::LoneSurrogate | Flaw::DuplicateKey)
    {
        return Problem::invalid_at(flawed.pointer, flawed.flaw.to_string());
    }
    let mut deserializer = serde_json::Deserializer::from_str(whole.get());
    let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) else {
        return Problem::malformed("the body could not be read");
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
    let detail = shorten(&read_error::plain(&error.inner().to_string()));
    Problem::invalid_at(shorten(&pointer), detail)
}

/// Cuts what quotes a client.
pub fn shorten(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests;
