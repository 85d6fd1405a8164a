//! Ten thousand clients that wait at once. The API runs as a process of its own, so that each side
//! has its own limit of open files.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::model::message::Message;
use shared::model::outcome::Applied;
use shared::program::backend::Backend;
use shared::store::{Store, StoreError};
use testkit::store::{Layer, Layered};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use crate::process::Process;
use crate::support::{RunningConsumer, base_config, close, open, wait_for};

const CROWD: usize = 10_000;

/// Clients that connect at the same moment; a higher number than the listen backlog would be turned away.
const CONNECTING_MAX: usize = 256;

/// A store whose transactions wait while the gate is closed.
struct Gated {
    store: Arc<dyn Store>,
    is_open: watch::Receiver<bool>,
}

#[async_trait]
impl Layer for Gated {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn apply_within(&self, batch: Arc<[Message]>, _: Duration) -> Result<Applied, StoreError> {
        self.is_open.clone().wait_for(|is_open| *is_open).await.expect("the test has it");
        self.store.apply(batch).await
    }
}

/// Sends one write that waits; returns status and body.
async fn wait(api: &Process, connecting: &Semaphore) -> (u16, serde_json::Value) {
    let mut stream = {
        let _permit = connecting.acquire().await.expect("never closed");
        TcpStream::connect(&api.address).await.expect("a connection")
    };
    let request = "POST /v1/counters/crowd/increments HTTP/1.1\r\nhost: localhost\r\nprefer: wait=120\r\n\
        connection: close\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("an answer");
    let status = response.split(' ').nth(1).expect("a status").parse().expect("a number");
    let (_, body) = response.split_once("\r\n\r\n").expect("a body");
    (status, serde_json::from_str(body).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_wait_at_once_and_each_is_answered_with_its_own_value() {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).expect("a soft limit");
    testkit::isolated("crowd", |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        // A long limit, because the machine may be busy.
        config.server.accept_timeout_ms = 30_000;
        config.queue.confirm_timeout_ms = 30_000;
        config.server.wait_ms_max = 120_000;
        let (gate, is_open) = watch::channel(true);
        let backend = open(&config).await;
        let store = Arc::new(Layered(Gated { store: backend.store.clone(), is_open }));
        let consumer = RunningConsumer::start(&config, &Backend { store, ..backend.clone() });
        let api = Arc::new(Process::start(&config));
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        wait_for("the events of the consumer", async || {
            (wait(&api, &connecting).await.0 == 200).then_some(())
        })
        .await;
        let before = wait(&api, &connecting).await.1["value"].as_u64().expect("a value");

        gate.send_replace(false);
        let waiting: Vec<_> = (0..CROWD)
            .map(|_| {
                let (api, connecting) = (api.clone(), connecting.clone());
                tokio::spawn(async move { wait(&api, &connecting).await })
            })
            .collect();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        wait_for("everybody to wait", async || (api.waiting(&client).await == CROWD).then_some(())).await;
        gate.send_replace(true);
        let mut values = BTreeSet::new();
        for waiting in waiting {
            let (status, body) = waiting.await.expect("answered");
            assert_eq!(status, 200, "{body}");
            values.insert(body["value"].as_u64().expect("a value"));
        }
        assert_eq!(values, (before + 1..=before + CROWD as u64).collect());
        wait_for("an empty registry", async || (api.waiting(&client).await == 0).then_some(())).await;
        drop(api);
        consumer.stop().await;
        close(backend).await;
    })
    .await;
}
