//! Index values: the one spelling under which a member of a document is indexed, and with which a filter is
//! compared. Pure; changing it changes what stored indexes mean.
use serde_json::Number;
use sha2::{Digest, Sha256};

use crate::model::decimal::Decimal;
use crate::model::json_rules::Tree;

/// Longest text of an indexed value that is kept as it is; a longer one is kept as its hash.
const INDEXED_TEXT_BYTES_MAX: usize = 200;

/// Index value of a member, with which a filter is compared: the text of a string, the canonical text of a
/// number, `true`, `false` or `null`; `None` for arrays and objects.
pub fn index_value(value: &Tree<'_>) -> Option<String> {
    match value {
        Tree::Null => Some("null".into()),
        Tree::Bool(is) => Some(is.to_string()),
        Tree::Number(number) => written_number_text(number),
        Tree::String(text) => Some(index_text(text)),
        Tree::Array(_) | Tree::Object(_) => None,
    }
}

/// Index text of a number as written. A number that is beyond all doubles stands in the index by its normal
/// form.
fn written_number_text(number: &str) -> Option<String> {
    match serde_json::from_str::<Number>(number) {
        Ok(number) => Some(number_text(&number)),
        Err(_) => Decimal::parse(number).as_ref().map(beyond_text),
    }
}

pub fn beyond_text(number: &Decimal) -> String {
    index_text(&number.to_string())
}

/// Index value of a text. A text that no column takes, or not at that length, is replaced by its hash.
pub fn index_text(text: &str) -> String {
    if text.len() <= INDEXED_TEXT_BYTES_MAX && !text.contains('\0') {
        text.to_owned()
    } else {
        let digest = Sha256::digest(text);
        format!("sha256:{digest:x}")
    }
}

/// Index text of a number: integers without a fraction, however they were written; any other number as a
/// double. [`Wanted`](super::Wanted) lists the other values that a filter looks for.
pub fn number_text(number: &Number) -> String {
    /// Bound from which on not every integer has a double of its own.
    const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < EXACT_BELOW => {
            // Adding zero takes the sign of minus zero away.
            format!("{:.0}", float + 0.0)
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_index_values_keep_their_spelling() {
        for (number, expected) in [
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-0.0", "0"),
            ("1.10", "1.1"),
            ("9223372036854775807", "9223372036854775807"),
            ("1e18", "1e+18"),
            ("9007199254740993.0", "9007199254740992.0"),
            ("0.1000000000000000055", "0.1"),
            ("18446744073709551615", "18446744073709551615"),
            ("100000000000000000001", "1e+20"),
            ("1e400", "1e400"),
            ("-10.0e400", "-1e401"),
            ("1e-400", "0"),
        ] {
            assert_eq!(index_value(&Tree::Number(number)).as_deref(), Some(expected), "{number}");
        }
    }
}
