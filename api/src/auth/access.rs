//! What each route needs. The only place that says it: a path that is missing here cannot be
//! registered, a method that is missing is answered with 405, and the OpenAPI document repeats it.
use actix_web::http::Method;
use shared::api_key::Scope;

/// What a request must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Answered to everybody under every name: probes come by address, and learn nothing.
    Nothing,
    /// Answered to everybody who means this service.
    Public,
    Read,
    Write,
    Admin,
}

impl Need {
    pub fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing | Self::Public => None,
            Self::Read => Some(Scope::Read),
            Self::Write => Some(Scope::Write),
            Self::Admin => Some(Scope::Admin),
        }
    }
}

/// `(method, path, what it needs)`; HEAD needs what GET needs.
const TABLE: [(&str, &str, Need); 33] = [
    ("POST", "/v1/counters/{name}/increments", Need::Write),
    ("GET", "/v1/counters/{name}", Need::Read),
    ("GET", "/v1/counters", Need::Read),
    ("GET", "/v1/receipts/{id}", Need::Read),
    ("POST", "/v1/data/{collection}", Need::Write),
    ("GET", "/v1/data/{collection}", Need::Read),
    ("GET", "/v1/data/{collection}/{id}", Need::Read),
    ("DELETE", "/v1/data/{collection}/{id}", Need::Write),
    ("GET", "/v1/collections", Need::Admin),
    ("PUT", "/v1/collections/{name}", Need::Admin),
    ("GET", "/v1/collections/{name}", Need::Admin),
    ("DELETE", "/v1/collections/{name}", Need::Admin),
    ("GET", "/v1/dead-letters", Need::Admin),
    ("GET", "/v1/dead-letters/{id}", Need::Admin),
    ("DELETE", "/v1/dead-letters/{id}", Need::Admin),
    ("POST", "/v1/dead-letters/redrive", Need::Admin),
    ("POST", "/v1/metrics", Need::Write),
    ("GET", "/v1/metrics/summary", Need::Read),
    ("GET", "/v1/metrics/series", Need::Read),
    ("GET", "/v1/metrics/types", Need::Read),
    ("POST", "/counter", Need::Write),
    ("GET", "/counter", Need::Read),
    ("POST", "/data", Need::Write),
    ("GET", "/data", Need::Read),
    ("POST", "/api/metrics", Need::Write),
    ("GET", "/api/metrics/summary", Need::Read),
    ("GET", "/livez", Need::Nothing),
    ("GET", "/readyz", Need::Nothing),
    ("GET", "/health", Need::Nothing),
    ("GET", "/openapi.json", Need::Public),
    ("GET", "/", Need::Public),
    ("GET", "/docs", Need::Public),
    ("GET", "/docs/{file:.*}", Need::Public),
];

/// `(method, path)` of all routes.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|(method, path, _)| (*method, *path))
}

/// The methods of one path.
#[derive(Clone, Debug)]
pub struct Access(Vec<(&'static str, Need)>);

impl Access {
    /// Of a path as it is registered.
    pub fn of(path: &str) -> Self {
        let rows = TABLE.iter().filter(|(_, known, _)| *known == path);
        let methods: Vec<_> = rows.map(|(method, _, need)| (*method, *need)).collect();
        assert!(!methods.is_empty(), "{path} is not in the table of what routes need");
        Self(methods)
    }

    /// `None` of a method that the path does not take.
    pub fn need(&self, method: &Method) -> Option<Need> {
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        self.0.iter().find(|(known, _)| *known == method).map(|(_, need)| *need)
    }

    /// For `Allow`.
    pub fn methods(&self) -> String {
        let mut methods: Vec<_> = self.0.iter().map(|(method, _)| *method).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_knows_its_methods_and_what_each_needs() {
        let access = Access::of("/v1/data/{collection}/{id}");
        assert_eq!(access.methods(), "DELETE, GET, HEAD");
        assert_eq!(access.need(&Method::HEAD), Some(Need::Read));
        assert_eq!(access.need(&Method::DELETE), Some(Need::Write));
        assert_eq!(access.need(&Method::PUT), None);
    }

    #[test]
    fn nothing_stands_in_the_table_twice() {
        for (index, (method, path, _)) in TABLE.iter().enumerate() {
            let before = TABLE[..index].iter().any(|(known, at, _)| (known, at) == (method, path));
            assert!(!before, "{method} {path}");
        }
    }
}
