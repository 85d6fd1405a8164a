//! The operations port: `/metrics`, `/livez`, `/readyz` and `/health`, on a thread of its own, so
//! that it answers while the public port sheds load.
//!
//! It knows no dependency: the program reports what is healthy, from what it knows already. Nothing here
//! may wait for a server, or for a thread of the program, so that it answers also while the program is
//! stuck.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_http::body::EitherBody;
use actix_http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use actix_http::{HttpService, KeepAlive, Method, Request, Response, ResponseBuilder, StatusCode};
use actix_server::{Server, ServerHandle};
use prometheus::TextEncoder;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::runtime::progress::Progress;

/// Connections of scrapers and probes at once; there are few of either.
const CONNECTIONS_MAX: usize = 64;

/// Time for the head of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Health of a program as it reports it itself; the body of `/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    pub status: HealthStatus,
    /// State of each component (`queue`, `store`, …) in a word.
    #[serde(flatten)]
    pub components: BTreeMap<&'static str, &'static str>,
    /// State of each breaker by name: `closed`, `half_open` or `open`.
    pub breakers: BTreeMap<&'static str, &'static str>,
    /// Consumers whose events an API receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<usize>,
    /// True once the program has started and while it is not draining. A dependency that is away does not
    /// change it.
    #[serde(skip)]
    pub ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Ok,
    /// Something is away; the main job is still done.
    Degraded,
    /// The main job cannot be done.
    Down,
}

impl Health {
    /// The status code of `/health`.
    pub fn code(&self) -> u16 {
        if self.status == HealthStatus::Down { 503 } else { 200 }
    }
}

/// Callback for the health, called at each request; must not block.
pub type AskHealth = Arc<dyn Fn() -> Health + Send + Sync>;

/// Running server. Dropping it without [`Self::stop`] leaves it running.
#[derive(Debug)]
pub struct OpsServer {
    address: SocketAddr,
    handle: ServerHandle,
    task: JoinHandle<io::Result<()>>,
}

/// Listens on `host` and `port`; port 0 takes a free one. Must be called on a Tokio runtime, which is not
/// needed to answer.
pub fn serve(host: &str, port: u16, progress: &Progress, health: AskHealth) -> io::Result<OpsServer> {
    let listener = TcpListener::bind((host, port))?;
    let address = listener.local_addr()?;
    let progress = progress.clone();
    let service = move || {
        let (health, progress) = (Arc::clone(&health), progress.clone());
        HttpService::build()
            .keep_alive(KeepAlive::Timeout(Duration::from_mins(1)))
            .client_request_timeout(REQUEST_TIMEOUT)
            .finish(move |request: Request| {
                let response = answer(&request, &progress, &health);
                async { Ok::<_, Infallible>(response) }
            })
            .tcp()
    };
    let server = Server::build()
        .workers(1)
        .max_concurrent_connections(CONNECTIONS_MAX)
        // The program decides when the server stops, and stops it last.
        .disable_signals()
        .shutdown_timeout(1)
        .listen("ops", listener, service)?
        .run();
    let handle = server.handle();
    Ok(OpsServer { address, handle, task: tokio::spawn(server) })
}

impl OpsServer {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and waits until its thread is done.
    pub async fn stop(self) -> io::Result<()> {
        self.handle.stop(true).await;
        self.task.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn answer(request: &Request, progress: &Progress, health: &AskHealth) -> Response<EitherBody<String>> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.path() {
        "/metrics" | "/livez" | "/readyz" | "/health" if !get => {
            response(StatusCode::METHOD_NOT_ALLOWED).insert_header((ALLOW, "GET, HEAD")).body(String::new())
        }
        "/metrics" => match TextEncoder::new().encode_to_string(&prometheus::gather()) {
            Ok(text) => {
                response(StatusCode::OK).insert_header((CONTENT_TYPE, prometheus::TEXT_FORMAT)).body(text)
            }
            Err(error) => {
                tracing::error!(error = %error, "metrics could not be encoded");
                response(StatusCode::INTERNAL_SERVER_ERROR).body(String::new())
            }
        },
        "/livez" => moving(progress),
        "/readyz" if health().ready => moving(progress),
        "/readyz" => response(StatusCode::SERVICE_UNAVAILABLE).body(String::from("not ready\n")),
        "/health" => {
            let health = health();
            let code = StatusCode::from_u16(health.code()).expect("it is one of two");
            let json = serde_json::to_string(&health).expect("names and words");
            response(code).insert_header((CONTENT_TYPE, "application/json")).body(json)
        }
        _ => response(StatusCode::NOT_FOUND).body(String::new()),
    }
}

/// Answers `/livez`: 503 with a line for each loop that stands still.
fn moving(progress: &Progress) -> Response<EitherBody<String>> {
    let stuck = progress.stuck();
    if stuck.is_empty() {
        return response(StatusCode::OK).body(String::from("ok\n"));
    }
    let mut lines = String::new();
    for still in stuck {
        let _ = writeln!(lines, "{} stands still for {} ms", still.name, still.since.as_millis());
    }
    response(StatusCode::SERVICE_UNAVAILABLE).body(lines)
}

fn response(code: StatusCode) -> ResponseBuilder {
    let mut builder = Response::build(code);
    builder.insert_header((CACHE_CONTROL, "no-store"));
    if code == StatusCode::SERVICE_UNAVAILABLE {
        builder.insert_header((RETRY_AFTER, "1"));
    }
    builder
}
