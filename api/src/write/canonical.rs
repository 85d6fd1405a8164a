//! The canonical form of a document's JSON, which its fingerprint is made of: sorted members, no white
//! space, one spelling of each string, and numbers without loss (`docs/decisions/0025-payloads-and-values.md`).
//! It is part of what is stored: never change it.
use std::borrow::Cow;

use serde_json::Number;
use shared::model::decimal::Decimal;

/// Writes it. The text is JSON that [`shared::model::json_rules::check`] took; anything else is its own form.
pub fn canonical(json: &str) -> String {
    let mut writer = Writer { text: json, at: 0, out: String::with_capacity(json.len()) };
    match writer.value() {
        Some(()) => writer.out,
        None => json.to_owned(),
    }
}

struct Writer<'a> {
    text: &'a str,
    at: usize,
    out: String,
}

impl<'a> Writer<'a> {
    /// Its depth is that of the text, which is bounded.
    fn value(&mut self) -> Option<()> {
        match self.next()? {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => {
                let text = self.string()?;
                self.write_string(&text);
                Some(())
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => {
                let word = self.take(|byte| byte.is_ascii_lowercase());
                self.out.push_str(word);
                (!word.is_empty()).then_some(())
            }
        }
    }

    /// Members are written as they come, and put into order where they are not.
    fn object(&mut self) -> Option<()> {
        self.at += 1;
        let first = self.out.len();
        let mut members: Vec<(Cow<'a, str>, std::ops::Range<usize>)> = Vec::new();
        while self.next()? != b'}' {
            if self.next()? == b',' {
                self.at += 1;
                self.next()?;
            }
            let begin = self.out.len();
            let name = self.string()?;
            self.write_string(&name);
            if self.next()? != b':' {
                return None;
            }
            self.at += 1;
            self.out.push(':');
            self.value()?;
            members.push((name, begin..self.out.len()));
        }
        self.at += 1;
        members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let written: Vec<_> = members.iter().map(|(_, range)| &self.out[range.clone()]).collect();
        let object = ["{", &written.join(","), "}"].concat();
        self.out.truncate(first);
        self.out.push_str(&object);
        Some(())
    }

    fn array(&mut self) -> Option<()> {
        self.at += 1;
        self.out.push('[');
        while self.next()? != b']' {
            if self.next()? == b',' {
                self.at += 1;
                self.out.push(',');
            }
            self.value()?;
        }
        self.at += 1;
        self.out.push(']');
        Some(())
    }

    /// The content of the string that begins here.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        if self.text.as_bytes().get(self.at) != Some(&b'"') {
            return None;
        }
        let (start, mut end, mut has_escapes) = (self.at, self.at + 1, false);
        loop {
            match self.text.as_bytes().get(end)? {
                b'"' => break,
                b'\\' => {
                    has_escapes = true;
                    end += 2;
                }
                _ => end += 1,
            }
        }
        self.at = end + 1;
        let quoted = self.text.get(start..=end)?;
        if has_escapes {
            serde_json::from_str(quoted).map(Cow::Owned).ok()
        } else {
            Some(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
        }
    }

    fn write_string(&mut self, text: &str) {
        self.out.push_str(&serde_json::Value::from(text).to_string());
    }

    fn number(&mut self) -> Option<()> {
        let written = self.take(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        let number: Number = serde_json::from_str(written).ok()?;
        let short = number.to_string();
        // Released versions knew doubles only; their text stays where it says the whole number.
        match Decimal::parse(written)? {
            exact if Decimal::parse(&short).as_ref() == Some(&exact) => self.out.push_str(&short),
            exact => self.out.push_str(&exact.to_string()),
        }
        Some(())
    }

    fn take(&mut self, is_part: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let length = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// The next byte that is no white space, which is not taken.
    fn next(&mut self) -> Option<u8> {
        self.take(|byte| byte.is_ascii_whitespace());
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// How released versions wrote it: numbers as doubles.
    fn released(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let sorted: BTreeMap<_, _> = members.iter().collect();
                let member = |(name, value): (&&String, &&Value)| {
                    format!("{}:{}", Value::from(name.as_str()), released(value))
                };
                format!("{{{}}}", sorted.iter().map(member).collect::<Vec<_>>().join(","))
            }
            Value::Array(items) => format!("[{}]", items.iter().map(released).collect::<Vec<_>>().join(",")),
            scalar => scalar.to_string(),
        }
    }

    #[test]
    fn spaces_order_and_escapes_do_not_matter() {
        for (json, expected) in [
            (r#"{"b" : [ ], "a\"" : {}}"#, r#"{"a\"":{},"b":[]}"#),
            (
                "{\"\\u0062\":\t[1 ,2,\n[ ]], \"a\":\"\\u00e4\\/\\t\"}",
                "{\"a\":\"\u{e4}/\\t\",\"b\":[1,2,[]]}",
            ),
            (r#"{"z":{"d":null,"c":true},"a":{"b":false}}"#, r#"{"a":{"b":false},"z":{"c":true,"d":null}}"#),
            (r#"{"":""}"#, r#"{"":""}"#),
        ] {
            assert_eq!(canonical(json), expected, "{json}");
        }
    }

    #[test]
    fn numbers_are_kept_without_loss_and_as_released_versions_wrote_them_where_those_were_right() {
        for (number, expected) in [
            ("10", "10"),
            ("10.0", "10.0"),
            ("1e1", "10.0"),
            ("1.50", "1.5"),
            ("-0", "-0.0"),
            ("0", "0"),
            ("9223372036854775807", "9223372036854775807"),
            ("0.1000000000000000055", "1000000000000000055e-19"),
            ("9007199254740993.0", "9007199254740993e0"),
            ("1e300", "1e+300"),
            ("1e-7", "1e-7"),
        ] {
            assert_eq!(
                canonical(&format!("{{\"a\":{number}}}")),
                format!("{{\"a\":{expected}}}"),
                "{number}"
            );
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let number = prop_oneof![any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from)];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            number,
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_doubles_hold_has_the_form_of_released_versions(value in json()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("serialises")] {
                prop_assert_eq!(canonical(&text), released(&value));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in "[{}\\[\\]\",:\\\\ 0-9a-e.ä-]{0,30}") {
            canonical(&text);
        }
    }
}
