//! Rules for a JSON text beyond being JSON: the limits of a document, and spellings that no reader could
//! tell apart. `docs/documents.md` lists them.
//!
//! The scan reads the text once, without building a tree; its work grows with the text alone, so members
//! are bounded by the bytes of an item (`server.item_bytes_max`). The text must be JSON already, as
//! [`RawValue`](serde_json::value::RawValue) is: the readers of bodies report syntax errors.
mod tree;

use std::borrow::Cow;

use serde_json::Number;

use crate::model::decimal::Decimal;

pub use self::tree::Tree;

/// Arrays and objects inside one another at most, the outermost included.
pub const DEPTH_MAX: usize = 64;

/// Digits of one number at most, those of its exponent included.
pub const DIGITS_MAX: usize = 1_000;

/// Largest exponent of a number, up and down. With [`DIGITS_MAX`] it keeps each number within `numeric` of
/// Postgres, so that a stored text can be read there as `jsonb`.
pub const EXPONENT_MAX: u32 = 9_999;

/// Longest JSON pointer that is reported, in bytes: it quotes the client.
const POINTER_BYTES_MAX: usize = 200;

/// Place of the text that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {flaw}")]
pub struct Flawed {
    /// JSON pointer (RFC 6901) to the value; to the object for a flaw of its keys.
    pub pointer: String,
    pub flaw: Flaw,
}

/// Reason for which it cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("arrays and objects are nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("a key stands there twice")]
    DuplicateKey,
    #[error("half of a surrogate pair is no character")]
    LoneSurrogate,
    #[error("a number has {DIGITS_MAX} digits at most")]
    Digits,
    #[error("an exponent lies between -{EXPONENT_MAX} and {EXPONENT_MAX}")]
    Exponent,
    #[error("a number of a schema is one that 64 bits hold without rounding")]
    Rounded,
    #[error("not JSON")]
    Syntax,
}

/// Checks a JSON text.
pub fn check(text: &str) -> Result<(), Flawed> {
    check_by(text, check_number)
}

/// Checks the text of a schema, whose numbers the validator reads into 64 bits.
pub fn check_schema(text: &str) -> Result<(), Flawed> {
    check_by(text, |number| held(number).map(|_| ()).ok_or(Flaw::Rounded))
}

/// Reads a number into 64 bits; `None` where they do not hold its exact value.
pub fn held(number: &str) -> Option<Number> {
    let held: Number = serde_json::from_str(number).ok()?;
    let exact = Decimal::parse(number)?;
    (Decimal::parse(&held.to_string())? == exact).then_some(held)
}

fn check_by(text: &str, check_number: fn(&str) -> Result<(), Flaw>) -> Result<(), Flawed> {
    let mut scan = Scan { text, at: 0, frames: Vec::new(), keys: Vec::new(), check_number };
    scan.run().map_err(|flaw| Flawed { pointer: scan.pointer(), flaw })
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    frames: Vec<Frame>,
    /// Keys of all objects that are open, the outermost first.
    keys: Vec<Cow<'a, str>>,
    check_number: fn(&str) -> Result<(), Flaw>,
}

/// An array or object that is open.
enum Frame {
    Array { index: usize },
    Object { first_key: usize, expects_key: bool },
}

impl<'a> Scan<'a> {
    fn run(&mut self) -> Result<(), Flaw> {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'{' => {
                    let first_key = self.keys.len();
                    self.open(Frame::Object { first_key, expects_key: true })?;
                }
                b'[' => self.open(Frame::Array { index: 0 })?,
                b'}' | b']' => self.close()?,
                b',' => self.next_value(),
                b'"' => self.string()?,
                b'-' | b'0'..=b'9' => {
                    let number = self.number();
                    (self.check_number)(number)?;
                }
                // Spaces, colons, and the letters of true, false and null.
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    fn open(&mut self, frame: Frame) -> Result<(), Flaw> {
        if self.frames.len() == DEPTH_MAX {
            return Err(Flaw::Depth);
        }
        self.frames.push(frame);
        self.at += 1;
        Ok(())
    }

    /// Sorting finds equal keys without a set per object.
    fn close(&mut self) -> Result<(), Flaw> {
        if let Some(Frame::Object { first_key, .. }) = self.frames.last() {
            let first_key = *first_key;
            let keys = &mut self.keys[first_key..];
            keys.sort_unstable();
            let twice = keys.windows(2).any(|pair| pair[0] == pair[1]);
            self.keys.truncate(first_key);
            if twice {
                return Err(Flaw::DuplicateKey);
            }
        }
        self.frames.pop();
        self.at += 1;
        Ok(())
    }

    fn next_value(&mut self) {
        match self.frames.last_mut() {
            Some(Frame::Array { index }) => *index += 1,
            Some(Frame::Object { expects_key, .. }) => *expects_key = true,
            None => {}
        }
        self.at += 1;
    }

    fn string(&mut self) -> Result<(), Flaw> {
        let (start, has_escapes) = (self.at, self.skip_string()?);
        let quoted = &self.text[start..self.at];
        if let Some(Frame::Object { expects_key, .. }) = self.frames.last_mut()
            && std::mem::take(expects_key)
        {
            self.keys.push(if has_escapes {
                serde_json::from_str(quoted).map(Cow::Owned).map_err(|_| Flaw::Syntax)?
            } else {
                Cow::Borrowed(&quoted[1..quoted.len() - 1])
            });
        }
        Ok(())
    }

    /// Goes behind the string that begins here; returns true when it has escapes.
    fn skip_string(&mut self) -> Result<bool, Flaw> {
        let bytes = self.text.as_bytes();
        let mut at = self.at + 1;
        let mut has_escapes = false;
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') if bytes.get(at + 1) == Some(&b'u') => {
                    at += check_escape(&bytes[at..])?;
                    has_escapes = true;
                }
                Some(b'\\') => {
                    at += 2;
                    has_escapes = true;
                }
                Some(_) => at += 1,
                None => return Err(Flaw::Syntax),
            }
        }
        self.at = at + 1;
        Ok(has_escapes)
    }

    fn number(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let part = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        let length = rest.bytes().position(|byte| !part(byte)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// JSON pointer to the place that the scan has reached.
    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for (depth, frame) in self.frames.iter().enumerate() {
            match frame {
                Frame::Array { index } => pointer.extend(["/", &index.to_string()]),
                Frame::Object { first_key, expects_key } => {
                    // The keys of the next open object begin behind the key that holds it.
                    let end = self.frames[depth + 1..].iter().find_map(|inner| match inner {
                        Frame::Object { first_key, .. } => Some(*first_key),
                        Frame::Array { .. } => None,
                    });
                    let keys = &self.keys[*first_key..end.unwrap_or(self.keys.len())];
                    if let Some(key) = keys.last().filter(|_| !expects_key) {
                        pointer.extend(["/", &key.replace('~', "~0").replace('/', "~1")]);
                    }
                }
            }
        }
        pointer.truncate(pointer.floor_char_boundary(POINTER_BYTES_MAX));
        pointer
    }
}

/// Checks the `\u` escape that begins here, or the pair of them, and returns its length.
fn check_escape(bytes: &[u8]) -> Result<usize, Flaw> {
    match unit(bytes).ok_or(Flaw::Syntax)? {
        0xD800..=0xDBFF => match unit(&bytes[6..]) {
            Some(0xDC00..=0xDFFF) => Ok(12),
            _ => Err(Flaw::LoneSurrogate),
        },
        0xDC00..=0xDFFF => Err(Flaw::LoneSurrogate),
        _ => Ok(6),
    }
}

/// UTF-16 unit of an escape `\uXXXX`.
fn unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = u16::try_from(char::from(*digit).to_digit(16)?).ok()?;
        Some(unit << 4 | digit)
    })
}

fn check_number(number: &str) -> Result<(), Flaw> {
    if number.bytes().filter(u8::is_ascii_digit).count() > DIGITS_MAX {
        return Err(Flaw::Digits);
    }
    let Some((_, exponent)) = number.split_once(['e', 'E']) else { return Ok(()) };
    let size = exponent.trim_start_matches(['+', '-']).parse::<u32>();
    if size.is_ok_and(|size| size <= EXPONENT_MAX) { Ok(()) } else { Err(Flaw::Exponent) }
}

#[cfg(test)]
mod tests;
