//! Alarms and lost rights of a broker: it runs out of memory, or its administrator takes a right
//! away. The tests use a private broker, so that no other test suffers from it.
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use api::server::Server;
use reqwest::Client;
use shared::config::Config;
use shared::program::backend::Backend;
use testkit::private::Broker;

use crate::process::Process;
use crate::support::{RunningConsumer, base_config, close, open, wait_for};

/// Settings for the private broker and a database of the test.
async fn with_private_broker(word: &str, test: impl AsyncFnOnce(Config, Broker)) {
    testkit::private::broker(|broker| {
        testkit::isolated(word, |isolated| async move {
            let mut config = base_config();
            config.queue.url = broker.url().into();
            config.queue.prefix = isolated.prefix;
            config.store.url = isolated.database_url;
            test(config, broker).await;
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_broker_blocks_the_events_of_an_api_is_obeyed_in_time() {
    with_private_broker("alarmed", async |config, broker| {
        let backend = open(&config).await;
        let mut api = Process::start(&config);
        let client = Client::builder().no_proxy().build().expect("a client");
        let redrive = async || {
            let redrive = client.post(format!("http://{}/v1/dead-letters/redrive", api.address));
            redrive.json(&serde_json::json!({})).send().await.expect("an answer").status()
        };
        wait_for("a store that is there", async || (redrive().await == 202).then_some(())).await;
        broker.memory_alarm(true).await;
        wait_for("blocked events", async || {
            assert_eq!(redrive().await, 202);
            broker.blocks("forebay events publisher").await.then_some(())
        })
        .await;
        // The other replicas receive the event when they can; the redrive does not wait for that.
        assert_eq!(redrive().await, 202);
        api.terminate();
        let (status, took) = api.ended().await;
        assert_eq!(status.code(), Some(0));
        let shutdown_timeout = Duration::from_millis(config.server.shutdown_timeout_ms);
        assert!(took < shutdown_timeout + Duration::from_secs(10), "{took:?}");
        broker.memory_alarm(false).await;
        close(backend).await;
    })
    .await;
}

/// An API and a consumer at the servers of `config`, and a client that adds 1 to a counter.
struct Running {
    api: Server,
    consumer: RunningConsumer,
    backends: [Backend; 2],
    client: Client,
}

impl Running {
    async fn start(config: &Config) -> Self {
        let backends = [open(config).await, open(config).await];
        let api = Server::start(config, &backends[0]).expect("the API starts");
        let consumer = RunningConsumer::start(config, &backends[1]);
        Self { api, consumer, backends, client: Client::builder().no_proxy().build().expect("a client") }
    }

    /// Writes until the answer is this one; returns how many were accepted.
    async fn write_until(&self, status: u16) -> i64 {
        let accepted = AtomicI64::new(0);
        wait_for(&format!("an answer {status}"), async || {
            let url = format!("http://{}/v1/counters/kept/increments", self.api.address);
            let answered = self.client.post(url).send().await.expect("an answer").status();
            assert!([202, 503].contains(&answered.as_u16()), "{answered}");
            accepted.fetch_add(i64::from(answered == 202), Ordering::Relaxed);
            (answered == status).then_some(())
        })
        .await;
        accepted.into_inner()
    }

    async fn wait_for_at_least(&self, value: i64) {
        wait_for(&format!("a value of {value}"), async || {
            let counter = self.backends[0].store.counter("kept").await.expect("the store answers");
            counter.filter(|counter| counter.value >= value)
        })
        .await;
    }

    async fn stop(self) {
        self.api.stop().await;
        self.consumer.stop().await;
        for backend in self.backends {
            close(backend).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_and_given_back_needs_no_restart() {
    with_private_broker("rights", async |mut config, broker| {
        let user = testkit::unique("rights");
        config.queue.url = broker.add_user(user.clone(), [".*", ".*", ".*"]).await;
        config.server.accept_timeout_ms = 1_000;
        let running = Running::start(&config).await;
        let mut accepted = running.write_until(202).await;
        running.wait_for_at_least(accepted).await;
        let may = async |write: &str| {
            broker.control(&["set_permissions", "-p", "/", &user, ".*", write, ".*"]).await;
        };
        // Messages go through the default exchange, which is called `amq.default` here.
        may("^(?!amq\\.default$).*$").await;
        // A channel that publishes again and again caches its rights: RabbitMQ drops them when the
        // channel is idle, or gone.
        broker.control(&["close_all_connections", "--vhost", "/", "rights have changed"]).await;
        accepted += running.write_until(503).await;
        may(".*").await;
        accepted += running.write_until(202).await;
        running.wait_for_at_least(accepted).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_host_that_is_deleted_and_made_again_needs_no_restart() {
    with_private_broker("vhost", async |mut config, broker| {
        let host = testkit::unique("vhost");
        let make = async || {
            broker.control(&["add_vhost", &host]).await;
            broker.control(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]).await;
        };
        make().await;
        config.queue.url = broker.url().replace("%2f", &host);
        config.server.accept_timeout_ms = 1_000;
        let running = Running::start(&config).await;
        let accepted = running.write_until(202).await;
        // All must be applied, so that nothing is deleted with the queue.
        running.wait_for_at_least(accepted).await;
        broker.control(&["delete_vhost", &host]).await;
        running.write_until(503).await;
        make().await;
        let again = running.write_until(202).await;
        running.wait_for_at_least(accepted + again).await;
        running.stop().await;
        broker.control(&["delete_vhost", &host]).await;
    })
    .await;
}
