//! Clients that write without a pause over connections that are kept alive, and keep a ledger.
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The way in which a client writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Single,
    /// Five items at once.
    Array,
    /// One item, and a wait for its outcome.
    Wait,
}

impl Kind {
    fn items(self) -> i64 {
        if self == Self::Array { 5 } else { 1 }
    }

    /// Builds a write to the counter of this name.
    fn request(self, counter: &str) -> String {
        let (headers, body) = match self {
            Self::Single => ("", ""),
            Self::Array => ("content-type: application/json\r\n", "[{},{},{},{},{}]"),
            Self::Wait => ("prefer: wait=30\r\n", ""),
        };
        let length = body.len();
        format!(
            "POST /v1/counters/{counter}/increments HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n{body}"
        )
    }
}

/// The record of a client, counted in items.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// Writes answered with 200 or 202.
    pub accepted: i64,
    /// Writes whose connection was closed before a byte of an answer.
    pub unanswered: i64,
    /// Writes whose connection ended within an answer.
    pub torn: i64,
    /// Writes with any other answer.
    pub refused: i64,
}

/// The outcome of one request.
#[derive(Debug)]
pub enum Answered {
    Whole { status: u16, closes: bool },
    Torn,
    Never,
}

/// Writes until no server listens any more.
pub async fn write_without_pause(address: String, kind: Kind, counter: String) -> Ledger {
    let (request, mut ledger) = (kind.request(&counter), Ledger::default());
    while let Ok(mut stream) = TcpStream::connect(&address).await {
        loop {
            let closes = match ask(&mut stream, &request).await {
                Answered::Whole { status: 200 | 202, closes } => {
                    ledger.accepted += kind.items();
                    closes
                }
                Answered::Whole { closes, .. } => {
                    ledger.refused += kind.items();
                    closes
                }
                Answered::Torn => {
                    ledger.torn += kind.items();
                    true
                }
                Answered::Never => {
                    ledger.unanswered += kind.items();
                    true
                }
            };
            if closes {
                break;
            }
        }
    }
    ledger
}

/// Sends one request on a connection and reads its whole answer.
pub async fn ask(stream: &mut TcpStream, request: &str) -> Answered {
    if stream.write_all(request.as_bytes()).await.is_err() {
        return Answered::Never;
    }
    let mut answer = Vec::new();
    loop {
        if let Some(whole) = whole(&answer) {
            return whole;
        }
        let read = tokio::time::timeout(Duration::from_mins(1), stream.read_buf(&mut answer));
        if !matches!(read.await.expect("an answer in time"), Ok(1..)) {
            return if answer.is_empty() { Answered::Never } else { Answered::Torn };
        }
    }
}

/// Parses the answer once all of it is there.
fn whole(answer: &[u8]) -> Option<Answered> {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = header("content-length:").map_or(0, |length| length.parse().expect("a number"));
    if body.len() < length {
        return None;
    }
    let status = head.split(' ').nth(1)?.parse().expect("a status");
    Some(Answered::Whole { status, closes: header("connection:") == Some("close") })
}
