//! Clients that take what all share: bodies that never end, answers that nobody reads, queries without
//! end, connections whose client has gone. Others are served meanwhile.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use shared::config::Config;
use testkit::Isolated;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::load::{Answered, ask};
use crate::process::Process;
use crate::support::{
    Installation, base_config, client, cluster_config, cluster_with, embedded_with, json, problem, wait_for,
};

/// How often somebody else writes.
const EVERY: Duration = Duration::from_millis(100);

/// Longest time from such a write to its effect.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

/// Longest time that anything here may last, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody else, who writes all the time and waits for the effects.
struct Bystander(JoinHandle<()>, tokio::sync::watch::Sender<usize>);

impl Bystander {
    fn start(address: &str) -> Self {
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
    async fn writes(&self, times: usize) {
        let mut written = self.1.subscribe();
        let until = *written.borrow() + times;
        let writes = tokio::time::timeout(PATIENCE, written.wait_for(|written| *written >= until));
        assert!(writes.await.is_ok_and(|written| written.is_ok()), "somebody else writes no more");
    }

    async fn stop(self) {
        self.0.abort();
        match self.0.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => {}
        }
    }
}

async fn send(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// What comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // Reset, where not all that was sent was read.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "it is open for ever");
    String::from_utf8_lossy(&answer).into_owned()
}

mod bodies_that_are_announced_and_never_come_take_no_room {
    use super::*;

    /// As many as fill it by what they announce.
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
        installation.wait_until_heard().await;
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

/// Of one document that is read again and again.
const DOCUMENT_BYTES: usize = 250_000;

const READERS: usize = 400;

/// Enough for some of them.
const ANSWERS_BYTES_MAX: usize = 8 << 20;

/// By how much the program may grow: the budget, and 64 KiB for each connection. Without a budget it
/// grew by more than 100 MiB.
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
            let backend = crate::support::open(&config).await;
            let consumer = crate::support::RunningConsumer::start(&config, &backend);
            test(config).await;
            consumer.stop().await;
            crate::support::close(backend).await;
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
        // Nobody reads for as long as is allowed, and there is room again.
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

/// What one client sends without reading, in bytes, and by how much the program may grow for it.
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
    // An answer without a body is not held back by the server.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_query_with_very_many_parameters_is_refused_at_once_on_every_route() {
    embedded_with(
        |_| {},
        |installation| async {
            let many: Vec<_> = (0..12_000).map(|index| format!("{index:x}")).collect();
            let many = many.join("&");
            assert!(many.len() > 55_000, "as long as a target may be");
            let id = installation.increment(0, "many", 1).await;
            let routes = [
                ("GET", "/v1/counters"),
                ("GET", "/v1/counters/many"),
                ("GET", "/counter"),
                ("GET", "/v1/data/many"),
                ("GET", "/data"),
                ("GET", "/v1/metrics/summary"),
                ("GET", "/api/metrics/summary"),
                ("GET", "/v1/metrics/series"),
                ("GET", "/v1/metrics/types"),
                ("GET", "/v1/dead-letters"),
                ("GET", "/v1/collections/many"),
                ("GET", &*format!("/v1/receipts/{id}")),
                ("POST", "/v1/counters/many/increments"),
                ("POST", "/v1/data/many"),
                ("POST", "/v1/metrics"),
                ("POST", "/counter"),
                ("POST", "/data"),
                ("POST", "/api/metrics"),
            ];
            let mut took = BTreeMap::new();
            for (method, path) in routes {
                let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
                let request = installation.at(0, method.clone(), &format!("{path}?{many}"));
                let begun = Instant::now();
                let refused = problem(request.send().await.expect("an answer"), 422).await;
                took.insert(begun.elapsed(), (method, path));
                assert_eq!(refused["errors"][0]["parameter"], "query", "{path}: {refused}");
            }
            // Comparing each with each other took some hundred milliseconds, and seconds in this build.
            let slowest = took.last_key_value().expect("some");
            assert!(*slowest.0 < Duration::from_millis(500), "{slowest:?}");
            installation
        },
    )
    .await;
}

/// Longest part of a head that is tried; the server takes 128 KiB of it all.
const LONG: usize = 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_long_part_of_a_head_is_read_in_a_time_that_grows_with_its_length_only() {
    embedded_with(
        |_| {},
        |installation| async {
            installation.increment(0, "long", 1).await;
            installation.wait_for_value(0, "long", 1).await;
            let long = |part: &str| part.repeat(LONG / part.len());
            let path = "/v1/counters/long";
            let heads = [
                (format!("GET /v1/counters/{} HTTP/1.1", long("%41")), 422),
                (format!("GET {path}?{} HTTP/1.1", long("%26")), 422),
                (format!("GET {path}?{} HTTP/1.1", long("&")), 200),
                (format!("GET {} HTTP/1.1", long("/a")), 404),
                (format!("GET {path} HTTP/1.1\r\nif-none-match: {}", long("\"a\",")), 200),
                (format!("GET {path} HTTP/1.1\r\nif-none-match: {}", long(",")), 200),
                (format!("GET {path} HTTP/1.1\r\nprefer: {}", long("a;\"b\\\"\",")), 200),
                (format!("GET {path} HTTP/1.1\r\nx-request-id: {}", long("i")), 200),
                (format!("GET {path} HTTP/1.1\r\nconnection: {}", long("a,")), 200),
                (format!("GET {path} HTTP/1.1\r\n{}", "a: b\r\n".repeat(90).trim_end()), 200),
                (format!("POST {path}/increments HTTP/1.1\r\nidempotency-key: {}", long("k")), 400),
                (format!("POST {path}/increments HTTP/1.1\r\ncontent-type: {}", long("a;")), 202),
                (format!("POST {path}/increments HTTP/1.1\r\ntraceparent: {}", long("0")), 202),
            ];
            for (head, expected) in heads {
                let mut stream =
                    TcpStream::connect(installation.apis[0].address).await.expect("a connection");
                let begun = Instant::now();
                let answered = ask(&mut stream, &format!("{head}\r\nhost: localhost\r\n\r\n")).await;
                let shown = &head[..head.len().min(90)];
                assert!(
                    matches!(answered, Answered::Whole { status, .. } if status == expected),
                    "{shown} {answered:?}"
                );
                // Each with each would be thousands of millions of steps.
                assert!(begun.elapsed() < Duration::from_secs(1), "{shown} {:?}", begun.elapsed());
            }
            installation
        },
    )
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
        installation.wait_until_heard().await;
        let id = installation.increment(0, "gone", 1).await;
        installation.wait_for_value(0, "gone", 1).await;
        // A client that says all at once and then listens is answered with the outcome.
        let post = "POST /v1/counters/gone/increments HTTP/1.1\r\nhost: localhost\r\nprefer: wait=30\r\n\
            content-length: 0\r\n\r\n";
        let mut listening = send(&address, post).await;
        listening.shutdown().await.expect("its half is closed");
        let answer = rest(&mut listening).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // Nothing is applied any more, so that everything waits.
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
            // Closed, reset, and half closed by one that never reads.
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

/// Sends a head and returns what comes before the other side waits for more or closes.
async fn statuses(address: &str, head: &str) -> Vec<String> {
    let mut stream =
        send(address, &format!("{head}\r\nhost: localhost\r\nexpect: 100-continue\r\n\r\n")).await;
    let mut answer = Vec::new();
    // The first answer comes as one.
    let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
    assert!(matches!(read, Ok(Ok(1..))), "{head}: {read:?}");
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).map(|line| line[9..12].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_its_head_refuses_is_not_told_to_go_on() {
    embedded_with(
        |_| {},
        |installation| async {
            let address = installation.apis[0].address.to_string();
            let json = "content-type: application/json\r\n";
            for (head, expected) in [
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}content-length: 9000000"), "413"),
                (format!("POST /nowhere HTTP/1.1\r\n{json}content-length: 9000000"), "404"),
                (format!("PATCH /v1/data/x HTTP/1.1\r\n{json}content-length: 9"), "405"),
                (
                    format!("POST /v1/data/x HTTP/1.1\r\n{json}content-encoding: gzip\r\ncontent-length: 9"),
                    "415",
                ),
                ("POST /v1/data/x HTTP/1.1\r\ncontent-type: text/plain\r\ncontent-length: 9".into(), "415"),
                (format!("POST /v1/data/x?y=1 HTTP/1.1\r\n{json}content-length: 9"), "422"),
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}content-length: 9"), "100"),
                (format!("POST /v1/data/x HTTP/1.1\r\n{json}transfer-encoding: chunked"), "100"),
            ] {
                assert_eq!(statuses(&address, &head).await, [expected], "{head}");
            }
            let head = "POST /v1/counters/asks/increments HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n";
            let mut stream = send(&address, head).await;
            let mut leave = [0; 25];
            stream.read_exact(&mut leave).await.expect("leave to go on");
            assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
            let answered = ask(&mut stream, r#"{"by":3}"#).await;
            assert!(matches!(answered, Answered::Whole { status: 202, closes: false }), "{answered:?}");
            installation.wait_for_value(0, "asks", 3).await;
            installation
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_offered_is_ignored_and_the_body_read_by_its_length() {
    embedded_with(
        |_| {},
        |installation| async {
            let address = installation.apis[0].address.to_string();
            let offers = ["connection: upgrade\r\nupgrade: websocket\r\n", "upgrade: websocket\r\n"];
            let more = ["connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n", "connection: upgrade\r\n"];
            let mut expected = 0;
            for offer in offers.into_iter().chain(more) {
                for body in [r#"{"by":2}"#, r#"[{"by":1},{"by":1}]"#, ""] {
                    let request = format!(
                        "POST /v1/counters/offers/increments HTTP/1.1\r\nhost: localhost\r\n{offer}\
                         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let answered = ask(&mut send(&address, "").await, &request).await;
                    assert!(
                        matches!(answered, Answered::Whole { status: 202, closes: _ }),
                        "{offer} {answered:?}"
                    );
                    expected += if body.is_empty() { 1 } else { 2 };
                }
                let get = format!("GET /v1/counters/offers HTTP/1.1\r\nhost: localhost\r\n{offer}\r\n");
                let mut stream = send(&address, &get).await;
                let answer = rest(&mut stream).await.to_ascii_lowercase();
                assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            }
            let value: Value = installation.wait_for_value(0, "offers", expected).await;
            assert_eq!(value["value"], expected);
            installation
        },
    )
    .await;
}
