//! The operations port over a real socket.
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use shared::program::ops::{self, Health, HealthStatus, OpsServer};
use shared::runtime::progress::Progress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends one request and returns the status code, the head and the body.
async fn request(ops: &OpsServer, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(ops.address()).await.expect("connects");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("has a head");
    let code = head.split(' ').nth(1).expect("has a code").parse().expect("is a number");
    (code, head.to_ascii_lowercase(), body.to_owned())
}

/// Makes a watch whose limit is never reached in a test.
fn progress() -> Progress {
    Progress::start(Duration::from_mins(1)).expect("a thread")
}

fn health(status: HealthStatus, ready: bool) -> Health {
    Health {
        status,
        ready,
        components: BTreeMap::from([("queue", "healthy"), ("store", "unhealthy")]),
        breakers: BTreeMap::from([("store", "open")]),
        consumers: None,
    }
}

#[tokio::test]
async fn the_operations_port_tells_what_the_program_says() {
    let phase = Arc::new(AtomicU8::new(0));
    let reported = Arc::clone(&phase);
    let ask = move || match reported.load(Ordering::SeqCst) {
        0 => health(HealthStatus::Degraded, true),
        _ => health(HealthStatus::Down, false),
    };
    let ops = ops::serve("127.0.0.1", 0, &progress(), Arc::new(ask)).expect("listens");
    shared::runtime::metrics::metrics().queue_sessions_lost.inc();

    let (code, head, body) = request(&ops, "GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(
        body.contains("forebay_queue_sessions_lost_total ") && body.contains("process_open_fds"),
        "{body}"
    );

    assert_eq!(request(&ops, "GET", "/livez").await.0, 200);
    assert_eq!(request(&ops, "GET", "/readyz").await.0, 200);
    let (code, head, body) = request(&ops, "GET", "/health").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/json") && head.contains("cache-control: no-store"), "{head}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&body).expect("is JSON"),
        serde_json::json!({"status": "degraded", "queue": "healthy", "store": "unhealthy", "breakers": {"store": "open"}})
    );

    phase.store(1, Ordering::SeqCst);
    assert_eq!(request(&ops, "GET", "/livez").await.0, 200);
    assert_eq!(request(&ops, "GET", "/readyz").await.0, 503);
    assert_eq!(request(&ops, "GET", "/health").await.0, 503);

    assert_eq!(request(&ops, "GET", "/else").await.0, 404);
    let (code, head, _) = request(&ops, "POST", "/metrics").await;
    assert_eq!(code, 405);
    assert!(head.contains("allow: get, head"), "{head}");

    let address = ops.address();
    ops.stop().await.expect("stops");
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_at_once() {
    let ask = || health(HealthStatus::Ok, true);
    let ops = ops::serve("127.0.0.1", 0, &progress(), Arc::new(ask)).expect("listens");
    assert!(ops::serve("127.0.0.1", ops.address().port(), &progress(), Arc::new(ask)).is_err());
    ops.stop().await.expect("stops");
}

/// Makes requests from a thread without a runtime.
fn ask(ops: &OpsServer, path: &str) -> impl FnMut() -> String + Send + 'static {
    let (address, path) = (ops.address(), path.to_owned());
    move || {
        let mut stream = std::net::TcpStream::connect(address).expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        answer
    }
}

/// There is one thread, and it does not come back before the answer was given.
#[tokio::test]
async fn while_the_runtime_is_blocked_liveness_fails_and_names_the_loop() {
    let progress = Progress::start(Duration::from_millis(50)).expect("a thread");
    let ops =
        ops::serve("127.0.0.1", 0, &progress, Arc::new(|| health(HealthStatus::Ok, true))).expect("listens");
    assert_eq!(request(&ops, "GET", "/livez").await.0, 200);
    let (mut livez, mut readyz) = (ask(&ops, "/livez"), ask(&ops, "/readyz"));
    let blocked = async move {
        let asking = std::thread::spawn(move || {
            let patience = Instant::now() + Duration::from_secs(30);
            loop {
                let answer = livez();
                if answer.starts_with("HTTP/1.1 503") || Instant::now() > patience {
                    return (answer, readyz());
                }
            }
        });
        asking.join().expect("no panic")
    };
    let (live, ready) = progress.clone().watching("blocked", blocked).await;
    assert!(live.starts_with("HTTP/1.1 503") && live.contains("blocked stands still for "), "{live}");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert_eq!(request(&ops, "GET", "/livez").await.0, 200, "it moves again");
    ops.stop().await.expect("stops");
}

#[tokio::test]
async fn a_loop_that_waits_or_ends_does_not_stand_still_and_a_runtime_that_does_not_tick_does() {
    let progress = Progress::start(Duration::from_millis(50)).expect("a thread");
    let _waits = tokio::spawn(progress.clone().watching("waits", std::future::pending::<()>()));
    let idle = progress.register("idle", Duration::ZERO);
    idle.moved();
    idle.idle();
    let ended = progress.register("ended", Duration::ZERO);
    ended.moved();
    drop(ended);
    let patient = progress.register("patient", Duration::from_mins(10));
    patient.moved();
    let ticks = tokio::spawn(progress.clone().ticking("ticks"));
    tokio::task::yield_now().await;
    let still = progress.register("still", Duration::ZERO);
    still.moved();
    // The only thread does nothing else meanwhile.
    let patience = Instant::now() + Duration::from_secs(30);
    while progress.stuck().len() < 2 && Instant::now() < patience {
        std::thread::yield_now();
    }
    let mut stuck: Vec<_> = progress.stuck().iter().map(|stuck| stuck.name).collect();
    stuck.sort_unstable();
    assert_eq!(stuck, ["still", "ticks"]);
    ticks.abort();
}
