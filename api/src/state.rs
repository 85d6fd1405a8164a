//! What handlers use, the same for all of them.
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use shared::breaker::Breaker;
use shared::event::Events;
use shared::id::IdKeys;
use shared::store::Store;
use tokio::sync::Semaphore;

use crate::admission::auth::Door;
use crate::admission::clock_skew::ClockCheck;
use crate::admission::memory_budget::MemoryBudget;
use crate::health::HealthView;
use crate::http::body::BodyLimits;
use crate::http::problem::Problem;
use crate::read::computed::ReadCache;
use crate::read::counters::CounterCache;
use crate::read::definitions::Definitions;
use crate::read::documents::DocumentCache;
use crate::read::metric_query::Question;
use crate::wait::recent_keys::RecentKeys;
use crate::wait::waiters::Waiters;
use crate::write::batcher::Batcher;
use crate::write::checking::Checking;

/// Pages of rollups in memory at once, of all answers. A page is up to 1 MiB of stored bytes, eight
/// times that once it is read.
pub const PAGES_MAX: usize = 4;

/// What handlers use. One per worker; clones are cheap.
#[derive(Clone)]
pub struct Shared(pub Rc<Parts>);

pub struct Parts {
    pub batcher: Batcher,
    pub ids: IdKeys,
    pub body_limits: BodyLimits,
    pub body_budget: Arc<MemoryBudget>,
    /// For what requests keep while they wait.
    pub waiting_budget: Arc<MemoryBudget>,
    pub cache: Arc<CounterCache>,
    pub metrics: Arc<MetricsParts>,
    pub store: Arc<dyn Store>,
    pub store_breaker: Arc<Breaker>,
    pub health: Arc<HealthView>,
    pub clock: ClockCheck,
    pub waiters: Arc<Waiters>,
    pub waits: WaitLimits,
    pub recent_keys: RecentKeys,
    pub definitions: Arc<Definitions>,
    pub checking: Arc<Checking>,
    pub documents: Arc<DocumentCache>,
    pub events: Arc<dyn Events>,
    /// Data of one page of documents, in bytes.
    pub page_bytes_max: usize,
    pub door: Arc<Door>,
}

/// How long requests wait for what becomes of their writes.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// The longest that a client is granted.
    pub wait_max: Duration,
    /// On the short paths, unasked; zero for not at all.
    pub short_wait: Duration,
}

impl Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    /// Writes carry an accept time that others must be able to trust.
    pub fn check_clock(&self) -> Result<(), Problem> {
        if self.clock.is_off() { Err(Problem::clock_off()) } else { Ok(()) }
    }
}

/// What the handlers of metrics need beside what all need.
pub struct MetricsParts {
    pub cache: Arc<ReadCache<Question>>,
    /// What the consumer keeps.
    pub retention: shared::config::Retention,
    /// How old points may be.
    pub point_years_max: u32,
    /// Turns of pages of rollups.
    pub turn: Arc<Semaphore>,
}
