//! Programs that start before their servers, or beside a schema that they do not know: ready, with
//! the true health, and healed without a restart.
use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::Value;
use shared::config::Config;
use shared::program::backend;
use testkit::proxy::Proxy;

use crate::process::Process;
use crate::support::{RunningConsumer, base_config, close, json, open, problem, wait_for};

const ACCEPT_TIMEOUT: Duration = Duration::from_secs(2);

/// A freshly started API and its client.
struct Booted {
    api: Process,
    client: Client,
}

impl Booted {
    /// A replica is ready once it has tried to open its queue.
    async fn wait_until_ready(&self) {
        wait_for("readiness", async || (self.get("/readyz").await.status() == 200).then_some(())).await;
    }

    fn start(config: &Config) -> Self {
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { api: Process::start(config), client }
    }

    async fn get(&self, path: &str) -> Response {
        let url = format!("http://{}{path}", self.api.address);
        self.client.get(url).send().await.expect("an answer")
    }

    async fn write(&self) -> Response {
        let url = format!("http://{}/v1/counters/booted/increments", self.api.address);
        self.client.post(url).send().await.expect("an answer")
    }

    /// Reads until the health is as expected: each read may open the breaker.
    async fn wait_for_health(&self, expected: (&str, &str, &str)) {
        wait_for(&format!("{expected:?}"), async || {
            self.get("/v1/counters/any").await;
            let health = json(self.get("/health").await).await;
            let word = |name: &str| health[name].as_str().expect("a word");
            ((word("status"), word("queue"), word("store")) == expected).then_some(())
        })
        .await;
    }
}

async fn is_refused(response: Response) -> Value {
    assert!(response.headers().contains_key("retry-after"));
    problem(response, 503).await
}

fn place(url: &str) -> String {
    let after_user = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    after_user.split('/').next().expect("a host and a port").to_owned()
}

/// Both programs start while servers are away, and the servers come later.
async fn starts_without(word: &str, broker_is_away: bool, store_is_away: bool) {
    testkit::isolated(word, |isolated| async move {
        let broker = Proxy::start(place(&isolated.amqp_url)).await.expect("a proxy");
        let store = Proxy::start(place(&isolated.database_url)).await.expect("a proxy");
        broker.down(broker_is_away);
        store.down(store_is_away);
        let mut config = base_config();
        config.queue.url = broker.through(&isolated.amqp_url);
        config.queue.prefix = isolated.prefix;
        config.store.url = store.through(&isolated.database_url);
        config.server.accept_timeout_ms = u64::try_from(ACCEPT_TIMEOUT.as_millis()).expect("small");
        let booted = Booted::start(&config);
        let backend = backend::open(&config).await.expect("the ports open");
        let consumer = RunningConsumer::start(&config, &backend);

        booted.wait_until_ready().await;
        let ready = booted.client.get(format!("{}/readyz", booted.api.ops)).send().await.expect("an answer");
        assert_eq!(ready.status(), 200);
        let healthy = |is_away| if is_away { "unhealthy" } else { "healthy" };
        let status = if broker_is_away { "down" } else { "degraded" };
        booted.wait_for_health((status, healthy(broker_is_away), healthy(store_is_away))).await;
        let mut accepted = 0;
        for _ in 0..5 {
            let (begun, response) = (Instant::now(), booted.write().await);
            if broker_is_away {
                is_refused(response).await;
                assert!(begun.elapsed() < ACCEPT_TIMEOUT * 2, "{:?}", begun.elapsed());
            } else {
                assert_eq!(response.status(), 202);
                accepted += 1;
            }
            let read = booted.get("/v1/counters/booted").await;
            if store_is_away {
                is_refused(read).await;
            } else {
                problem(read, 404).await;
            }
        }
        broker.down(false);
        store.down(false);
        booted.wait_for_health(("ok", "healthy", "healthy")).await;
        assert_eq!(booted.write().await.status(), 202);
        accepted += 1;
        wait_for("every accepted write", async || {
            let counter = json(booted.get("/v1/counters/booted").await).await;
            (counter["value"] == accepted).then_some(())
        })
        .await;
        drop(booted);
        consumer.stop().await;
        close(backend).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_store_accepts_writes_and_applies_them_when_it_comes() {
    starts_without("no_store", false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_broker_refuses_writes_and_takes_them_when_it_comes() {
    starts_without("no_broker", true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_any_server_is_ready_and_works_when_they_come() {
    starts_without("no_server", true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_beside_a_newer_schema_accepts_writes_and_applies_nothing_until_it_is_known() {
    testkit::isolated("newer", |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        close(open(&config).await).await;
        let newer = "insert into _sqlx_migrations values (99999999999999, 'later', now(), true, '', 0)";
        testkit::execute(&config.store.url, newer.into()).await.expect("it may");
        let booted = Booted::start(&config);
        let backend = backend::open(&config).await.expect("the ports open");
        let consumer = RunningConsumer::start(&config, &backend);

        booted.wait_until_ready().await;
        booted.wait_for_health(("degraded", "healthy", "unhealthy")).await;
        for _ in 0..5 {
            assert_eq!(booted.write().await.status(), 202);
            is_refused(booted.get("/v1/counters/booted").await).await;
        }
        let none = "do $$ begin if exists (select from applied_message) then raise 'applied'; end if; end $$";
        testkit::execute(&config.store.url, none.into()).await.expect("nothing is applied");
        let known = "delete from _sqlx_migrations where version = 99999999999999";
        testkit::execute(&config.store.url, known.into()).await.expect("it may");
        booted.wait_for_health(("ok", "healthy", "healthy")).await;
        wait_for("every accepted write", async || {
            let counter = json(booted.get("/v1/counters/booted").await).await;
            (counter["value"] == 5).then_some(())
        })
        .await;
        drop(booted);
        consumer.stop().await;
        close(backend).await;
    })
    .await;
}
