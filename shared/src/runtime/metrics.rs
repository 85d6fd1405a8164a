//! Metrics that both programs share. Label values are names of our own, never a client's string.
use std::sync::LazyLock;

use prometheus::{Gauge, HistogramVec, IntCounter, IntGauge, IntGaugeVec, histogram_opts, opts};
use prometheus::{
    register_gauge, register_histogram_vec, register_int_counter, register_int_gauge, register_int_gauge_vec,
};

/// Latency buckets in seconds, from a cached read to a client's patience.
pub const LATENCY_BUCKETS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

#[derive(Debug)]
pub struct SharedMetrics {
    /// State of each breaker, by `breaker`: 0 closed, 1 half open, 2 open.
    pub breaker_state: IntGaugeVec,
    /// Duration of store calls, by `operation`: `apply`, `counter`, `counters`, `fate`.
    pub store_seconds: HistogramVec,
    /// Queue sessions that were lost and had to be rebuilt.
    pub queue_sessions_lost: IntCounter,
    /// Seconds that a loop has stood still beyond its limit, 0 while it moves; by `loop`.
    pub stuck_seconds: IntGaugeVec,
    /// Readers of the queue that are no consumers of this service.
    pub queue_foreign_readers: IntGauge,
    /// Messages in the queue of writes that no consumer has taken.
    pub queue_messages: IntGauge,
    /// Age at most of the oldest of them while no consumer reports.
    pub queue_untaken_seconds: Gauge,
    /// Events that were dropped because the channel was full.
    pub events_dropped: IntCounter,
}

/// The metrics of this process, registered with Prometheus' default registry at first use.
pub fn metrics() -> &'static SharedMetrics {
    static METRICS: LazyLock<SharedMetrics> = LazyLock::new(|| {
        let registered = "metric names are distinct";
        let build = register_int_gauge_vec!(
            opts!("forebay_build_info", "1, with the version of the program"),
            &["version"]
        );
        build.expect(registered).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        SharedMetrics {
            breaker_state: register_int_gauge_vec!(
                opts!("forebay_breaker_state", "0 closed, 1 half open, 2 open"),
                &["breaker"]
            )
            .expect(registered),
            store_seconds: register_histogram_vec!(
                histogram_opts!(
                    "forebay_store_seconds",
                    "time of one store operation",
                    LATENCY_BUCKETS.to_vec()
                ),
                &["operation"]
            )
            .expect(registered),
            queue_sessions_lost: register_int_counter!(
                "forebay_queue_sessions_lost_total",
                "queue sessions that had to be rebuilt"
            )
            .expect(registered),
            stuck_seconds: register_int_gauge_vec!(
                opts!(
                    "forebay_stuck_seconds",
                    "how long a loop that must move has stood still; 0 while it moves"
                ),
                &["loop"]
            )
            .expect(registered),
            queue_foreign_readers: register_int_gauge!(
                "forebay_queue_foreign_readers",
                "readers of the queue that are no consumers of this service, by two looks in a row"
            )
            .expect(registered),
            queue_messages: register_int_gauge!(
                "forebay_queue_messages",
                "messages in the queue that no consumer has taken, by the last look"
            )
            .expect(registered),
            queue_untaken_seconds: register_gauge!(
                "forebay_queue_untaken_seconds",
                "age at most of the oldest message in the queue while no consumer is heard, else 0"
            )
            .expect(registered),
            events_dropped: register_int_counter!(
                "forebay_events_dropped_total",
                "events dropped because their channel was full or the broker took nothing"
            )
            .expect(registered),
        }
    });
    &METRICS
}
