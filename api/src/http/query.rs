//! The parameters of a query: read once, each taken by the code that knows it. What is left over, or stands
//! there twice, is refused by its name: a filter that is ignored would answer another question.
use actix_web::web::Query;
use shared::model::read_error;
use shared::model::write::check_name;
use shared::store::NamePage;
use utoipa::IntoParams;

use crate::http::body::shorten;
use crate::http::problem::Problem;

pub const PAGE_LIMIT_DEFAULT: u32 = 100;
pub const PAGE_LIMIT_MAX: u32 = 1_000;

/// Most parameters of one query. No route knows as many.
const PARAMETERS_MAX: usize = 64;

/// Names and values, decoded, in the order of the query.
#[derive(Debug)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a query; 422 when there are too many parameters, or one stands there twice.
    pub fn of(query: &str) -> Result<Self, Problem> {
        let given = query.split('&').filter(|parameter| !parameter.is_empty());
        if given.take(PARAMETERS_MAX + 1).count() > PARAMETERS_MAX {
            let detail = format!("has more than {PARAMETERS_MAX} parameters");
            return Err(Problem::invalid_parameter("query", detail));
        }
        let pairs = Query::<Vec<(String, String)>>::from_query(query)
            .map_err(|error| {
                Problem::invalid_parameter("query", shorten(&read_error::plain(&error.to_string())))
            })?
            .into_inner();
        let twice = |(index, (name, _)): &(usize, &(String, String))| {
            pairs[..*index].iter().any(|(before, _)| before == name)
        };
        match pairs.iter().enumerate().find(twice) {
            Some((_, (name, _))) => Err(Problem::invalid_parameter(shorten(name), "stands there twice")),
            None => Ok(Self(pairs)),
        }
    }

    /// The value of a parameter, which is known with that.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(index).1)
    }

    /// Parameters that were not taken.
    pub fn into_rest(self) -> Vec<(String, String)> {
        self.0
    }

    /// Ends the reading; 422 when an unknown parameter is left.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => Err(Problem::invalid_parameter(shorten(name), "is not known here")),
            None => Ok(()),
        }
    }
}

/// For what takes no parameters.
pub fn none(query: &str) -> Result<(), Problem> {
    if query.is_empty() { Ok(()) } else { Parameters::of(query)?.finish() }
}

/// For the document: [`page_of`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct ListParams {
    /// Names on a page, 1 to 1000.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only names that begin like this.
    prefix: Option<String>,
}

/// The page of a list of names.
pub fn page_of(query: &str) -> Result<NamePage, Problem> {
    let mut params = Parameters::of(query)?;
    let limit = limit_of(params.take("limit"))?;
    let (prefix, after) = (params.take("prefix").unwrap_or_default(), params.take("after"));
    params.finish()?;
    if !prefix.is_empty() {
        check_bound("prefix", &prefix)?;
    }
    if let Some(after) = &after {
        check_bound("after", after)?;
    }
    Ok(NamePage { prefix, after, limit })
}

/// How many are asked for on a page.
pub fn limit_of(text: Option<String>) -> Result<u32, Problem> {
    let Some(text) = text else { return Ok(PAGE_LIMIT_DEFAULT) };
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| Problem::invalid_parameter("limit", format!("must be from 1 to {PAGE_LIMIT_MAX}")))
}

/// A parameter that is the name of something.
pub fn check_parameter(parameter: &'static str, name: &str) -> Result<(), Problem> {
    check_bound(parameter, name)?;
    if is_dots(name) { Err(Problem::invalid_parameter(parameter, DOTS)) } else { Ok(()) }
}

/// A parameter that names are compared with.
fn check_bound(parameter: &'static str, text: &str) -> Result<(), Problem> {
    check_name(text).map_err(|error| Problem::invalid_parameter(parameter, error.to_string()))
}

/// Why dots are no name here, though the store would take them.
pub const DOTS: &str = "must not be . or .., which no URL can name";

/// Checks whether clients take the name, as a part of a path, for a step within the path.
pub fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(problem: &Problem) -> String {
        let shown = serde_json::to_value(problem).expect("serialises");
        assert_eq!(shown["status"], 422);
        shown["errors"][0]["parameter"].as_str().expect("a name").to_owned()
    }

    #[test]
    fn what_nobody_takes_or_stands_there_twice_is_named() {
        let mut parameters = Parameters::of("a=1&b%20c=%C3%A4+&d").expect("parameters");
        assert_eq!(parameters.take("b c").as_deref(), Some("ä "));
        assert_eq!(parameters.take("b c"), None);
        assert_eq!(parameters.take("d").as_deref(), Some(""));
        assert_eq!(refused(&parameters.finish().expect_err("a is left")), "a");
        assert_eq!(refused(&Parameters::of("x=1&a=1&%61=2").expect_err("twice")), "a");
        assert_eq!(refused(&none("sort=up").expect_err("unknown")), "sort");
        none("").expect("nothing");
        none("&").expect("nothing");
    }

    #[test]
    fn more_parameters_than_any_route_knows_are_refused_before_they_are_compared() {
        let query =
            |count: usize| (0..count).map(|index| format!("p{index}=1")).collect::<Vec<_>>().join("&");
        assert_eq!(Parameters::of(&query(PARAMETERS_MAX)).expect("as many").0.len(), PARAMETERS_MAX);
        assert_eq!(refused(&Parameters::of(&query(PARAMETERS_MAX + 1)).expect_err("too many")), "query");
        Parameters::of(&"&".repeat(60_000)).expect("none").finish().expect("none");
    }

    #[test]
    fn a_page_is_bounded_and_unknown_parameters_are_refused() {
        assert_eq!(page_of("limit=2&after=a&prefix=b").expect("a page").limit, 2);
        let given = page_of("prefix=.&after=..").expect("compared only");
        assert_eq!(
            (&*given.prefix, given.after.as_deref(), given.limit),
            (".", Some(".."), PAGE_LIMIT_DEFAULT)
        );
        for (bad, parameter) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("limit=1&limit=1", "limit"),
            ("after=a%20b", "after"),
            ("prefix=%00", "prefix"),
            ("limit=1&sort=up", "sort"),
        ] {
            let problem = serde_json::to_value(page_of(bad).expect_err(bad)).expect("serialises");
            assert_eq!(problem["errors"][0]["parameter"], parameter, "{bad}");
        }
    }

    #[test]
    fn dots_are_no_names_of_their_own() {
        for bad in [".", "..", "", "a/b"] {
            assert!(check_parameter("name", bad).is_err(), "{bad}");
        }
        for good in ["...", ".a", "a..b", "-"] {
            check_parameter("name", good).expect(good);
        }
    }
}
