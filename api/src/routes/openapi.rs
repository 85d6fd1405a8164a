//! The OpenAPI 3.1 document, generated from the handlers, and Swagger UI.
mod complete;
mod errors;
pub mod values;

use std::sync::Arc;

use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Route};
use serde_json::Value;
use shared::runtime::clock;
use utoipa::OpenApi;
use utoipa_swagger_ui::Config;

use self::complete::complete;
use self::values::EXAMPLE_TIME;
use crate::http::problem::Problem;
use crate::rfc3339::rfc3339;
use crate::routes::{self, Operations};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Forebay",
        description = "Takes bursts of small writes, makes each one durable in milliseconds and applies it exactly once.",
        license(name = "MIT", identifier = "MIT")
    ),
    servers((url = "/", description = "where this document is served")),
    components(schemas(Problem, crate::write::accepted::ManyAccepted))
)]
struct Document;

/// The document as it is committed.
pub fn document() -> Value {
    let document = Document::openapi().merge_from(Operations::openapi());
    complete(serde_json::to_value(document).expect("a document has a JSON form"))
}

/// `/openapi.json`, `/docs` and the root, which leads there. The document names the path under which a
/// proxy offers the service.
pub fn configure(config: &mut ServiceConfig, path_prefix: &str) {
    let mut document = document();
    if !path_prefix.is_empty() {
        document["servers"][0]["url"] = path_prefix.into();
    }
    let document: Arc<str> = document.to_string().into();
    let json = move || {
        // Points of now: what "Try it out" sends is found by the summary of today.
        let text = document.replace(EXAMPLE_TIME, &rfc3339(clock::now_ms()));
        async { HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(text) }
    };
    let to_docs =
        || async { HttpResponse::PermanentRedirect().insert_header(("Location", "/docs/")).finish() };
    let swagger = Arc::new(Config::from("../openapi.json"));
    let file = move |path: web::Path<String>| {
        let file = swagger_file(&path, swagger.clone());
        async { file }
    };
    let read = |path, handler: Route| routes::resource(path).route(handler.guard(routes::reads()));
    config
        .service(read("/openapi.json", web::route().to(json)))
        .service(read("/docs", web::route().to(to_docs)))
        .service(read("/", web::route().to(to_docs)))
        .service(read("/docs/{file:.*}", web::route().to(file)));
}

/// A file of Swagger UI.
fn swagger_file(path: &str, swagger: Arc<Config<'static>>) -> Result<HttpResponse, Problem> {
    let file = utoipa_swagger_ui::serve(path, swagger).map_err(|_| Problem::internal())?;
    let file = file.ok_or_else(|| Problem::not_found("no such file; the document is at /openapi.json"))?;
    let mut response = HttpResponse::Ok();
    if file.gzpipped {
        response.insert_header((CONTENT_ENCODING, "gzip"));
    }
    Ok(response.insert_header((CONTENT_TYPE, file.content_type)).body(file.bytes.into_owned()))
}
