//! Which path does what: one table, which the router, access, metrics and the OpenAPI document read.
//! Handlers translate between HTTP and the parts behind it, nothing more.
pub mod collections;
pub mod compat_counters;
pub mod compat_data;
pub mod counters;
pub mod dead_letters;
pub mod documents;
pub mod health;
pub mod metrics;
pub mod openapi;
pub mod receipts;

use std::sync::LazyLock;

use actix_web::guard::{self, Guard, GuardContext};
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::web::{self, ServiceConfig, ThinData};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, Resource, ResponseError};
use utoipa::OpenApi;

use crate::admission::auth::error::AuthError;
use crate::admission::auth::required_scope::RequiredScope;
use crate::http::problem::Problem;
use crate::metrics::{NO_ROUTE, RouteSeconds, metrics};
use crate::state::Shared;

/// One row of the table of routes.
#[derive(Debug)]
pub struct Row {
    pub method: &'static str,
    /// As it is registered, with the names of its parameters in braces.
    pub path: &'static str,
    /// Bytes of the path before its first parameter.
    literal: usize,
    pub need: RequiredScope,
    facts: &'static [Fact],
    seconds: RouteSeconds,
}

/// Facts that the OpenAPI document says of a route beside its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// It is answered from memory.
    Cached,
    /// Its body is one item, an array of them, or one per line.
    Many,
    /// Its body may be left out.
    BodyOptional,
}

/// Makes the table, the router and the documented operations from one list. A path has a row for each
/// method: `METHOD handler, what it needs, label of its metric, facts`.
macro_rules! routes {
    ($($path:literal {
        $($method:ident $($handler:ident)::+, $need:ident, $label:literal $(, $fact:ident)*;)+
    })+) => {
        const ROWS: usize = [$($(stringify!($method)),+),+].len();

        static ROUTES: [Row; ROWS] = [$($(
            Row::new(stringify!($method), $path, RequiredScope::$need, $label, &[$(Fact::$fact),*])
        ),+),+];

        /// Registers all handlers of the table.
        pub fn configure(config: &mut ServiceConfig) {
            $(config.service(resource($path)$(.route(on(stringify!($method)).to($($handler)::+)))+);)+
        }

        #[derive(OpenApi)]
        #[openapi(paths($($($($handler)::+),+),+))]
        struct Operations;
    };
}

// The paths are tried in this order, and each that has a name in it costs an allocation and a regular
// expression: the writes come first.
routes! {
    "/v1/metrics" { POST metrics::record, Write, "points", Many; }
    "/v1/counters/{name}/increments" { POST counters::increment, Write, "increment", Many, BodyOptional; }
    "/v1/data/{collection}" {
        POST documents::post, Write, "store", Many;
        GET documents::list::list, Read, "documents";
    }
    "/v1/data/{collection}/{id}" {
        DELETE documents::delete, Write, "delete";
        GET documents::get, Read, "document", Cached;
    }
    "/v1/collections" { GET collections::list, Admin, "collections"; }
    "/v1/collections/{name}" {
        PUT collections::put, Admin, "collection";
        DELETE collections::delete, Admin, "collection";
        GET collections::get, Admin, "collection";
    }
    "/data" {
        POST compat_data::post, Write, "store", Many;
        GET compat_data::list, Read, "documents";
    }
    "/v1/counters/{name}" { GET counters::get, Read, "counter", Cached; }
    "/v1/counters" { GET counters::list, Read, "counters"; }
    "/v1/receipts/{id}" { GET receipts::get, Read, "receipt"; }
    "/counter" {
        POST compat_counters::increment, Write, "increment", Many, BodyOptional;
        GET compat_counters::get, Read, "counter", Cached;
    }
    "/v1/dead-letters" { GET dead_letters::list, Admin, "dead_letters"; }
    "/v1/dead-letters/redrive" { POST dead_letters::redrive, Admin, "dead_letters"; }
    "/v1/dead-letters/{id}" {
        DELETE dead_letters::delete, Admin, "dead_letters";
        GET dead_letters::get, Admin, "dead_letters";
    }
    "/api/metrics" { POST metrics::record_short, Write, "points", Many; }
    "/v1/metrics/summary" { GET metrics::summary, Read, "summary", Cached; }
    "/api/metrics/summary" { GET metrics::summary_short, Read, "summary", Cached; }
    "/v1/metrics/series" { GET metrics::series, Read, "series", Cached; }
    "/v1/metrics/types" { GET metrics::types, Read, "metric_types"; }
    "/livez" { GET health::livez, Nothing, "health"; }
    "/readyz" { GET health::readyz, Nothing, "health"; }
    "/health" { GET health::health, Nothing, "health"; }
}

/// Routes of the document and of the page that shows it, which the document leaves out.
static ABOUT: [Row; 4] = [
    Row::new("GET", "/openapi.json", RequiredScope::Public, "docs", &[]),
    Row::new("GET", "/", RequiredScope::Public, "docs", &[]),
    Row::new("GET", "/docs", RequiredScope::Public, "docs", &[]),
    Row::new("GET", "/docs/{file:.*}", RequiredScope::Public, "docs", &[]),
];

/// All routes of the public port.
pub fn table() -> impl Iterator<Item = &'static Row> {
    ROUTES.iter().chain(&ABOUT)
}

/// Timer of the route that a request counts as. Found by the path, because asking the router costs an
/// allocation. A method that the path does not take counts as a read of it.
pub fn seconds_of(method: &Method, path: &str) -> &'static RouteSeconds {
    static BY_BYTE: LazyLock<Vec<Vec<PathPattern>>> = LazyLock::new(|| {
        let rows = |byte| table().filter(move |row| distinctive_byte(&row.path[..row.literal]) == byte);
        (0..=u8::MAX).map(|byte| rows(byte).map(PathPattern::of).collect()).collect()
    });
    let method = method_of_row(method);
    let of_byte = &BY_BYTE[usize::from(distinctive_byte(path))];
    if let Some(found) = of_byte.iter().find(|pattern| pattern.row.method == method && pattern.matches(path))
    {
        return &found.row.seconds;
    }
    let of_path = || of_byte.iter().filter(|pattern| pattern.matches(path));
    let found = of_path().find(|pattern| pattern.row.method == "GET").or_else(|| of_path().next());
    found.map_or(&NO_ROUTE, |pattern| &pattern.row.seconds)
}

/// Method of the row for a request: HEAD is answered as GET.
fn method_of_row(method: &Method) -> &str {
    if *method == Method::HEAD { "GET" } else { method.as_str() }
}

/// Path of a row, taken apart.
struct PathPattern {
    row: &'static Row,
    /// Literals behind the parameters, each of which is a segment.
    after: Vec<&'static str>,
    /// The last parameter is all that is left.
    takes_rest: bool,
}

impl PathPattern {
    fn of(row: &'static Row) -> Self {
        let parameters = row.path[row.literal..].split('{').skip(1);
        let after = parameters.map(|parameter| parameter.split_once('}').map_or("", |(_, after)| after));
        Self { row, after: after.collect(), takes_rest: row.path.ends_with(":.*}") }
    }

    fn matches(&self, path: &str) -> bool {
        let Some(mut rest) = path.strip_prefix(&self.row.path[..self.row.literal]) else { return false };
        for (number, literal) in self.after.iter().enumerate() {
            if self.takes_rest && number + 1 == self.after.len() {
                return true;
            }
            let segment = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
            let Some(left) = rest[segment..].strip_prefix(literal).filter(|_| segment > 0) else {
                return false;
            };
            rest = left;
        }
        rest.is_empty()
    }
}

/// Byte in which paths differ early; 0 for a shorter one. No path has a parameter before it.
fn distinctive_byte(path: &str) -> u8 {
    path.as_bytes().get(4).copied().unwrap_or(0)
}

/// Methods of a path, for `Allow`.
fn methods_of(path: &str) -> String {
    let mut methods: Vec<_> = table().filter(|row| row.path == path).map(|row| row.method).collect();
    assert!(!methods.is_empty(), "{path} is not in the table of routes");
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.sort_unstable();
    methods.join(", ")
}

impl Row {
    const fn new(
        method: &'static str,
        path: &'static str,
        need: RequiredScope,
        label: &'static str,
        facts: &'static [Fact],
    ) -> Self {
        let mut literal = 0;
        while literal < path.len() && path.as_bytes()[literal] != b'{' {
            literal += 1;
        }
        Self { method, path, literal, need, facts, seconds: RouteSeconds::new(label) }
    }

    pub fn has(&self, fact: Fact) -> bool {
        self.facts.contains(&fact)
    }
}

/// GET, and HEAD, which is answered like it but for the body.
pub fn reads() -> impl Guard {
    guard::Any(guard::Get()).or(guard::Head())
}

/// Routes of one method. HEAD is answered like GET but for the body.
fn on(method: &str) -> actix_web::Route {
    match method {
        "GET" => web::route().guard(reads()),
        method => web::method(method.parse().expect("the name of a method")),
    }
}

/// A path whose routes are closed to callers without the needed scope, and to every method that the table does
/// not name.
pub fn resource(path: &'static str) -> Resource {
    let allow = HeaderValue::from_str(&methods_of(path)).expect("methods are visible");
    let rows: Vec<_> = table().filter(|row| row.path == path).collect();
    let closed = guard::fn_guard(move |context| is_closed(&rows, context));
    let refuse = move |request: HttpRequest| {
        let response = refuse(&request, &allow);
        async { response }
    };
    web::resource(path).route(web::route().guard(closed).to(refuse))
}

/// Checks whether the request is refused. The caller, or the reason, is left among its data.
fn is_closed(rows: &[&Row], context: &GuardContext<'_>) -> bool {
    let row = rows.iter().find(|row| row.method == method_of_row(&context.head().method));
    let Some(Row { need, .. }) = row else { return true };
    let shared = context.app_data::<ThinData<Shared>>().expect("every application has its parts");
    match shared.authorizer.authorize(*need, context.head()) {
        Ok(None) => false,
        Ok(Some(caller)) => {
            context.req_data_mut().insert(caller);
            false
        }
        Err(refusal) => {
            metrics().refused.with_label_values(&[refusal.word()]).inc();
            context.req_data_mut().insert(refusal);
            true
        }
    }
}

/// Without a reason among the data of the request it was the method.
fn refuse(request: &HttpRequest, allow: &HeaderValue) -> HttpResponse {
    if let Some(refusal) = request.extensions().get::<AuthError>() {
        return Problem::refused(*refusal).error_response();
    }
    let mut response = Problem::method_not_allowed().error_response();
    response.headers_mut().insert(ALLOW, allow.clone());
    response
}

/// Answers paths that do not exist.
pub async fn no_such_path() -> Result<String, Problem> {
    Err(Problem::not_found("no such path; see /docs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_as_what_its_path_and_method_are() {
        for (method, path, label) in [
            ("POST", "/v1/counters/a/increments", "increment"),
            ("GET", "/v1/counters/a/increments", "increment"),
            ("POST", "/counter", "increment"),
            ("HEAD", "/counter", "counter"),
            ("PUT", "/counter", "counter"),
            ("GET", "/v1/counters/a", "counter"),
            ("GET", "/v1/counters", "counters"),
            ("GET", "/v1/counters/", "other"),
            ("POST", "/v1/data/a", "store"),
            ("OPTIONS", "/v1/data/a", "documents"),
            ("GET", "/v1/data/a/b", "document"),
            ("DELETE", "/v1/data/a/b", "delete"),
            ("GET", "/v1/data/a/b/c", "other"),
            ("POST", "/v1/dead-letters/redrive", "dead_letters"),
            ("GET", "/docs/", "docs"),
            ("GET", "/docs/a/b.js", "docs"),
            ("GET", "/", "docs"),
            ("GET", "/nothing", "other"),
        ] {
            let method = method.parse().expect("a method");
            assert_eq!(seconds_of(&method, path).label(), label, "{method} {path}");
        }
    }

    #[test]
    fn a_path_knows_its_methods_and_no_route_stands_in_the_table_twice() {
        assert_eq!(methods_of("/v1/data/{collection}/{id}"), "DELETE, GET, HEAD");
        let mut known = std::collections::HashSet::new();
        for row in table() {
            assert!(known.insert((row.method, row.path)), "{row:?}");
            assert!(row.literal > 4 || row.path == "/", "{row:?}");
        }
    }
}
