//! The exact value of a number as JSON writes it, without the rounding of a double. Pure.
use std::cmp::Ordering;
use std::fmt;

/// Most digits of an exponent: beyond, no reader of JSON here takes the number.
const EXPONENT_DIGITS_MAX: usize = 9;

/// Decimal number. Equal values are equal, however they were spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    is_negative: bool,
    /// Digits without zeros at either end; empty for zero.
    digits: String,
    /// The value is `digits` times ten to this.
    exponent: i64,
}

impl Decimal {
    /// Reads a JSON number; `None` for any other text.
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

    /// Value as an integer, if it is one of 64 bits, with or without a sign.
    pub fn integer(&self) -> Option<i128> {
        const DIGITS_MAX: usize = 20;
        let zeros =
            usize::try_from(self.exponent).ok().filter(|zeros| zeros + self.digits.len() <= DIGITS_MAX)?;
        let sign = if self.is_negative { "-" } else { "" };
        let integer: i128 = format!("{sign}0{}{}", self.digits, "0".repeat(zeros)).parse().ok()?;
        (i64::MIN.into()..=u64::MAX.into()).contains(&integer).then_some(integer)
    }

    pub fn is_integer(&self) -> bool {
        self.exponent >= 0
    }

    /// True for a whole multiple; `None` for a divisor that is zero, or has more digits than 64 bits.
    pub fn is_multiple_of(&self, divisor: &Self) -> Option<bool> {
        let modulus = u128::from(divisor.digits.parse::<u64>().ok()?);
        // Its digits do not end with zero: ten does not divide them.
        let Ok(shift) = u64::try_from(self.exponent - divisor.exponent) else {
            return Some(self.digits.is_empty());
        };
        let rest = |rest: u128, digit: u8| (rest * 10 + u128::from(digit - b'0')) % modulus;
        let rest = self.digits.bytes().fold(0, rest);
        Some((rest * power_of_ten(shift, modulus)).is_multiple_of(modulus))
    }

    /// Power of ten above the first digit.
    fn magnitude(&self) -> i64 {
        self.exponent.saturating_add(i64::try_from(self.digits.len()).unwrap_or(i64::MAX))
    }
}

/// Remainder of a power of ten. A modulus has 64 bits at most, so no product overflows.
fn power_of_ten(mut exponent: u64, modulus: u128) -> u128 {
    let (mut power, mut factor) = (1 % modulus, 10 % modulus);
    while exponent > 0 {
        if exponent % 2 == 1 {
            power = power * factor % modulus;
        }
        factor = factor * factor % modulus;
        exponent /= 2;
    }
    power
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |number: &Self| match (number.digits.is_empty(), number.is_negative) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => -1,
        };
        let signs = sign(self).cmp(&sign(other));
        if signs.is_ne() || self.digits.is_empty() {
            return signs;
        }
        // Without zeros at their end digits are in the order of their text.
        let sizes = self.magnitude().cmp(&other.magnitude()).then_with(|| self.digits.cmp(&other.digits));
        if self.is_negative { sizes.reverse() } else { sizes }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
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

/// Shows the one normal form: the digits as an integer, and an exponent.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, digits) = (if self.is_negative { "-" } else { "" }, &*self.digits);
        write!(f, "{sign}{}e{}", if digits.is_empty() { "0" } else { digits }, self.exponent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            ("-9223372036854775808.0", Some(i64::MIN.into())),
            ("-9223372036854775809", None),
            ("9223372036854775808", Some(9_223_372_036_854_775_808)),
            ("1e19", Some(10_000_000_000_000_000_000)),
            ("18446744073709551615", Some(u64::MAX.into())),
            ("18446744073709551616", None),
            ("1e20", None),
            ("1e999999999", None),
            ("1.5", None),
        ] {
            assert_eq!(Decimal::parse(text).expect(text).integer(), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_ordered_by_their_value() {
        let ascending = [
            "-1e400",
            "-1e21",
            "-123",
            "-12.5",
            "-12",
            "-1e-400",
            "0",
            "1e-400",
            "0.1",
            "0.1000000000000000055",
            "0.11",
            "2",
            "12",
            "1.2e2",
            "123",
            "9007199254740992",
            "9007199254740993.0",
            "18446744073709551616",
            "1e21",
            "1e400",
        ]
        .map(|text| Decimal::parse(text).expect(text));
        for (one, left) in ascending.iter().enumerate() {
            for (other, right) in ascending.iter().enumerate() {
                assert_eq!(left.cmp(right), one.cmp(&other), "{left} {right}");
            }
        }
    }

    #[test]
    fn multiples_are_exact() {
        for (number, divisor, is_multiple) in [
            ("0", "7", true),
            ("0.3", "0.1", true),
            ("1070468.14", "0.01", true),
            ("9007199254740993", "1.5", true),
            ("9007199254740994", "1.5", false),
            ("36893488147419103233", "3", true),
            ("36893488147419103234", "3", false),
            ("1e400", "3", false),
            ("3e400", "3", true),
            ("1e400", "0.0078125", true),
            ("5", "10", false),
            ("1e-400", "1", false),
            ("36893488147419103230", "18446744073709551615", true),
            ("36893488147419103231", "18446744073709551615", false),
        ] {
            let [number, divisor] = [number, divisor].map(|text| Decimal::parse(text).expect(text));
            assert_eq!(number.is_multiple_of(&divisor), Some(is_multiple), "{number} {divisor}");
        }
        let one = Decimal::parse("1").expect("a number");
        assert_eq!(one.is_multiple_of(&Decimal::parse("0").expect("a number")), None);
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
