//! Requests that are sent without a pause behind one that waits: the memory for them has a limit,
//! and each is answered in the end.
use std::time::Duration;

use futures_util::future::join_all;
use shared::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::load::{Answered, ask};
use crate::process::Process;
use crate::room::{PATIENCE, send};
use crate::support::{base_config, client, embedded_with};

const CONNECTIONS: usize = 20;

/// Growth that is allowed for the program: 512 KiB for each connection. It took 38 MiB before.
const GROWTH_KIB_MAX: u64 = CONNECTIONS as u64 * 512;

/// Shortest possible request: many fit into few bytes.
const SHORT: &str = "GET / HTTP/1.1\r\nhost:a\r\n\r\n";
const SHORT_COUNT: usize = 300 * 1_024 / SHORT.len();

fn config_in(directory: &tempfile::TempDir) -> Config {
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    config.server.workers = 1;
    config
}

/// Makes a counter known and returns its entity tag.
async fn known(api: &Process) -> String {
    let (client, url) = (client(), format!("http://{}/v1/counters/known", api.address));
    let write = client.post(format!("{url}/increments")).header("prefer", "wait=20").send().await;
    assert_eq!(write.expect("an answer").status(), 200);
    let read = client.get(url).send().await.expect("an answer");
    read.headers()["etag"].to_str().expect("text").to_owned()
}

/// Builds a request that waits for a change that does not come.
fn waiting(etag: &str, seconds: u32) -> String {
    format!(
        "GET /v1/counters/known HTTP/1.1\r\nhost: localhost\r\nif-none-match: {etag}\r\n\
         prefer: wait={seconds}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_behind_a_request_that_waits_is_hardly_read_and_costs_no_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let api = Process::start(&config_in(&directory));
    let etag = known(&api).await;
    let before_kib = api.resident_kib();
    let post = "POST /v1/counters/other/increments HTTP/1.1\r\nhost: localhost\r\n\
        content-type: application/json\r\nprefer: wait=20\r\n";
    let begins = [
        String::new(),
        // Bytes that were read with the end of a body wait behind it, too.
        format!("{post}content-length: 8\r\n\r\n{{\"by\":1}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\n8\r\n{{\"by\":1}}\r\n0\r\n\r\n"),
        SHORT.repeat(100),
    ];
    let open = join_all((0..CONNECTIONS).map(|index| {
        let requests = format!(
            "{}{}{}",
            begins[index % begins.len()],
            waiting(&etag, 20).repeat(2),
            SHORT.repeat(SHORT_COUNT)
        );
        let address = api.address.clone();
        async move {
            let stream = TcpStream::connect(address).await.expect("a connection");
            let (mut answers, mut to) = stream.into_split();
            // The client sends until the server takes nothing more.
            let sending = tokio::spawn(async move { to.write_all(requests.as_bytes()).await.map(|()| to) });
            let reading = tokio::spawn(async move {
                let mut part = [0; 4 << 10];
                while matches!(answers.read(&mut part).await, Ok(1..)) {}
            });
            (sending, reading)
        }
    }))
    .await;
    crate::support::wait_for("all of them wait", async || {
        (api.waiting(&client()).await >= CONNECTIONS).then_some(())
    })
    .await;
    // A thread that spins is never seen asleep.
    let begun = Instant::now();
    let mut restless = api.running_threads();
    while begun.elapsed() < Duration::from_secs(2) || (!restless.is_empty() && begun.elapsed() < PATIENCE / 6)
    {
        sleep(Duration::from_millis(20)).await;
        restless.retain(|thread| api.running_threads().contains(thread));
    }
    assert_eq!(restless, [0; 0], "threads that never slept");
    let grown_kib = api.resident_kib().saturating_sub(before_kib);
    assert!(grown_kib <= GROWTH_KIB_MAX, "{grown_kib} KiB");
    for (sending, reading) in open {
        sending.abort();
        reading.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_behind_one_that_waits_is_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let api = Process::start(&config_in(&directory));
    let etag = known(&api).await;
    // Longer requests between short ones: reads that wait, writes with and without a length.
    let mixed = format!(
        "{}{}POST /v1/counters/x/increments HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: 8\r\n\r\n{{\"by\":1}}\
         POST /v1/counters/x/increments HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{{\"by\":1}}\r\n0\r\n\r\n",
        SHORT.repeat(200),
        waiting(&etag, 1)
    );
    let requests = mixed.repeat(4);
    let expected = requests.matches(" HTTP/1.1\r\n").count();
    let (mut from, mut to) = TcpStream::connect(&api.address).await.expect("a connection").into_split();
    let sending = tokio::spawn(async move { to.write_all(requests.as_bytes()).await.map(|()| to) });
    let mut answers = String::new();
    let read = tokio::time::timeout(PATIENCE, async {
        let mut part = [0; 4 << 10];
        while answers.matches("HTTP/1.1 ").count() < expected {
            let bytes = from.read(&mut part).await.unwrap_or(0);
            let tail = &answers[answers.len().saturating_sub(1_000)..];
            assert!(bytes > 0, "closed after {}: {tail}", answers.matches("HTTP/1.1 ").count());
            answers.push_str(&String::from_utf8_lossy(&part[..bytes]));
        }
    });
    let read = read.await;
    assert!(read.is_ok(), "{} of {expected}", answers.matches("HTTP/1.1 ").count());
    assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 8);
    assert_eq!(answers.matches("HTTP/1.1 304 ").count(), 4);
    sending.await.expect("no panic").expect("all is sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_however_small_its_parts_are() {
    embedded_with(
        |_| {},
        |installation| async {
            let address = installation.apis[0].address.to_string();
            let document = format!(r#"{{"a":"{}"}}"#, "p".repeat(60_000));
            let chunk = |letter: char| format!("1;padding=of-a-chunk\r\n{letter}\r\n");
            let chunks: String = document.chars().map(chunk).collect();
            let head =
                "POST /v1/data/parts HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
            let mut stream = send(&address, &format!("{head}transfer-encoding: chunked\r\n\r\n")).await;
            let answered = ask(&mut stream, &format!("{chunks}0\r\n\r\n")).await;
            assert!(matches!(answered, Answered::Whole { status: 202, .. }), "{answered:?}");
            let whole = format!("{head}content-length: {}\r\n\r\n{document}", document.len());
            let answered = ask(&mut stream, &whole).await;
            assert!(matches!(answered, Answered::Whole { status: 202, .. }), "{answered:?}");
            installation
        },
    )
    .await;
}
