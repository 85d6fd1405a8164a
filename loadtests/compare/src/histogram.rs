//! Latencies in logarithmic buckets: constant memory, relative error below one per cent.
//!
//! Pure counting; it knows no clock and no unit other than nanoseconds.
use std::time::Duration;

/// Buckets per power of two: 2^-7 is the relative width of one.
const SUB_BITS: u32 = 7;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Powers of two covered: 2^42 ns is more than an hour; longer values count as that.
const POWERS: usize = 42 - SUB_BITS as usize + 1;

#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; SUB_BUCKETS * (POWERS + 1)], total: 0, max: 0 }
    }

    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket_of(nanos).min(self.counts.len() - 1);
        self.counts[bucket] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Least upper edge of a bucket at or below which `per_mille` of a thousand values lie.
    pub fn quantile(&self, per_mille: u64) -> Duration {
        let mut left = (self.total * per_mille).div_ceil(1_000).max(1);
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count >= left {
                return Duration::from_nanos(upper_edge(bucket).min(self.max));
            }
            left -= count;
        }
        self.max()
    }
}

/// Bucket of a value. Values below `SUB_BUCKETS` have a bucket each; above, each power of two has
/// `SUB_BUCKETS`.
fn bucket_of(nanos: u64) -> usize {
    let power = (u64::BITS - nanos.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let offset = usize::try_from(nanos >> power).unwrap_or(usize::MAX);
    power as usize * SUB_BUCKETS + offset
}

fn upper_edge(bucket: usize) -> u64 {
    if bucket < 2 * SUB_BUCKETS {
        return bucket as u64;
    }
    let power = bucket / SUB_BUCKETS - 1;
    let offset = bucket - power * SUB_BUCKETS;
    ((offset as u64 + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_less_than_one_per_cent_wide() {
        let mut value = 1_u64;
        while value < 1 << 41 {
            for near in [value - 1, value, value + 1, value + value / 3] {
                let edge = upper_edge(bucket_of(near));
                assert!(edge >= near, "{near} is above the edge {edge} of its bucket");
                assert!((edge - near) as f64 <= near as f64 * 0.01, "{near} is far below the edge {edge}");
            }
            value *= 2;
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution_are_found() {
        let mut histogram = Histogram::new();
        for micros in 1..=10_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (per_mille, micros) in [(500, 5_000.0), (950, 9_500.0), (990, 9_900.0), (999, 9_990.0)] {
            let found = histogram.quantile(per_mille).as_secs_f64() * 1e6;
            assert!(
                (found / micros - 1.0).abs() < 0.01,
                "{per_mille} per mille: {found} instead of {micros}"
            );
        }
        assert_eq!(histogram.max(), Duration::from_millis(10));
        assert_eq!(histogram.quantile(1_000), Duration::from_millis(10));
    }

    #[test]
    fn an_empty_histogram_and_an_absurd_value_do_no_harm() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(990), Duration::ZERO);
        histogram.record(Duration::from_secs(1 << 40));
        assert_eq!(histogram.total, 1);
    }
}
