//! Answers that are never read, or slowly: their memory has a limit, and so has their time.
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use shared::config::Config;
use testkit::Isolated;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::process::Process;
use crate::room::{Bystander, PATIENCE};
use crate::support::{
    RunningConsumer, base_config, client, close, cluster_config, embedded_with, json, open, problem, wait_for,
};

/// Size of one document that is read again and again.
const DOCUMENT_BYTES: usize = 250_000;

const READERS: usize = 400;

/// Budget that holds some of the answers.
const ANSWERS_BYTES_MAX: usize = 8 << 20;

/// Growth that is allowed for the program: the budget, and 64 KiB for each connection. Without a
/// budget it grew by more than 100 MiB.
const GROWTH_KIB_MAX: u64 = (ANSWERS_BYTES_MAX as u64 >> 10) + READERS as u64 * 64;

mod answers_that_nobody_reads_have_a_budget_and_an_end {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn embedded() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = base_config();
        config.queue.url = format!("embedded:{}", directory.path().display());
        config.store.url.clone_from(&config.queue.url);
        test(config).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cluster() {
        testkit::isolated("unread", |isolated: Isolated| async move {
            let config = cluster_config(isolated);
            let backend = open(&config).await;
            let consumer = RunningConsumer::start(&config, &backend);
            test(config).await;
            consumer.stop().await;
            close(backend).await;
        })
        .await;
    }

    async fn test(mut config: Config) {
        config.server.answers_bytes_max = ANSWERS_BYTES_MAX;
        config.server.answer_timeout_ms = 8_000;
        let (api, client) = (Process::start(&config), client());
        let url = |path: &str| format!("http://{}{path}", api.address);
        let document = serde_json::json!({ "padding": "p".repeat(DOCUMENT_BYTES) });
        let stored = wait_for("a stored document", async || {
            let write = client.post(url("/v1/data/unread")).header("prefer", "wait=20").json(&document);
            let answer = write.send().await.expect("an answer");
            (answer.status() == 201).then_some(answer)
        });
        let location = stored.await.headers()["location"].to_str().expect("text").to_owned();
        let read = async || client.get(url(&location)).send().await.expect("an answer");
        assert_eq!(json(read().await).await["data"], document, "it comes whole");
        wait_for("events", async || {
            let write = client.post(url("/v1/counters/bystander/increments")).header("prefer", "wait=20");
            (write.send().await.expect("an answer").status() == 200).then_some(())
        })
        .await;
        let bystander = Bystander::start(&api.address);
        let before_kib = api.resident_kib();
        let request = format!("GET {location} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(4);
        let open = join_all((0..READERS).map(|_| async {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_recv_buffer_size(4 << 10).expect("a small one");
            let address = api.address.parse().expect("an address");
            let mut stream = socket.connect(address).await.expect("a connection");
            stream.write_all(request.as_bytes()).await.expect("sent");
            stream
        }))
        .await;
        let refused = wait_for("a full budget", async || {
            let answer = read().await;
            (answer.status() == 503).then_some(answer)
        })
        .await;
        assert_eq!(refused.headers()["retry-after"], "1");
        let overloaded = problem(refused, 503).await;
        assert_eq!(overloaded["type"], "urn:forebay:problem:overloaded");
        let small = client.get(url("/v1/counters/bystander")).send().await.expect("an answer");
        assert_eq!(small.status(), 200, "what is small is answered");
        bystander.writes(10).await;
        let grown_kib = api.resident_kib().saturating_sub(before_kib);
        assert!(grown_kib <= GROWTH_KIB_MAX, "{grown_kib} KiB");
        let metrics = client.get(format!("{}/metrics", api.ops)).send().await.expect("an answer");
        let metrics = metrics.text().await.expect("text");
        let line = metrics.lines().find_map(|line| line.strip_prefix("forebay_http_answers_bytes "));
        let unread: usize = line.expect("a metric").parse().expect("a number");
        assert!((1..=ANSWERS_BYTES_MAX).contains(&unread), "{unread}");
        // After the allowed time without a read there is budget again.
        wait_for("an answer", async || {
            let answer = read().await;
            (answer.status() == 200).then_some(answer)
        })
        .await;
        drop(open);
        bystander.writes(3).await;
        bystander.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_gets_all_of_each_answer_and_the_room_is_given_back() {
    // The budget has space for one answer, and the time is enough to read a part of it, not all.
    let adjust = |config: &mut Config| {
        config.server.answers_bytes_max = DOCUMENT_BYTES * 3 / 2;
        config.server.answer_timeout_ms = 1_500;
    };
    embedded_with(adjust, |installation| async {
        let document = serde_json::json!({ "padding": "p".repeat(DOCUMENT_BYTES) }).to_string();
        let write = installation.at(0, reqwest::Method::POST, "/v1/data/slow").header("prefer", "wait=20");
        let stored = write.header("content-type", "application/json").body(document.clone()).send().await;
        let location = stored.expect("an answer").headers()["location"].to_str().expect("text").to_owned();
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a small one");
        let mut stream = socket.connect(installation.apis[0].address).await.expect("a connection");
        let request = format!("GET {location} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let (mut part, mut tick) = ([0; 4 << 10], tokio::time::interval(Duration::from_millis(40)));
        for _ in 0..2 {
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = Vec::new();
            while answer.len() < DOCUMENT_BYTES {
                tick.tick().await;
                let bytes = stream.read(&mut part).await.expect("more of the answer");
                assert!(bytes > 0, "it ends after {}", answer.len());
                answer.extend_from_slice(&part[..bytes]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "));
            let head = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
            let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            let mut rest = vec![0; head + length - answer.len()];
            stream.read_exact(&mut rest).await.expect("the rest of the answer");
            answer.extend_from_slice(&rest);
            let body: Value = serde_json::from_slice(&answer[head..]).expect("JSON");
            assert_eq!(body["data"].to_string(), document);
        }
        installation.get(&location).await.error_for_status().expect("there is room again");
        installation
    })
    .await;
}

/// Bytes that one client sends without reading, and the growth of the program that is allowed for it.
const SENT_BYTES: usize = 32 << 20;
const ANSWERED_KIB_MAX: u64 = 8 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_on_and_on_and_reads_nothing_is_not_read_from_any_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    config.server.answer_timeout_ms = 3_000;
    let api = Process::start(&config);
    let url = format!("http://{}/v1/counters/known/increments", api.address);
    let written = client().post(url).header("prefer", "wait=20").send().await.expect("an answer");
    assert_eq!(written.status(), 200);
    let before_kib = api.resident_kib();
    let mut stream = TcpStream::connect(&api.address).await.expect("a connection");
    // The server does not hold an answer without a body back.
    let requests =
        "GET /v1/counters/known HTTP/1.1\r\nhost: localhost\r\nif-none-match: *\r\n\r\n".repeat(100);
    let mut sent = 0;
    while sent < SENT_BYTES {
        let write = tokio::time::timeout(PATIENCE, stream.write(requests.as_bytes())).await;
        match write.expect("it is closed at last") {
            Ok(bytes) => sent += bytes,
            Err(_) => break,
        }
    }
    let grown_kib = api.resident_kib().saturating_sub(before_kib);
    assert!(grown_kib <= ANSWERED_KIB_MAX, "{grown_kib} KiB for {sent} bytes");
    assert!(sent < SENT_BYTES, "nothing stopped it");
}
