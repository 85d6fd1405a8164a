//! Which path does what. Handlers translate between HTTP and the parts behind it, nothing more.
pub mod counters;
pub mod health;
pub mod receipts;
pub mod short;

use actix_web::web::{self, ServiceConfig};

use crate::problem::Problem;

/// All paths of the public port.
pub fn configure(config: &mut ServiceConfig) {
    let resource = |path: &str| web::resource(path.to_owned()).default_service(web::to(wrong_method));
    config
        .service(resource("/v1/counters/{name}/increments").route(web::post().to(counters::increment)))
        .service(resource("/v1/counters/{name}").route(web::get().to(counters::get)))
        .service(resource("/v1/counters").route(web::get().to(counters::list)))
        .service(resource("/v1/receipts/{id}").route(web::get().to(receipts::get)))
        .service(
            resource("/counter").route(web::post().to(short::increment)).route(web::get().to(short::get)),
        )
        .service(resource("/livez").route(web::get().to(health::livez)))
        .service(resource("/readyz").route(web::get().to(health::readyz)))
        .service(resource("/health").route(web::get().to(health::health)));
}

async fn wrong_method() -> Result<String, Problem> {
    Err(Problem::method_not_allowed())
}

/// Answers paths that do not exist.
pub async fn no_such_path() -> Result<String, Problem> {
    Err(Problem::not_found("no such path; see /docs"))
}
