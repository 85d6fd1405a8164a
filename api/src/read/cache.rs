//! Parts that the caches have in common.
use std::hash::Hash;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use rand::Rng;

#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    pub bytes_max: u64,
    pub ttl: Duration,
    pub negative_ttl: Duration,
    pub stale_max: Duration,
}

/// Source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    Hit,
    Miss,
    /// An answer that is older than it should be, because the store is away.
    Stale,
}

/// Makes an empty cache; `weigh` tells the bytes of an entry.
pub fn bounded<K, V>(
    bytes_max: u64,
    kept_for: Duration,
    weigh: impl Fn(&K, &V) -> usize + Send + Sync + 'static,
) -> Cache<K, V>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let weigher = move |key: &K, value: &V| u32::try_from(weigh(key, value)).unwrap_or(u32::MAX);
    Cache::builder().max_capacity(bytes_max).weigher(weigher).time_to_live(kept_for).build()
}

/// End of the time for which an entry counts as fresh. Jitter keeps entries that were loaded together from
/// expiring together.
pub fn expiry(ttl: Duration) -> Instant {
    Instant::now() + ttl.mul_f64(rand::rng().random_range(0.8..=1.0))
}
