//! Treatment of every request, whatever it is for: an id, a place among the requests in work, a
//! measured time, and an answer even when a handler panics.
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::{Error, HttpResponse, ResponseError};
use futures_util::FutureExt;

use crate::admission::in_flight::{InFlightLimit, InFlightPermit};
use crate::http::connection_state::ConnectionState;
use crate::http::cors::Cors;
use crate::http::large_answer;
use crate::http::path_prefix::PathPrefix;
use crate::http::problem::Problem;
use crate::http::request_id::RequestIds;
use crate::metrics::{RouteSeconds, metrics};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from a client, in bytes.
const REQUEST_ID_LENGTH_MAX: usize = 128;

/// The answer when a handler panicked: no other part is left to name the request.
#[derive(Debug)]
struct Panicked {
    request_id: HeaderValue,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler panicked")
    }
}

impl ResponseError for Panicked {
    fn status_code(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = Problem::internal().error_response();
        response.headers_mut().insert(X_REQUEST_ID, self.request_id.clone());
        response
    }
}

/// Without spaces: nothing that is copied into a head must look like another one.
fn is_request_id(given: &[u8]) -> bool {
    (1..=REQUEST_ID_LENGTH_MAX).contains(&given.len()) && given.iter().all(u8::is_ascii_graphic)
}

/// Parts that a worker wraps its requests with.
#[derive(Debug)]
pub struct Wrapping {
    pub in_flight: Arc<InFlightLimit>,
    pub ids: RequestIds,
    pub prefix: PathPrefix,
    pub cors: Cors,
    /// Tells what a request is counted as.
    pub route_of: fn(&Method, &str) -> &'static RouteSeconds,
}

/// Wraps one request. Used with `App::wrap_fn`.
pub fn serve<S, B>(
    wrapping: &Rc<Wrapping>,
    mut request: ServiceRequest,
    service: &S,
) -> impl Future<Output = Result<ServiceResponse<BoxBody>, Error>> + use<S, B>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody + 'static,
{
    let started = Instant::now();
    let id = request
        .headers()
        .get(&X_REQUEST_ID)
        .filter(|given| is_request_id(given.as_bytes()))
        .cloned()
        .unwrap_or_else(|| wrapping.ids.next());
    let entered = wrapping.in_flight.enter();
    // None in tests without a connection.
    let in_work = request.conn_data::<Rc<ConnectionState>>().map(ConnectionState::begin);
    // No protocol is offered: whoever asks for another one gets this, once.
    let closes = wrapping.in_flight.is_draining() || request.head().upgrade();
    wrapping.prefix.strip(&mut request);
    let origin = wrapping.cors.asked(request.headers());
    let preflight = wrapping.cors.preflight(request.method(), request.headers());
    let wrapping = wrapping.clone();
    let seconds = (wrapping.route_of)(request.method(), request.path());
    let answer = match (&entered, preflight) {
        (Some(_), None) => Ok(service.call(request)),
        (Some(_), Some(preflight)) => Err(request.into_response(preflight)),
        (None, _) => {
            metrics().room.shed.inc();
            Err(request.into_response(Problem::overloaded().error_response()))
        }
    };
    async move {
        let mut response = match answer {
            Ok(answer) => {
                if let Ok(response) = AssertUnwindSafe(answer).catch_unwind().await {
                    response?.map_into_boxed_body()
                } else {
                    tracing::error!(request.id = ?id, "handler panicked");
                    seconds.observe(500, started.elapsed());
                    return Err(Panicked { request_id: id }.into());
                }
            }
            Err(answered) => answered,
        };
        if let Some(in_work) = in_work.as_ref().filter(|_| large_answer::is_large(&response)) {
            response = large_answer::counted(response, in_work.state());
        }
        seconds.observe(response.status().as_u16(), started.elapsed());
        response.headers_mut().insert(X_REQUEST_ID, id);
        wrapping.prefix.complete(&mut response);
        wrapping.cors.complete(&mut response, origin);
        // Asked again: a stop also hurries requests that waited meanwhile.
        if closes || entered.as_ref().is_some_and(InFlightPermit::is_draining) {
            // A header of this name would be left out.
            response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        }
        drop((entered, in_work));
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::{TestRequest, init_service};
    use actix_web::{App, web};

    use super::*;
    use crate::metrics::NO_ROUTE;

    async fn defect() -> HttpResponse {
        panic!("a defect")
    }

    #[actix_web::test]
    async fn the_answer_after_a_panic_names_the_request() {
        let wrapping = Rc::new(Wrapping {
            in_flight: InFlightLimit::new(9),
            ids: RequestIds::new(6),
            prefix: PathPrefix::new(""),
            cors: Cors::new(&[]),
            route_of: |_, _| &NO_ROUTE,
        });
        let app = App::new()
            .wrap_fn(move |request, service| serve(&wrapping, request, service))
            .route("/", web::to(defect));
        let service = init_service(app).await;
        for (given, expected) in [
            (None, "0000000000000007"),
            (Some("abc"), "abc"),
            (Some(""), "0000000000000008"),
            (Some("a b"), "0000000000000009"),
        ] {
            let mut request = TestRequest::get().uri("/");
            if let Some(given) = given {
                request = request.insert_header((X_REQUEST_ID, given));
            }
            let error = service.call(request.to_request()).await.expect_err("a panic");
            // As a server answers an error of the outermost service.
            let response = error.error_response();
            assert_eq!(response.status(), 500);
            let text =
                |name: &str| response.headers().get(name).expect(name).to_str().expect("text").to_owned();
            assert_eq!(text(X_REQUEST_ID.as_str()), expected);
            assert_eq!(text("content-type"), "application/problem+json");
        }
    }
}
