//! A stop by signal, as an operator does it: every request in work is answered, no accepted write
//! is lost, and the program ends in time.
use std::time::{Duration, Instant};

use reqwest::Client;
use rustix::process::Signal;
use shared::config::Config;
use shared::queue::PublishError;
use tokio::net::TcpStream;

use crate::confirms::Late;
use crate::load::{Answered, Kind, Ledger, ask, write_without_pause};
use crate::process::Process;
use crate::support::{RunningConsumer, base_config, close, json, open, wait_for};

/// Number of clients of each kind.
const CLIENTS: usize = 8;

const GRACE: Duration = Duration::from_millis(1_500);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

fn client() -> Client {
    Client::builder().no_proxy().build().expect("a client")
}

fn with_limits(mut config: Config) -> Config {
    config.server.drain_grace_ms = u64::try_from(GRACE.as_millis()).expect("small");
    config.server.shutdown_timeout_ms = u64::try_from(SHUTDOWN_TIMEOUT.as_millis()).expect("small");
    config
}

/// Stops an API under the load of clients that write without a pause; returns the ledger of each.
async fn stopped_under_load(config: &Config) -> Vec<(String, Ledger)> {
    let (mut api, client) = (Process::start(config), client());
    let ready = async || {
        let answer = client.get(format!("{}/readyz", api.ops)).send().await.expect("an answer");
        answer.status().as_u16()
    };
    wait_for("readiness", async || (ready().await == 200).then_some(())).await;
    let clients: Vec<_> = [Kind::Single, Kind::Array, Kind::Wait]
        .into_iter()
        .flat_map(|kind| (0..CLIENTS).map(move |number| (kind, format!("{kind:?}-{number}"))))
        .map(|(kind, name)| {
            let address = api.address.clone();
            (name.clone(), tokio::spawn(write_without_pause(address, kind, name)))
        })
        .collect();
    wait_for("load of all kinds", async || {
        let seen = async |name: &str| {
            let url = format!("http://{}/v1/counters/{name}-0", api.address);
            let answer = client.get(url).send().await.expect("an answer");
            (answer.status() == 200 && json(answer).await["value"].as_i64() > Some(5)).then_some(())
        };
        seen("Single").await?;
        seen("Array").await?;
        seen("Wait").await
    })
    .await;
    api.terminate();
    wait_for("an unready replica", async || (ready().await == 503).then_some(())).await;
    // Within the grace it is unready, and still serves new clients.
    let mut stream = TcpStream::connect(&api.address).await.expect("still listening");
    let asked = ask(&mut stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(matches!(asked, Answered::Whole { status: 503, closes: true }), "{asked:?}");
    let (status, took) = api.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < GRACE + SHUTDOWN_TIMEOUT + Duration::from_secs(5), "{took:?}");
    let mut ledgers = Vec::new();
    for (name, client) in clients {
        ledgers.push((name, client.await.expect("no panic")));
    }
    ledgers
}

/// Asserts, after all was applied, that the accepted writes are there and nothing else.
async fn assert_exact(config: &Config, ledgers: Vec<(String, Ledger)>) {
    let backend = open(config).await;
    for (name, ledger) in ledgers {
        assert_eq!((ledger.refused, ledger.torn), (0, 0), "{name}: {ledger:?}");
        let value = async || {
            let counter = backend.store.counter(&name).await.expect("the store answers");
            counter.map_or(0, |counter| counter.value)
        };
        wait_for(&format!("{name}: {ledger:?}"), async || (value().await >= ledger.accepted).then_some(()))
            .await;
        // A connection may be closed before its request is read, and such a write is not made.
        assert_eq!(value().await, ledger.accepted, "{name}: {ledger:?}");
    }
    close(backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_tears_no_answer_and_loses_nothing_embedded() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = with_limits(base_config());
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let ledgers = stopped_under_load(&config).await;
    let backend = open(&config).await;
    // This consumer applies the messages that the process left in its queue.
    let consumer = RunningConsumer::start(&config, &backend);
    for (name, ledger) in &ledgers {
        wait_for(name, async || {
            let counter = backend.store.counter(name).await.expect("the store answers");
            counter.filter(|counter| counter.value >= ledger.accepted)
        })
        .await;
    }
    consumer.stop().await;
    close(backend).await;
    assert_exact(&config, ledgers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_tears_no_answer_and_loses_nothing_cluster() {
    testkit::isolated("term", |isolated| async move {
        let mut config = with_limits(base_config());
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        let backend = open(&config).await;
        let consumer = RunningConsumer::start(&config, &backend);
        let ledgers = stopped_under_load(&config).await;
        assert_exact(&config, ledgers).await;
        consumer.stop().await;
        close(backend).await;
    })
    .await;
}

/// No consumer applies anything: requests that wait have time left when the signal comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_answers_open_waits_with_202_and_idle_connections_do_not_outlast_its_limit() {
    testkit::isolated("open_waits", |isolated| async move {
        let mut config = base_config();
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        config.server.wait_ms_max = 120_000;
        let backend = open(&config).await;
        let (mut api, client) = (Process::start(&config), client());
        let idle = TcpStream::connect(&api.address).await.expect("a connection");
        wait_for("a healthy replica", async || {
            let answer = client.get(format!("{}/health", api.ops)).send().await.expect("an answer");
            (answer.status() == 200).then_some(())
        })
        .await;
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let address = api.address.clone();
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.expect("a connection");
                    let request = "POST /v1/counters/open/increments HTTP/1.1\r\nhost: localhost\r\n\
                        prefer: wait=120\r\ncontent-length: 0\r\n\r\n";
                    ask(&mut stream, request).await
                })
            })
            .collect();
        wait_for("everybody to wait", async || (api.waiting(&client).await == 20).then_some(())).await;
        api.terminate();
        for waiting in waiting {
            let answered = waiting.await.expect("no panic");
            assert!(matches!(answered, Answered::Whole { status: 202, .. }), "{answered:?}");
        }
        let (status, took) = api.ended().await;
        assert_eq!(status.code(), Some(0));
        let shutdown_timeout = Duration::from_millis(config.server.shutdown_timeout_ms);
        assert!(took < shutdown_timeout + Duration::from_secs(5), "{took:?}");
        drop(idle);
        let consumer = RunningConsumer::start(&config, &backend);
        wait_for("every accepted write", async || {
            let counter = backend.store.counter("open").await.expect("the store answers");
            counter.filter(|counter| counter.value == 20)
        })
        .await;
        consumer.stop().await;
        close(backend).await;
    })
    .await;
}

/// The order of a stop: the port is closed while a confirm is awaited, and its write answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_the_port_and_then_awaits_the_confirms_of_what_it_took() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.server.workers = 1;
    config.server.shutdown_timeout_ms = 20_000;
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let backend = open(&config).await;
    let (late, faulty) = Late::over(&backend);
    let api = api::server::Server::start(&config, &faulty).expect("the API starts");
    let (address, ops) = (api.address, api.ops_address);
    late.answer.send_replace(None);
    let write = || client().post(format!("http://{address}/v1/counters/late/increments")).send();
    let pending = tokio::spawn(write());
    wait_for("a publish", async || (late.answer.receiver_count() > 0).then_some(())).await;
    let stopping = tokio::spawn(api.stop());
    wait_for("a closed port", async || TcpStream::connect(address).await.is_err().then_some(())).await;
    let ready = client().get(format!("http://{ops}/readyz")).send().await.expect("the last port to close");
    assert_eq!(ready.status(), 503);
    assert!(!stopping.is_finished() && !pending.is_finished(), "it waits for the confirm");
    let confirmed: Result<(), PublishError> = Ok(());
    late.answer.send_replace(Some(confirmed));
    assert_eq!(pending.await.expect("no panic").expect("an answer").status(), 202);
    let begun = Instant::now();
    stopping.await.expect("no panic");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    close(backend).await;
}

/// The first signal begins a grace that is longer than any request waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_it_as_well_and_a_second_one_ends_a_stop_that_takes_long() {
    for is_long in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = base_config();
        config.queue.url = format!("embedded:{}", directory.path().display());
        config.store.url.clone_from(&config.queue.url);
        if is_long {
            config.server.drain_grace_ms = 60_000;
            config.server.shutdown_timeout_ms = 60_000;
        }
        let (mut api, client) = (Process::start(&config), client());
        let url = format!("http://{}/v1/counters/twice/increments", api.address);
        assert_eq!(client.post(url).send().await.expect("an answer").status(), 202);
        api.send(Signal::INT);
        if is_long {
            wait_for("the stop", async || {
                let answer = client.get(format!("{}/readyz", api.ops)).send().await.expect("an answer");
                (answer.status() == 503).then_some(())
            })
            .await;
            // A supervisor may repeat its signal.
            api.send(Signal::TERM);
            let (status, took) = api.ended_by_repeated(Signal::INT).await;
            assert_eq!(status.code(), Some(1));
            assert!(took < Duration::from_secs(5), "{took:?}");
            // The accepted writes are there.
            let backend = open(&config).await;
            let consumer = RunningConsumer::start(&config, &backend);
            wait_for("the accepted write", async || {
                backend.store.counter("twice").await.expect("the store answers").filter(|now| now.value == 1)
            })
            .await;
            consumer.stop().await;
            close(backend).await;
        } else {
            assert_eq!(api.ended().await.0.code(), Some(0));
        }
    }
}
