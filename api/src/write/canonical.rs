//! The canonical form of a document's JSON, which its fingerprint is made of: sorted members, no white space,
//! one spelling of each string, and numbers without loss (`docs/decisions/0025-payloads-and-values.md`). It
//! is part of what is stored: never change it.
use serde_json::Value;
use shared::model::decimal::Decimal;
use shared::model::json_rules::{self, Tree};

/// Canonical form of a text. The text is JSON that [`json_rules::check`] took; any other text is its own
/// form.
pub fn canonical(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    match Tree::read(text).and_then(|tree| write(&tree, &mut out)) {
        Some(()) => out,
        None => text.to_owned(),
    }
}

/// Recursion is as deep as the text, which is bounded.
fn write(tree: &Tree<'_>, out: &mut String) -> Option<()> {
    match tree {
        Tree::Null => out.push_str("null"),
        Tree::Bool(is) => out.push_str(if *is { "true" } else { "false" }),
        Tree::Number(number) => out.push_str(&canonical_number(number)?),
        Tree::String(text) => write_string(text, out),
        Tree::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write(element, out)?;
            }
            out.push(']');
        }
        Tree::Object(members) => {
            out.push('{');
            for (index, (name, member)) in members.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write_string(name, out);
                out.push(':');
                write(member, out)?;
            }
            out.push('}');
        }
    }
    Some(())
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

fn canonical_number(number: &str) -> Option<String> {
    // An integer has one spelling, but for zero.
    if number != "-0" && !number.contains(['.', 'e', 'E']) {
        return Some(number.to_owned());
    }
    // Released versions knew doubles only; the text of a double stays where it holds the number exactly.
    match json_rules::held(number) {
        Some(double) => Some(double.to_string()),
        None => Decimal::parse(number).map(|exact| exact.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Canonical form as released versions wrote it: numbers as doubles.
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
            ("-9223372036854775809", "-9223372036854775809"),
            ("18446744073709551615", "18446744073709551615"),
            ("100000000000000000000", "100000000000000000000"),
            ("1e20", "1e+20"),
            ("1e400", "1e400"),
            ("12.50E-400", "125e-401"),
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
