//! What a JSON text may hold beyond being JSON, so that everything behind this door (both stores,
//! every client's parser) reads the same from it: one value per key, characters that every column
//! takes, numbers that survive a reader.
//!
//! It scans the text once, without building a tree; its work grows with the text alone, so members are
//! bounded by the bytes of an item (`server.item_bytes_max`). The text must be JSON already, as
//! [`RawValue`](serde_json::value::RawValue) is: whoever reads bodies knows syntax errors.
use std::borrow::Cow;

/// Arrays and objects inside one another at most, the outermost included.
pub const DEPTH_MAX: usize = 64;

/// Digits of one number at most, those of its exponent included.
pub const DIGITS_MAX: usize = 40;

/// Longest JSON pointer that is told, in bytes: it quotes the client.
const POINTER_BYTES_MAX: usize = 200;

/// A place of the text that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {flaw}")]
pub struct Flawed {
    /// JSON pointer (RFC 6901) to the value; to the object for a flaw of its keys.
    pub pointer: String,
    pub flaw: Flaw,
}

/// Why it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("arrays and objects are nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("a key stands there twice")]
    DuplicateKey,
    #[error("the character \\u0000 is not accepted")]
    Nul,
    #[error("half of a surrogate pair is no character")]
    LoneSurrogate,
    #[error("an integer lies between -9223372036854775808 and 9223372036854775807")]
    Integer,
    #[error("a number has {DIGITS_MAX} digits at most")]
    Digits,
    #[error("a number with a fraction or an exponent must be one of 64 bits")]
    Float,
    #[error("not JSON")]
    Syntax,
}

/// Checks a JSON text.
pub fn check(text: &str) -> Result<(), Flawed> {
    let mut scan = Scan { text, at: 0, frames: Vec::new(), keys: Vec::new() };
    scan.run().map_err(|flaw| Flawed { pointer: scan.pointer(), flaw })
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    frames: Vec<Frame>,
    /// Keys of all objects that are open, the outermost first.
    keys: Vec<Cow<'a, str>>,
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
                    check_number(number)?;
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

    /// Goes behind the string that begins here and tells whether it has escapes.
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

    /// Where the scan stands.
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
        0 => Err(Flaw::Nul),
        0xD800..=0xDBFF => match unit(&bytes[6..]) {
            Some(0xDC00..=0xDFFF) => Ok(12),
            _ => Err(Flaw::LoneSurrogate),
        },
        0xDC00..=0xDFFF => Err(Flaw::LoneSurrogate),
        _ => Ok(6),
    }
}

/// The UTF-16 unit of an escape `\uXXXX`.
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
    let Some(end) = number.find(['.', 'e', 'E']) else {
        // Eighteen digits fit, whichever they are.
        let fits = number.len() <= 18 || number.parse::<i64>().is_ok();
        return if fits { Ok(()) } else { Err(Flaw::Integer) };
    };
    // Without an exponent that many digits can neither overflow nor vanish.
    let Some(exponent) = number[end..].find(['e', 'E']).map(|at| at + end) else { return Ok(()) };
    let is_zero = !number[..exponent].bytes().any(|digit| (b'1'..=b'9').contains(&digit));
    let exponent_digits = number[exponent + 1..].trim_start_matches(['+', '-']).trim_start_matches('0');
    let float: f64 = number.parse().map_err(|_| Flaw::Syntax)?;
    let holds = float.is_finite() && (float == 0.0) == is_zero && exponent_digits.len() <= 3;
    if holds { Ok(()) } else { Err(Flaw::Float) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn flaw(text: &str) -> Option<(String, Flaw)> {
        serde_json::from_str::<&RawValue>(text).expect("JSON as far as a reader of bodies can tell");
        check(text).err().map(|flawed| (flawed.pointer, flawed.flaw))
    }

    fn at(pointer: &str, flaw: Flaw) -> (String, Flaw) {
        (pointer.into(), flaw)
    }

    #[test]
    fn plain_values_are_taken() {
        for good in [
            r#"{"a":[1,-0,1.5,1e3,true,false,null,"x"],"b":{"a":{}},"":"","e\u00e9":"\"\\\ud83d\ude00"}"#,
            "[9223372036854775807, -9223372036854775808, 5e-324, 1.7976931348623157e308, 0e999, 1E+2]",
            "[1e30, 0.0000000000000000000000000000000000001]",
            r#"[{"a":1},{"a":1},{"b":{"a":1},"a":2}]"#,
            "\"x\"",
            " null ",
        ] {
            assert_eq!(flaw(good), None, "{good}");
        }
    }

    #[test]
    fn a_key_stands_once_in_an_object_however_it_is_spelled() {
        assert_eq!(flaw(r#"{"a":1,"b":{"c":1,"c":2}}"#), Some(at("/b", Flaw::DuplicateKey)));
        assert_eq!(flaw(r#"{"a":1,"\u0061":2}"#), Some(at("", Flaw::DuplicateKey)));
        assert_eq!(flaw(r#"[{"a":{}},{"b":1,"c":[],"b":1}]"#), Some(at("/1", Flaw::DuplicateKey)));
    }

    #[test]
    fn nul_and_halves_of_surrogate_pairs_are_refused_anywhere() {
        assert_eq!(flaw(r#"{"a":["x","\u0000"]}"#), Some(at("/a/1", Flaw::Nul)));
        assert_eq!(flaw(r#"{"a":1,"b\u0000":1}"#), Some(at("", Flaw::Nul)));
        for half in [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\n", r"\ud800\ud800", r"\uD83D\uFFFF"] {
            assert_eq!(
                flaw(&format!(r#"{{"a/~":"{half}"}}"#)),
                Some(at("/a~1~0", Flaw::LoneSurrogate)),
                "{half}"
            );
            assert_eq!(flaw(&format!(r#"{{"{half}":1}}"#)), Some(at("", Flaw::LoneSurrogate)), "{half}");
        }
        assert_eq!(flaw(r#""\\u0000 \\ud800""#), None);
    }

    #[test]
    fn numbers_stay_what_they_are_for_every_reader() {
        for (number, why) in [
            ("9223372036854775808", Flaw::Integer),
            ("-9223372036854775809", Flaw::Integer),
            ("1000000000000000000000", Flaw::Integer),
            ("1e999", Flaw::Float),
            ("-1e309", Flaw::Float),
            ("1e-999", Flaw::Float),
            ("0e1000", Flaw::Float),
        ] {
            assert_eq!(flaw(&format!(r#"{{"n":[{number}]}}"#)), Some(at("/n/0", why)), "{number}");
            assert_eq!(flaw(number), Some(at("", why)), "{number}");
        }
        assert_eq!(flaw(&"1".repeat(DIGITS_MAX + 1)), Some(at("", Flaw::Digits)));
        assert_eq!(flaw(&format!("0.{}", "1".repeat(DIGITS_MAX))), Some(at("", Flaw::Digits)));
    }

    #[test]
    fn depth_is_limited_and_members_are_not() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(flaw(&nested(DEPTH_MAX)), None);
        assert_eq!(flaw(&nested(DEPTH_MAX + 1)).map(|found| found.1), Some(Flaw::Depth));
        assert_eq!(flaw(&nested(100_000)).map(|found| found.1), Some(Flaw::Depth));
        let members = |count: usize| {
            let mut text = String::from("[{\"a\":1}");
            for key in 1..count {
                write!(text, ",{{\"k{key}\":0}}").expect("a string takes all");
            }
            text + "]"
        };
        assert_eq!(flaw(&members(50_000)), None);
    }

    #[test]
    fn a_pointer_is_cut() {
        let key = "ä".repeat(5_000);
        let (pointer, _) = flaw(&format!(r#"{{"{key}":1e999}}"#)).expect("flawed");
        assert!(pointer.len() <= POINTER_BYTES_MAX);
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_filter("no JSON", |float| float.is_finite()).prop_map(Into::into),
            "[^\0]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            let array = proptest::collection::vec(inner.clone(), 0..8).prop_map(Into::into);
            let members = proptest::collection::vec(("[^\0]{0,3}", inner), 0..8);
            let object = members.prop_map(|members| serde_json::Value::Object(members.into_iter().collect()));
            prop_oneof![array, object]
        })
    }

    proptest! {
        #[test]
        fn what_a_serializer_writes_is_taken(value in any_value()) {
            prop_assert_eq!(check(&value.to_string()), Ok(()));
            prop_assert_eq!(check(&serde_json::to_string_pretty(&value).expect("JSON")), Ok(()));
        }

        #[test]
        fn what_is_taken_is_read_by_a_strict_reader(text in r#"[\[\]{}:,"\\ue0-9a-d.+ -]{0,40}"#) {
            if serde_json::from_str::<&RawValue>(&text).is_ok() && check(&text).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"[\[\]{}:,"\\udD8cC0-9eé.+-]{0,40}"#) {
            let _ = check(&text);
        }
    }
}
