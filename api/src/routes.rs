//! Which path does what. Handlers translate between HTTP and the parts behind it, nothing more.
pub mod counters;
pub mod health;
pub mod receipts;
pub mod short;

use actix_web::guard::{self, Guard};
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, ResponseError, Route};

use crate::problem::Problem;

/// All paths of the public port.
pub fn configure(config: &mut ServiceConfig) {
    let read = |path, handler: Route| resource(path, "GET, HEAD").route(handler.guard(reads()));
    let increments = resource("/v1/counters/{name}/increments", "POST");
    let counter = resource("/counter", "GET, HEAD, POST");
    config
        .service(increments.route(web::post().to(counters::increment)))
        .service(read("/v1/counters/{name}", web::route().to(counters::get)))
        .service(read("/v1/counters", web::route().to(counters::list)))
        .service(read("/v1/receipts/{id}", web::route().to(receipts::get)))
        .service(
            counter.route(web::post().to(short::increment)).route(web::route().guard(reads()).to(short::get)),
        )
        .service(read("/livez", web::route().to(health::livez)))
        .service(read("/readyz", web::route().to(health::readyz)))
        .service(read("/health", web::route().to(health::health)));
}

/// GET, and HEAD, which is answered like it but for the body.
fn reads() -> impl Guard {
    guard::Any(guard::Get()).or(guard::Head())
}

/// A path that tells which methods it takes when it is asked with another.
fn resource(path: &'static str, allowed: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || async move {
        let mut response = Problem::method_not_allowed().error_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        response
    }))
}

/// Answers paths that do not exist.
pub async fn no_such_path() -> Result<String, Problem> {
    Err(Problem::not_found("no such path; see /docs"))
}
