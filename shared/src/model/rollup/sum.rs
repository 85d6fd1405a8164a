//! Exact sum of f64 values, whatever their order: no value is rounded away before the answer.
//!
//! Method of J. R. Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric
//! Predicates" (1997): a sum is kept as several f64 whose bits do not overlap, mostly one or two.

/// Parts of a canonical sum at most: each is at least 2⁵³ times smaller than the one before it, and f64
/// reaches from 2¹⁰²³ to 2⁻¹⁰⁷⁴.
pub const PARTS_MAX: usize = 40;

/// Neighbours that a rounded quotient is moved to at most.
const QUOTIENT_STEPS_MAX: u32 = 4;

/// Sum as `head` plus all of `tail`; 0 when empty.
#[derive(Clone, Debug, Default)]
pub struct ExactSum {
    /// The largest part; 0 only when there is no other. Beside the tail, so that a sum which fits
    /// one f64 allocates nothing.
    head: f64,
    /// The other parts, none of them 0, by growing magnitude.
    tail: Vec<f64>,
}

impl ExactSum {
    /// Adds a finite value.
    pub fn add(&mut self, value: f64) {
        let (mut carried, mut kept) = (value, 0);
        for at in 0..self.tail.len() {
            let (sum, error) = two_sum(carried, self.tail[at]);
            carried = sum;
            if error != 0.0 {
                self.tail[kept] = error;
                kept += 1;
            }
        }
        self.tail.truncate(kept);
        let (head, error) = two_sum(carried, self.head);
        if !head.is_finite() {
            // Out of reach of real values: see `Rollup::sum`.
            *self = Self { head: f64::MAX.copysign(head), tail: Vec::new() };
            return;
        }
        if error != 0.0 {
            self.tail.push(error);
        }
        self.head = if head == 0.0 { self.tail.pop().unwrap_or(0.0) } else { head };
    }

    pub fn merge(&mut self, other: &Self) {
        for part in &other.tail {
            self.add(*part);
        }
        self.add(other.head);
    }

    /// Rounds to the f64 that is nearest to the sum; between two, the even one.
    pub fn round(&self) -> f64 {
        let (mut high, mut low) = (self.head, 0.0);
        let mut smaller = self.tail.iter().rev();
        for part in smaller.by_ref() {
            (high, low) = two_sum(high, *part);
            if low != 0.0 {
                break;
            }
        }
        // `low` may lie half way between two numbers, which was rounded to even: what is smaller
        // still decides whether that was right.
        if smaller.next().is_some_and(|next| next.is_sign_positive() == low.is_sign_positive()) {
            let other = high + low * 2.0;
            if is_same(other - high, low * 2.0) {
                high = other;
            }
        }
        high
    }

    /// The f64 that is nearest to the sum divided by `count`, above 0; between two, the even one.
    /// The exact remainder of a quotient decides whether a neighbour is nearer: a remainder of a
    /// product with an integer is a multiple of the smallest f64, so nothing is lost to underflow.
    pub fn divided_by(&self, count: u64) -> f64 {
        let mut quotient = self.round() / count as f64;
        // Two units of the last place off at most; more only for a sum that stopped at its end.
        for _ in 0..QUOTIENT_STEPS_MAX {
            let mut remainder = self.clone();
            remainder.subtract_product(quotient, count);
            let neighbour = match remainder.head {
                rest if rest > 0.0 => quotient.next_up(),
                rest if rest < 0.0 => quotient.next_down(),
                _ => return quotient,
            };
            if !neighbour.is_finite() {
                return quotient;
            }
            // Twice the remainder against the distance of the two quotients times the count.
            let mut excess = remainder.clone();
            excess.merge(&remainder);
            excess.subtract_product(neighbour - quotient, count);
            let is_beyond = excess.head * remainder.head.signum();
            if is_beyond < 0.0 || (is_beyond == 0.0 && quotient.to_bits().is_multiple_of(2)) {
                return quotient;
            }
            quotient = neighbour;
            if is_beyond == 0.0 {
                return quotient;
            }
        }
        quotient
    }

    /// Subtracts a product exactly: a count above 2⁵³ comes in two parts, and the rounding error of a
    /// product is an f64.
    fn subtract_product(&mut self, factor: f64, count: u64) {
        for part in [count >> 32 << 32, count & 0xFFFF_FFFF] {
            let part = part as f64;
            let product = factor * part;
            self.add(-product);
            self.add(-factor.mul_add(part, -product));
        }
    }

    /// Canonical parts of this sum, by falling magnitude: the only ones of which each is the rounded sum of
    /// itself and all that follow. Equal sums have equal parts, and so equal bytes.
    pub fn parts(&self) -> Vec<f64> {
        let mut parts = Vec::with_capacity(1 + self.tail.len());
        match self.tail[..] {
            [] if self.head == 0.0 => {}
            [] => parts.push(self.head),
            [low] if is_same(self.head + low, self.head) => parts.extend([self.head, low]),
            _ => {
                let mut rest = self.clone();
                while rest.head != 0.0 {
                    let part = rest.round();
                    parts.push(part);
                    rest.add(-part);
                }
            }
        }
        parts
    }

    /// Sum with these [`ExactSum::parts`]; `None` when no sum has them.
    pub fn from_parts(parts: &[f64]) -> Option<Self> {
        let mut sum = Self::default();
        parts.iter().rev().for_each(|part| sum.add(*part));
        (sum.parts() == parts).then_some(sum)
    }
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

/// Rounded sum and its rounding error: together exactly `a + b` (D. E. Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part_of_b = sum - a;
    let part_of_a = sum - part_of_b;
    (sum, (a - part_of_a) + (b - part_of_b))
}

#[expect(clippy::float_cmp, reason = "exact arithmetic: the question is whether a bit was lost")]
fn is_same(a: f64, b: f64) -> bool {
    a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        for value in values {
            sum.add(*value);
        }
        sum
    }

    #[test]
    fn nothing_is_lost_beside_a_huge_value_that_goes_away_again() {
        assert_eq!(sum(&[1e290, 1.0, -1e290]).round().to_bits(), 1.0_f64.to_bits());
        assert_eq!(sum(&[1e290, 5e-324, -1e290]).round().to_bits(), 1);
        assert!(sum(&[1e290, -1e290]).parts().is_empty());
    }

    #[test]
    fn halves_are_rounded_to_even_unless_something_smaller_decides() {
        let half = f64::EPSILON / 2.0;
        assert_eq!(sum(&[1.0, half]).round().to_bits(), 1.0_f64.to_bits());
        assert_eq!(sum(&[1.0, half, 5e-324]).round().to_bits(), (1.0 + f64::EPSILON).to_bits());
        assert_eq!(sum(&[1.0, half, -5e-324]).round().to_bits(), 1.0_f64.to_bits());
        let odd = 1.0 + f64::EPSILON;
        assert_eq!(sum(&[odd, half]).round().to_bits(), (odd + f64::EPSILON).to_bits());
        assert_eq!(sum(&[odd, half, -5e-324]).round().to_bits(), odd.to_bits());
    }

    #[test]
    fn a_sum_that_leaves_the_numbers_stops_at_their_end() {
        assert_eq!(sum(&[f64::MAX, f64::MAX, 1.0]).parts(), [f64::MAX, 1.0]);
        assert_eq!(sum(&[1.0, -f64::MAX, -f64::MAX]).round().to_bits(), (-f64::MAX).to_bits());
    }

    #[test]
    fn parts_are_few_even_when_every_bit_of_the_range_is_used() {
        let powers =
            (-1_074..963).step_by(2).map(|power| 2.0_f64.powi(power / 2) * 2.0_f64.powi(power - power / 2));
        let parts = sum(&powers.collect::<Vec<_>>()).parts();
        assert!((30..=PARTS_MAX).contains(&parts.len()), "{}", parts.len());
        assert_eq!(ExactSum::from_parts(&parts).map(|sum| sum.parts()), Some(parts));
    }

    #[test]
    fn parts_that_no_sum_has_are_refused() {
        for parts in [&[0.0][..], &[f64::NAN], &[f64::INFINITY], &[1.0, 0.0], &[1.0, 1.0], &[1e-9, 1.0]] {
            assert!(ExactSum::from_parts(parts).is_none(), "{parts:?}");
        }
        // With the third part, the first two would be rounded up.
        let half = f64::EPSILON / 2.0;
        assert!(ExactSum::from_parts(&[1.0, half]).is_some());
        assert!(ExactSum::from_parts(&[1.0, half, 1e-300]).is_none());
        // And here rounded up without it.
        let odd = 1.0 + f64::EPSILON;
        assert!(ExactSum::from_parts(&[odd, half]).is_none());
        assert!(ExactSum::from_parts(&[odd, half, -1e-300]).is_some());
    }
}
