//! Rollups of points: count, sum, extremes and a sketch of one type in one period.
//!
//! Merging is exact and in any order: the same points give the same answer and the same bytes,
//! however they were batched. The bytes of a rollup are stored; changing them, or what they mean,
//! needs a new version byte. Pure: nothing here knows types, times of points or a database.
use self::sketch::Sketch;
use self::sum::ExactSum;
use crate::model::write::check_value;

pub mod bytes;
mod sketch;
mod sum;
#[cfg(test)]
mod tests;

/// Length of the periods of a rollup. The numbers are stored: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Resolution {
    Minute = 0,
    Hour = 1,
    Day = 2,
}

impl Resolution {
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    pub fn period_ms(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }

    /// Period that holds a time: counted since 1970, in UTC.
    pub fn period_of(self, at_ms: i64) -> i32 {
        i32::try_from(at_ms.div_euclid(self.period_ms())).unwrap_or(i32::MAX)
    }
}

/// Summary of the points of one type in one period. Two are equal when every answer about their points is
/// the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollup {
    sketch: Sketch,
    sum: ExactSum,
    /// Smallest value. Infinite while there is no value, so that the first one replaces it.
    min: f64,
    max: f64,
}

impl Default for Rollup {
    fn default() -> Self {
        Self {
            sketch: Sketch::default(),
            sum: ExactSum::default(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

impl Rollup {
    /// Adds a finite value whose magnitude is at most `write::VALUE_MAX`. -0.0 counts as 0.0.
    pub fn add(&mut self, value: f64) {
        debug_assert!(check_value(value).is_ok(), "{value} is out of range");
        let value = value + 0.0;
        self.sketch.add(value);
        self.sum.add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub fn merge(&mut self, other: &Self) {
        self.sketch.merge(&other.sketch);
        self.sum.merge(&other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.sketch.count()
    }

    /// Sum, rounded once, half to even, from the exact sum. Exact as long as there are fewer than 2⁶⁰
    /// values; past that a sum of the largest ones may stop at the largest number.
    pub fn sum(&self) -> f64 {
        self.sum.round()
    }

    /// Mean: the exact sum divided by the count, rounded once, half to even. Never outside of the extremes,
    /// where a sum that stopped at the largest number would lead. `None` without values.
    pub fn mean(&self) -> Option<f64> {
        // Adding zero takes the sign of minus zero away.
        (self.count() > 0).then(|| (self.sum.divided_by(self.count()) + 0.0).clamp(self.min, self.max))
    }

    pub fn min(&self) -> Option<f64> {
        (self.count() > 0).then_some(self.min)
    }

    pub fn max(&self) -> Option<f64> {
        (self.count() > 0).then_some(self.max)
    }

    /// Value that a share `q` (above 0, at most 1) of the values does not exceed: that of rank ⌈q × count⌉,
    /// within 1 % for magnitudes from 1e-9 to 1e15; within 1e-9 below them. For one beyond 1e15 the answer
    /// has its sign and a magnitude from 1e15 (less 1 %) up to its own. The product is an f64, so that
    /// ranks of more than 2⁵³ values are rounded. The first and the last rank are answered exactly. `None`
    /// without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is clamped to the ranks that exist"
        )]
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        match rank {
            _ if count == 0 => None,
            1 => Some(self.min),
            last if last == count => Some(self.max),
            _ => Some(self.sketch.value_at(rank).clamp(self.min, self.max)),
        }
    }
}
