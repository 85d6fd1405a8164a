//! What every request gets, whatever it is for: an id, a place among the requests in work, a
//! measured time, and an answer even when a handler panics.
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{CONNECTION, HeaderName, HeaderValue};
use actix_web::{Error, ResponseError};
use futures_util::FutureExt;

use crate::measure::{Route, metrics};
use crate::problem::Problem;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from a client, in bytes.
const REQUEST_ID_LENGTH_MAX: usize = 128;

/// Shared by all workers of the process.
#[derive(Debug)]
pub struct Gate {
    in_flight: AtomicUsize,
    in_flight_max: usize,
    draining: AtomicBool,
}

impl Gate {
    pub fn new(in_flight_max: usize) -> Arc<Self> {
        Arc::new(Self { in_flight: AtomicUsize::new(0), in_flight_max, draining: AtomicBool::new(false) })
    }

    /// From now on each answer closes its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>) -> Option<Entered> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let entered = Entered(self.clone());
        metrics().in_flight.inc();
        (before < self.in_flight_max).then_some(entered)
    }
}

/// A place among the requests in work, left when dropped.
struct Entered(Arc<Gate>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        metrics().in_flight.dec();
    }
}

/// Draws request ids: unique among workers and replicas by a random start.
#[derive(Debug)]
pub struct RequestIds(Cell<u64>);

impl RequestIds {
    pub fn new(start: u64) -> Self {
        Self(Cell::new(start))
    }

    fn next(&self) -> HeaderValue {
        let number = self.0.get().wrapping_add(1);
        self.0.set(number);
        HeaderValue::from_str(&format!("{number:016x}")).expect("hexadecimal digits are visible")
    }
}

/// Wraps one request. Used with `App::wrap_fn`.
pub fn serve<S, B>(
    gate: &Arc<Gate>,
    ids: &RequestIds,
    request: ServiceRequest,
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
        .filter(|given| given.len() <= REQUEST_ID_LENGTH_MAX && given.to_str().is_ok())
        .cloned()
        .unwrap_or_else(|| ids.next());
    let entered = gate.enter();
    let draining = gate.is_draining();
    let route = Route::of(request.method(), request.path());
    let answer = match &entered {
        Some(_) => Ok(service.call(request)),
        None => Err(request),
    };
    async move {
        let mut response = match answer {
            Ok(answer) => {
                if let Ok(response) = AssertUnwindSafe(answer).catch_unwind().await {
                    response?.map_into_boxed_body()
                } else {
                    tracing::error!(request.id = ?id, "handler panicked");
                    metrics().answered(route, 500, started.elapsed());
                    return Err(Problem::internal().into());
                }
            }
            Err(request) => {
                metrics().shed.inc();
                request.into_response(Problem::overloaded().error_response())
            }
        };
        metrics().answered(route, response.status().as_u16(), started.elapsed());
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, id);
        if draining {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        drop(entered);
        Ok(response)
    }
}
