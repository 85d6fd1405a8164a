//! Reasons for which a value could not be read, in words that do not come from Rust: readers report the
//! names of their types (`i64`, `struct ApiKey`), which mean nothing to senders of values and writers of
//! settings.
//!
//! Pure. Every reader's error that people see passes here once, in problem details and at the start alike.
use figment::error::Kind;

/// Message of a reader with its types as plain words and without a position.
pub fn plain(message: &str) -> String {
    let message = without_position(message);
    let in_ticks = |prefix: &str| message.strip_prefix(prefix)?.strip_suffix('`');
    if let Some(name) = in_ticks("missing field `") {
        return format!("the member `{name}` is missing");
    }
    if let Some(name) = in_ticks("duplicate field `") {
        return format!("the member `{name}` stands there twice");
    }
    if let Some(rest) = message.strip_prefix("unknown field") {
        return unknown("member ", rest);
    }
    if let Some(rest) = message.strip_prefix("unknown variant") {
        return unknown("value ", rest);
    }
    let problem = ["invalid type: ", "invalid value: ", "invalid value ", "invalid length "];
    let Some(rest) = problem.iter().find_map(|prefix| message.strip_prefix(prefix)) else {
        return message.to_owned();
    };
    // The found value may quote anything: the expected one is behind the last of these words.
    match rest.rsplit_once(", expected ") {
        Some((found, wanted)) if message.starts_with("invalid length") => {
            format!("expected {}, found {found} elements", expected(wanted))
        }
        Some((found, wanted)) => {
            format!("expected {}, found {}", expected(wanted), self::found(found))
        }
        None => message.to_owned(),
    }
}

/// Expected value, in plain words.
pub fn expected(wanted: &str) -> String {
    let range = |least: &str, greatest: &str| format!("an integer from {least} to {greatest}");
    let first_word = wanted.split(' ').next().unwrap_or_default();
    match wanted {
        "u8" => range("0", "255"),
        "u16" => range("0", "65535"),
        "u32" => range("0", "4294967295"),
        "u64" | "usize" | "u128" => range("0", "18446744073709551615"),
        "i8" => range("-128", "127"),
        "i16" => range("-32768", "32767"),
        "i32" => range("-2147483648", "2147483647"),
        "i64" | "isize" | "i128" => range("-9223372036854775808", "9223372036854775807"),
        "f32" | "f64" => "a number".into(),
        "a boolean" | "bool" => "true or false".into(),
        "a borrowed string" | "str" | "string" => "a string".into(),
        "unit" => "null".into(),
        "option" => "a value or null".into(),
        "a sequence" | "sequence" => "a list".into(),
        "a map" | "map" => "an object".into(),
        _ if ["struct", "internally", "adjacently"].contains(&first_word) => "an object".into(),
        _ if wanted.starts_with("tuple") || wanted.starts_with("a tuple") => "a list".into(),
        _ if ["enum", "newtype", "unit", "variant", "field"].contains(&first_word) => "another value".into(),
        ours => ours.to_owned(),
    }
}

/// Found value, which may quote the sender.
fn found(value: &str) -> String {
    let value = value.strip_prefix("found ").unwrap_or(value);
    let words = [
        ("floating point", "the number"),
        ("signed int", "the integer"),
        ("unsigned int", "the integer"),
        ("integer", "the integer"),
        ("float", "the number"),
        ("boolean", "the value"),
        ("bool", "the value"),
        ("string", "the string"),
        ("character", "the character"),
        ("char", "the character"),
        ("unit value", "null"),
        ("unit", "null"),
        ("sequence", "a list"),
        ("map", "an object"),
        ("Option value", "a value"),
        ("option", "a value"),
        ("newtype struct", "a value"),
        ("newtype variant", "a value"),
        ("struct variant", "a value"),
        ("tuple variant", "a value"),
        ("unit variant", "a value"),
        ("byte array", "bytes"),
        ("enum", "a value"),
    ];
    let named = |(reader, plain): &(&str, &str)| {
        let rest = value.strip_prefix(reader)?;
        (rest.is_empty() || rest.starts_with(' ')).then(|| format!("{plain}{rest}"))
    };
    words.iter().find_map(named).unwrap_or_else(|| value.to_owned())
}

/// Unknown name, and the names that are known.
fn unknown(what: &str, rest: &str) -> String {
    let rest = rest.strip_prefix(": found").unwrap_or(rest).trim_start();
    for separator in [", expected one of ", ", expected "] {
        if let Some((name, known)) = rest.split_once(separator) {
            return format!("the {what}{name} is not known, but {known}");
        }
    }
    let name = rest.split_once(", there are no ").map_or(rest, |(name, _)| name);
    format!("the {what}{name} is not known")
}

/// Message alone: the position counts from where the reader began, which need not be the request.
fn without_position(message: &str) -> &str {
    match message.rsplit_once(" at line ") {
        Some((before, position)) if is_position(position) => before,
        _ => message,
    }
}

fn is_position(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once(" column ").is_some_and(|(line, column)| is_number(line) && is_number(column))
}

/// Reason for which a text is no JSON, with the place: `line` is that of the request in which the text
/// begins.
pub fn syntax(error: &serde_json::Error, line: usize) -> String {
    let message = error.to_string();
    let reason = without_position(&message).replacen("EOF while parsing", "the text ends within", 1);
    format!("not JSON: {reason}, at line {} column {}", line + error.line() - 1, error.column())
}

/// Reason for which a value cannot be read, without the value itself: it may be a part of a secret.
pub fn reason_without_value(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("expected {}", self::expected(expected))
        }
        Kind::UnknownVariant(_, known) => format!("expected one of {}", known.join(", ")),
        Kind::UnknownField(_, known) => format!("unknown member; there are {}", known.join(", ")),
        Kind::Message(ours) => ours.clone(),
        Kind::MissingField(name) => format!("{name} is missing"),
        _ => "cannot be read".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Nested {
        flag: bool,
        word: Word,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        One,
        Two,
    }

    #[derive(Debug, Deserialize)]
    #[serde(tag = "kind")]
    #[expect(dead_code, reason = "only read")]
    enum Tagged {
        A { x: u8 },
    }

    fn of<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        plain(&serde_json::from_str::<T>(json).expect_err(json).to_string())
    }

    fn every_type(json: &str) -> Vec<String> {
        fn each<T: DeserializeOwned>(json: &str) -> Option<String> {
            serde_json::from_str::<T>(json).err().map(|error| plain(&error.to_string()))
        }
        let all = [
            each::<i8>(json),
            each::<i16>(json),
            each::<i32>(json),
            each::<i64>(json),
            each::<isize>(json),
            each::<u8>(json),
            each::<u16>(json),
            each::<u32>(json),
            each::<u64>(json),
            each::<usize>(json),
            each::<f32>(json),
            each::<f64>(json),
            each::<bool>(json),
            each::<String>(json),
            each::<char>(json),
            each::<()>(json),
            each::<Vec<i64>>(json),
            each::<Option<u32>>(json),
            each::<(u8, u8)>(json),
            each::<[u8; 2]>(json),
            each::<std::collections::BTreeMap<String, u8>>(json),
            each::<Nested>(json),
            each::<Word>(json),
            each::<Tagged>(json),
        ];
        all.into_iter().flatten().collect()
    }

    #[test]
    fn no_value_of_any_type_is_refused_in_the_words_of_rust() {
        let rust = [
            "i8", "i16", "i32", "i64", "isize", "u8", "u16", "u32", "u64", "usize", "f32", "f64", "bool",
            "struct", "enum", "tuple", "unit", "variant", "sequence", "map", "Option", "Nested", "Word",
            "Tagged", "field", "floating", "EOF", "column",
        ];
        for json in
            ["null", "true", "1", "-1", "300", "1.5", "\"x\"", "[]", "[1]", "[1,2,3]", "{}", "{\"x\":1}"]
        {
            for message in every_type(json) {
                let words = || message.split(|c: char| !c.is_alphanumeric());
                let word = rust.iter().find(|word| words().any(|found| found == **word));
                assert_eq!(word, None, "{json}: {message}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_was_sent() {
        let integer = "an integer from -9223372036854775808 to 9223372036854775807";
        assert_eq!(of::<i64>("\"one\""), format!("expected {integer}, found the string \"one\""));
        assert_eq!(of::<i64>("1.5"), format!("expected {integer}, found the number `1.5`"));
        assert_eq!(of::<u16>("-1"), "expected an integer from 0 to 65535, found the integer `-1`");
        let quoted = "\"y, expected u8 at line 1 column 2\"";
        assert_eq!(of::<i64>(quoted), format!("expected {integer}, found the string {quoted}"));
        assert_eq!(of::<Nested>(r#"{"flag":true}"#), "the member `word` is missing");
        assert_eq!(of::<Nested>(r#"{"x":1}"#), "the member `x` is not known, but `flag` or `word`");
        assert_eq!(of::<Nested>(r#"{"flag":true,"flag":true}"#), "the member `flag` stands there twice");
        assert_eq!(of::<Word>("\"three\""), "the value `three` is not known, but `one` or `two`");
        assert_eq!(of::<bool>("[]"), "expected true or false, found a list");
        assert_eq!(plain("a message of our own"), "a message of our own");
    }

    #[test]
    fn broken_text_is_placed_in_the_request() {
        let error = serde_json::from_str::<serde_json::Value>("{\n").expect_err("broken");
        assert_eq!(syntax(&error, 3), "not JSON: the text ends within an object, at line 4 column 0");
    }
}
