//! Rollups against the values themselves: sorted, counted, and summed as one long integer.
use proptest::prelude::*;
use proptest::sample::Index;

use super::bytes::{BYTES_MAX, Corrupt};
use super::*;

const PERCENTS: [usize; 5] = [1, 50, 95, 99, 100];

/// The sum of f64 values as an integer: limbs of 32 bits, in units of 2⁻¹⁰⁷⁴.
struct Exact(Vec<i64>);

impl Exact {
    fn sum(values: &[f64]) -> Self {
        // The largest f64 ends below bit 2 098; the rest holds what many of them carry.
        let mut limbs = vec![0_i64; 70];
        for value in values {
            let bits = value.abs().to_bits();
            let exponent = bits >> 52;
            let fraction = bits & ((1 << 52) - 1);
            let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
            let shift = usize::try_from(exponent.max(1) - 1).expect("11 bits");
            let mut shifted = u128::from(mantissa) << (shift % 32);
            for limb in &mut limbs[shift / 32..shift / 32 + 3] {
                let low = i64::try_from(shifted & 0xFFFF_FFFF).expect("32 bits");
                *limb += if value.is_sign_negative() { -low } else { low };
                shifted >>= 32;
            }
        }
        Self(limbs)
    }

    /// Moves what exceeds a limb to the next one; negative when the whole is.
    fn carry(&mut self) -> bool {
        let mut carry = 0;
        for limb in &mut self.0 {
            *limb += carry;
            carry = *limb >> 32;
            *limb &= 0xFFFF_FFFF;
        }
        carry < 0
    }

    /// Rounds to the nearest f64, half to even.
    fn round(self) -> f64 {
        self.divide(1)
    }

    /// Divided by `count`, to the nearest f64, half to even, bit by bit.
    fn divide(mut self, count: u64) -> f64 {
        let sign = if self.carry() { -1.0 } else { 1.0 };
        if sign < 0.0 {
            self.0.iter_mut().for_each(|limb| *limb = -*limb);
            // Two's complement: what was borrowed from beyond the last limb comes back.
            self.carry();
        }
        let mut rest = 0;
        for limb in self.0.iter_mut().rev() {
            let dividend = rest << 32 | u128::try_from(*limb).expect("carried");
            *limb = i64::try_from(dividend / u128::from(count)).expect("below 2³²");
            rest = dividend % u128::from(count);
        }
        let bit = |at: usize| u64::try_from((self.0[at / 32] >> (at % 32)) & 1).expect("a bit");
        let top = (0..self.0.len() * 32).rev().find(|at| bit(*at) == 1).unwrap_or(0);
        let low = top.saturating_sub(52);
        let mut mantissa = (low..=top).rev().fold(0, |mantissa, at| mantissa << 1 | bit(at));
        let (is_half, is_more) = if low == 0 {
            (2 * rest >= u128::from(count), 2 * rest > u128::from(count))
        } else {
            (bit(low - 1) == 1, rest > 0 || (0..low - 1).any(|at| bit(at) == 1))
        };
        if is_half && (is_more || mantissa % 2 == 1) {
            mantissa += 1;
        }
        // A mantissa that became 2⁵³ carries into the exponent, as it should.
        sign * f64::from_bits(((low as u64) << 52) + mantissa)
    }
}

fn rollup(values: &[f64]) -> Rollup {
    let mut rollup = Rollup::default();
    for value in values {
        rollup.add(*value);
    }
    rollup
}

/// Every answer of a rollup, to the bit.
fn answers(rollup: &Rollup) -> Vec<Option<u64>> {
    let quantiles = PERCENTS.map(|percent| rollup.quantile(percent as f64 / 100.0));
    let figures = [rollup.mean(), rollup.min(), rollup.max(), Some(rollup.sum())];
    let bits = quantiles.into_iter().chain(figures).map(|figure| figure.map(f64::to_bits));
    bits.chain([Some(rollup.count())]).collect()
}

fn check(values: &[f64]) -> Result<(), TestCaseError> {
    let rollup = rollup(values);
    prop_assert_eq!(rollup.count(), values.len() as u64);
    let sum = Exact::sum(values).round();
    prop_assert_eq!(rollup.sum().to_bits(), sum.to_bits(), "{:e} for {:e}", rollup.sum(), sum);
    let mut sorted: Vec<f64> = values.iter().map(|value| value + 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    prop_assert_eq!(rollup.min(), sorted.first().copied());
    prop_assert_eq!(rollup.max(), sorted.last().copied());
    let (Some(min), Some(max)) = (rollup.min(), rollup.max()) else {
        prop_assert_eq!((rollup.mean(), rollup.quantile(0.5)), (None, None));
        return Ok(());
    };
    let mean = Exact::sum(values).divide(values.len() as u64);
    prop_assert_eq!(rollup.mean().map(f64::to_bits), Some((mean + 0.0).to_bits()), "for {:e}", mean);
    prop_assert!((min..=max).contains(&mean));
    for percent in PERCENTS {
        let value = sorted[(percent * values.len()).div_ceil(100) - 1];
        let answer = rollup.quantile(percent as f64 / 100.0).expect("there are values");
        let is_near = match value.abs() {
            small if small < 1e-9 => (answer - value).abs() <= 1e-9,
            large if large > 1e15 => {
                let allowed = 0.99e15..=1.01 * large;
                answer.signum() == value.signum() && allowed.contains(&answer.abs())
            }
            magnitude => (answer - value).abs() <= 0.01 * magnitude,
        };
        prop_assert!(is_near, "p{}: {:e} for {:e}", percent, answer, value);
    }
    Ok(())
}

#[test]
fn the_long_integer_of_these_tests_rounds_as_addition_does() {
    for (a, b) in [(0.1, 0.2), (1.0, f64::EPSILON / 2.0), (1e290, -1.0), (5e-324, 5e-324), (-3.5, 1.25)] {
        let rounded: f64 = a + b;
        assert_eq!(Exact::sum(&[a, b]).round().to_bits(), rounded.to_bits(), "{a} + {b}");
    }
    let sum = |values: &[f64]| Exact::sum(values).round().to_bits();
    assert_eq!(sum(&[1.0, f64::EPSILON / 2.0, 5e-324]), (1.0 + f64::EPSILON).to_bits());
    assert_eq!(sum(&[f64::MAX, -f64::MAX, -f64::MIN_POSITIVE]), (-f64::MIN_POSITIVE).to_bits());
}

#[test]
fn a_quotient_of_whole_numbers_is_that_of_real_arithmetic() {
    for (values, count) in [(&[7.0][..], 3), (&[1.0, 1e16, 3.0], 7), (&[-5e-324; 3], 2), (&[0.3, 0.6], 9)] {
        assert_eq!(
            Exact::sum(values).divide(count).to_bits(),
            if values.len() == 1 { 7.0_f64 / 3.0 } else { sum_of(values).divided_by(count) }.to_bits(),
            "{values:?} / {count}"
        );
    }
    // Three halves of the smallest number lie between it and its double: to the even one.
    assert_eq!(sum_of(&[5e-324; 3]).divided_by(2).to_bits(), 2);
    assert_eq!(sum_of(&[5e-324]).divided_by(2).to_bits(), 0);
    assert_eq!(sum_of(&[5e-324; 2]).divided_by(3).to_bits(), 1);
    // The rounded sum by the count is another number.
    let values = [45.91, 26.93, 54.8, 95.71, 0.57, 78.37, 82.05, 88.62, 74.05, 80.91];
    assert_eq!(sum_of(&values).divided_by(10).to_bits(), 62.792_f64.to_bits());
    assert_ne!((sum_of(&values).round() / 10.0).to_bits(), 62.792_f64.to_bits());
}

fn sum_of(values: &[f64]) -> ExactSum {
    let mut sum = ExactSum::default();
    for value in values {
        sum.add(*value);
    }
    sum
}

#[test]
fn a_rollup_has_a_stated_size_whatever_it_is_made_of() {
    // Every tenth of a bin, on both sides, far beyond the range.
    let step = 1.0 + 1.0 / 501.0;
    let rising = std::iter::successors(Some(1e-10), |value| Some(value * step));
    let values: Vec<f64> =
        rising.take_while(|value| *value < 1e290).flat_map(|value| [value, -value]).collect();
    let wide = rollup(&values);
    assert_eq!(wide.sketch.bins().len(), sketch::BINS_MAX);
    assert!(wide.encode().len() < BYTES_MAX / 3, "{}", wide.encode().len());
    check(&values).unwrap_or_else(|error| panic!("{error}"));
    // Counts of nine bytes where that many fit, and a sum that takes all parts.
    let mut full = Rollup { sketch: sketch::Sketch::default(), ..wide };
    for (at, bin) in wide.sketch.bins().iter().enumerate() {
        let count = if at < 200 { 1 << 56 } else { 1 << 49 };
        full.sketch.push(sketch::Bin { count, ..*bin }).expect("is counted");
    }
    let powers = (-1_074..963).map(|power| 2.0_f64.powi(power / 2) * 2.0_f64.powi(power - power / 2));
    full.sum = sum_of(&powers.step_by(2).collect::<Vec<_>>());
    let bytes = full.encode();
    assert!((BYTES_MAX * 3 / 4..=BYTES_MAX).contains(&bytes.len()), "{}", bytes.len());
    assert!(Rollup::decode(&bytes) == Ok(full));
}

/// Encodes as the builds did that kept every bin.
fn encoded_wide(keys: impl Iterator<Item = u16>, values: &[f64]) -> Vec<u8> {
    let varint = |mut value: u32| {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        bytes.push(value.to_le_bytes()[0]);
        bytes
    };
    let keys: Vec<u32> = keys.map(u32::from).collect();
    let mut bytes = vec![1];
    bytes.extend(varint(u32::try_from(keys.len()).expect("few")));
    bytes.extend(varint(2 * keys[0]));
    bytes.push(1);
    for pair in keys.windows(2) {
        bytes.extend(varint(pair[1] - pair[0]));
        bytes.push(1);
    }
    let rest = rollup(values);
    bytes.extend([rest.min, rest.max].into_iter().flat_map(f64::to_be_bytes));
    let parts = rest.sum.parts();
    bytes.push(u8::try_from(parts.len()).expect("few"));
    bytes.extend(parts.into_iter().flat_map(f64::to_be_bytes));
    bytes
}

#[test]
fn a_wide_rollup_of_an_earlier_build_is_read_and_comes_within_the_bound() {
    let values: Vec<f64> =
        (1..=34_000).map(|key| (f64::from(key - 1) / 50.1 - 20.723).exp() * 1.003).collect();
    let stored = encoded_wide(1..=34_000, &values);
    let read = Rollup::decode(&stored).expect("was written by an earlier build");
    assert!(read == rollup(&values));
    assert!(read.encode().len() < stored.len() / 8);
    // As many bins as there can be, once more than stands there: refused.
    assert_eq!(Rollup::decode(&stored[..stored.len() - 1]), Err(Corrupt));
}

#[test]
fn adversarial_values_keep_to_what_is_stated() {
    let wide: Vec<f64> = (-300..=290).map(|power| 10_f64.powi(power).min(1e290)).collect();
    let both_signs: Vec<f64> = wide.iter().flat_map(|value| [*value, -value]).collect();
    let falling: Vec<f64> = (0..2_000).map(|step| 1e6 * 0.99_f64.powi(step)).collect();
    let cases: [&[f64]; 16] = [
        &[],
        &[0.0],
        &[-0.0],
        &[0.0, -0.0, 0.0],
        &[5e-324, -5e-324, f64::MIN_POSITIVE / 3.0],
        &[1e-9, 1e-9, 1e-9],
        &[1e-9_f64.next_down(), 1e-9, 1e-9_f64.next_up(), -1e-9, -1e-10],
        &[1e290],
        &[-1e290, 1e290],
        &[1e290, -1e290, 1.0],
        &[1.0, 1e290, 1.0, -1e290],
        &[0.1, 0.1, 0.1],
        &[-5.0, -4.0, -3.0, -2.0, -1.0, 0.0],
        &wide,
        &both_signs,
        &falling,
    ];
    for values in cases {
        check(values).unwrap_or_else(|error| panic!("{values:?}: {error}"));
    }
}

#[test]
fn one_value_a_million_times_is_that_value() {
    for value in [0.1, -1e290, 3e-10, 1e-9] {
        let values = vec![value; 1_000_000];
        check(&values).unwrap_or_else(|error| panic!("{value}: {error}"));
        let rollup = rollup(&values);
        assert_eq!((rollup.mean(), rollup.quantile(0.5)), (Some(value), Some(value)));
        assert_eq!(Rollup::decode(&rollup.encode()), Ok(rollup));
    }
}

#[test]
fn a_million_spread_values_keep_to_what_is_stated() {
    let spread = |step: u32| f64::from(step.wrapping_mul(2_654_435_761) >> 8);
    let values: Vec<f64> = (0..1_000_000).map(|step| (spread(step) / 2e6).exp() - 40.0).collect();
    check(&values).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn one_value_is_stored_in_about_thirty_bytes() {
    for (value, length) in [(0.0, 29), (12.5, 37), (1e290, 39), (-1e-9, 37)] {
        let length_max = rollup(&[value]).encode().len();
        assert!(length_max <= length, "{value}: {length_max}");
    }
    assert_eq!(Rollup::default().encode(), [1, 0]);
}

#[test]
fn stored_bytes_keep_their_meaning() {
    let bytes = rollup(&[-2.0, 0.0, 0.5, 0.5]).encode();
    let [min, max, sum] = [-2.0_f64, 0.5, -1.0].map(f64::to_be_bytes);
    let mut expected = vec![1, 3];
    // -1073 as 2145, one; 0 as 1073 further, one; 1004 as the distance to 0, two.
    expected.extend([0xE1, 0x10, 1, 0xB1, 0x08, 1, 0xEC, 0x07, 2]);
    expected.extend([&min[..], &max, &[1], &sum].concat());
    assert_eq!(bytes, expected);
}

#[test]
fn bytes_of_no_rollup_are_refused() {
    let good = rollup(&[-1.5, 0.0, 3.0, 1e-7, 1e290, 1.0]).encode();
    for length in 0..good.len() {
        assert_eq!(Rollup::decode(&good[..length]), Err(Corrupt), "cut to {length}");
    }
    let with = |bytes: &[u8]| [&good, bytes].concat();
    assert_eq!(Rollup::decode(&with(&[0])), Err(Corrupt));
    let [one, two, nan] = [1.0_f64, 2.0, f64::NAN].map(f64::to_be_bytes);
    // The bins of 1.0, or of 1.0 and 2.0.
    let bins: [&[u8]; 2] = [&[1, 1, 0x9E, 0x10, 1], &[1, 2, 0x9E, 0x10, 1, 34, 1]];
    assert!(Rollup::decode(&[bins[0], &one, &one, &[1], &one].concat()).is_ok());
    assert!(Rollup::decode(&[bins[1], &one, &two, &[2], &two, &1e-20_f64.to_be_bytes()].concat()).is_ok());
    let bad: [(&str, Vec<u8>); 10] = [
        ("another version", [&[2], &bins[0][1..], &one, &one, &[1], &one].concat()),
        ("not a number", [bins[0], &nan, &nan, &[1], &one].concat()),
        ("a sum that is not a number", [bins[0], &one, &one, &[1], &nan].concat()),
        ("extremes in the wrong order", [bins[1], &two, &one, &[1], &one].concat()),
        ("extremes that are in no bin", [bins[0], &(-2.0_f64).to_be_bytes(), &one, &[1], &one].concat()),
        ("parts that overlap", [bins[0], &one, &one, &[2], &one, &two].concat()),
        ("too many parts", [bins[0], &one, &one, &[41], &one.repeat(41)].concat()),
        ("the same bin again", [&[1, 2, 0x9E, 0x10, 1, 0, 1], &one[..], &one, &[1], &one].concat()),
        ("a bin without values", [&[1, 1, 0x9E, 0x10, 0], &one[..], &one, &[1], &one].concat()),
        ("a long number", [&[1, 1, 0x9E, 0x90, 0, 1], &one[..], &one, &[1], &one].concat()),
    ];
    for (what, bytes) in bad {
        assert_eq!(Rollup::decode(&bytes), Err(Corrupt), "{what}");
    }
    // As many bins as there are numbers: nothing may be allocated for them.
    let huge = [&[1][..], &[0xFF; 9], &[1], &[0; 100]].concat();
    assert_eq!(Rollup::decode(&huge), Err(Corrupt));
}

fn value() -> impl Strategy<Value = f64> {
    let magnitude = (-324_i32..=289, 1.0..10.0)
        .prop_map(|(power, digits)| digits * 10_f64.powi(power / 2) * 10_f64.powi(power - power / 2));
    let special =
        [0.0, 5e-324, f64::MIN_POSITIVE, 1e-9, 1e-9_f64.next_down(), 1.0, 0.5, 1e290, f64::EPSILON / 2.0];
    let magnitude = prop_oneof![
        4 => magnitude,
        4 => (0_u32..5_000).prop_map(|tenths| f64::from(tenths) / 10.0),
        2 => 0.0..1.0,
        2 => proptest::sample::select(special.to_vec()),
        1 => 0.0..1e-308,
    ];
    (magnitude, any::<bool>())
        .prop_map(|(magnitude, negative)| magnitude.min(1e290) * if negative { -1.0 } else { 1.0 })
}

/// Often only the one kind of value, so that they meet in few bins and cancel.
fn values() -> impl Strategy<Value = Vec<f64>> {
    let few = proptest::collection::vec(value(), 1..5)
        .prop_flat_map(|few| {
            proptest::collection::vec((proptest::sample::select(few), any::<bool>()), 0..300)
        })
        .prop_map(|signed| {
            signed.into_iter().map(|(value, flip)| if flip { -value } else { value }).collect()
        });
    prop_oneof![proptest::collection::vec(value(), 0..300), few]
}

proptest! {
    #[test]
    fn answers_keep_to_what_is_stated(values in values()) {
        check(&values)?;
    }

    #[test]
    fn merging_in_any_order_and_grouping_gives_the_same_answers_and_bytes(
        (values, shuffled) in values().prop_flat_map(|values| (Just(values.clone()), Just(values).prop_shuffle())),
        groups in proptest::collection::vec(any::<Index>(), 300),
        pairs in proptest::collection::vec((any::<Index>(), any::<bool>()), 12),
    ) {
        let straight = rollup(&values);
        let mut parts = vec![Rollup::default(); pairs.len()];
        for (value, group) in shuffled.iter().zip(groups) {
            // The square leaves some groups small.
            let at = group.index(pairs.len()) * group.index(pairs.len() + 1) / (pairs.len() + 1);
            parts[at].add(*value);
        }
        for (pair, through_bytes) in pairs {
            if parts.len() == 1 {
                break;
            }
            let mut part = parts.swap_remove(pair.index(parts.len()));
            if through_bytes {
                part = Rollup::decode(&part.encode()).expect("was just encoded");
            }
            let at = pair.index(parts.len());
            parts[at].merge(&part);
        }
        prop_assert_eq!(parts.len(), 1);
        prop_assert_eq!(answers(&parts[0]), answers(&straight));
        prop_assert_eq!(parts[0].encode(), straight.encode());
        prop_assert_eq!(&parts[0], &straight);
    }

    #[test]
    fn a_rollup_is_read_as_it_was_written(values in values()) {
        let rollup = rollup(&values);
        prop_assert_eq!(Rollup::decode(&rollup.encode()), Ok(rollup));
    }

    #[test]
    fn damaged_bytes_are_refused_or_are_those_of_another_rollup(
        values in values(), changes in proptest::collection::vec((any::<Index>(), any::<u8>(), 0..3), 1..4),
    ) {
        let mut bytes = rollup(&values).encode();
        for (at, byte, change) in changes {
            let at = at.index(bytes.len());
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {}
            }
        }
        use_what_reads(&bytes)?;
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        use_what_reads(&bytes)?;
        use_what_reads(&[&[1], &bytes[..]].concat())?;
    }
}

fn use_what_reads(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(mut rollup) = Rollup::decode(bytes) {
        let encoded = rollup.encode();
        // Only bins that earlier builds kept beyond the range are written in another way.
        let is_outermost = |bin: &sketch::Bin| bin.key.abs() == sketch::KEY_MAX;
        prop_assert!(encoded == bytes || rollup.sketch.bins().iter().any(is_outermost));
        prop_assert_eq!(Rollup::decode(&encoded), Ok(rollup.clone()));
        let other = rollup.clone();
        rollup.merge(&other);
        rollup.add(1.0);
        prop_assert!(answers(&rollup).iter().all(Option::is_some));
    }
    Ok(())
}
