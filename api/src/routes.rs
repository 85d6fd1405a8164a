//! Which path does what. Handlers translate between HTTP and the parts behind it, nothing more.
pub mod collections;
pub mod counters;
pub mod dead_letters;
pub mod documents;
pub mod health;
pub mod metrics;
pub mod receipts;
pub mod short;
pub mod short_data;

use actix_web::guard::{self, Guard};
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, ResponseError, Route};

use crate::problem::Problem;

/// All paths of the public port. They are tried in this order, and each that has a name in it costs an
/// allocation and a regular expression: the writes come first.
pub fn configure(config: &mut ServiceConfig) {
    let read = |path, handler: Route| resource(path, "GET, HEAD").route(handler.guard(reads()));
    let increments = resource("/v1/counters/{name}/increments", "POST");
    let counter = resource("/counter", "GET, HEAD, POST");
    let (points, points_short) = (resource("/v1/metrics", "POST"), resource("/api/metrics", "POST"));
    config
        .service(points.route(web::post().to(metrics::record)))
        .service(increments.route(web::post().to(counters::increment)))
        .configure(documents)
        .service(read("/v1/counters/{name}", web::route().to(counters::get)))
        .service(read("/v1/counters", web::route().to(counters::list)))
        .service(read("/v1/receipts/{id}", web::route().to(receipts::get)))
        .service(
            counter.route(web::post().to(short::increment)).route(web::route().guard(reads()).to(short::get)),
        )
        .configure(dead_letters)
        .service(points_short.route(web::post().to(metrics::record_short)))
        .service(read("/v1/metrics/summary", web::route().to(metrics::summary)))
        .service(read("/api/metrics/summary", web::route().to(metrics::summary_short)))
        .service(read("/v1/metrics/series", web::route().to(metrics::series)))
        .service(read("/v1/metrics/types", web::route().to(metrics::types)))
        .service(read("/livez", web::route().to(health::livez)))
        .service(read("/readyz", web::route().to(health::readyz)))
        .service(read("/health", web::route().to(health::health)));
}

fn documents(config: &mut ServiceConfig) {
    let reading = |handler: Route| handler.guard(reads());
    let in_collection = resource("/v1/data/{collection}", "GET, HEAD, POST");
    let document = resource("/v1/data/{collection}/{id}", "DELETE, GET, HEAD");
    let collection = resource("/v1/collections/{name}", "DELETE, GET, HEAD, PUT");
    let short = resource("/data", "GET, HEAD, POST");
    config
        .service(
            in_collection
                .route(web::post().to(documents::post))
                .route(reading(web::route().to(documents::list::list))),
        )
        .service(
            document
                .route(web::delete().to(documents::delete))
                .route(reading(web::route().to(documents::get))),
        )
        .service(
            collection
                .route(web::put().to(collections::put))
                .route(web::delete().to(collections::delete))
                .route(reading(web::route().to(collections::get))),
        )
        .service(
            short.route(web::post().to(short_data::post)).route(reading(web::route().to(short_data::list))),
        );
}

fn dead_letters(config: &mut ServiceConfig) {
    let reading = |handler: Route| handler.guard(reads());
    let all = resource("/v1/dead-letters", "GET, HEAD");
    let redrive = resource("/v1/dead-letters/redrive", "POST");
    let one = resource("/v1/dead-letters/{id}", "DELETE, GET, HEAD");
    config
        .service(all.route(reading(web::route().to(dead_letters::list))))
        .service(redrive.route(web::post().to(dead_letters::redrive)))
        .service(
            one.route(web::delete().to(dead_letters::delete))
                .route(reading(web::route().to(dead_letters::get))),
        );
}

/// GET, and HEAD, which is answered like it but for the body.
pub fn reads() -> impl Guard {
    guard::Any(guard::Get()).or(guard::Head())
}

/// A path that tells which methods it takes when it is asked with another.
pub fn resource(path: &'static str, allowed: &'static str) -> Resource {
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
