//! Filters on indexed members: the index values under which a document with the queried value may stand,
//! and the check that it has that value. The index holds numbers as doubles, so the document itself
//! decides.
use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Number;
use serde_json::value::RawValue;

use super::index::{beyond_text, index_text, number_text};
use crate::model::decimal::Decimal;

/// Text that a query gives for a member. It may mean a string, a number, `true`, `false` or `null`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    text: String,
    number: Option<Decimal>,
}

impl Wanted {
    pub fn of(text: &str) -> Self {
        Self { text: text.to_owned(), number: Decimal::parse(text) }
    }

    /// Index values of all members that are meant, each once: as the text, as an integer, and as the
    /// nearest double, under which other numbers may stand, too.
    pub fn index_values(&self) -> Vec<String> {
        let mut values = vec![index_text(&self.text)];
        let Some(number) = &self.number else { return values };
        let integer = number.integer().map(|integer| integer.to_string());
        // Beyond the largest double there is none.
        let double = self.text.parse().ok().and_then(Number::from_f64);
        let double = double.map_or_else(|| beyond_text(number), |double| number_text(&double));
        for value in integer.into_iter().chain([double]) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }

    /// True when the text is a number too: then the index does not decide alone.
    pub fn is_number(&self) -> bool {
        self.number.is_some()
    }

    fn is(&self, member: &RawValue) -> bool {
        let member = member.get();
        match member.as_bytes()[0] {
            b'"' => serde_json::from_str::<Cow<'_, str>>(member).is_ok_and(|text| *text == *self.text),
            b'-' | b'0'..=b'9' => self.number.is_some() && Decimal::parse(member) == self.number,
            _ => member == self.text,
        }
    }
}

/// True when a document, the text of a JSON object, has the wanted value of each member.
pub fn has_all(data: &str, wanted: &[(String, Wanted)]) -> bool {
    let mut deserializer = serde_json::Deserializer::from_str(data);
    wanted.is_empty() || MatchingMembers(wanted).deserialize(&mut deserializer).unwrap_or(false)
}

struct MatchingMembers<'w>(&'w [(String, Wanted)]);

impl<'de> DeserializeSeed<'de> for MatchingMembers<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MatchingMembers<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<bool, A::Error> {
        let mut matching = 0;
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            match self.0.iter().find(|(field, _)| *field == name) {
                Some((_, wanted)) => matching += usize::from(wanted.is(members.next_value()?)),
                None => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(matching == self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::index_value;
    use super::*;
    use crate::model::json_rules::Tree;

    const EQUAL: [&[&str]; 15] = [
        &["1e18", "1000000000000000000", "1000000000000000000.0", "10E17"],
        &["1000000000000000001", "1.000000000000000001e18"],
        &["9007199254740993", "9007199254740993.0", "9.007199254740993e15"],
        &["9007199254740992", "9007199254740992.00"],
        &["0.1", "0.10", "1e-1"],
        &["0.1000000000000000055", "1000000000000000055e-19"],
        &["3", "3.0", "0.3e1"],
        &["3.0000000000000000001"],
        &["0", "-0", "0.0", "-0e7"],
        &["9223372036854775808", "9223372036854775808.0", "9.223372036854775808e18"],
        &["18446744073709551615", "1844674407370955161.5e1"],
        &["18446744073709551616", "18446744073709551616.0"],
        &["1e400", "10E399", "1.0e+400"],
        &["-123456789e400", "-1.23456789e408"],
        &["1e-400", "0.1e-399"],
    ];

    #[test]
    fn a_number_finds_every_spelling_of_itself_and_no_other_number() {
        for (group, spellings) in EQUAL.iter().enumerate() {
            for spelling in *spellings {
                let wanted = [("n".to_owned(), Wanted::of(spelling))];
                for (other, members) in EQUAL.iter().enumerate() {
                    for member in *members {
                        let is_same = has_all(&format!(r#"{{"x":0,"n":{member}}}"#), &wanted);
                        assert_eq!(is_same, group == other, "{spelling} {member}");
                        let value = index_value(&Tree::Number(member)).expect("a value");
                        let is_found = wanted[0].1.index_values().contains(&value);
                        assert!(is_found || !is_same, "{spelling} does not look under {value} for {member}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_text_is_that_string_and_the_words_of_json_are_themselves() {
        let has = |member: &str, text: &str| {
            has_all(&format!(r#"{{"n":{member}}}"#), &[("n".into(), Wanted::of(text))])
        };
        for (member, text) in [
            (r#""1.0""#, "1.0"),
            (r#""\u0061""#, "a"),
            ("true", "true"),
            (r#""true""#, "true"),
            ("null", "null"),
        ] {
            assert!(has(member, text), "{member} {text}");
        }
        for (member, text) in
            [(r#""1""#, "1.0"), ("true", "1"), ("[1]", "1"), (r#"{"n":1}"#, "1"), ("1", "x")]
        {
            assert!(!has(member, text), "{member} {text}");
        }
        assert!(!has_all("{}", &[("n".into(), Wanted::of("1"))]));
        assert_eq!(Wanted::of("7").index_values(), ["7"]);
        assert_eq!(Wanted::of("1.5").index_values(), ["1.5"]);
        assert_eq!(Wanted::of("1e999").index_values(), ["1e999"]);
        let digits = "7".repeat(400);
        assert!(Wanted::of(&digits).index_values().iter().all(|value| value.starts_with("sha256:")));
        assert!(has(&digits, &digits) && !has(&digits, &digits[1..]));
        assert!(has(r#""\u0000""#, "\0") && !Wanted::of("\0").index_values()[0].contains('\0'));
        assert!(!Wanted::of("x").is_number());
    }
}
