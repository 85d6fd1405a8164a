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
use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING,
};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;
use shared::json::{self, Flaw};

use self::object::OfObject;
use crate::connection::Pace;
use crate::measure::metrics;
use crate::memory_budget::{Arriving, MemoryBudget, NoRoom};
use crate::problem::{Problem, Rejected};

/// Longest explanation of one error: it may quote the client.
const DETAIL_LENGTH_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub items_max: usize,
    pub item_bytes_max: usize,
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
    let media_type = MediaType::of(headers)?;
    if matches!(length, Length::Announced(0)) {
        return Ok((media_type.classify(Bytes::new())?, budget.arriving()));
    }
    // A client that asks before it sends is spared the sending.
    if media_type == MediaType::Other && request.head().expect() {
        return Err(MediaType::unread());
    }
    let mut arriving = budget.arriving();
    let bytes = {
        let pace = request.conn_data::<Rc<Pace>>().map(|pace| &**pace);
        let mut collected = pin!(collect(&mut payload, length, limits, &mut arriving, pace));
        // Most bodies are here with their head: no timer for those.
        match collected.as_mut().now_or_never() {
            Some(bytes) => bytes,
            None => actix_web::rt::time::timeout(limits.timeout, collected)
                .await
                .map_err(|_| Problem::body_timeout())?,
        }
    };
    Ok((media_type.classify(bytes?)?, arriving))
}

/// Refuses what is sent in an encoding, even where no body is read.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(CONTENT_ENCODING) {
        Err(Problem::unsupported_media_type("content encodings are not accepted on requests"))
    } else {
        Ok(())
    }
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
    Ok(each(lines_of(text, limits.items_max)?, |line| one(line, limits.item_bytes_max)))
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
    Ok(each(lines_of(text, items_max)?, |line| one_raw(line, &take)))
}

/// The lines that hold something.
fn lines_of(text: &[u8], items_max: usize) -> Result<impl Iterator<Item = &[u8]>, Problem> {
    let blank = |line: &&[u8]| line.iter().all(u8::is_ascii_whitespace);
    let lines = move || text.split(|byte| *byte == b'\n').filter(move |line| !blank(line));
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

/// Ends with the announced length: behind an `Upgrade` that nobody wants the server knows of no other end.
async fn collect(
    payload: &mut Payload,
    length: Length,
    limits: &BodyLimits,
    arriving: &mut Arriving<'_>,
    pace: Option<&Pace>,
) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut whole: Option<BytesMut> = None;
    let mut bytes = 0;
    loop {
        let missing = if let Length::Announced(length) = length { length - bytes } else { 0 };
        let want = || pace.into_iter().for_each(|pace| pace.want(missing));
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

/// The media type that a body is sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MediaType {
    Json,
    Lines,
    /// Nothing, or something that is not read: without a body it does not matter.
    Other,
}

impl MediaType {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let media_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        let mut parts = media_type.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let essence = parts.next().unwrap_or_default();
        if parts.any(is_foreign_charset) {
            return Err(Problem::unsupported_media_type("the only charset is utf-8"));
        }
        let is = |expected: &str| essence.eq_ignore_ascii_case(expected.as_bytes());
        Ok(match () {
            () if is("application/json") => Self::Json,
            () if is("application/x-ndjson") => Self::Lines,
            () => Self::Other,
        })
    }

    fn classify(self, bytes: Bytes) -> Result<Body, Problem> {
        match self {
            Self::Lines => Ok(Body::Lines(bytes)),
            _ if bytes.is_empty() => Ok(Body::Empty),
            Self::Other => Err(Self::unread()),
            Self::Json if bytes.trim_ascii_start().first() == Some(&b'[') => Ok(Body::Array(bytes)),
            Self::Json => Ok(Body::One(bytes)),
        }
    }

    fn unread() -> Problem {
        let detail = "a body needs Content-Type: application/json or application/x-ndjson";
        Problem::unsupported_media_type(detail)
    }
}

/// Whether a parameter of a media type names a charset that is not read.
fn is_foreign_charset(parameter: &[u8]) -> bool {
    let mut parts = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    name.eq_ignore_ascii_case(b"charset") && !unquoted.eq_ignore_ascii_case(b"utf-8")
}

fn one_borrowed<'a, T: serde::Deserialize<'a>>(json: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| Problem::malformed(shorten(&error.to_string())))
}

/// Why an item could not be read. Only now the path of the error is worth finding.
fn explain<T: DeserializeOwned>(json: &[u8]) -> Problem {
    // Broken JSON is malformed, whatever a reader stumbles over before it comes to the break.
    let whole: &RawValue = match one_borrowed(json) {
        Ok(whole) => whole,
        Err(problem) => return problem,
    };
    // Of these a reader says too little, and other things than the check of documents.
    if let Err(flawed) = json::check(whole.get())
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
    let detail = shorten(&error.inner().to_string());
    Problem::invalid_at(shorten(&pointer), detail)
}

/// Cuts what quotes a client.
pub fn shorten(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests;
