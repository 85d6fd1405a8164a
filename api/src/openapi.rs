//! The OpenAPI 3.1 document, generated from the handlers, and Swagger UI.
use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use crate::{problem, routes};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Forebay",
        description = "Takes bursts of small writes, makes each one durable in milliseconds and applies it exactly once.",
        license(name = "MIT", identifier = "MIT")
    ),
    paths(
        routes::counters::increment,
        routes::counters::get,
        routes::counters::list,
        routes::receipts::get,
        routes::short::increment,
        routes::short::get,
        routes::health::livez,
        routes::health::readyz,
        routes::health::health
    ),
    components(schemas(problem::Problem, crate::accept::ManyAccepted))
)]
pub struct Document;

/// `/openapi.json` and `/docs`.
pub fn configure(config: &mut ServiceConfig) {
    let to_docs =
        || async { HttpResponse::PermanentRedirect().insert_header(("Location", "/docs/")).finish() };
    config
        .service(web::resource("/docs").route(web::get().to(to_docs)))
        .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", Document::openapi()));
}
