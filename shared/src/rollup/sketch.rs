//! How many values lie in which bin, where bins grow with the values: a DDSketch (Ch. Masson,
//! J. E. Rim, H. K. Lee, VLDB 2019) that keeps every bin which was ever hit.
//!
//! It never collapses bins, so that the error holds at both ends. Their number is bounded by the
//! values themselves: about 50 bins for each factor of e between the smallest and the largest.

/// Smaller magnitudes count as zero.
pub const SMALLEST: f64 = 1e-9;

/// ln of [`SMALLEST`].
const LN_SMALLEST: f64 = -20.723_265_836_946_41;

/// Bins for each factor of e. A bin is answered by the value which is as far from both of its ends,
/// in proportion: by tanh(1 / (2 × 50.1)) = 0.998 %, so that what ln rounds stays within 1 %.
/// Stored bins depend on it.
const BINS_PER_E: f64 = 50.1;

/// tanh(1 / (2 × [`BINS_PER_E`])).
const ERROR: f64 = 0.009_979_708_592_053_198;

/// No value up to `write::VALUE_MAX` has a larger key.
pub const KEY_MAX: i32 = 34_500;

/// Values that are told apart by their bin only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bin {
    /// Grows with the values: 0 for zero, 1 from [`SMALLEST`] on, negative for negative values.
    pub key: i32,
    /// At least 1.
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Sorted by key, each key once.
    bins: Vec<Bin>,
    count: u64,
}

impl Sketch {
    /// `None` when the bins are not sorted, are empty or hold more than can be counted.
    pub fn from_bins(bins: Vec<Bin>) -> Option<Self> {
        let sorted = bins.windows(2).all(|pair| pair[0].key < pair[1].key);
        let within = bins.iter().all(|bin| bin.count > 0 && bin.key.unsigned_abs() <= KEY_MAX.unsigned_abs());
        let count = bins.iter().try_fold(0_u64, |count, bin| count.checked_add(bin.count))?;
        (sorted && within).then_some(Self { bins, count })
    }

    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn add(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        let key = key_of(value);
        // Values of one type are often alike.
        if let Some(last) = self.bins.last_mut()
            && last.key == key
        {
            last.count = last.count.saturating_add(1);
            return;
        }
        let at = self.bins.partition_point(|bin| bin.key < key);
        match self.bins.get_mut(at) {
            Some(bin) if bin.key == key => bin.count = bin.count.saturating_add(1),
            _ => self.bins.insert(at, Bin { key, count: 1 }),
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if self.bins.last().is_none_or(|last| other.bins.first().is_some_and(|first| last.key < first.key)) {
            self.bins.extend_from_slice(&other.bins);
            return;
        }
        let (mut at, mut missing) = (0, 0);
        for bin in &other.bins {
            at = seek(&self.bins, at, bin.key);
            match self.bins.get_mut(at) {
                Some(own) if own.key == bin.key => own.count = own.count.saturating_add(bin.count),
                _ => missing += 1,
            }
        }
        self.insert_missing(&other.bins, missing);
    }

    /// Makes room at the end and fills it from the back, so that each bin moves at most once.
    fn insert_missing(&mut self, others: &[Bin], missing: usize) {
        let mut from = self.bins.len();
        let mut to = from + missing;
        self.bins.resize(to, Bin::default());
        for other in others.iter().rev() {
            if from == to {
                return;
            }
            while from > 0 && self.bins[from - 1].key > other.key {
                (from, to) = (from - 1, to - 1);
                self.bins[to] = self.bins[from];
            }
            if from == 0 || self.bins[from - 1].key < other.key {
                to -= 1;
                self.bins[to] = *other;
            }
        }
    }

    /// About the value of a rank, counted from 1 upwards; 0 past the last.
    pub fn value_at(&self, rank: u64) -> f64 {
        let mut seen = 0_u64;
        let holds = |bin: &&Bin| {
            seen = seen.saturating_add(bin.count);
            seen >= rank
        };
        self.bins.iter().find(holds).map_or(0.0, |bin| value_of(bin.key))
    }
}

/// The first place from `from` on whose key is not smaller. Doubling steps: short ones where the
/// bins of both sides are the same, few where one side has many more.
fn seek(bins: &[Bin], mut from: usize, key: i32) -> usize {
    let mut step = 1;
    while bins.get(from + step - 1).is_some_and(|bin| bin.key < key) {
        from += step;
        step *= 2;
    }
    let to = bins.len().min(from + step);
    from + bins[from..to].partition_point(|bin| bin.key < key)
}

fn key_of(value: f64) -> i32 {
    let magnitude = value.abs();
    if magnitude < SMALLEST {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "to the start of the bin, of which there are few")]
    let bin = ((magnitude.ln() - LN_SMALLEST) * BINS_PER_E) as i32;
    if value < 0.0 { -1 - bin } else { 1 + bin }
}

/// The value that stands for a bin.
fn value_of(key: i32) -> f64 {
    if key == 0 {
        return 0.0;
    }
    let begin = (LN_SMALLEST + f64::from(key.abs() - 1) / BINS_PER_E).exp();
    (begin * (1.0 + ERROR)).copysign(f64::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::VALUE_MAX;

    #[test]
    fn the_constants_are_what_they_are_said_to_be() {
        assert!((LN_SMALLEST - SMALLEST.ln()).abs() < 1e-14);
        assert!((ERROR - (0.5 / BINS_PER_E).tanh()).abs() < 1e-16, "{}", (0.5 / BINS_PER_E).tanh());
        assert!(key_of(VALUE_MAX) <= KEY_MAX && key_of(VALUE_MAX) > KEY_MAX - 100, "{}", key_of(VALUE_MAX));
        assert_eq!((key_of(SMALLEST), key_of(-SMALLEST)), (1, -1));
        assert_eq!((key_of(0.0), key_of(9.999e-10), key_of(-5e-324)), (0, 0, 0));
    }

    #[test]
    fn on_either_side_of_every_border_the_answer_is_within_one_per_cent() {
        for key in 1..=KEY_MAX {
            let border = (LN_SMALLEST + f64::from(key) / BINS_PER_E).exp();
            for value in [border.next_down(), border, border.next_up(), border * (1.0 - 1e-12)] {
                let answer = value_of(key_of(value));
                assert!((answer - value).abs() <= 0.01 * value, "{value:e} as {answer:e}");
                assert_eq!(key_of(-value), -key_of(value));
            }
        }
    }

    #[test]
    fn keys_grow_with_the_values() {
        let rising = [-1e290, -2.0, -1.0, -1e-9, 0.0, 1e-9, 1e-8, 0.5, 1.0, 1e290].map(key_of);
        assert!(rising.is_sorted_by(|a, b| a < b), "{rising:?}");
    }

    #[test]
    fn bins_that_no_sketch_has_are_refused() {
        let bins =
            |keys: &[(i32, u64)]| keys.iter().map(|(key, count)| Bin { key: *key, count: *count }).collect();
        assert!(Sketch::from_bins(bins(&[(-5, 1), (0, 2), (7, u64::MAX - 3)])).is_some());
        for bad in
            [&[(1, 1), (1, 1)][..], &[(2, 1), (1, 1)], &[(1, 0)], &[(1, u64::MAX), (2, 1)], &[(i32::MIN, 1)]]
        {
            assert!(Sketch::from_bins(bins(bad)).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn counts_past_their_range_stay_at_its_end() {
        let full = Sketch::from_bins(vec![Bin { key: 3, count: u64::MAX }]).expect("counted");
        let mut twice = full.clone();
        twice.merge(&full);
        assert_eq!(twice, full);
    }
}
