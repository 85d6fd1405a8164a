//! Limit before which the store may forget, from the reports of all consumers. Pure. `docs/forgetting.md`
//! explains it.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::store::{ReportedWatermark, Watermarks};

use crate::low_watermark::MAY_RETURN_FOR;

/// Time that a consumer which looks silent by the store's clock is watched before it counts as silent.
/// Each consumer reports once a minute.
const WATCHED_FOR: Duration = Duration::from_mins(5);

/// Consumers that no longer report.
#[derive(Debug, Default)]
pub struct Watch(HashMap<u64, (i64, Instant)>);

impl Watch {
    /// Consumers that were silent for [`MAY_RETURN_FOR`] by the store's clock, and while this process
    /// watched: a jump of the clock alone makes no consumer silent. A report time in the future was made
    /// before the store's clock was put back, and the clock cannot say how long ago: such a consumer is
    /// watched for the whole time.
    pub fn silent(&mut self, held: &Watermarks, now: Instant) -> Vec<ReportedWatermark> {
        let before = std::mem::take(&mut self.0);
        let span_ms = i64::try_from(MAY_RETURN_FOR.as_millis()).expect("minutes");
        let mut silent = Vec::new();
        for holder in &held.others {
            let (consumer, told_at_ms) = (holder.hold.consumer, holder.told_at_ms);
            let seen = before.get(&consumer).filter(|(told_before_ms, _)| *told_before_ms == told_at_ms);
            let since = seen.map_or(now, |(_, since)| *since);
            self.0.insert(consumer, (told_at_ms, since));
            let (silent_ms, watched) = (held.now_ms.saturating_sub(told_at_ms), now.duration_since(since));
            let is_silent = if silent_ms < 0 {
                watched >= MAY_RETURN_FOR
            } else {
                silent_ms >= span_ms && watched >= WATCHED_FOR
            };
            if is_silent {
                silent.push(*holder);
            }
        }
        silent
    }
}

/// Time in milliseconds since 1970; entries that were accepted before it may be forgotten.
pub fn forget_before_ms(
    own_ms: i64,
    held: &Watermarks,
    silent: &[ReportedWatermark],
    remembered_ms: i64,
) -> i64 {
    let others = held.others.iter().filter(|holder| !silent.contains(holder));
    let oldest = others.map(|holder| holder.hold.oldest_ms).fold(own_ms, i64::min);
    // A message from a clock that is ahead moves nothing beyond the store's.
    oldest.min(held.now_ms).saturating_sub(remembered_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::ConsumerWatermark;

    const HOUR_MS: i64 = 3_600_000;
    const NOW_MS: i64 = 1_763_640_000_000;

    fn holder(consumer: u64, oldest_ms: i64, told_at_ms: i64) -> ReportedWatermark {
        ReportedWatermark { hold: ConsumerWatermark { consumer, oldest_ms }, told_at_ms }
    }

    #[test]
    fn the_oldest_of_all_consumers_decides_and_no_clock_does() {
        let others = vec![holder(1, NOW_MS - 50 * HOUR_MS, NOW_MS), holder(2, NOW_MS, NOW_MS)];
        let held = Watermarks { others: others.clone(), now_ms: NOW_MS };
        let day_ms = 24 * HOUR_MS;
        assert_eq!(forget_before_ms(NOW_MS, &held, &[], day_ms), NOW_MS - 74 * HOUR_MS);
        assert_eq!(forget_before_ms(NOW_MS, &held, &others[..1], day_ms), NOW_MS - 24 * HOUR_MS);
        // Only messages from a replica whose clock is ahead came.
        assert_eq!(forget_before_ms(NOW_MS + day_ms, &held, &others, day_ms), NOW_MS - day_ms);
        // The store's clock is ahead by a month: waiting messages are as old as before.
        let jumped = Watermarks { others, now_ms: NOW_MS + 30 * day_ms };
        assert_eq!(forget_before_ms(NOW_MS, &jumped, &[], day_ms), NOW_MS - 74 * HOUR_MS);
    }

    #[test]
    fn a_consumer_is_silent_once_it_was_so_for_the_store_and_for_who_watches() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let old = holder(1, 5, NOW_MS);
        let after = |hours: i64| Watermarks { others: vec![old], now_ms: NOW_MS + hours * HOUR_MS };
        // The store's clock jumps: no consumer is silent at once.
        assert_eq!(watch.silent(&after(24), begin), []);
        assert_eq!(watch.silent(&after(24), begin + Duration::from_mins(4)), []);
        // It reported an hour ago by that clock.
        let reported = holder(1, 5, NOW_MS + 23 * HOUR_MS);
        let held = Watermarks { others: vec![reported], now_ms: NOW_MS + 24 * HOUR_MS };
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(6)), []);
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(11)), [reported]);
        // Watched for long, but with a recent report by the store's clock, which stands still.
        let fresh = Watermarks { others: vec![holder(2, 5, NOW_MS)], now_ms: NOW_MS };
        assert_eq!(watch.silent(&fresh, begin), []);
        assert_eq!(watch.silent(&fresh, begin + Duration::from_hours(9)), []);
    }

    /// The store's clock was a month ahead when a consumer reported and ended, and is right again.
    #[test]
    fn a_consumer_that_told_at_a_time_to_come_is_silent_once_it_was_watched_for_as_long() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let ahead_ms = NOW_MS + 30 * 24 * HOUR_MS;
        let (gone, alive) = (holder(1, 5, ahead_ms), holder(2, 5, ahead_ms + 1));
        let held = |others: &[ReportedWatermark]| Watermarks { others: others.to_vec(), now_ms: NOW_MS };
        for minutes in 0..35 {
            let now = begin + Duration::from_mins(minutes);
            assert_eq!(watch.silent(&held(&[gone, alive]), now), [], "{minutes}");
        }
        let reported = holder(2, 5, ahead_ms + 2);
        assert_eq!(watch.silent(&held(&[gone, reported]), begin + Duration::from_mins(35)), [gone]);
        // A new watch begins from zero.
        assert_eq!(Watch::default().silent(&held(&[gone]), begin + Duration::from_mins(35)), []);
    }
}
