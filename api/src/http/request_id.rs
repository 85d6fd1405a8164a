//! Names of requests, for `X-Request-Id`.
use std::cell::Cell;

use actix_web::http::header::HeaderValue;

/// Draws request ids: unique among workers and replicas by a random start.
#[derive(Debug)]
pub struct RequestIds(Cell<u64>);

impl RequestIds {
    pub fn new(start: u64) -> Self {
        Self(Cell::new(start))
    }

    /// The next one, as text.
    pub fn draw(&self) -> String {
        let number = self.0.get().wrapping_add(1);
        self.0.set(number);
        format!("{number:016x}")
    }

    pub fn next(&self) -> HeaderValue {
        HeaderValue::from_str(&self.draw()).expect("hexadecimal digits are visible")
    }
}
