//! Keywords about the size of numbers. The validator's own ones know 64 bits only, and would take a number for
//! its neighbour; these compare exact values.
use std::cmp::Ordering;

use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};

use super::counted::{Counted, Counting};
use crate::decimal::Decimal;

pub const KEYWORDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// What a number has to be.
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

impl<'i> Keyword<'i, Counted> for NumericKeyword {
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
