//! Large answers: counted from when they are made until the socket has taken their last byte.
//!
//! A small answer is copied into the connection's buffer and forgotten, so it costs nothing here; what
//! the buffer holds when a client does not read is counted by its [`Connection`](crate::http::connection). It
//! must not be used for answers of which the size is not known.
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::Method;
use actix_web::web::Bytes;
use actix_web::{HttpResponse, ResponseError};

use crate::admission::memory_budget::Reserved;
use crate::http::connection_state::ConnectionState;
use crate::http::problem::Problem;
use crate::metrics::metrics;

/// Longest answer that is not counted, in bytes, and the part in which longer ones are written.
pub const PART_BYTES_MAX: usize = 16 << 10;

/// Room in a connection's buffer that a large answer is counted with: two parts and the head.
pub const BUFFER_BYTES: usize = 3 * PART_BYTES_MAX;

/// Checks whether an answer is worth counting.
pub fn is_large(response: &ServiceResponse<BoxBody>) -> bool {
    matches!(response.response().body().size(), BodySize::Sized(bytes) if bytes > PART_BYTES_MAX as u64)
}

/// Counts a large answer; without room it is refused, unless it says that something was done.
pub fn counted(response: ServiceResponse<BoxBody>, state: &Rc<ConnectionState>) -> ServiceResponse<BoxBody> {
    let BodySize::Sized(bytes) = response.response().body().size() else { return response };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(BUFFER_BYTES);
    let is_read = matches!(*response.request().method(), Method::GET | Method::HEAD);
    let is_refusable = is_read || response.status().is_client_error();
    let answers = state.answers();
    let room = if is_refusable { answers.reserve(bytes) } else { Some(answers.reserve_always(bytes)) };
    let Some(reserved) = room else {
        metrics().room.answers_refused.inc();
        let refused: HttpResponse = Problem::overloaded().error_response();
        return response.into_response(refused);
    };
    response.map_body(|_, body| match body.try_into_bytes() {
        Ok(rest) => BoxBody::new(Unsent::new(rest, reserved, state.clone())),
        Err(streamed) => streamed,
    })
}

/// The rest of an answer.
struct Unsent {
    rest: Bytes,
    reserved: Reserved,
    state: Rc<ConnectionState>,
    /// All parts are in the buffer, and it was written since.
    is_flushed: bool,
}

impl Unsent {
    fn new(rest: Bytes, reserved: Reserved, state: Rc<ConnectionState>) -> Self {
        state.set_sending(true);
        metrics().room.answers_bytes.add(i64::try_from(reserved.bytes()).unwrap_or(i64::MAX));
        Self { rest, reserved, state, is_flushed: false }
    }
}

impl MessageBody for Unsent {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if !self.rest.is_empty() {
            let bytes = self.rest.len().min(PART_BYTES_MAX);
            return Poll::Ready(Some(Ok(self.rest.split_to(bytes))));
        }
        if !self.is_flushed {
            self.is_flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The connection wakes whoever polls this when the client takes more.
        if self.state.is_blocked() { Poll::Pending } else { Poll::Ready(None) }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.state.set_sending(false);
        metrics().room.answers_bytes.sub(i64::try_from(self.reserved.bytes()).unwrap_or(i64::MAX));
    }
}
