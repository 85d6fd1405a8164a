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

use actix_web::guard::{self, Guard, GuardContext};
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::web::{self, ServiceConfig, ThinData};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, Resource, ResponseError, Route};

use crate::auth::Refusal;
use crate::auth::access::Access;
use crate::measure::metrics;
use crate::problem::Problem;
use crate::server::Shared;

/// All paths of the public port. They are tried in this order, and each that has a name in it costs an
/// allocation and a regular expression: the writes come first.
pub fn configure(config: &mut ServiceConfig) {
    let read = |path, handler: Route| resource(path).route(handler.guard(reads()));
    let increments = resource("/v1/counters/{name}/increments");
    let counter = resource("/counter");
    let (points, points_short) = (resource("/v1/metrics"), resource("/api/metrics"));
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
    let in_collection = resource("/v1/data/{collection}");
    let document = resource("/v1/data/{collection}/{id}");
    let collection = resource("/v1/collections/{name}");
    let collections = resource("/v1/collections");
    let short = resource("/data");
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
        .service(collections.route(reading(web::route().to(collections::list))))
        .service(
            short.route(web::post().to(short_data::post)).route(reading(web::route().to(short_data::list))),
        );
}

fn dead_letters(config: &mut ServiceConfig) {
    let reading = |handler: Route| handler.guard(reads());
    let all = resource("/v1/dead-letters");
    let redrive = resource("/v1/dead-letters/redrive");
    let one = resource("/v1/dead-letters/{id}");
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

/// A path whose routes are closed to who lacks what they need, and to every method that the table does
/// not name.
pub fn resource(path: &'static str) -> Resource {
    let access = Access::of(path);
    let allow = HeaderValue::from_str(&access.methods()).expect("methods are visible");
    let closed = guard::fn_guard(move |context| is_closed(&access, context));
    let refuse = move |request: HttpRequest| {
        let response = refuse(&request, &allow);
        async { response }
    };
    web::resource(path).route(web::route().guard(closed).to(refuse))
}

/// Whether the request is refused. Who calls, or why he may not, is left among its data.
fn is_closed(access: &Access, context: &GuardContext<'_>) -> bool {
    let Some(need) = access.need(&context.head().method) else { return true };
    let shared = context.app_data::<ThinData<Shared>>().expect("every application has its parts");
    match shared.door.admit(need, context.head()) {
        Ok(None) => false,
        Ok(Some(caller)) => {
            context.req_data_mut().insert(caller);
            false
        }
        Err(refusal) => {
            metrics().refused.with_label_values(&[refusal.word()]).inc();
            context.req_data_mut().insert(refusal);
            true
        }
    }
}

/// Without a reason among the data of the request it was the method.
fn refuse(request: &HttpRequest, allow: &HeaderValue) -> HttpResponse {
    if let Some(refusal) = request.extensions().get::<Refusal>() {
        return Problem::refused(*refusal).error_response();
    }
    let mut response = Problem::method_not_allowed().error_response();
    response.headers_mut().insert(ALLOW, allow.clone());
    response
}

/// Answers paths that do not exist.
pub async fn no_such_path() -> Result<String, Problem> {
    Err(Problem::not_found("no such path; see /docs"))
}
