//! The exact value of a number as JSON writes it, without the rounding of a double. Pure.
use std::fmt;

/// Most digits of an exponent: beyond, no reader of JSON here takes the number.
const EXPONENT_DIGITS_MAX: usize = 9;

/// A decimal number. Equal values are equal, however they were spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    is_negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    /// The value is `digits` times ten to this.
    exponent: i64,
}

impl Decimal {
    /// Reads a JSON number; `None` of any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (significand, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], exponent_of(&rest[at + 1..])?),
            None => (rest, 0),
        };
        let (whole, fraction) = match significand.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return None,
            None => (significand, ""),
        };
        let is_whole = !whole.is_empty() && (whole == "0" || !whole.starts_with('0'));
        if !is_whole || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = [whole, fraction].concat();
        let kept = digits.trim_end_matches('0');
        let cut = i64::try_from(digits.len() - kept.len()).ok()? - i64::try_from(fraction.len()).ok()?;
        let kept = kept.trim_start_matches('0');
        if kept.is_empty() {
            return Some(Self { is_negative: false, digits: String::new(), exponent: 0 });
        }
        Some(Self { is_negative, digits: kept.to_owned(), exponent: exponent + cut })
    }

    /// The value as an integer of 64 bits, if it is one.
    pub fn integer(&self) -> Option<i64> {
        const DIGITS_MAX: usize = 19;
        let zeros =
            usize::try_from(self.exponent).ok().filter(|zeros| zeros + self.digits.len() <= DIGITS_MAX)?;
        let sign = if self.is_negative { "-" } else { "" };
        format!("{sign}0{}{}", self.digits, "0".repeat(zeros)).parse().ok()
    }
}

fn exponent_of(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    if significant.len() > EXPONENT_DIGITS_MAX {
        return None;
    }
    let value: i64 = format!("0{significant}").parse().ok()?;
    Some(if text.starts_with('-') { -value } else { value })
}

/// Its one normal form: the digits as an integer, and an exponent.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, digits) = (if self.is_negative { "-" } else { "" }, &*self.digits);
        write!(f, "{sign}{}e{}", if digits.is_empty() { "0" } else { digits }, self.exponent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::cmp::Ordering;

    use super::*;

    #[test]
    fn every_spelling_has_its_normal_form() {
        for (text, expected) in [
            ("0", "0e0"),
            ("-0.00e5", "0e0"),
            ("1", "1e0"),
            ("-10", "-1e1"),
            ("1.50", "15e-1"),
            ("0.0001", "1e-4"),
            ("100.5e+2", "1005e1"),
            ("1E-07", "1e-7"),
            ("1e18", "1e18"),
            ("1000000000000000000.0", "1e18"),
            ("0.1000000000000000055", "1000000000000000055e-19"),
        ] {
            assert_eq!(Decimal::parse(text).expect(text).to_string(), expected, "{text}");
        }
        for bad in [
            "",
            "-",
            "+1",
            "01",
            "1.",
            ".5",
            "1e",
            "1e+",
            " 1",
            "1 ",
            "0x1",
            "1e1.5",
            "NaN",
            "1e9999999999",
            "--1",
        ] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn integers_of_64_bits_are_known_as_such() {
        for (text, expected) in [
            ("0.0", Some(0)),
            ("1e3", Some(1_000)),
            ("-9223372036854775808.0", Some(i64::MIN)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("1e19", None),
            ("1e999999999", None),
            ("1.5", None),
        ] {
            assert_eq!(Decimal::parse(text).expect(text).integer(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_is_a_spelling_of_its_value(text in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?") {
            let value = Decimal::parse(&text).expect("a number");
            prop_assert_eq!(Decimal::parse(&value.to_string()), Some(value.clone()));
            // Equal values are read as equal doubles.
            let double = |text: &str| text.parse::<f64>().expect("a number");
            prop_assert!(double(&text).partial_cmp(&double(&value.to_string())) == Some(Ordering::Equal));
        }
    }
}
