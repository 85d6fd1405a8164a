//! The grammar that headers share (RFC 9110, 5.6 and 8.8.3; RFC 8941 for structured fields): lists,
//! parameters, quoted strings and entity tags. It splits and unquotes, and must not know what a header means.
use std::borrow::Cow;

/// The parts of a value between separators outside of quoted strings, without the white space around them.
pub fn parts(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = value.iter().position(|byte| {
            let ends = *byte == separator && !quoted;
            quoted ^= *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && quoted && !escaped;
            ends
        });
        rest = end.map(|end| &value[end + 1..]);
        Some(value[..end.unwrap_or(value.len())].trim_ascii())
    })
}

/// A parameter as its name and its value as written; `None` without a `=`.
pub fn parameter(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = part.iter().position(|byte| *byte == b'=')?;
    Some((part[..equals].trim_ascii(), part[equals + 1..].trim_ascii()))
}

/// A value that is a token or a quoted string; `None` where quotes are no string's.
pub fn unquoted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        return (!value.contains(&b'"')).then_some(Cow::Borrowed(value));
    };
    let content = quoted.strip_suffix(b"\"")?;
    if !content.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        return Some(Cow::Borrowed(content));
    }
    let mut plain = Vec::with_capacity(content.len());
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => plain.push(*bytes.next()?),
            byte => plain.push(*byte),
        }
    }
    Some(Cow::Owned(plain))
}

/// The string of a structured item (RFC 8941, 3.3.3). Its parameters are checked and left out.
pub fn item_string(value: &[u8]) -> Option<String> {
    let mut bytes = value.strip_prefix(b"\"")?.iter();
    let mut content = String::with_capacity(value.len());
    loop {
        let byte = match bytes.next()? {
            b'"' => break,
            b'\\' => bytes.next().filter(|escaped| matches!(escaped, b'"' | b'\\'))?,
            byte => byte,
        };
        if !byte.is_ascii_graphic() && *byte != b' ' {
            return None;
        }
        content.push(char::from(*byte));
    }
    let mut parameters = parts(bytes.as_slice(), b';');
    let is_whole = parameters.next().is_some_and(<[u8]>::is_empty) && parameters.all(is_item_parameter);
    is_whole.then_some(content)
}

fn is_item_parameter(part: &[u8]) -> bool {
    let (name, value) = parameter(part).unwrap_or((part, b"?1"));
    let is_name = name.first().is_some_and(|byte| byte.is_ascii_lowercase() || *byte == b'*')
        && name
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(byte));
    let is_plain =
        |value: &[u8]| value.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"'));
    is_name && !value.is_empty() && (value[0] == b'"' && unquoted(value).is_some() || is_plain(value))
}

/// Checks whether the lines of an `If-None-Match` name this tag, or any. What is no list of tags, nor a lone
/// asterisk, names none. `W/` does not matter: the comparison is the weak one.
pub fn names_tag<'a>(lines: impl Iterator<Item = &'a [u8]>, etag: &[u8]) -> bool {
    let (mut is_named, mut has_star, mut count) = (false, false, 0);
    for line in lines {
        let mut rest = line.trim_ascii();
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix(b",") {
                rest = behind.trim_ascii_start();
                continue;
            }
            let Some(length) = element_length(rest) else { return false };
            let (element, behind) = rest.split_at(length);
            count += 1;
            has_star |= element == b"*";
            is_named |= opaque(element) == opaque(etag);
            rest = behind.trim_ascii_start();
            if !rest.is_empty() && rest[0] != b',' {
                return false;
            }
        }
    }
    if has_star { count == 1 } else { is_named }
}

/// The length of the tag or the asterisk that begins here.
fn element_length(text: &[u8]) -> Option<usize> {
    if text[0] == b'*' {
        return Some(1);
    }
    let content = opaque(text).strip_prefix(b"\"")?;
    let quote = content.iter().position(|byte| *byte == b'"')?;
    Some(text.len() - content.len() + quote + 1)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quote(content: &[u8]) -> Vec<u8> {
        let mut quoted = vec![b'"'];
        for byte in content {
            if matches!(byte, b'"' | b'\\') {
                quoted.push(b'\\');
            }
            quoted.push(*byte);
        }
        quoted.push(b'"');
        quoted
    }

    #[test]
    fn separators_within_quotes_separate_nothing() {
        let split = |text: &'static str| -> Vec<&str> {
            parts(text.as_bytes(), b',').map(|part| std::str::from_utf8(part).expect("text")).collect()
        };
        assert_eq!(split(r#"a , "b,\",c" ,,d"#), ["a", r#""b,\",c""#, "", "d"]);
        assert_eq!(split(r#"\",a"#), [r#"\",a"#], "a backslash escapes within quotes only");
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn a_value_is_a_token_or_a_whole_quoted_string() {
        for (value, expected) in [("a", "a"), ("\"a b\"", "a b"), (r#""\a\"\\""#, r#"a"\"#), ("\"\"", "")] {
            assert_eq!(unquoted(value.as_bytes()).as_deref(), Some(expected.as_bytes()), "{value}");
        }
        for bad in ["\"", "\"a", "a\"", "\"a\"b\"", r#""a\""#] {
            assert_eq!(unquoted(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn an_item_is_a_string_with_parameters_or_nothing() {
        for (value, expected) in
            [("\"a\"", "a"), ("\"a\";b", "a"), ("\"a;b\" ; c=1;d=\";\"", "a;b"), (r#""\"\\""#, "\"\\")]
        {
            assert_eq!(item_string(value.as_bytes()).as_deref(), Some(expected), "{value}");
        }
        for bad in
            ["a", "\"", "\"a\"b", "\"a\";", "\"a\";B", "\"a\";b=", "\"a\";b=\"", "\"a\\b\"", "\"a\", \"b\""]
        {
            assert_eq!(item_string(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn whole_tags_are_compared_and_only_a_lone_asterisk_stands_for_all() {
        let names = |lines: &[&str]| names_tag(lines.iter().map(|line| line.as_bytes()), b"\"7\"");
        for yes in [
            &["\"7\""][..],
            &["W/\"7\""],
            &["\"1\", \"7\""],
            &["\"1\"", "\"7\""],
            &["*"],
            &[", *,"],
            &["\"*\",\"7\""],
        ] {
            assert!(names(yes), "{yes:?}");
        }
        for no in [
            &["\"8\""][..],
            &["7"],
            &[""],
            &[],
            &["\"a,*,b\""],
            &["\"x,\"7\",y\""],
            &["\"1\", *"],
            &["*", "\"1\""],
            &["**"],
            &["\"7\"x"],
            &["\"7\" \"1\""],
            &["\"7"],
            &["w/\"7\""],
            &["W/ \"7\""],
            &["\"7\"", "x"],
        ] {
            assert!(!names(no), "{no:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_quoted_comes_back(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..6)) {
            let quoted: Vec<_> = contents.iter().map(|content| quote(content)).collect();
            let value = quoted.join(&b", "[..]);
            let split: Vec<_> = parts(&value, b',').map(|part| unquoted(part).expect("quoted").into_owned()).collect();
            prop_assert_eq!(split, contents);
        }

        #[test]
        fn a_list_names_what_is_in_it(tags in prop::collection::vec("[!#-~ ]{0,6}", 1..6), own in "[!#-~]{0,6}") {
            let value = tags.iter().map(|tag| format!("\"{tag}\"")).collect::<Vec<_>>().join(" , ");
            let names = names_tag([value.as_bytes()].into_iter(), format!("\"{own}\"").as_bytes());
            prop_assert_eq!(names, tags.contains(&own));
        }

        #[test]
        fn no_value_is_too_odd(value in prop::collection::vec(prop::sample::select(&b"\"\\,;= *W/a1\xe4"[..]), 0..40)) {
            let joined = parts(&value, b',').map(<[u8]>::len).sum::<usize>();
            prop_assert!(joined <= value.len());
            let _ = (unquoted(&value), item_string(&value), names_tag([&*value].into_iter(), b"\"1\""));
        }
    }
}
