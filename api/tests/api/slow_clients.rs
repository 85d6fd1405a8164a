//! Clients that send byte by byte, and never stop: each part of a request has its time.
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Installation, embedded_with};

/// How often a slow client sends something.
const PACE: Duration = Duration::from_millis(10);

const BODY_TIMEOUT: Duration = Duration::from_millis(300);

/// Longest time that anything here may last, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends `head`, then `part` again and again, until an answer came; where it `ends`, until the
/// connection is closed, too. Returns the answer.
async fn dribble(installation: &Installation, head: &str, part: &[u8], ends: bool) -> String {
    let stream = TcpStream::connect(installation.apis[0].address).await.expect("a connection");
    let (mut from, mut to) = stream.into_split();
    to.write_all(head.as_bytes()).await.expect("sent");
    let dribbling = async {
        let mut tick = tokio::time::interval(PACE);
        // Fails when the other side has gone.
        while to.write_all(part).await.is_ok() {
            tick.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let answered = async {
        while ends || !answer.ends_with(b"}") {
            // Reset, where not all that was sent was read.
            if !matches!(from.read_buf(&mut answer).await, Ok(1..)) {
                break;
            }
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(PATIENCE, answered) => ended.expect("an answer and an end in time"),
        () = dribbling => {}
    }
    String::from_utf8(answer).expect("text")
}

fn problem_of(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, serde_json::from_str(body).expect("a problem"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_ends_with_its_time_and_its_connection() {
    let adjust = |config: &mut shared::config::Config| {
        config.server.body_timeout_ms = u64::try_from(BODY_TIMEOUT.as_millis()).expect("small");
    };
    embedded_with(adjust, |installation| async {
        // Of chunks the server goes on to read what it does not want, so that their connection can be kept.
        let ways = [
            ("content-length: 60000", &b" "[..], true),
            ("transfer-encoding: chunked", b"1\r\n \r\n", false),
        ];
        for (how, part, ends) in ways {
            for path in ["/v1/counters/slow/increments", "/v1/data/slow", "/v1/metrics", "/counter"] {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{how}\r\n\r\n"
                );
                let began = Instant::now();
                let answer = dribble(&installation, &head, part, ends).await;
                let (status, problem) = problem_of(&answer);
                assert_eq!(status, 408, "{path} {how}: {answer}");
                assert_eq!(problem["type"], "urn:forebay:problem:body_timeout", "{path} {how}");
                assert!(began.elapsed() >= BODY_TIMEOUT, "{path} {how}: {:?}", began.elapsed());
            }
        }
        assert_eq!(installation.increment_and_wait(0, "slow").await.status(), 200, "others are served");
        installation
    })
    .await;
}
