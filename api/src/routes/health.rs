//! Health of this replica, the same on the public and on the operations port.
use std::collections::BTreeMap;

use actix_web::web::ThinData;
use actix_web::{HttpResponse, HttpResponseBuilder};
use shared::program::ops::HealthStatus;
use utoipa::ToSchema;

use crate::state::Shared;

/// Health of now says nothing about later.
const NO_STORE: (&str, &str) = ("Cache-Control", "no-store");

/// What `/health` answers, for the document.
#[derive(Debug, ToSchema)]
#[schema(as = Health)]
pub struct HealthShape {
    /// `ok`, `degraded` (reads may be stale or refused, or no consumer runs) or `down` (nothing can be made
    /// durable).
    #[schema(example = "ok")]
    pub status: String,
    #[schema(example = "healthy")]
    pub queue: String,
    #[schema(example = "healthy")]
    pub store: String,
    /// By name: `closed`, `half_open` or `open`.
    #[schema(example = json!({"publisher": "closed", "store": "closed"}))]
    pub breakers: BTreeMap<String, String>,
    /// Consumers that this replica hears. With 0 writes are accepted and not applied.
    #[schema(example = 2)]
    pub consumers: u64,
}

/// The process answers.
#[utoipa::path(get, path = "/livez", operation_id = "get_livez", tag = "health", responses(
    (status = 200, description = "alive", body = String, content_type = "text/plain; charset=utf-8")
))]
pub async fn livez() -> HttpResponse {
    word(HttpResponse::Ok(), "ok")
}

/// Requests may be sent here. A dependency that is away does not make a replica unready; a queue that was
/// just made does, for `queue.settle_ms` after the start.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readyz", tag = "health", responses(
    (status = 200, description = "ready", body = String, content_type = "text/plain; charset=utf-8"),
    (status = 503, description = "stopping, or not ready yet", body = String, content_type = "text/plain; charset=utf-8")
))]
pub async fn readyz(shared: ThinData<Shared>) -> HttpResponse {
    if shared.health().ready {
        word(HttpResponse::Ok(), "ready")
    } else {
        let mut response = HttpResponse::ServiceUnavailable();
        response.insert_header(("Retry-After", "1"));
        word(response, if shared.in_flight.is_draining() { "stopping" } else { "starting" })
    }
}

fn word(mut response: HttpResponseBuilder, word: &'static str) -> HttpResponse {
    response.insert_header(NO_STORE).insert_header(("Content-Type", "text/plain; charset=utf-8")).body(word)
}

/// What works: 200 while something durable can be accepted.
#[utoipa::path(get, path = "/health", operation_id = "get_health", tag = "health", responses(
    (status = 200, description = "`ok` or `degraded`", body = HealthShape),
    (status = 503, description = "`down`", body = HealthShape)
))]
pub async fn health(shared: ThinData<Shared>) -> HttpResponse {
    let health = shared.health();
    let mut response = match health.status {
        HealthStatus::Ok | HealthStatus::Degraded => HttpResponse::Ok(),
        HealthStatus::Down => HttpResponse::ServiceUnavailable(),
    };
    if health.status == HealthStatus::Down {
        response.insert_header(("Retry-After", "1"));
    }
    response.insert_header(NO_STORE).json(health)
}
