//! Requests in work: how many there may be, and whether the server is about to stop.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::metrics::metrics;

/// Shared by all workers of the process.
#[derive(Debug)]
pub struct InFlightLimit {
    in_flight: AtomicUsize,
    in_flight_max: usize,
    draining: AtomicBool,
}

impl InFlightLimit {
    pub fn new(in_flight_max: usize) -> Arc<Self> {
        Arc::new(Self { in_flight: AtomicUsize::new(0), in_flight_max, draining: AtomicBool::new(false) })
    }

    /// From now on each answer closes its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn enter(self: &Arc<Self>) -> Option<InFlightPermit> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let entered = InFlightPermit(self.clone());
        metrics().in_flight.inc();
        (before < self.in_flight_max).then_some(entered)
    }
}

/// A place among the requests in work, left when dropped.
#[derive(Debug)]
pub struct InFlightPermit(Arc<InFlightLimit>);

impl InFlightPermit {
    pub fn is_draining(&self) -> bool {
        self.0.is_draining()
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        metrics().in_flight.dec();
    }
}
