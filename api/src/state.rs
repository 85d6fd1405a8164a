//! State that all handlers use.
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use shared::config::pair::Pair;
use shared::config::{self, Config};
use shared::event::Events;
use shared::model::id::{IdIssuer, IdKeys};
use shared::program::backend::Backend;
use shared::queue::Publisher;
use shared::runtime::breaker::{Breaker, BreakerLimits};
use shared::store::{DeadLetters, Reads};
use tokio::sync::Semaphore;

use crate::admission::auth::Authorizer;
use crate::admission::clock_skew::ClockCheck;
use crate::admission::in_flight::InFlightLimit;
use crate::admission::memory_budget::MemoryBudget;
use crate::batcher::{BatchLimits, Batcher};
use crate::http::body::BodyLimits;
use crate::http::problem::Problem;
use crate::read::cache::CacheLimits;
use crate::read::checking::Checking;
use crate::read::computed::ReadCache;
use crate::read::counters::CounterCache;
use crate::read::definitions::Definitions;
use crate::read::documents::DocumentCache;
use crate::read::metric_query::Question;
use crate::wait::recent_keys::RecentKeys;
use crate::wait::waiters::Waiters;

/// Pages of rollups in memory at once, of all answers. A page is up to 1 MiB of stored bytes, eight
/// times that once it is read.
pub const PAGES_MAX: usize = 4;

/// Limits of the publisher's breaker. One lost publish is proof enough that the queue is away.
const PUBLISHER_BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 1, open_for: Duration::from_millis(500), probes_max: 1 };

const STORE_BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 3, open_for: Duration::from_secs(1), probes_max: 1 };

/// Number of caches: counters, documents and metrics get an equal part of `cache.bytes_max` each.
const CACHES: u64 = 3;

/// State of one worker: the state that all workers share, and a batcher of its own. Clones are cheap.
#[derive(Clone)]
pub struct Shared(Rc<Worker>);

pub struct Worker {
    pub batcher: Batcher,
    app: Arc<App>,
}

impl Shared {
    pub fn new(app: Arc<App>) -> Self {
        let issuer = IdIssuer::new(rand::random(), rand::random()).above(app.backend.id_floor.clone());
        let (publisher, breaker) = (app.publisher.clone(), app.publisher_breaker.clone());
        Self(Rc::new(Worker { batcher: Batcher::new(publisher, breaker, issuer, app.batch_limits), app }))
    }
}

impl Deref for Shared {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.0
    }
}

impl Deref for Worker {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// State that all workers of one server share.
pub struct App {
    pub backend: Backend,
    pub publisher: Arc<dyn Publisher>,
    pub publisher_breaker: Arc<Breaker>,
    pub store: Arc<dyn Reads>,
    pub dead_letters: Arc<dyn DeadLetters>,
    pub store_breaker: Arc<Breaker>,
    pub events: Arc<dyn Events>,
    pub ids: IdKeys,
    pub in_flight: Arc<InFlightLimit>,
    pub authorizer: Authorizer,
    pub clock: ClockCheck,
    pub body_limits: BodyLimits,
    pub body_budget: Arc<MemoryBudget>,
    /// Memory that requests keep while they wait.
    pub waiting_budget: Arc<MemoryBudget>,
    batch_limits: BatchLimits,
    pub waiters: Arc<Waiters>,
    pub waits: WaitLimits,
    pub recent_keys: RecentKeys,
    pub definitions: Arc<Definitions>,
    pub checking: Arc<Checking>,
    pub cache: Arc<CounterCache>,
    pub documents: Arc<DocumentCache>,
    pub metrics: MetricsParts,
    /// Limit of the data in one page of documents, in bytes.
    pub page_bytes_max: usize,
    /// Number of consumers with events that arrive.
    pub consumers_seen: AtomicUsize,
    /// The queue was open once, or could not be opened.
    pub queue_has_opened: AtomicBool,
}

impl App {
    /// Builds the state. Call it on the runtime on which the caches shall load.
    pub fn new(config: &Config, backend: &Backend, authorizer: Authorizer) -> Self {
        let (server, queue) = (&config.server, &config.queue);
        let (store, events) = (backend.store.clone(), backend.events.clone());
        let store_breaker = Arc::new(Breaker::new("store", STORE_BREAKER));
        let limits = cache_limits(&config.cache);
        Self {
            publisher: backend.queue.publisher(),
            publisher_breaker: Arc::new(Breaker::new("publisher", PUBLISHER_BREAKER)),
            ids: backend.ids.clone(),
            in_flight: InFlightLimit::new(server.in_flight_max),
            authorizer,
            clock: ClockCheck::new(
                Duration::from_millis(config.ids.clock_skew_ms_max),
                Pair::of(config) == Ok(Pair::Cluster),
            ),
            body_limits: BodyLimits {
                bytes_max: server.body_bytes_max,
                items_max: server.items_max,
                item_bytes_max: server.item_bytes_max,
                timeout: Duration::from_millis(server.body_timeout_ms),
            },
            body_budget: MemoryBudget::new(server.bodies_bytes_max),
            waiting_budget: MemoryBudget::new(server.bodies_bytes_max / 2),
            batch_limits: BatchLimits {
                items_max: queue.message_items_max,
                bytes_max: queue.message_bytes_max,
                in_flight_max: queue.publishes_in_flight_max,
                waiting_max: queue.messages_waiting_max,
                accept_timeout: Duration::from_millis(server.accept_timeout_ms),
                settle: Duration::from_millis(queue.settle_ms),
            },
            waiters: Waiters::new(server.waiters_max, store_breaker.clone()),
            waits: WaitLimits {
                wait_max: Duration::from_millis(server.wait_ms_max),
                short_wait: Duration::from_millis(server.short_wait_ms),
            },
            recent_keys: RecentKeys::default(),
            definitions: Definitions::new(store.clone(), store_breaker.clone(), events.clone()),
            checking: Checking::new(&config.collections),
            cache: CounterCache::new(store.clone(), store_breaker.clone(), limits),
            documents: DocumentCache::new(store.clone(), store_breaker.clone(), limits),
            metrics: MetricsParts {
                cache: ReadCache::new(store_breaker.clone(), limits),
                retention: config.retention.clone(),
                point_years_max: server.point_years_max,
                turn: Arc::new(Semaphore::new(PAGES_MAX)),
            },
            page_bytes_max: server.page_bytes_max,
            consumers_seen: AtomicUsize::new(0),
            queue_has_opened: AtomicBool::new(false),
            backend: backend.clone(),
            dead_letters: store.clone(),
            store,
            store_breaker,
            events,
        }
    }

    /// Refuses writes while the clock is off: others must be able to trust their accept times.
    pub fn check_clock(&self) -> Result<(), Problem> {
        if self.clock.is_off() { Err(Problem::clock_off()) } else { Ok(()) }
    }
}

/// Limits of the waits for the outcomes of writes.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// Longest wait that a client is granted.
    pub wait_max: Duration,
    /// Wait on the short paths without `Prefer`; zero for none.
    pub short_wait: Duration,
}

/// State that only the handlers of metrics need.
pub struct MetricsParts {
    pub cache: Arc<ReadCache<Question>>,
    /// Retention of the consumer.
    pub retention: shared::config::RetentionSettings,
    /// Greatest age of points, in years.
    pub point_years_max: u32,
    /// Permits to hold a page of rollups in memory.
    pub turn: Arc<Semaphore>,
}

fn cache_limits(cache: &config::Cache) -> CacheLimits {
    CacheLimits {
        bytes_max: cache.bytes_max / CACHES,
        ttl: Duration::from_millis(cache.ttl_ms),
        negative_ttl: Duration::from_millis(cache.negative_ttl_ms),
        stale_max: Duration::from_millis(cache.stale_ms_max),
    }
}
