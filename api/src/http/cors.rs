//! Pages of other origins that browsers let talk to this service: those of `auth.cors_origins`, none by
//! default. A page still needs a key where keys are needed, and sends it itself: credentials of the browser
//! (cookies) are never asked for.
use std::rc::Rc;

use actix_web::HttpResponse;
use actix_web::dev::ServiceResponse;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap,
    HeaderValue, ORIGIN, VARY,
};

/// Methods of all routes. One that a path does not take gets 405 when it comes.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";

/// Headers that requests are read for, beyond those that every page may send.
const REQUEST_HEADERS: &str =
    "authorization, content-type, idempotency-key, if-none-match, prefer, traceparent, x-request-id";

/// Headers of answers that a page may read.
const ANSWER_HEADERS: &str =
    "age, etag, location, preference-applied, retry-after, warning, www-authenticate, x-request-id";

/// How long a browser may remember a preflight, in seconds.
const REMEMBERED_SECONDS: &str = "600";

/// The origins that are let in.
#[derive(Clone, Debug)]
pub struct Cors(Rc<[String]>);

impl Cors {
    pub fn new(origins: &[String]) -> Self {
        Self(origins.into())
    }

    fn origin<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.0.iter().any(|known| known.eq_ignore_ascii_case(text)).then_some(origin)
    }

    /// The origin that the answer is to name.
    pub fn asked(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.0.is_empty() { None } else { self.origin(headers).cloned() }
    }

    /// The answer to a preflight of a known origin: it brings no key, and no handler sees it.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HttpResponse> {
        if *method != Method::OPTIONS || self.0.is_empty() {
            return None;
        }
        self.origin(headers)?;
        headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        let mut response = HttpResponse::NoContent();
        response
            .insert_header((ACCESS_CONTROL_ALLOW_METHODS, METHODS))
            .insert_header((ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS))
            .insert_header((ACCESS_CONTROL_MAX_AGE, REMEMBERED_SECONDS));
        Some(response.finish())
    }

    /// Names the origin, and that the answer depends on it.
    pub fn complete<B>(&self, response: &mut ServiceResponse<B>, origin: Option<HeaderValue>) {
        if self.0.is_empty() {
            return;
        }
        let headers = response.headers_mut();
        headers.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(ANSWER_HEADERS));
        }
    }
}
