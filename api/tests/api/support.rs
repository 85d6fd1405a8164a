//! Whole installations for tests, started as the programs start them.
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::server::Server;
use consumer::Consumer;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use shared::config::Config;
use shared::model::id::IdIssuer;
use shared::model::message::Outgoing;
use shared::program::backend::{self, Backend};
use shared::runtime::shutdown::{self, Trigger};
use shared::store::Store;
use tokio::task::JoinHandle;

/// Time limit for a condition to come true. Failing takes this long, passing does not.
const PATIENCE: Duration = Duration::from_secs(30);

/// API replicas and consumers that belong together.
pub struct Installation {
    pub config: Config,
    pub apis: Vec<Server>,
    pub consumers: Vec<RunningConsumer>,
    pub client: Client,
    pub backends: Vec<Backend>,
}

pub struct RunningConsumer {
    trigger: Trigger,
    task: JoinHandle<()>,
}

impl RunningConsumer {
    pub fn start(config: &Config, backend: &Backend) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let consumer = Consumer::new(config, backend, rand::random());
        Self { trigger, task: tokio::spawn(consumer.run(shutdown)) }
    }

    pub async fn stop(self) {
        self.trigger.request();
        self.task.await.expect("the consumer does not panic");
    }
}

/// Runs a test with one process and everything in a directory of its own.
pub async fn embedded<F, Fut>(test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    embedded_with(|_| {}, test).await;
}

/// Runs it with other settings.
pub async fn embedded_with<F, Fut>(adjust: impl FnOnce(&mut Config), test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    start_embedded(adjust, &|store| store, test).await;
}

/// Wrapper of the store that the programs of an installation get.
pub type Over<'a> = &'a (dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Sync);

/// Runs it with another store.
pub async fn embedded_over<F, Fut>(over: Over<'_>, test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    start_embedded(|_| {}, over, test).await;
}

async fn start_embedded<F, Fut>(adjust: impl FnOnce(&mut Config), over: Over<'_>, test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    let url = format!("embedded:{}", directory.path().display());
    config.queue.url.clone_from(&url);
    config.store.url = url;
    adjust(&mut config);
    let backend = open_over(&config, over).await;
    backend.learn_floor().await.expect("the store answers");
    let consumers = vec![RunningConsumer::start(&config, &backend)];
    let apis = vec![Server::start(&config, &backend).expect("the API starts")];
    let installation = Installation { config, apis, consumers, client: client(), backends: vec![backend] };
    test(installation).await.stop().await;
}

/// Runs a test with two API replicas and two consumers, each with connections of its own, on
/// RabbitMQ and Postgres.
pub async fn cluster<F, Fut>(word: &str, test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    cluster_with(word, |_| {}, test).await;
}

/// Runs it with other stores.
pub async fn cluster_over<F, Fut>(word: &str, over: Over<'_>, test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    start_cluster(word, |_| {}, over, test).await;
}

/// Runs it with other settings.
pub async fn cluster_with<F, Fut>(word: &str, adjust: impl FnOnce(&mut Config), test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    start_cluster(word, adjust, &|store| store, test).await;
}

async fn start_cluster<F, Fut>(word: &str, adjust: impl FnOnce(&mut Config), over: Over<'_>, test: F)
where
    F: FnOnce(Installation) -> Fut,
    Fut: Future<Output = Installation>,
{
    testkit::isolated(word, |isolated| async move {
        let mut config = cluster_config(isolated);
        adjust(&mut config);
        test(start(config, over).await).await.stop().await;
    })
    .await;
}

pub fn cluster_config(isolated: testkit::Isolated) -> Config {
    let mut config = base_config();
    config.queue.url = isolated.amqp_url;
    config.queue.prefix = isolated.prefix;
    config.store.url = isolated.database_url;
    config
}

/// Starts two API replicas and two consumers; returns when they take writes.
pub async fn start(config: Config, over: Over<'_>) -> Installation {
    let (mut apis, mut consumers, mut backends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        let backend = open_over(&config, over).await;
        consumers.push(RunningConsumer::start(&config, &backend));
        backends.push(backend);
        let backend = open_over(&config, over).await;
        apis.push(Server::start(&config, &backend).expect("the API starts"));
        backends.push(backend);
    }
    let installation = Installation { config, apis, consumers, client: client(), backends };
    installation.wait_until_accepting().await;
    installation
}

/// Defines a test that runs on both pairs; the body gets the installation and gives it back.
macro_rules! on_both_pairs {
    ($($(#[$meta:meta])* async fn $name:ident($installation:ident) $body:block)+) => {$(
        $(#[$meta])*
        async fn $name($installation: $crate::support::Installation) -> $crate::support::Installation {
            $body
            $installation
        }

        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn embedded() {
                $crate::support::embedded(super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn cluster() {
                $crate::support::cluster(stringify!($name), super::$name).await;
            }
        }
    )+};
}
pub(crate) use on_both_pairs;

pub fn base_config() -> Config {
    let mut config = Config::default();
    config.server.port = 0;
    config.server.workers = 2;
    config.server.accept_timeout_ms = 10_000;
    config.server.shutdown_timeout_ms = 2_000;
    // The answers of the short paths in the end must not depend on how busy the machine is.
    config.server.short_wait_ms = 30_000;
    config.ops.port = Some(0);
    config.queue.bytes_max = 64 << 20;
    config.queue.settle_ms = 0;
    config.ids.secrets = vec!["test".into()];
    config.auth.admin_without_keys = true;
    config
}

pub async fn open(config: &Config) -> Backend {
    let backend = backend::open(config).await.expect("the backend opens");
    backend.store.migrate().await.expect("the schema is brought up");
    backend
}

async fn open_over(config: &Config, over: Over<'_>) -> Backend {
    let backend = open(config).await;
    Backend { store: over(backend.store.clone()), ..backend }
}

pub fn client() -> Client {
    Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

impl Installation {
    /// Builds a request to the replica with this number, wrapping around.
    pub fn at(&self, replica: usize, method: Method, path: &str) -> RequestBuilder {
        let address = self.apis[replica % self.apis.len()].address;
        self.client.request(method, format!("http://{address}{path}"))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.at(0, Method::GET, path).send().await.expect("an answer")
    }

    pub async fn post(&self, path: &str, json: &str) -> Response {
        let request = self.at(0, Method::POST, path).header("content-type", "application/json");
        request.body(json.to_owned()).send().await.expect("an answer")
    }

    /// Adds to a counter and returns the id.
    pub async fn increment(&self, replica: usize, name: &str, by: i64) -> String {
        let request = self.at(replica, Method::POST, &format!("/v1/counters/{name}/increments"));
        let response = request.json(&serde_json::json!({ "by": by })).send().await.expect("an answer");
        assert_eq!(response.status(), 202);
        json(response).await["id"].as_str().expect("an id").to_owned()
    }

    /// Puts a body into the queue that no API would send.
    pub async fn put_into_queue(&self, body: &[u8]) {
        let id = IdIssuer::new(rand::random(), 0).next(shared::runtime::clock::now_ms());
        let message = Outgoing { id, body: body.to_vec().into(), items: 1, traces: None };
        let publisher = self.backends[0].queue.publisher();
        publisher.publish(message, Instant::now() + PATIENCE).await.expect("durable");
    }

    /// Adds 1 to a counter and waits for the outcome.
    pub async fn increment_and_wait(&self, replica: usize, name: &str) -> Response {
        let request = self.at(replica, Method::POST, &format!("/v1/counters/{name}/increments"));
        request.header("prefer", "wait=20").send().await.expect("an answer")
    }

    /// Waits until every replica receives the events of every consumer: before that, an event with
    /// a value may be lost, and the answer has the present value. Consumers take messages in turns.
    pub async fn wait_until_events_arrive(&self) {
        for replica in 0..self.apis.len() {
            let in_turn = 4 * self.consumers.len();
            self.wait_for("the events of all consumers", async || {
                for _ in 0..in_turn {
                    let answer = self.increment_and_wait(replica, "heard").await;
                    let is_own = !answer.headers().contains_key("forebay-value");
                    (answer.status() == 200 && is_own).then_some(())?;
                }
                Some(())
            })
            .await;
        }
    }

    /// Waits until a replica shows this value and returns the counter.
    pub async fn wait_for_value(&self, replica: usize, name: &str, value: i64) -> Value {
        self.wait_for(&format!("{name} = {value}"), async || {
            let path = format!("/v1/counters/{name}");
            let response = self.at(replica, Method::GET, &path).send().await.expect("an answer");
            let counter = json(response).await;
            (counter["value"] == value).then_some(counter)
        })
        .await
    }

    /// Calls `ask` until it gives a value; panics with `what` when the time is over.
    pub async fn wait_for<T>(&self, what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
        wait_for(what, ask).await
    }

    async fn wait_until_accepting(&self) {
        for replica in 0..self.apis.len() {
            self.wait_for("a healthy replica", async || {
                let response = self.at(replica, Method::GET, "/health").send().await.expect("an answer");
                (response.status() == 200).then_some(())
            })
            .await;
        }
    }

    /// Starts another consumer, in a cluster on connections of its own.
    pub async fn add_consumer(&mut self) {
        if let [embedded] = &self.backends[..] {
            self.consumers.push(RunningConsumer::start(&self.config, embedded));
            return;
        }
        let backend = open(&self.config).await;
        self.consumers.push(RunningConsumer::start(&self.config, &backend));
        self.backends.push(backend);
    }

    /// Starts another API on the first backend.
    pub fn restart_api(&mut self) {
        self.apis.push(Server::start(&self.config, &self.backends[0]).expect("the API starts"));
    }

    pub async fn stop(self) {
        for api in self.apis {
            api.stop().await;
        }
        for consumer in self.consumers {
            consumer.stop().await;
        }
        for backend in self.backends {
            close(backend).await;
        }
    }
}

pub async fn close(backend: Backend) {
    backend.queue.close().await;
    backend.events.close().await;
    backend.store.close().await;
}

pub async fn wait_for<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tick.tick().await;
    }
}

pub async fn json(response: Response) -> Value {
    response.json().await.expect("JSON")
}

/// Asserts a problem and returns it.
pub async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = json(response).await;
    assert_eq!(problem["status"], status);
    assert!(problem["type"].as_str().expect("a type").starts_with("urn:forebay:problem:"), "{problem}");
    problem
}
