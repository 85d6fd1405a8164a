//! Keywords about the size of numbers. The validator's own ones know 64 bits only, and would take a number
//! for its neighbour; these compare exact values.
use std::cmp::Ordering;

use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};

use super::counted::{CountedDocument, Counting};
use crate::model::decimal::Decimal;

pub const KEYWORDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Demand on the size of a number.
pub enum NumericKeyword {
    Compared {
        limit: Decimal,
        holds: fn(Ordering) -> bool,
        violation: String,
    },
    MultipleOf {
        divisor: Decimal,
        violation: String,
    },
    /// Draft 4: `true` or `false` beside the bound that it is about.
    Beside,
}

impl NumericKeyword {
    /// Reads a keyword with its value; `parent` is the subschema that it stands in.
    pub fn of(keyword: &str, parent: &Map<String, Value>, value: &Value) -> Result<Self, &'static str> {
        let Value::Number(number) = value else {
            return if value.is_boolean() { Ok(Self::Beside) } else { Err("a bound is a number") };
        };
        let limit = Decimal::parse(&number.to_string()).ok_or("a bound is a number")?;
        let is_exclusive = |flag: &str| parent.get(flag) == Some(&Value::Bool(true));
        let (holds, words): (fn(Ordering) -> bool, _) = match keyword {
            "multipleOf" => {
                let violation = format!("the value is not a multiple of {number}");
                return Ok(Self::MultipleOf { divisor: limit, violation });
            }
            "minimum" if !is_exclusive("exclusiveMinimum") => (Ordering::is_ge, "less than the minimum of"),
            "maximum" if !is_exclusive("exclusiveMaximum") => {
                (Ordering::is_le, "greater than the maximum of")
            }
            "minimum" | "exclusiveMinimum" => {
                (Ordering::is_gt, "less than or equal to the exclusive minimum of")
            }
            _ => (Ordering::is_lt, "greater than or equal to the exclusive maximum of"),
        };
        Ok(Self::Compared { limit, holds, violation: format!("the value is {words} {number}") })
    }
}

impl<'i> Keyword<'i, CountedDocument> for NumericKeyword {
    fn validate(&self, instance: Counting<'i>) -> Result<(), ValidationError<'i>> {
        match self {
            Self::Compared { violation, .. } | Self::MultipleOf { violation, .. }
                if !self.is_valid(instance) =>
            {
                Err(ValidationError::custom(violation.clone()))
            }
            _ => Ok(()),
        }
    }

    fn is_valid(&self, instance: Counting<'i>) -> bool {
        let Some(number) = jsonschema::json::Node::as_number(&instance) else { return true };
        match self {
            Self::Compared { limit, holds, .. } => holds(number.value().cmp(limit)),
            // A divisor of 64 bits has no more digits than they hold.
            Self::MultipleOf { divisor, .. } => number.value().is_multiple_of(divisor) == Some(true),
            Self::Beside => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{BadDefinition, Budget, Checker, Collection, Definition};
    use super::*;

    fn checker(schema: &str) -> Result<Checker, BadDefinition> {
        let definition = Definition { schema: Some(schema.into()), ..Definition::default() };
        Checker::new(&Collection { definition, ..Collection::default() })
    }

    const DRAFT_4: &str = "http://json-schema.org/draft-04/schema#";

    /// Checks numbers beside their neighbours, which are the same double.
    fn assert_distinguished(cases: &[(Value, &[&str], &[&str])]) {
        for (schema, good, bad) in cases {
            let newest = json!("https://json-schema.org/draft/2020-12/schema");
            let draft = schema.get("$schema").unwrap_or(&newest);
            let whole = json!({"$schema": draft, "properties": {"n": schema}}).to_string();
            let checker = checker(&whole).unwrap_or_else(|bad| panic!("{bad} {schema}"));
            let check = |number: &str| checker.check(&format!(r#"{{"n":{number}}}"#), &Budget::of_ms(10_000));
            for number in *good {
                assert_eq!(check(number), Ok(()), "{schema} {number}");
            }
            for number in *bad {
                let violation = check(number).expect_err(number);
                assert!(violation.pointer.starts_with("/n"), "{schema} {number} {violation}");
            }
        }
    }

    #[test]
    fn types_are_checked_by_exact_numbers() {
        assert_distinguished(&[
            (
                json!({"type": "integer"}),
                &["18446744073709551616", "-1e400", "9007199254740993.0"],
                &["1e-400", "9007199254740993.5", "36893488147419103232.1"],
            ),
            (json!({"type": ["integer", "null"]}), &["1e400", "null"], &["1000000000000000000000.5"]),
            (json!({"type": "number"}), &["1e400", "1e-400"], &[r#""1e400""#]),
            (json!({"type": "string"}), &[r#""1e400""#], &["1e400"]),
            (json!({"$schema": DRAFT_4, "type": "integer"}), &["18446744073709551616"], &["1.0", "1e20"]),
            (
                json!({"items": {"type": "integer"}}),
                &["[18446744073709551616]"],
                &["[18446744073709551616.5]"],
            ),
        ]);
    }

    #[test]
    fn sizes_are_checked_by_exact_numbers() {
        assert_distinguished(&[
            (
                json!({"maximum": 0.1}),
                &["0.1", "0.09999999999999999999", "-1e400"],
                &["0.1000000000000000055", "1e400"],
            ),
            (
                json!({"minimum": 0.1}),
                &["0.1", "0.1000000000000000055"],
                &["0.09999999999999999999", "-1e400"],
            ),
            (
                json!({"exclusiveMaximum": 1}),
                &["0.99999999999999999999"],
                &["1", "1.0", "1.00000000000000000001"],
            ),
            (json!({"exclusiveMinimum": 0}), &["1e-400"], &["0", "-1e-400"]),
            (
                json!({"maximum": u64::MAX}),
                &["18446744073709551615"],
                &["18446744073709551616", "18446744073709551615.5"],
            ),
            (json!({"maximum": i64::MAX}), &["9223372036854775807"], &["9223372036854775808"]),
            (
                json!({"$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": true}),
                &["1.00000000000000000001"],
                &["1"],
            ),
            (
                json!({"$schema": DRAFT_4, "maximum": 1, "exclusiveMaximum": true}),
                &["0.99999999999999999999"],
                &["1"],
            ),
            (
                json!({"multipleOf": 2}),
                &["36893488147419103232", "1e400"],
                &["36893488147419103233", "2.0000000000000000001"],
            ),
            (json!({"multipleOf": 1.5}), &["9007199254740993"], &["9007199254740994", "1e400"]),
            (json!({"multipleOf": 0.01}), &["12345678901234567890.12"], &["12345678901234567890.123"]),
        ]);
    }

    #[test]
    fn values_are_checked_by_exact_numbers() {
        assert_distinguished(&[
            (json!({"const": 0.1}), &["0.1", "10e-2"], &["0.1000000000000000055"]),
            (json!({"const": 1e20}), &["100000000000000000000"], &["100000000000000000001"]),
            (
                json!({"const": [1e20, {"a": 1}]}),
                &[r#"[1e20,{"a":1.0}]"#],
                &[r#"[100000000000000000001,{"a":1}]"#, r#"[1e20,{"a":1,"b":1}]"#],
            ),
            (
                json!({"enum": [1, 9_007_199_254_740_992_u64]}),
                &["1", "9007199254740992.0"],
                &["9007199254740993", "9007199254740992.5", "1e400"],
            ),
            (json!({"enum": [0.1, "x"]}), &["0.10", r#""x""#], &["0.1000000000000000055"]),
        ]);
    }

    #[test]
    fn a_number_of_a_schema_that_would_be_rounded_is_refused() {
        for number in ["18446744073709551616", "9999999999999999.99", "1e-400", "1e400", "-1e9999"] {
            let refused =
                checker(&format!(r#"{{"properties":{{"a":{{"maximum":{number}}}}}}}"#)).expect_err(number);
            assert_eq!(refused.pointer, "/schema/properties/a/maximum", "{refused}");
            assert!(refused.detail.contains("64 bits"), "{refused}");
        }
    }
}
