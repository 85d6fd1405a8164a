//! Clients that use up shared resources, by bodies that never end and connections that they left.
//! Others are served meanwhile.
use std::time::{Duration, Instant};

use shared::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::load::{Answered, ask};
use crate::support::{Installation, client, cluster_with, embedded_with, json, wait_for};

/// Pause between the bystander's writes.
const EVERY: Duration = Duration::from_millis(100);

/// Longest time from such a write to its effect.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

/// Longest time that anything here may last, on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Another client, which writes all the time and waits for the effects.
pub struct Bystander(JoinHandle<()>, tokio::sync::watch::Sender<usize>);

impl Bystander {
    pub fn start(address: &str) -> Self {
        let (client, url) = (client(), format!("http://{address}/v1/counters/bystander/increments"));
        let written = tokio::sync::watch::Sender::new(0);
        let count = written.clone();
        Self(
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(EVERY);
                loop {
                    tick.tick().await;
                    let begun = Instant::now();
                    let write =
                        client.post(&url).header("prefer", "wait=20").json(&serde_json::json!({"by": 1}));
                    let answer = write.send().await.expect("an answer");
                    assert_eq!(answer.status(), 200, "applied while it waited");
                    assert!(begun.elapsed() <= APPLIED_WITHIN, "{:?}", begun.elapsed());
                    count.send_modify(|written| *written += 1);
                }
            }),
            written,
        )
    }

    /// Lets it write for a while longer.
    pub async fn writes(&self, times: usize) {
        let mut written = self.1.subscribe();
        let until = *written.borrow() + times;
        let writes = tokio::time::timeout(PATIENCE, written.wait_for(|written| *written >= until));
        assert!(writes.await.is_ok_and(|written| written.is_ok()), "somebody else writes no more");
    }

    pub async fn stop(self) {
        self.0.abort();
        match self.0.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => {}
        }
    }
}

pub async fn send(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// Reads until the server closes.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // The connection is reset where a part of the request was never read.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "it is open for ever");
    String::from_utf8_lossy(&answer).into_owned()
}

mod bodies_that_are_announced_and_never_come_take_no_room {
    use super::*;

    /// Number of connections that fill the budget by the lengths that they announce.
    const CONNECTIONS: usize = 256;

    fn adjust(config: &mut Config) {
        config.server.bodies_bytes_max = CONNECTIONS << 20;
        config.server.body_timeout_ms = 30_000;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn embedded() {
        embedded_with(adjust, test).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cluster() {
        cluster_with("announced", adjust, test).await;
    }

    async fn test(installation: Installation) -> Installation {
        let address = installation.apis[0].address.to_string();
        installation.wait_until_events_arrive().await;
        let bystander = Bystander::start(&address);
        let ways = ["content-length: 1048576\r\n\r\n[", "transfer-encoding: chunked\r\n\r\n1\r\n[\r\n"];
        let paths = ["/v1/counters/room/increments", "/v1/data/room", "/v1/metrics"];
        let mut open = Vec::new();
        for index in 0..=CONNECTIONS {
            let (path, way) = (paths[index % paths.len()], ways[index % ways.len()]);
            let head = "host: localhost\r\ncontent-type: application/json";
            open.push(send(&address, &format!("POST {path} HTTP/1.1\r\n{head}\r\n{way}")).await);
        }
        bystander.writes(10).await;
        bystander.stop().await;
        installation
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stands_still_makes_room_for_one_that_comes_and_the_largest_goes_first() {
    const BODY: usize = 100_000;
    let adjust = |config: &mut Config| {
        config.server.bodies_bytes_max = 150_000;
        config.server.body_timeout_ms = 60_000;
    };
    embedded_with(adjust, |installation| async {
        let address = installation.apis[0].address.to_string();
        let document = format!(r#"{{"padding":"{}"}}"#, "p".repeat(BODY - 14));
        let part = async |bytes: usize| {
            let head = format!(
                "POST /v1/data/room HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {BODY}\r\n\r\n{}",
                &document[..bytes]
            );
            send(&address, &head).await
        };
        let (mut small, mut large) = (part(10_000).await, part(90_000).await);
        let newcomer = installation.wait_for("room", async || {
            let answer = installation.post("/v1/data/room", &document).await;
            (answer.status() == 202).then_some(())
        });
        newcomer.await;
        let refused = rest(&mut large).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("\r\nretry-after: 1\r\n") && refused.contains(":overloaded\""), "{refused}");
        small.write_all(&document.as_bytes()[10_000..]).await.expect("sent");
        let answered = ask(&mut small, "").await;
        assert!(matches!(answered, Answered::Whole { status: 202, .. }), "{answered:?}");
        installation
    })
    .await;
}

mod a_client_that_has_gone_gives_its_place_back_soon {
    use super::*;

    const HALF_CLOSED_WAIT: Duration = Duration::from_millis(500);

    fn adjust(config: &mut Config) {
        config.server.half_closed_wait_ms = u64::try_from(HALF_CLOSED_WAIT.as_millis()).expect("small");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn embedded() {
        embedded_with(adjust, test).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cluster() {
        cluster_with("gone", adjust, test).await;
    }

    async fn test(mut installation: Installation) -> Installation {
        let address = installation.apis[0].address.to_string();
        installation.wait_until_events_arrive().await;
        let id = installation.increment(0, "gone", 1).await;
        installation.wait_for_value(0, "gone", 1).await;
        // A client that sends everything, closes its side and then reads, is answered with the outcome.
        let post = "POST /v1/counters/gone/increments HTTP/1.1\r\nhost: localhost\r\nprefer: wait=30\r\n\
            content-length: 0\r\n\r\n";
        let mut listening = send(&address, post).await;
        listening.shutdown().await.expect("its half is closed");
        let answer = rest(&mut listening).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // No consumer applies anything any more, so that everything waits.
        for consumer in installation.consumers.drain(..) {
            consumer.stop().await;
        }
        let follow = "GET /v1/counters/gone HTTP/1.1\r\nhost: localhost\r\nprefer: wait=30\r\n\
            if-none-match: *\r\n\r\n";
        let open = installation.post("/v1/counters/gone/increments", "").await;
        let receipt = json(open).await["id"].as_str().map_or(id, str::to_owned);
        let receipt =
            format!("GET /v1/receipts/{receipt} HTTP/1.1\r\nhost: localhost\r\nprefer: wait=30\r\n\r\n");
        let waiting = async |count| {
            let is = async || (installation.apis[0].waiting() == count).then_some(());
            wait_for(&format!("{count} that wait"), is).await;
        };
        for request in [post, follow, &receipt] {
            // Three endings: closed, reset, and half closed by a client that never reads.
            let (closed, reset) = (send(&address, request).await, send(&address, request).await);
            let mut silent = send(&address, request).await;
            waiting(3).await;
            let begun = Instant::now();
            drop(closed);
            reset.set_zero_linger().expect("it will be reset");
            drop(reset);
            silent.shutdown().await.expect("its half is closed");
            waiting(0).await;
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            let answer = rest(&mut silent).await;
            let answered = ["HTTP/1.1 202 ", "HTTP/1.1 304 ", "HTTP/1.1 200 "];
            assert!(answered.iter().any(|status| answer.starts_with(status)), "{answer}");
        }
        installation
    }
}
