//! The bare HTTP handler of the same build: the speed of actix-web on this machine with nothing
//! behind it. `loadtests/compare` divides Forebay's figures by the figures of this program.
//!
//! Same allocator, worker rule, keep-alive and sizes of the answers as `forebay-api`; no queue, no
//! limits, no metrics. It must not grow a feature: each one would flatter the service.
//!
//! `cargo run --release -p api --example bare -- [port]`; port 0 or none takes a free one.
use std::io::Write;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;
use bytes::Bytes;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Listen backlog, the same as that of the service.
const BACKLOG: u32 = 8_192;

#[derive(Deserialize)]
struct Increment {
    by: i64,
}

#[derive(Deserialize)]
struct Point {
    timestamp: Box<str>,
    value: f64,
    #[serde(rename = "type")]
    kind: Box<str>,
}

#[derive(Serialize)]
struct ReceiptBody {
    id: &'static str,
    status: &'static str,
    accepted_at: &'static str,
}

/// The body of Forebay's 202, with the same number of bytes.
const RECEIPT: ReceiptBody = ReceiptBody {
    id: "019a9f3c-5a1b-8c2d-9e4f-0123456789ab",
    status: "accepted",
    accepted_at: "2026-11-20T08:00:00.000Z",
};

type Counters = web::Data<Cache<Box<str>, Bytes>>;

async fn increment(name: web::Path<Box<str>>, body: web::Json<Increment>) -> HttpResponse {
    // The compiler must not drop the parsing that the service needs as well.
    std::hint::black_box((&name, body.by));
    HttpResponse::Accepted().json(RECEIPT)
}

/// Accepts a document, which is any object: the service must read it only to find its end.
async fn document(collection: web::Path<Box<str>>, body: web::Json<Box<RawValue>>) -> HttpResponse {
    std::hint::black_box((&collection, &body));
    HttpResponse::Accepted().json(RECEIPT)
}

async fn point(body: web::Json<Point>) -> HttpResponse {
    std::hint::black_box((&body.timestamp, body.value, &body.kind));
    HttpResponse::Accepted().json(RECEIPT)
}

async fn counter(name: web::Path<Box<str>>, counters: Counters) -> HttpResponse {
    let name = name.into_inner();
    let body = counters.get(&name).unwrap_or_else(|| {
        let value = format!(
            r#"{{"name":"{name}","value":12345,"version":12345,"updated_at":"2026-11-20T08:00:00.000Z"}}"#
        );
        let body = Bytes::from(value);
        counters.insert(name, body.clone());
        body
    });
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(body)
}

fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse()).context("the port is a number")?;
    let settings = shared::config::ServerSettings::default();
    let counters: Counters = web::Data::new(Cache::new(100_000));
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(move || {
            App::new()
                .app_data(counters.clone())
                .route("/v1/counters/{name}/increments", web::post().to(increment))
                .route("/v1/counters/{name}", web::get().to(counter))
                .route("/v1/data/{collection}", web::post().to(document))
                .route("/v1/metrics", web::post().to(point))
        })
        .workers(settings.workers())
        .keep_alive(Duration::from_millis(settings.keep_alive_ms))
        .max_connections(settings.connections_max)
        .backlog(BACKLOG)
        .bind((settings.host.as_str(), port))
        .context("cannot listen")?;
        for address in server.addrs() {
            writeln!(std::io::stdout(), "listening on http://{address}")?;
        }
        server.run().await.context("the server failed")
    })
}
