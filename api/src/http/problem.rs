//! Errors as clients see them: RFC 9457 problem details. The one place that maps causes to status
//! codes. Bodies of 5xx never show internals.
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE,
};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::admission::auth::error::AuthError;
use crate::receipt::Receipt;

/// What went wrong. `type` is a stable name to program against; `detail` is for people.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:forebay:problem:` and a word.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schema(value_type = String)]
    detail: Cow<'static, str>,
    /// Which parts of the request are invalid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Invalid>,
    /// The items that were rejected, when all of them were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<Rejected>,
    /// What became of the write, when that is the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Box<Receipt>>,
    #[serde(skip)]
    retry_after: Option<Duration>,
    /// Names in the answer how to be let in.
    #[serde(skip)]
    refusal: Option<AuthError>,
    /// The header that says what is taken instead, with its value.
    #[serde(skip)]
    taken: Option<Box<(HeaderName, &'static str)>>,
}

/// One invalid part of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Invalid {
    /// JSON pointer (RFC 6901) into the body or the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Name of the path or query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parameter: Option<Cow<'static, str>>,
    pub detail: String,
}

/// One item of an array or NDJSON body that was not accepted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Rejected {
    /// Position in the request, from 0.
    pub index: usize,
    #[schema(no_recursion)]
    pub problem: Problem,
}

impl Problem {
    fn new(status: StatusCode, word: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: format!("urn:forebay:problem:{word}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            rejected: Vec::new(),
            receipt: None,
            retry_after: None,
            refusal: None,
            taken: None,
        }
    }

    /// 400: not even well-formed.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 422: well-formed but invalid.
    pub fn invalid(errors: Vec<Invalid>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "the request is invalid");
        Self { errors, ..problem }
    }

    /// 422 for one place of the body, or of the item.
    pub fn invalid_at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let pointer = Some(pointer.into());
        Self::invalid(vec![Invalid { pointer, parameter: None, detail: detail.into() }])
    }

    /// The same problem of a value that stands at `place` of a larger one, a JSON pointer.
    pub fn within(mut self, place: &str) -> Self {
        for pointer in self.errors.iter_mut().filter_map(|error| error.pointer.as_mut()) {
            pointer.insert_str(0, place);
        }
        self
    }

    /// 422 for a path or query parameter.
    pub fn invalid_parameter(parameter: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        let parameter = Some(parameter.into());
        Self::invalid(vec![Invalid { pointer: None, parameter, detail: detail.into() }])
    }

    /// 422: none of the items can be accepted.
    pub fn all_rejected(rejected: Vec<Rejected>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "all_rejected", "no item can be accepted");
        Self { rejected, ..problem }
    }

    pub fn not_found(detail: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 410: it was there, and will not be again.
    pub fn gone(detail: &'static str) -> Self {
        Self::new(StatusCode::GONE, "gone", detail)
    }

    /// 401, 403, 421, or 400 where no host can be read.
    pub fn refused(refusal: AuthError) -> Self {
        let refused =
            |status, word, detail| Self { refusal: Some(refusal), ..Self::new(status, word, detail) };
        let unauthorized =
            |detail: &'static str| refused(StatusCode::UNAUTHORIZED, "unauthorized", detail.to_owned());
        match refusal {
            AuthError::NoKey => unauthorized("a key is needed: Authorization: Bearer fb_…"),
            AuthError::Malformed => {
                unauthorized("Authorization holds no key: expected Bearer fb_<id>_<secret>")
            }
            AuthError::Unknown => unauthorized("this key is not known"),
            AuthError::Expired => unauthorized("this key has expired"),
            AuthError::Lacks(scope) => {
                let detail = format!("this key lacks the scope {}", scope.name());
                refused(StatusCode::FORBIDDEN, "forbidden", detail)
            }
            AuthError::AdminOff => Self::admin_off(),
            AuthError::NoHost => Self::malformed("Host is missing, there twice, or no host"),
            AuthError::OtherHost => {
                let detail = "this service does not answer to this host: name it in server.allowed_hosts \
                              (FOREBAY__SERVER__ALLOWED_HOSTS=host.example), or use API keys";
                Self::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", detail)
            }
            AuthError::OtherOrigin => {
                let detail = "sent by a page of another origin: let it in by auth.cors_origins \
                              (FOREBAY__AUTH__CORS_ORIGINS=https://page.example)";
                Self::new(StatusCode::FORBIDDEN, "cross_origin", detail)
            }
        }
    }

    /// 403: without keys no caller is known to be an administrator.
    fn admin_off() -> Self {
        let detail = "admin routes are off: auth.admin_without_keys (FOREBAY__AUTH__ADMIN_WITHOUT_KEYS=true) \
                      gives them to everybody who reaches this port";
        Self::new(StatusCode::FORBIDDEN, "admin_off", detail)
    }

    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "see /docs for what this path takes")
    }

    pub fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long to arrive")
    }

    /// 422: the write was durable, but could not be applied.
    pub fn set_aside(receipt: Receipt) -> Self {
        let detail = "the write could not be applied and was set aside";
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "set_aside", detail);
        Self { receipt: Some(Box::new(receipt)), ..problem }
    }

    /// 422: the key belongs to another payload.
    pub fn conflict(receipt: Receipt) -> Self {
        let detail = "this Idempotency-Key was used for another payload";
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "conflict", detail);
        Self { receipt: Some(Box::new(receipt)), ..problem }
    }

    pub fn too_large(detail: String) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    /// 415 for a type, with those that are taken.
    pub fn unsupported_media_type(detail: &'static str, taken: &'static str) -> Self {
        let problem = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
        Self { taken: Some(Box::new((ACCEPT, taken))), ..problem }
    }

    /// 415 for an encoding (RFC 9110, 12.5.3).
    pub fn unsupported_encoding() -> Self {
        let detail = "content encodings are not accepted on requests";
        let problem = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
        Self { taken: Some(Box::new((ACCEPT_ENCODING, "identity"))), ..problem }
    }

    /// 414 (RFC 9112, 3).
    pub fn target_too_long(bytes_max: usize) -> Self {
        let detail = format!("a request target has {bytes_max} bytes at most");
        Self::new(StatusCode::URI_TOO_LONG, "target_too_long", detail)
    }

    /// 431: too many fields, or too many bytes of them.
    pub fn head_too_large() -> Self {
        let detail = "the head of a request has 95 fields and 128 KiB at most";
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)
    }

    /// 408 before there was a request.
    pub fn head_timeout() -> Self {
        let detail = "the head of the request took too long to arrive";
        Self::new(StatusCode::REQUEST_TIMEOUT, "head_timeout", detail)
    }

    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "")
    }

    /// 503 with `Retry-After`.
    pub fn unavailable(word: &str, detail: &'static str, retry_after: Duration) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, word, detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    pub fn overloaded() -> Self {
        Self::unavailable(
            "overloaded",
            "more requests than the service takes at once",
            Duration::from_secs(1),
        )
    }

    pub fn store_unavailable() -> Self {
        Self::unavailable(
            "store_unavailable",
            "the answer cannot be known at the moment",
            Duration::from_secs(1),
        )
    }

    /// The store is there and had no time for this read.
    pub fn store_busy() -> Self {
        let detail = "the store is busy, or the answer takes it too long";
        Self::unavailable("store_busy", detail, Duration::from_secs(1))
    }

    /// The index is not whole yet, so that an answer from it would leave documents out.
    pub fn indexing() -> Self {
        let detail = "the collection is still being indexed";
        Self::unavailable("indexing", detail, Duration::from_secs(1))
    }

    pub fn clock_off() -> Self {
        let detail = "the clock of this replica is off; writes are refused until it is right";
        Self::unavailable("clock_off", detail, Duration::from_secs(5))
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).expect("made from a status code")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.kind, self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status());
        response
            .insert_header((CONTENT_TYPE, "application/problem+json"))
            .insert_header((CACHE_CONTROL, "no-store"));
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, rounded up: never earlier than it makes sense.
            let seconds = retry_after.as_millis().div_ceil(1_000).max(1);
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if let Some((name, taken)) = self.taken.as_deref() {
            response.insert_header((name.clone(), *taken));
        }
        if let Some(challenge) = self.refusal.and_then(AuthError::challenge) {
            response.insert_header((WWW_AUTHENTICATE, challenge));
        }
        response.body(serde_json::to_vec(self).unwrap_or_default())
    }
}
