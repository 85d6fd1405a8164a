//! Feeds the cache from the consumers' events and watches what may have been missed.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shared::clock;
use shared::event::{Body, Continuity, Event, Events, HEARTBEAT_EVERY, Heed, Signal};
use shared::shutdown::Shutdown;
use shared::store::Counter;

use crate::cache::CounterCache;
use crate::measure::metrics;

/// Set while this replica's clock differs from the store's by more than is allowed.
pub type ClockOff = Arc<AtomicBool>;

pub struct CacheEvents {
    pub events: Arc<dyn Events>,
    pub cache: Arc<CounterCache>,
    pub clock_off: ClockOff,
    pub clock_skew_max: Duration,
}

impl CacheEvents {
    /// Runs until the shutdown.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut stream = self.events.subscribe().await;
        let mut continuity = Continuity::default();
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        loop {
            let heed = tokio::select! {
                signal = stream.next() => match signal {
                    Signal::Event(event) => {
                        self.take(&event);
                        continuity.hear(&event, Instant::now())
                    }
                    Signal::Interrupted => {
                        continuity.reset();
                        Heed::Hole
                    }
                },
                _ = tick.tick() => continuity.check_silence(Instant::now()),
                () = shutdown.requested() => return,
            };
            if heed == Heed::Hole {
                tracing::debug!("events may have been missed");
                self.cache.distrust_all();
            }
        }
    }

    fn take(&self, event: &Event) {
        if let Body::Changed { counters } = &event.body {
            let counters: Vec<Counter> = counters.iter().cloned().map(Into::into).collect();
            self.cache.learn(&counters);
        }
        if let Some(store_time_ms) = event.store_time_ms {
            self.compare_clocks(clock::now_ms().saturating_sub(store_time_ms));
        }
    }

    /// An event may be late, but never from the future: a lag alone reads as "ahead" by that lag,
    /// so the bound must be larger than any lag that is worth a warning.
    fn compare_clocks(&self, skew_ms: i64) {
        metrics().clock_skew_ms.set(skew_ms);
        let off = Duration::from_millis(skew_ms.unsigned_abs()) > self.clock_skew_max;
        if self.clock_off.swap(off, Ordering::Relaxed) != off {
            tracing::warn!(clock.skew_ms = skew_ms, clock.off = off, "clock compared with the store's");
        }
    }
}
