//! Puts the API together: the same for the program, the embedded form and the tests.
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use actix_web::App;
use actix_web::dev::ServerHandle;
use actix_web::web::{self, ThinData};
use anyhow::Context;
use shared::config::pair::Pair;
use shared::config::{self, Config};
use shared::event::Events;
use shared::model::id::{IdFloor, IdIssuer, IdKeys};
use shared::program::backend::Backend;
use shared::program::ops;
use shared::queue::Publisher;
use shared::runtime::breaker::{Breaker, BreakerLimits};
use shared::runtime::progress::Progress;
use shared::runtime::shutdown::{self, Shutdown, Trigger};
use shared::store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::accept::identity::RecentKeys;
use crate::auth::Door;
use crate::batcher::{BatchLimits, Batcher};
use crate::body::BodyLimits;
use crate::cache::{CacheLimits, CounterCache};
use crate::cache_events::CacheEvents;
use crate::checking::Checking;
use crate::clock_check::ClockCheck;
use crate::cors::Cors;
use crate::definitions::Definitions;
use crate::document_cache::DocumentCache;
use crate::memory_budget::MemoryBudget;
use crate::path_prefix::PathPrefix;
use crate::problem::Problem;
use crate::queue_look::QueueLook;
use crate::read_cache::{ReadCache, ReadLimits};
use crate::request::{Gate, RequestIds, Wrapping, serve};
use crate::routes::health::HealthView;
use crate::routes::metrics::{MetricsParts, PAGES_MAX};
use crate::store_probe::StoreProbe;
use crate::waiters::{Waiters, doubts};
use crate::{openapi, port, routes};

/// A lost publish tells by itself that the queue is away: one is enough.
const PUBLISHER_BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 1, open_for: Duration::from_millis(500), probes_max: 1 };

const STORE_BREAKER: BreakerLimits =
    BreakerLimits { failures_max: 3, open_for: Duration::from_secs(1), probes_max: 1 };

/// Counters, documents and metrics get an equal part of `cache.bytes_max` each.
const CACHES: u64 = 3;

/// What a stop may take beyond its settings: background tasks and the operations port.
const STOP_MARGIN: Duration = Duration::from_secs(3);

/// What handlers use. One per worker; clones are cheap.
#[derive(Clone)]
pub struct Shared(Rc<Parts>);

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

/// A running API.
pub struct Server {
    pub address: SocketAddr,
    pub ops_address: SocketAddr,
    gate: Arc<Gate>,
    waiters: Arc<Waiters>,
    handle: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    over: Vec<Shutdown>,
    ops: ops::Ops,
    background: Vec<JoinHandle<()>>,
    trigger: Trigger,
    drain_grace: Duration,
}

impl Server {
    /// Listens and serves. Servers behind it may be away; ports that are taken are an error.
    pub fn start(config: &Config, backend: &Backend) -> anyhow::Result<Self> {
        let (trigger, shutdown) = shutdown::channel();
        let assembly = Assembly::new(config, backend, Door::of(config)?);
        let (background, mut over) = assembly.spawn_background(backend, &shutdown);
        // First the port that may be taken already, so that no request comes in vain.
        let ops = assembly.serve_ops(config)?;
        let (server, address) = assembly.serve_http(config)?;
        let handle = server.handle();
        let (serving, serving_over) = shutdown::watched(server);
        over.push(serving_over);
        Ok(Self {
            address,
            ops_address: ops.address(),
            gate: assembly.gate,
            waiters: assembly.waiters,
            handle,
            serving,
            over,
            ops,
            background,
            trigger,
            drain_grace: Duration::from_millis(config.server.drain_grace_ms),
        })
    }

    /// The longest that [`Self::stop`] takes while all threads run.
    pub fn stop_max(config: &Config) -> Duration {
        let server = &config.server;
        let (grace, timeout) = (server.drain_grace_ms, server.shutdown_timeout_ms);
        // In full seconds, as the HTTP library counts.
        Duration::from_millis(grace) + Duration::from_secs(timeout.div_ceil(1_000)) + STOP_MARGIN
    }

    /// Requests that wait for what becomes of a write, or for a change.
    pub fn waiting(&self) -> usize {
        self.waiters.open()
    }

    /// What hears the ends of its parts: of who serves, and of who hears events, looks after waits, the
    /// store and the keys. Without a stop each is a failure.
    pub fn over(&self) -> Vec<Shutdown> {
        self.over.clone()
    }

    /// Fails readiness, serves on for the grace, then answers what is open and closes. The ports
    /// of the backend stay open.
    pub async fn stop(self) {
        self.gate.drain();
        tokio::time::sleep(self.drain_grace).await;
        // Nobody is kept waiting for what may take longer than the stop.
        self.waiters.close();
        self.handle.stop(true).await;
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "http server failed"),
            Err(error) => tracing::error!(%error, "http server task failed"),
        }
        self.trigger.request();
        for task in self.background {
            if let Err(error) = task.await {
                tracing::error!(%error, "background task failed");
            }
        }
        if let Err(error) = self.ops.stop().await {
            tracing::error!(%error, "operations port failed");
        }
    }
}

/// What all workers of one server share.
#[derive(Clone)]
struct Assembly {
    publisher: Arc<dyn Publisher>,
    publisher_breaker: Arc<Breaker>,
    store: Arc<dyn Store>,
    store_breaker: Arc<Breaker>,
    cache: Arc<CounterCache>,
    metrics: Arc<MetricsParts>,
    clock: ClockCheck,
    gate: Arc<Gate>,
    ids: IdKeys,
    id_floor: IdFloor,
    health: Arc<HealthView>,
    consumers_heard: Arc<AtomicUsize>,
    body_limits: BodyLimits,
    body_budget: Arc<MemoryBudget>,
    waiting_budget: Arc<MemoryBudget>,
    batch_limits: BatchLimits,
    waiters: Arc<Waiters>,
    waits: WaitLimits,
    recent_keys: RecentKeys,
    definitions: Arc<Definitions>,
    checking: Arc<Checking>,
    documents: Arc<DocumentCache>,
    events: Arc<dyn Events>,
    page_bytes_max: usize,
    door: Arc<Door>,
    progress: Progress,
}

impl Assembly {
    fn new(config: &Config, backend: &Backend, door: Door) -> Self {
        let publisher = backend.queue.publisher();
        let publisher_breaker = Arc::new(Breaker::new("publisher", PUBLISHER_BREAKER));
        let store_breaker = Arc::new(Breaker::new("store", STORE_BREAKER));
        let limits = cache_limits(&config.cache);
        let cache = CounterCache::new(backend.store.clone(), store_breaker.clone(), limits);
        let documents = DocumentCache::new(backend.store.clone(), store_breaker.clone(), limits);
        let definitions =
            Definitions::new(backend.store.clone(), store_breaker.clone(), backend.events.clone());
        let metrics = Arc::new(MetricsParts {
            cache: ReadCache::new(store_breaker.clone(), metrics_limits(&config.cache)),
            retention: config.retention.clone(),
            point_years_max: config.server.point_years_max,
            turn: Arc::new(Semaphore::new(PAGES_MAX)),
        });
        let gate = Gate::new(config.server.in_flight_max);
        let waiters = Waiters::new(config.server.waiters_max, store_breaker.clone());
        let consumers_heard = Arc::<AtomicUsize>::default();
        let health = Arc::new(HealthView {
            publisher: publisher.clone(),
            publisher_breaker: publisher_breaker.clone(),
            store_breaker: store_breaker.clone(),
            waiters: waiters.clone(),
            gate: gate.clone(),
            consumers_heard: consumers_heard.clone(),
            has_opened: AtomicBool::new(false),
        });
        Self {
            publisher,
            publisher_breaker,
            store: backend.store.clone(),
            store_breaker,
            cache,
            metrics,
            clock: ClockCheck::new(
                Duration::from_millis(config.ids.clock_skew_ms_max),
                Pair::of(config) == Ok(Pair::Cluster),
            ),
            gate,
            ids: backend.ids.clone(),
            id_floor: backend.id_floor.clone(),
            health,
            consumers_heard,
            body_limits: BodyLimits {
                bytes_max: config.server.body_bytes_max,
                items_max: config.server.items_max,
                item_bytes_max: config.server.item_bytes_max,
                timeout: Duration::from_millis(config.server.body_timeout_ms),
            },
            body_budget: MemoryBudget::new(config.server.bodies_bytes_max),
            waiting_budget: MemoryBudget::new(config.server.bodies_bytes_max / 2),
            batch_limits: BatchLimits {
                items_max: config.queue.message_items_max,
                bytes_max: config.queue.message_bytes_max,
                in_flight_max: config.queue.publishes_in_flight_max,
                waiting_max: config.queue.messages_waiting_max,
                accept_timeout: Duration::from_millis(config.server.accept_timeout_ms),
                settle: Duration::from_millis(config.queue.settle_ms),
            },
            waiters,
            waits: WaitLimits {
                wait_max: Duration::from_millis(config.server.wait_ms_max),
                short_wait: Duration::from_millis(config.server.short_wait_ms),
            },
            recent_keys: RecentKeys::default(),
            definitions,
            checking: Checking::new(&config.collections),
            documents,
            events: backend.events.clone(),
            page_bytes_max: config.server.page_bytes_max,
            door: Arc::new(door),
            progress: backend.progress.clone(),
        }
    }

    fn spawn_background(
        &self,
        backend: &Backend,
        shutdown: &Shutdown,
    ) -> (Vec<JoinHandle<()>>, Vec<Shutdown>) {
        let queue_look = QueueLook { queue: backend.queue.clone(), heard: self.consumers_heard.clone() };
        let cache_events = CacheEvents {
            events: backend.events.clone(),
            cache: self.cache.clone(),
            documents: self.documents.clone(),
            definitions: self.definitions.clone(),
            metrics: self.metrics.cache.clone(),
            waiters: self.waiters.clone(),
            recent_keys: self.recent_keys.clone(),
            clock: self.clock.clone(),
            consumers_heard: self.consumers_heard.clone(),
            publisher: self.publisher.clone(),
        };
        let probe = StoreProbe {
            backend: backend.clone(),
            breaker: self.store_breaker.clone(),
            clock: self.clock.clone(),
        };
        let (waiters, store, breaker) =
            (self.waiters.clone(), self.store.clone(), self.store_breaker.clone());
        let doubts = doubts::settle(waiters, store, breaker, shutdown.clone());
        let mut tasks = vec![
            shutdown::watched(
                self.progress.clone().watching("cache_events", cache_events.run(shutdown.clone())),
            ),
            shutdown::watched(self.progress.clone().watching("waits", doubts)),
            shutdown::watched(self.progress.clone().watching("store_probe", probe.run(shutdown.clone()))),
            shutdown::watched(self.progress.clone().watching("queue_look", queue_look.run(shutdown.clone()))),
        ];
        if let Door::Keyed(keys) = &*self.door {
            let follow = keys.clone().follow(shutdown.clone());
            tasks.push(shutdown::watched(self.progress.clone().watching("keys", follow)));
        }
        tasks.into_iter().unzip()
    }

    /// Binds and runs the public port.
    fn serve_http(&self, config: &Config) -> anyhow::Result<(actix_web::dev::Server, SocketAddr)> {
        let assembly = self.clone();
        let path_prefix = config.server.path_prefix.clone();
        let cors_origins = config.auth.cors_origins.clone();
        port::serve(&config.server, move || {
            actix_web::rt::spawn(assembly.progress.clone().ticking("http_worker"));
            let wrapping = Rc::new(Wrapping {
                gate: assembly.gate.clone(),
                ids: RequestIds::new(rand::random()),
                prefix: PathPrefix::new(&path_prefix),
                cors: Cors::new(&cors_origins),
            });
            let prefix = path_prefix.clone();
            App::new()
                .app_data(ThinData(assembly.for_worker()))
                .wrap_fn(move |request, service| serve(&wrapping, request, service))
                .configure(routes::configure)
                .configure(move |config| openapi::configure(config, &prefix))
                .default_service(web::to(routes::no_such_path))
        })
    }

    fn serve_ops(&self, config: &Config) -> anyhow::Result<ops::Ops> {
        let (host, port) = (config.ops.host.as_str(), config.ops.port.unwrap_or(0));
        let health = self.health.clone();
        ops::serve(host, port, &self.progress, Arc::new(move || health.read()))
            .with_context(|| format!("cannot listen on {host}:{port} (ops.host, ops.port)"))
    }

    fn for_worker(&self) -> Shared {
        let issuer = IdIssuer::new(rand::random(), rand::random()).above(self.id_floor.clone());
        let (publisher, breaker) = (self.publisher.clone(), self.publisher_breaker.clone());
        Shared(Rc::new(Parts {
            batcher: Batcher::new(publisher, breaker, issuer, self.batch_limits),
            ids: self.ids.clone(),
            body_limits: self.body_limits,
            body_budget: self.body_budget.clone(),
            waiting_budget: self.waiting_budget.clone(),
            cache: self.cache.clone(),
            metrics: self.metrics.clone(),
            store: self.store.clone(),
            store_breaker: self.store_breaker.clone(),
            health: self.health.clone(),
            clock: self.clock.clone(),
            waiters: self.waiters.clone(),
            waits: self.waits,
            recent_keys: self.recent_keys.clone(),
            definitions: self.definitions.clone(),
            checking: self.checking.clone(),
            documents: self.documents.clone(),
            events: self.events.clone(),
            page_bytes_max: self.page_bytes_max,
            door: self.door.clone(),
        }))
    }
}

fn cache_limits(cache: &config::Cache) -> CacheLimits {
    CacheLimits {
        bytes_max: cache.bytes_max / CACHES,
        ttl: Duration::from_millis(cache.ttl_ms),
        negative_ttl: Duration::from_millis(cache.negative_ttl_ms),
        stale_max: Duration::from_millis(cache.stale_ms_max),
    }
}

fn metrics_limits(cache: &config::Cache) -> ReadLimits {
    ReadLimits {
        bytes_max: cache.bytes_max / CACHES,
        ttl: Duration::from_millis(cache.ttl_ms),
        stale_max: Duration::from_millis(cache.stale_ms_max),
    }
}
