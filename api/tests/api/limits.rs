//! Files and memory of a process while there are many clients or the broker is away.
use std::time::Duration;

use reqwest::Client;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::proxy::Proxy;
use tokio::net::TcpStream;

use crate::load::{Answered, ask};
use crate::process::Process;
use crate::support::{base_config, json, wait_for};

const WRITE: &str =
    "POST /v1/counters/limits/increments HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";

/// Limit of open files that is too low for the connections here; common ones are 1 024.
const SOFT_LIMIT: u32 = 256;
const CONNECTIONS: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn a_low_soft_limit_of_files_turns_no_connection_away() {
    // This limit holds also for this side of the connections.
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).expect("a soft limit");
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let api = Process::start_with_files(&config, SOFT_LIMIT);
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(TcpStream::connect(&api.address).await.expect("a connection"));
    }
    for stream in &mut streams {
        let answered = ask(stream, WRITE).await;
        assert!(matches!(answered, Answered::Whole { status: 202, closes: false }), "{answered:?}");
    }
    // All of them are still open.
    let client = Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{}/v1/counters/limits", api.address);
    wait_for("every write", async || {
        let answer = client.get(&url).send().await.expect("an answer");
        (answer.status() == 200 && json(answer).await["value"] == CONNECTIONS).then_some(())
    })
    .await;
}

/// Number of requests; their memory is compared with that of as many before.
const REQUESTS: usize = 10_000;
const CLIENTS: usize = 16;

/// Growth that allocators and statistics may cause. 512 bytes that stayed of each request came to 3 MiB.
const GROWTH_KIB_MAX: u64 = 2 << 10;

/// Sends requests over connections that stay open; each answer is a refusal.
async fn be_refused(address: &str) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let address = address.to_owned();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.expect("a connection");
                for _ in 0..REQUESTS / CLIENTS {
                    let answered = ask(&mut stream, WRITE).await;
                    assert!(
                        matches!(answered, Answered::Whole { status: 503, closes: false }),
                        "{answered:?}"
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_asking_while_the_broker_is_silent_leave_nothing_behind_in_memory() {
    testkit::isolated("leak", |isolated| async move {
        let (_, place) = isolated.amqp_url.rsplit_once('@').expect("a URL with a user");
        let proxy = Proxy::start(place.split('/').next().expect("a host")).await.expect("a proxy");
        let mut config = base_config();
        config.queue.url = proxy.through(&isolated.amqp_url);
        config.queue.prefix = isolated.prefix;
        config.queue.confirm_timeout_ms = 500;
        config.store.url = isolated.database_url;
        config.server.accept_timeout_ms = 1_000;
        let api = Process::start(&config);
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().expect("a client");
        let write = async || {
            let url = format!("http://{}/v1/counters/limits/increments", api.address);
            client.post(url).send().await.expect("an answer").status().as_u16()
        };
        wait_for("an accepted write", async || (write().await == 202).then_some(())).await;
        proxy.black_hole(true);
        wait_for("a refusal", async || (write().await == 503).then_some(())).await;
        be_refused(&api.address).await;
        let warm_kib = api.resident_kib();
        be_refused(&api.address).await;
        let after_kib = api.resident_kib();
        assert!(after_kib <= warm_kib + GROWTH_KIB_MAX, "from {warm_kib} to {after_kib} KiB");
        proxy.black_hole(false);
        proxy.cut();
        wait_for("an accepted write", async || (write().await == 202).then_some(())).await;
    })
    .await;
}
