//! Counts of values by bin, where bins grow with the values: a DDSketch (Ch. Masson, J. E. Rim, H. K. Lee,
//! VLDB 2019) over a fixed range of magnitudes, so with [`BINS_MAX`] bins.
//!
//! A value beyond the range counts in the outermost bin of its side. The bin of a value depends on the
//! value alone, never on earlier ones: merging stays exact in any order, which a sketch that collapses its
//! smallest bins would lose.

/// Smaller magnitudes count as zero.
pub const SMALLEST: f64 = 1e-9;

/// Larger magnitudes count in the bin of this one.
pub const LARGEST: f64 = 1e15;

/// ln of [`SMALLEST`].
const LN_SMALLEST: f64 = -20.723_265_836_946_41;

/// Bins for each factor of e. A bin is answered by the value which is as far from both of its ends,
/// in proportion: by tanh(1 / (2 × 50.1)) = 0.998 %, so that what ln rounds stays within 1 %.
/// Stored bins depend on it.
const BINS_PER_E: f64 = 50.1;

/// tanh(1 / (2 × [`BINS_PER_E`])).
const ERROR: f64 = 0.009_979_708_592_053_198;

/// The key of [`LARGEST`].
pub const KEY_MAX: i32 = 2_769;

/// Largest key in stored sketches of builds that kept every bin up to `write::VALUE_MAX`.
const STORED_KEY_MAX: i32 = 34_500;

/// Bins of a sketch at most: zero, and both signs.
pub const BINS_MAX: usize = 2 * KEY_MAX as usize + 1;

/// Number of values in one bin, within which they cannot be distinguished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bin {
    /// Key, which grows with the values: 0 for zero, 1 from [`SMALLEST`] on, negative for negative values.
    pub key: i32,
    /// Count, at least 1.
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Sorted by key, each key once.
    bins: Vec<Bin>,
    count: u64,
}

impl Sketch {
    pub fn with_capacity(bins: usize) -> Self {
        Self { bins: Vec::with_capacity(bins.min(BINS_MAX)), count: 0 }
    }

    /// Appends a stored bin, whose key must be the largest so far. Keys of earlier builds beyond
    /// [`BINS_MAX`] come into the outermost bins. `None` for a bin that no sketch has: empty, out
    /// of order, or with more values than can be counted.
    pub fn push(&mut self, bin: Bin) -> Option<()> {
        if bin.count == 0 || bin.key.unsigned_abs() > STORED_KEY_MAX.unsigned_abs() {
            return None;
        }
        self.count = self.count.checked_add(bin.count)?;
        let key = bin.key.clamp(-KEY_MAX, KEY_MAX);
        match self.bins.last_mut() {
            Some(last) if last.key == key && key.abs() == KEY_MAX => last.count += bin.count,
            Some(last) if last.key >= key => return None,
            _ => self.bins.push(Bin { key, ..bin }),
        }
        Some(())
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

    /// Approximate value of a rank, counted from 1 upwards; 0 past the last. Beyond [`LARGEST`] only the
    /// value's sign and the largest magnitude of the range.
    pub fn value_at(&self, rank: u64) -> f64 {
        let mut seen = 0_u64;
        let holds = |bin: &&Bin| {
            seen = seen.saturating_add(bin.count);
            seen >= rank
        };
        self.bins.iter().find(holds).map_or(0.0, |bin| value_of(bin.key))
    }
}

/// First place from `from` on whose key is not smaller. Doubling steps: short ones where the bins of both
/// sides are the same, few where one side has many more.
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
    let magnitude = value.abs().min(LARGEST);
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
    use crate::model::write::VALUE_MAX;

    fn sketch(bins: &[(i32, u64)]) -> Option<Sketch> {
        let mut sketch = Sketch::default();
        bins.iter().try_for_each(|(key, count)| sketch.push(Bin { key: *key, count: *count }))?;
        Some(sketch)
    }

    #[test]
    fn the_constants_are_what_they_are_said_to_be() {
        assert!((LN_SMALLEST - SMALLEST.ln()).abs() < 1e-14);
        assert!((ERROR - (0.5 / BINS_PER_E).tanh()).abs() < 1e-16, "{}", (0.5 / BINS_PER_E).tanh());
        let unbounded = ((VALUE_MAX.ln() - LN_SMALLEST) * BINS_PER_E).ceil();
        assert!((0.0..100.0).contains(&(f64::from(STORED_KEY_MAX) - unbounded)), "{unbounded}");
        assert_eq!((key_of(SMALLEST), key_of(-SMALLEST)), (1, -1));
        assert_eq!((key_of(LARGEST), key_of(-LARGEST)), (KEY_MAX, -KEY_MAX));
        assert_eq!((key_of(VALUE_MAX), key_of(-VALUE_MAX)), (KEY_MAX, -KEY_MAX));
        assert_eq!(key_of(LARGEST / 1.03), KEY_MAX - 1);
        assert_eq!((key_of(0.0), key_of(9.999e-10), key_of(-5e-324)), (0, 0, 0));
    }

    #[test]
    fn on_either_side_of_every_border_the_answer_is_within_one_per_cent() {
        for key in 1..KEY_MAX {
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
        let rising = [-1e15, -2.0, -1.0, -1e-9, 0.0, 1e-9, 1e-8, 0.5, 1.0, 1e14, 1e290].map(key_of);
        assert!(rising.is_sorted_by(|a, b| a < b), "{rising:?}");
    }

    #[test]
    fn bins_that_no_sketch_has_are_refused() {
        assert!(sketch(&[(-5, 1), (0, 2), (7, u64::MAX - 3)]).is_some());
        for bad in
            [&[(1, 1), (1, 1)][..], &[(2, 1), (1, 1)], &[(1, 0)], &[(1, u64::MAX), (2, 1)], &[(i32::MIN, 1)]]
        {
            assert!(sketch(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn bins_of_earlier_builds_beyond_the_range_come_into_the_outermost_ones() {
        let wide = [(-STORED_KEY_MAX, 1), (-KEY_MAX, 2), (0, 4), (KEY_MAX, 8), (20_000, 16), (34_500, 32)];
        assert_eq!(sketch(&wide), sketch(&[(-KEY_MAX, 3), (0, 4), (KEY_MAX, 56)]));
    }

    #[test]
    fn counts_past_their_range_stay_at_its_end() {
        let full = sketch(&[(3, u64::MAX)]).expect("counted");
        let mut twice = full.clone();
        twice.merge(&full);
        assert_eq!(twice, full);
    }
}
