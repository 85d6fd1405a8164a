//! Clients that send byte by byte and never stop, or stop in the middle: each part of a request has
//! its time limit, and no connection is held for ever.
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use shared::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{Answered, ask};
use crate::support::{Installation, embedded, embedded_with};

/// Pause between the bytes of a slow client.
const PACE: Duration = Duration::from_millis(10);

const BODY_TIMEOUT: Duration = Duration::from_millis(300);

/// Longest time that anything here may last, on a busy machine; the server's own limit for a first head
/// is 10 s.
const PATIENCE: Duration = Duration::from_secs(30);

fn adjust(config: &mut Config) {
    config.server.body_timeout_ms = u64::try_from(BODY_TIMEOUT.as_millis()).expect("small");
    config.server.keep_alive_ms = 200;
    config.server.stall_timeout_ms = 1_000;
}

async fn connect(installation: &Installation) -> TcpStream {
    TcpStream::connect(installation.apis[0].address).await.expect("a connection")
}

/// Sends `part` again and again until the server has closed; returns its answers.
async fn dribble(stream: TcpStream, part: &[u8]) -> String {
    let (mut from, mut to) = stream.into_split();
    let dribbling = async {
        let mut tick = tokio::time::interval(PACE);
        // An error means that the server has closed.
        while to.write_all(part).await.is_ok() {
            tick.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        // The connection is reset where a part of the request was never read.
        ended = tokio::time::timeout(PATIENCE, from.read_to_end(&mut answer)) => {
            assert!(ended.is_ok(), "it is open for ever");
        }
        () = dribbling => {}
    }
    String::from_utf8(answer).expect("text")
}

async fn a_body_ends_in_time(installation: &Installation, path: &str, how: &str, part: &[u8]) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{how}\r\n\r\n");
    let (began, mut stream) = (Instant::now(), connect(installation).await);
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = dribble(stream, part).await;
    assert!(began.elapsed() >= BODY_TIMEOUT, "{path} {how}: {:?}", began.elapsed());
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 408 "), "{path} {how}: {answer}");
    let problem: Value = serde_json::from_str(body).expect("a problem");
    assert_eq!(problem["type"], "urn:forebay:problem:body_timeout", "{path} {how}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_ends_with_its_time_and_its_connection_too() {
    embedded_with(adjust, |installation| async {
        let ways = [("content-length: 60000", &b" "[..]), ("transfer-encoding: chunked", b"1\r\n \r\n")];
        let paths = ["/v1/counters/slow/increments", "/v1/data/slow", "/v1/metrics", "/counter"];
        let all = ways.into_iter().flat_map(|way| paths.map(|path| (path, way)));
        join_all(all.map(|(path, (how, part))| a_body_ends_in_time(&installation, path, how, part))).await;
        assert_eq!(installation.increment_and_wait(0, "slow").await.status(), 200, "others are served");
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_byte_by_byte_or_never_whole_ends_with_its_connection_also_when_it_is_the_second() {
    const REQUEST: &str =
        "POST /v1/counters/heads/increments HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n";
    embedded_with(adjust, |installation| async {
        let one = async |is_second: bool, part: &'static [u8]| {
            let mut stream = connect(&installation).await;
            if is_second {
                let answered = ask(&mut stream, &format!("{REQUEST}\r\n")).await;
                assert!(matches!(answered, Answered::Whole { status: 202, closes: false }), "{answered:?}");
            }
            stream.write_all(REQUEST.as_bytes()).await.expect("sent");
            stream.write_all(b"x-slow: ").await.expect("sent");
            let answer = dribble(stream, part).await;
            // The first connection may get a 408.
            assert!(answer.is_empty() || (!is_second && answer.starts_with("HTTP/1.1 408 ")), "{answer}");
        };
        // The last two send nothing more, as a client that has vanished.
        tokio::join!(one(false, b"x"), one(true, b"x"), one(false, b""), one(true, b""));
        let heads = installation.wait_for_value(0, "heads", 2).await;
        assert_eq!(heads["version"], 2, "half a request is none");
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_head_that_does_not_come_to_its_end_is_answered_with_a_problem_and_an_id() {
    // The time limit of a connection is longer than that of a head here.
    embedded(|installation| async {
        let refused = async |part: &'static [u8]| {
            let mut stream = connect(&installation).await;
            stream
                .write_all(b"GET /v1/counters HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
                .await
                .expect("sent");
            let answer = dribble(stream, part).await;
            let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
            assert!(head.starts_with("HTTP/1.1 408 "), "{answer}");
            let header = |name: &str| {
                let mut headers = head.lines().filter_map(|line| line.split_once(": "));
                headers.find_map(|(found, value)| (found == name).then(|| value.to_owned()))
            };
            assert_eq!(header("content-type").as_deref(), Some("application/problem+json"), "{head}");
            assert_eq!(header("content-length"), Some(body.len().to_string()), "{head}");
            assert_eq!(header("connection").as_deref(), Some("close"), "{head}");
            let problem: Value = serde_json::from_str(body).expect("a problem");
            assert_eq!(
                (&problem["type"], &problem["status"]),
                (&"urn:forebay:problem:head_timeout".into(), &408.into())
            );
            assert!(problem["detail"].is_string(), "{problem}");
            header("x-request-id").filter(|id| !id.is_empty()).expect("an id")
        };
        let (silent, dribbled) = tokio::join!(refused(b""), refused(b"x"));
        assert_ne!(silent, dribbled, "each has its own");
        installation
    })
    .await;
}

/// A request in work is no idle connection, however long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_longer_than_a_connection_may_idle_is_answered() {
    let at_most = |config: &mut Config| {
        adjust(config);
        config.server.wait_ms_max = 3_000;
    };
    embedded_with(at_most, |mut installation| async {
        for consumer in installation.consumers.drain(..) {
            consumer.stop().await;
        }
        let waiting = "POST /v1/counters/waits/increments HTTP/1.1\r\nhost: localhost\r\nprefer: wait=3\r\n\
            content-length: 0\r\n\r\n";
        let stays = async {
            let answered = ask(&mut connect(&installation).await, waiting).await;
            assert!(matches!(answered, Answered::Whole { status: 202, closes: false }), "{answered:?}");
        };
        // This client closes its side, and waits.
        let has_said_all = async {
            let mut stream = connect(&installation).await;
            stream.write_all(waiting.as_bytes()).await.expect("sent");
            stream.shutdown().await.expect("its side is closed");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        };
        tokio::join!(stays, has_said_all);
        installation
    })
    .await;
}
