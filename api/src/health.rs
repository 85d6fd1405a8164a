//! Health of this replica, and tasks that watch its queue and its store independently of requests.
pub mod queue_depth;
pub mod store_probe;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use shared::program::ops::{Health, HealthStatus};
use shared::queue::Link;
use shared::runtime::breaker::Breaker;

use crate::state::App;

impl App {
    /// `down` when nothing can be made durable, `degraded` when reads may be stale or refused, or nothing is
    /// applied because no consumer runs.
    pub fn health(&self) -> Health {
        let link = self.publisher.link();
        if !matches!(link, Link::Opening | Link::Settling) {
            self.queue_has_opened.store(true, Ordering::Relaxed);
        }
        let accepting = link == Link::Up && self.publisher_breaker.check().is_ok();
        // While only writing fails, values do not change, which is as good as stale.
        let reading = !self.waiters.store_is_away();
        let applying = reading && !self.waiters.consumers_are_missing();
        let word = |healthy| if healthy { "healthy" } else { "unhealthy" };
        let breaker = |breaker: &Breaker| (breaker.name(), breaker.state().name());
        Health {
            status: match (accepting, applying) {
                (true, true) => HealthStatus::Ok,
                (true, false) => HealthStatus::Degraded,
                (false, _) => HealthStatus::Down,
            },
            // Opening and settling end by themselves. A queue that is made anew later takes no reads away.
            ready: !self.in_flight.is_draining() && self.queue_has_opened.load(Ordering::Relaxed),
            consumers: Some(self.consumers_seen.load(Ordering::Relaxed)),
            components: BTreeMap::from([("queue", word(accepting)), ("store", word(reading))]),
            breakers: BTreeMap::from([breaker(&self.publisher_breaker), breaker(&self.store_breaker)]),
        }
    }
}
