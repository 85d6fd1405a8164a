//! A replacement of all replicas of both programs, one after the other, under clients that repeat
//! unanswered requests at the other replica.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use reqwest::Client;
use shared::config::Config;
use shared::program::backend::Backend;
use testkit::servers::free_address;

use crate::process::Process;
use crate::support::{RunningConsumer, base_config, close, json, open, wait_for};

const CLIENTS: usize = 16;

/// Number of writes that must be accepted between two replacements.
const BETWEEN: i64 = 150;

/// The state that all clients share.
struct Traffic {
    addresses: [String; 2],
    client: Client,
    done: AtomicBool,
    accepted: AtomicI64,
    repeated: AtomicI64,
}

impl Traffic {
    /// Writes under one key until a replica takes it.
    async fn insist(&self, counter: &str, number: usize) {
        let key = format!("{counter}-{number}");
        for attempt in 0_usize.. {
            let address = &self.addresses[(number + attempt) % 2];
            let url = format!("http://{address}/v1/counters/{counter}/increments");
            let answer = self.client.post(url).header("idempotency-key", &key).send().await;
            if answer.is_ok_and(|answer| answer.status() == 202) {
                self.accepted.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    }

    /// Writes until the end; returns how many writes were accepted.
    async fn write(self: Arc<Self>, counter: String) -> i64 {
        let mut number = 0;
        while !self.done.load(Ordering::Relaxed) {
            self.insist(&counter, number).await;
            number += 1;
        }
        i64::try_from(number).expect("few")
    }

    /// Reads a counter at one replica; no version may be lower than the one before.
    async fn read(self: Arc<Self>, replica: usize) -> i64 {
        let (mut version, mut tick) = (0, tokio::time::interval(std::time::Duration::from_millis(5)));
        while !self.done.load(Ordering::Relaxed) {
            tick.tick().await;
            let url = format!("http://{}/v1/counters/rolling-0", self.addresses[replica]);
            let Ok(answer) = self.client.get(url).send().await else { continue };
            if answer.status() == 200 {
                let seen = json(answer).await["version"].as_i64().expect("a version");
                assert!(seen >= version, "replica {replica} showed {version} and then {seen}");
                version = seen;
            }
        }
        version
    }

    async fn wait_for_more(&self) {
        let before = self.accepted.load(Ordering::Relaxed);
        wait_for("more writes", async || {
            (self.accepted.load(Ordering::Relaxed) >= before + BETWEEN).then_some(())
        })
        .await;
    }
}

/// Starts a consumer on connections of its own, as in a process of its own.
async fn consumer(config: &Config) -> (RunningConsumer, Backend) {
    let backend = open(config).await;
    (RunningConsumer::start(config, &backend), backend)
}

fn api(config: &Config, port: u16) -> Process {
    let mut config = config.clone();
    config.server.port = port;
    Process::start(&config)
}

type Consumers = [(RunningConsumer, Backend); 2];

/// Replaces all, one after the other, each with traffic before the next.
async fn replace_all(
    config: &Config,
    traffic: &Traffic,
    apis: &mut [(Process, u16); 2],
    consumers: &mut Consumers,
) {
    traffic.wait_for_more().await;
    for (running, port) in apis {
        running.terminate();
        assert_eq!(running.ended().await.0.code(), Some(0));
        traffic.wait_for_more().await;
        *running = api(config, *port);
        traffic.wait_for_more().await;
    }
    for running in consumers {
        let (old, backend) = std::mem::replace(running, consumer(config).await);
        old.stop().await;
        close(backend).await;
        traffic.wait_for_more().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_replicas_loses_and_doubles_nothing_and_no_version_goes_back() {
    testkit::isolated("rolling", |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        let addresses = [(); 2].map(|()| free_address().expect("a port"));
        let traffic = Arc::new(Traffic {
            addresses: addresses.map(|address| address.to_string()),
            client: Client::builder().no_proxy().build().expect("a client"),
            done: AtomicBool::new(false),
            accepted: AtomicI64::new(0),
            repeated: AtomicI64::new(0),
        });
        let mut consumers = [consumer(&config).await, consumer(&config).await];
        let mut apis = addresses.map(|address| (api(&config, address.port()), address.port()));
        let names: Vec<_> = (0..CLIENTS).map(|number| format!("rolling-{number}")).collect();
        let writers: Vec<_> =
            names.iter().map(|name| tokio::spawn(traffic.clone().write(name.clone()))).collect();
        let readers = [0, 1].map(|replica| tokio::spawn(traffic.clone().read(replica)));
        replace_all(&config, &traffic, &mut apis, &mut consumers).await;
        traffic.done.store(true, Ordering::Relaxed);

        let store = &consumers[0].1.store;
        for (name, writer) in names.iter().zip(writers) {
            let accepted = writer.await.expect("no panic");
            let stored = async || store.counter(name).await.expect("the store answers");
            let counter =
                wait_for(name, async || stored().await.filter(|counter| counter.value >= accepted)).await;
            assert_eq!((counter.value, counter.version), (accepted, accepted), "{name}");
        }
        for reader in readers {
            assert!(reader.await.expect("no version goes back") > 0);
        }
        assert!(traffic.repeated.load(Ordering::Relaxed) > 0, "the restarts must be felt");
        drop(apis);
        for (consumer, backend) in consumers {
            consumer.stop().await;
            close(backend).await;
        }
    })
    .await;
}
