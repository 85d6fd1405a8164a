//! The path under which a proxy offers the service, `server.path_prefix`. The proxy may take it off or
//! leave it: both kinds of requests find their route, and what the service points to has it.
use std::rc::Rc;

use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Uri;
use actix_web::http::header::{HeaderValue, LOCATION};

/// Empty, or a path that begins with a slash and does not end with one.
#[derive(Clone, Debug)]
pub struct PathPrefix(Rc<str>);

impl PathPrefix {
    pub fn new(prefix: &str) -> Self {
        Self(prefix.into())
    }

    /// Takes the prefix off the path of a request, where it stands.
    pub fn strip(&self, request: &mut ServiceRequest) {
        if self.0.is_empty() {
            return;
        }
        if let Some(uri) = self.stripped(request.uri()) {
            request.match_info_mut().get_mut().update(&uri);
            request.head_mut().uri = uri;
        }
    }

    fn stripped(&self, uri: &Uri) -> Option<Uri> {
        let rest =
            uri.path().strip_prefix(&*self.0).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        let path = if rest.is_empty() { "/" } else { rest };
        let query = uri.query().map_or(String::new(), |query| format!("?{query}"));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(format!("{path}{query}").parse().ok()?);
        Uri::from_parts(parts).ok()
    }

    /// Puts the prefix before what an answer points to.
    pub fn complete<B>(&self, response: &mut ServiceResponse<B>) {
        if self.0.is_empty() {
            return;
        }
        let headers = response.headers_mut();
        let path = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let Some(path) = path.filter(|path| path.starts_with('/')) else { return };
        if let Ok(location) = HeaderValue::from_str(&format!("{}{path}", self.0)) {
            headers.insert(LOCATION, location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_off_where_it_stands_as_a_whole() {
        let prefix = PathPrefix::new("/a/b");
        let stripped =
            |uri: &str| prefix.stripped(&uri.parse().expect("a target")).map(|uri| uri.to_string());
        assert_eq!(stripped("/a/b/counter?x=/a/b").as_deref(), Some("/counter?x=/a/b"));
        assert_eq!(stripped("/a/b").as_deref(), Some("/"));
        assert_eq!(stripped("/a/b?x").as_deref(), Some("/?x"));
        assert_eq!(stripped("/a/b/a/b/c").as_deref(), Some("/a/b/c"));
        assert_eq!(stripped("http://h/a/b/c").as_deref(), Some("http://h/c"));
        for other in ["/a/bc", "/counter", "/", "/a"] {
            assert_eq!(stripped(other), None, "{other}");
        }
    }
}
