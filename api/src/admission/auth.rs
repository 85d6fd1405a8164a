//! Authorization: decided for each request that has found its route, before its handler runs.
//!
//! Either there are keys, and every route that is not public needs one; or the service is open, and
//! only what a web page of somebody else could have sent is refused. What a route needs stands in
//! [`required_scope`]. Nothing here reads a body or waits.
pub mod error;
pub mod hosts;
pub mod keys;
pub mod required_scope;

use std::sync::Arc;

use actix_web::HttpMessage;
use actix_web::HttpRequest;
use actix_web::dev::RequestHead;
use actix_web::http::header::AUTHORIZATION;
use shared::config::Config;
use shared::model::api_key::{ApiKey, Principal, Scope, Token, Unfit};
use shared::runtime::clock;

use self::error::AuthError;
use self::hosts::Hosts;
use self::keys::{Keys, KeysError};
use self::required_scope::RequiredScope;

/// Whose key opened; among the data of its request.
#[derive(Clone, Debug)]
pub struct Caller(Arc<ApiKey>);

/// Decides. One per process.
pub enum Authorizer {
    Open { hosts: Hosts, is_admin_on: bool },
    Keyed(Arc<Keys>),
}

impl Authorizer {
    /// An error when there are keys that cannot be read: nothing may be opened by a mistake in a file.
    pub fn of(config: &Config) -> Result<Self, KeysError> {
        if config.auth.is_open() {
            let (hosts, is_admin_on) = (
                Hosts::of(&config.server).with_origins(&config.auth.cors_origins),
                config.auth.admin_without_keys,
            );
            return Ok(Self::Open { hosts, is_admin_on });
        }
        Keys::read(&config.auth).map(|keys| Self::Keyed(Arc::new(keys)))
    }

    /// Decides whether the request may be served, and with which key.
    pub fn authorize(&self, need: RequiredScope, head: &RequestHead) -> Result<Option<Caller>, AuthError> {
        match (self, need.scope()) {
            (_, None) if need == RequiredScope::Nothing => Ok(None),
            (Self::Open { hosts, is_admin_on }, scope) => {
                hosts.check(head)?;
                if scope == Some(Scope::Admin) && !is_admin_on { Err(AuthError::AdminOff) } else { Ok(None) }
            }
            (Self::Keyed(_), None) => Ok(None),
            (Self::Keyed(keys), Some(scope)) => {
                let key = keys.open(token_of(head)?, clock::now_ms()).map_err(|unfit| match unfit {
                    Unfit::Unknown => AuthError::Unknown,
                    Unfit::Expired => AuthError::Expired,
                })?;
                if key.scopes.allow(scope) { Ok(Some(Caller(key))) } else { Err(AuthError::Lacks(scope)) }
            }
        }
    }
}

/// The key in `Authorization: Bearer …`; the word is written in any case.
fn token_of(head: &RequestHead) -> Result<Token<'_>, AuthError> {
    let mut given = head.headers().get_all(AUTHORIZATION);
    let value = given.next().ok_or(AuthError::NoKey)?;
    let text = value.to_str().map_err(|_| AuthError::Malformed)?;
    let (scheme, token) = text.split_once(' ').ok_or(AuthError::Malformed)?;
    if given.next().is_some() || !scheme.eq_ignore_ascii_case("bearer") {
        return Err(AuthError::Malformed);
    }
    Token::parse(token.trim_matches(' ')).ok_or(AuthError::Malformed)
}

/// Principal of the Idempotency-Keys of the request; `None` in an installation without keys.
pub fn principal_of(request: &HttpRequest) -> Option<Principal> {
    request.extensions().get::<Caller>().map(|Caller(key)| key.principal.clone())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn read(headers: &[&str]) -> Result<String, AuthError> {
        let mut request = TestRequest::get();
        for value in headers {
            request = request.append_header((AUTHORIZATION, *value));
        }
        token_of(request.to_http_request().head()).map(|token| format!("{token:?}"))
    }

    #[test]
    fn the_header_is_read_as_rfc_9110_writes_it_and_nothing_else_is() {
        let key = format!("fb_a_{}", "0".repeat(64));
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            assert_eq!(read(&[&format!("{scheme} {key}")]).as_deref(), Ok("Token(fb_a_…)"), "{scheme}");
        }
        assert_eq!(read(&[]), Err(AuthError::NoKey));
        let bearer = format!("Bearer {key}");
        for bad in
            ["", "Bearer", "Bearer ", &key, &format!("Basic {key}"), &format!("{bearer} x"), "Bearer \u{e4}"]
        {
            assert_eq!(read(&[bad]), Err(AuthError::Malformed), "{bad}");
        }
        assert_eq!(read(&[&bearer, &bearer]), Err(AuthError::Malformed));
    }
}
