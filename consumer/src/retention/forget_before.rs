//! What may be forgotten, by what all consumers reported: pure. `docs/forgetting.md` explains it.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::store::{Held, Holder};

use crate::low_watermark::MAY_RETURN_FOR;

/// How long a consumer that looks silent by the store's clock is watched before that is believed:
/// each tells something once in a minute.
const WATCHED_FOR: Duration = Duration::from_mins(5);

/// Which consumers tell nothing any more.
#[derive(Debug, Default)]
pub struct Watch(HashMap<u64, (i64, Instant)>);

impl Watch {
    /// Those that were silent for [`MAY_RETURN_FOR`] by the store's clock, and while this process
    /// watched: a clock that jumps makes nobody silent. Who told at a time that is still to come did so
    /// before that clock was put back, and it cannot say for how long: such a one is watched for all of it.
    pub fn silent(&mut self, held: &Held, now: Instant) -> Vec<Holder> {
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

/// What was accepted before this time, in milliseconds since 1970, may be forgotten.
pub fn forget_before_ms(own_ms: i64, held: &Held, silent: &[Holder], remembered_ms: i64) -> i64 {
    let others = held.others.iter().filter(|holder| !silent.contains(holder));
    let oldest = others.map(|holder| holder.hold.oldest_ms).fold(own_ms, i64::min);
    // A message from a clock that is ahead moves nothing beyond the store's.
    oldest.min(held.now_ms).saturating_sub(remembered_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::Hold;

    const HOUR_MS: i64 = 3_600_000;
    const NOW_MS: i64 = 1_763_640_000_000;

    fn holder(consumer: u64, oldest_ms: i64, told_at_ms: i64) -> Holder {
        Holder { hold: Hold { consumer, oldest_ms }, told_at_ms }
    }

    #[test]
    fn the_oldest_of_all_consumers_decides_and_no_clock_does() {
        let others = vec![holder(1, NOW_MS - 50 * HOUR_MS, NOW_MS), holder(2, NOW_MS, NOW_MS)];
        let held = Held { others: others.clone(), now_ms: NOW_MS };
        let day_ms = 24 * HOUR_MS;
        assert_eq!(forget_before_ms(NOW_MS, &held, &[], day_ms), NOW_MS - 74 * HOUR_MS);
        assert_eq!(forget_before_ms(NOW_MS, &held, &others[..1], day_ms), NOW_MS - 24 * HOUR_MS);
        // Only messages from a replica whose clock is ahead came.
        assert_eq!(forget_before_ms(NOW_MS + day_ms, &held, &others, day_ms), NOW_MS - day_ms);
        // The store's clock is ahead by a month: what waits is as old as before.
        let jumped = Held { others, now_ms: NOW_MS + 30 * day_ms };
        assert_eq!(forget_before_ms(NOW_MS, &jumped, &[], day_ms), NOW_MS - 74 * HOUR_MS);
    }

    #[test]
    fn a_consumer_is_silent_once_it_was_so_for_the_store_and_for_who_watches() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let old = holder(1, 5, NOW_MS);
        let after = |hours: i64| Held { others: vec![old], now_ms: NOW_MS + hours * HOUR_MS };
        // The store's clock jumps: nobody is silent at once.
        assert_eq!(watch.silent(&after(24), begin), []);
        assert_eq!(watch.silent(&after(24), begin + Duration::from_mins(4)), []);
        // It tells something, an hour ago by that clock.
        let told = holder(1, 5, NOW_MS + 23 * HOUR_MS);
        let held = Held { others: vec![told], now_ms: NOW_MS + 24 * HOUR_MS };
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(6)), []);
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(11)), [told]);
        // Watched for long, but told lately by the store's clock, which stands still.
        let fresh = Held { others: vec![holder(2, 5, NOW_MS)], now_ms: NOW_MS };
        assert_eq!(watch.silent(&fresh, begin), []);
        assert_eq!(watch.silent(&fresh, begin + Duration::from_hours(9)), []);
    }

    /// The store's clock was a month ahead when a consumer told and ended, and is right again.
    #[test]
    fn a_consumer_that_told_at_a_time_to_come_is_silent_once_it_was_watched_for_as_long() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let ahead_ms = NOW_MS + 30 * 24 * HOUR_MS;
        let (gone, alive) = (holder(1, 5, ahead_ms), holder(2, 5, ahead_ms + 1));
        let held = |others: &[Holder]| Held { others: others.to_vec(), now_ms: NOW_MS };
        for minutes in 0..35 {
            let now = begin + Duration::from_mins(minutes);
            assert_eq!(watch.silent(&held(&[gone, alive]), now), [], "{minutes}");
        }
        let told = holder(2, 5, ahead_ms + 2);
        assert_eq!(watch.silent(&held(&[gone, told]), begin + Duration::from_mins(35)), [gone]);
        // Who watches anew begins anew.
        assert_eq!(Watch::default().silent(&held(&[gone]), begin + Duration::from_mins(35)), []);
    }
}
