//! The part of HTTP/1.1 that a load generator needs: requests as bytes that are built once, and the
//! status and length of an answer. It must stay cheap: it runs once per answer of a run.
use std::net::SocketAddr;

/// The kind of content at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An answer that needs more bytes.
    Incomplete,
    /// An answer that ends `length` bytes into the buffer; the head is the first `head` of them.
    Complete { status: u16, head: usize, length: usize, close: bool },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not HTTP/1.1 with a Content-Length")]
pub struct Malformed;

/// Reads one answer from the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if bytes.len() < 12 {
        return Ok(Parsed::Incomplete);
    }
    if !bytes.starts_with(b"HTTP/1.1 ") {
        return Err(Malformed);
    }
    let status = number(&bytes[9..12]).ok_or(Malformed)?;
    let status = u16::try_from(status).map_err(|_| Malformed)?;
    let (mut body, mut close, mut at) = (None, false, 12);
    loop {
        let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') else {
            return Ok(Parsed::Incomplete);
        };
        let line = bytes[at..at + end].trim_ascii();
        at += end + 1;
        if line.is_empty() && at > 14 {
            break;
        }
        // One look at the first letter spares the comparison of most header lines.
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value_of(line, b"content-length") {
                    body = Some(number(value).ok_or(Malformed)?);
                } else if let Some(value) = value_of(line, b"connection") {
                    close = value.eq_ignore_ascii_case(b"close");
                }
            }
            Some(b't' | b'T') if value_of(line, b"transfer-encoding").is_some() => return Err(Malformed),
            _ => {}
        }
    }
    // Answers 204 and 304 have no body and need not say so.
    let body = if matches!(status, 204 | 304) { 0 } else { body.ok_or(Malformed)? };
    let length = at + body;
    if bytes.len() < length {
        return Ok(Parsed::Incomplete);
    }
    Ok(Parsed::Complete { status, head: at, length, close })
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (head, tail) = line.split_at_checked(name.len())?;
    let value = tail.strip_prefix(b":")?;
    head.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes()
}

pub fn post_json(address: SocketAddr, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\ncontent-length: 4\r\nContent-Type: a/b\r\n\r\nbody";

    #[test]
    fn an_answer_is_complete_exactly_with_its_last_byte() {
        for cut in 0..ACCEPTED.len() {
            assert_eq!(parse(&ACCEPTED[..cut]), Ok(Parsed::Incomplete), "after {cut} bytes");
        }
        let (head, length) = (ACCEPTED.len() - 4, ACCEPTED.len());
        let complete = Parsed::Complete { status: 202, head, length, close: false };
        assert_eq!(parse(ACCEPTED), Ok(complete));
        let two = [ACCEPTED, ACCEPTED].concat();
        assert_eq!(parse(&two), Ok(complete), "a second answer behind it changes nothing");
    }

    #[test]
    fn header_names_are_read_in_any_case_and_spacing() {
        let answer = b"HTTP/1.1 503 x\r\nCONTENT-LENGTH:   2  \r\nConnection:CLOSE\r\n\r\nok";
        let length = answer.len();
        assert_eq!(
            parse(answer),
            Ok(Parsed::Complete { status: 503, head: length - 2, length, close: true })
        );
    }

    #[test]
    fn answers_without_a_body_need_no_length() {
        let answer = b"HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n";
        let length = answer.len();
        assert_eq!(parse(answer), Ok(Parsed::Complete { status: 304, head: length, length, close: false }));
    }

    #[test]
    fn what_cannot_be_counted_is_refused_instead_of_guessed() {
        for bad in [
            &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            b"SSH-2.0-OpenSSH_9",
        ] {
            assert_eq!(parse(bad), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_request_names_the_length_of_its_body() {
        let request = post_json("127.0.0.1:80".parse().expect("an address"), "/x", r#"{"by":1}"#);
        let text = String::from_utf8(request).expect("text");
        assert!(text.starts_with("POST /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 8\r\n\r\n{\"by\":1}"), "{text}");
    }
}
