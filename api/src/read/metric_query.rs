//! Questions of clients about metrics, read from their parameters.
//!
//! A question names concrete times, so that it can be the key of its answer: the same period asked
//! for an hour later is another question.
use shared::config::RetentionSettings;
use shared::model::rollup::Resolution;
use utoipa::IntoParams;

use crate::http::problem::Problem;
use crate::http::query::{Parameters, check_parameter};
use crate::read::computed::ReadKey;
use crate::read::period::{self, Buckets, NoBuckets, Period, RANGE_DAYS_MAX, RollupRetention, Span};
use crate::rfc3339;

const DAY_MS: i64 = 86_400_000;

/// Longest time that a range may reach into the future: no rollup lies beyond.
const AHEAD_MS_MAX: i64 = 366 * DAY_MS;

/// For the document: [`summary`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct SummaryParams {
    /// The metric type.
    #[param(rename = "type", required = true)]
    kind: Option<String>,
    /// `hourly`, `daily`, `weekly` (from Monday) or `monthly`: the current calendar period in UTC.
    #[param(example = "daily")]
    period: Option<String>,
    /// Instead of a period: RFC 3339 with a zone (write `+` as `%2B`).
    #[param(format = DateTime)]
    from: Option<String>,
    /// End of the range, itself outside; at most 400 days after `from`.
    #[param(format = DateTime)]
    to: Option<String>,
}

/// For the document: [`series`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct SeriesParams {
    /// The metric type.
    #[param(rename = "type", required = true)]
    kind: Option<String>,
    /// RFC 3339 with a zone (write `+` as `%2B`).
    #[param(required = true, format = DateTime)]
    from: Option<String>,
    /// End of the range, itself outside; at most 400 days after `from`.
    #[param(required = true, format = DateTime)]
    to: Option<String>,
    /// Length of a bucket: `minute`, `hour`, `day`, seconds, or a number with `m`, `h` or `d`; a
    /// multiple of a minute. Steps that are no multiple of an hour reach 48 hours back, those that
    /// are none of a day 90 days.
    #[param(required = true)]
    step: Option<String>,
}

/// A question about one metric; it is the key of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    kind: Box<str>,
    /// Time that the answer covers.
    pub span: Span,
    pub shape: Shape,
}

/// Shape of an answer. A summary is that of a calendar period, or of a range when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Summary(Option<Period>),
    Series { step_ms: i64, resolution: Resolution },
}

impl ReadKey for Question {
    fn tag(&self) -> &str {
        &self.kind
    }

    fn heap_bytes(&self) -> usize {
        self.kind.len()
    }
}

/// Reads the parameters of a summary that is asked for at `now_ms`.
pub fn summary(query: &str, now_ms: i64, retention: &RetentionSettings) -> Result<Question, Problem> {
    let (kind, [from, to, period]) = taken(query, "period")?;
    let refused = |detail| Err(Problem::invalid_parameter("period", detail));
    let is_range = from.is_some() || to.is_some();
    let (span, period) = match period.map(|name| Period::from_name(&name)) {
        None if is_range => (range(from, to, now_ms)?.widened(&RollupRetention::at(now_ms, retention)), None),
        None => return refused("is needed, or `from` and `to`"),
        Some(_) if is_range => return refused("either a period, or `from` and `to`"),
        Some(None) => return refused("must be hourly, daily, weekly or monthly"),
        Some(Some(period)) => (period.around(now_ms), Some(period)),
    };
    Ok(Question { kind, span, shape: Shape::Summary(period) })
}

/// Reads the parameters of a series that is asked for at `now_ms`.
pub fn series(query: &str, now_ms: i64, retention: &RetentionSettings) -> Result<Question, Problem> {
    let (kind, [from, to, step]) = taken(query, "step")?;
    let span = range(from, to, now_ms)?;
    let step = step.ok_or_else(|| missing("step"))?;
    let refused = |error: NoBuckets| {
        let parameter = match error {
            NoBuckets::MinutesGone | NoBuckets::HoursGone => "from",
            NoBuckets::Unreadable | NoBuckets::Step | NoBuckets::TooMany => "step",
        };
        Problem::invalid_parameter(parameter, error.to_string())
    };
    let step_ms = period::step_ms(&step).map_err(refused)?;
    let buckets = Buckets::of(span, step_ms, &RollupRetention::at(now_ms, retention)).map_err(refused)?;
    let shape = Shape::Series { step_ms, resolution: buckets.resolution };
    Ok(Question { kind, span: buckets.span, shape })
}

/// Takes the checked type, the times, and the one other parameter of a question.
fn taken(query: &str, other: &str) -> Result<(Box<str>, [Option<String>; 3]), Problem> {
    let mut params = Parameters::of(query)?;
    let kind = params.take("type");
    let others = ["from", "to", other].map(|name| params.take(name));
    params.finish()?;
    let kind = kind.ok_or_else(|| missing("type"))?;
    check_parameter("type", &kind)?;
    Ok((kind.into(), others))
}

fn range(from: Option<String>, to: Option<String>, now_ms: i64) -> Result<Span, Problem> {
    let time = |name, text: Option<String>| {
        let text = text.ok_or_else(|| missing(name))?;
        let no_time = || Problem::invalid_parameter(name, rfc3339::NO_TIME);
        let at_ms = rfc3339::parse(&text).ok_or_else(no_time)?;
        if at_ms < 0 || at_ms > now_ms.saturating_add(AHEAD_MS_MAX) {
            return Err(Problem::invalid_parameter(name, "must lie between 1970 and a year from now"));
        }
        Ok(at_ms)
    };
    let span = Span { from_ms: time("from", from)?, to_ms: time("to", to)? };
    if span.length_ms() <= 0 {
        return Err(Problem::invalid_parameter("to", "must lie after `from`"));
    }
    if span.length_ms() > RANGE_DAYS_MAX * DAY_MS {
        let detail = format!("must lie at most {RANGE_DAYS_MAX} days after `from`");
        return Err(Problem::invalid_parameter("to", detail));
    }
    Ok(span)
}

fn missing(parameter: &'static str) -> Problem {
    Problem::invalid_parameter(parameter, "is needed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20T12:34:56Z.
    fn now_ms() -> i64 {
        rfc3339::parse("2026-11-20T12:34:56Z").expect("a time")
    }

    #[test]
    fn a_period_is_asked_for_by_concrete_times() {
        let ask = |now_ms| {
            summary("type=a&period=hourly", now_ms, &RetentionSettings::default()).expect("a question")
        };
        assert_eq!(ask(now_ms()), ask(now_ms() + 60_000));
        assert_ne!(ask(now_ms()), ask(now_ms() + 3_600_000));
        let other =
            summary("type=b&period=hourly", now_ms(), &RetentionSettings::default()).expect("a question");
        assert_ne!(ask(now_ms()), other);
    }

    #[test]
    fn ranges_with_the_same_rollups_are_the_same_question() {
        let ask = |from: &str, to: &str| {
            let query = format!("type=a&from={from}&to={to}");
            summary(&query, now_ms(), &RetentionSettings::default()).expect("a question")
        };
        let one = ask("2026-11-20T10:00:00Z", "2026-11-20T12:30:00Z");
        assert_eq!(one, ask("2026-11-20T11:00:59%2B01:00", "2026-11-20T12:29:01Z"));
        assert_ne!(one, ask("2026-11-20T09:59:59Z", "2026-11-20T12:30:00Z"));
    }

    #[test]
    fn what_cannot_be_asked_names_its_parameter() {
        let day = "from=2026-11-19T00:00:00Z&to=2026-11-20T00:00:00Z";
        for (query, parameter) in [
            (String::new(), "type"),
            ("type=a%20b&period=daily".into(), "type"),
            ("type=a".into(), "period"),
            ("type=a&period=yearly".into(), "period"),
            ("type=a&period=Daily".into(), "period"),
            (format!("type=a&period=daily&{day}"), "period"),
            ("type=a&period=daily&to=2026-11-20T00:00:00Z".into(), "period"),
            ("type=a&from=2026-11-20T00:00:00Z".into(), "to"),
            ("type=a&to=2026-11-20T00:00:00Z".into(), "from"),
            ("type=a&from=2026-11-20T00:00:00&to=2026-11-21T00:00:00Z".into(), "from"),
            ("type=a&from=2026-11-20T00:00:00Z&to=2026-11-20T00:00:00Z".into(), "to"),
            ("type=a&from=2025-01-01T00:00:00Z&to=2026-11-20T00:00:00Z".into(), "to"),
            ("type=a&from=1969-12-31T00:00:00Z&to=1970-02-01T00:00:00Z".into(), "from"),
            ("type=a&from=2026-11-20T00:00:00Z&to=9999-01-01T00:00:00Z".into(), "to"),
            ("type=a&period=daily&sort=up".into(), "sort"),
            ("type=a&type=b&period=daily".into(), "type"),
            ("type=..&period=daily".into(), "type"),
        ] {
            let problem = summary(&query, now_ms(), &RetentionSettings::default()).expect_err(&query);
            let shown = serde_json::to_value(&problem).expect("serialises");
            assert_eq!(shown["errors"][0]["parameter"], parameter, "{query}");
        }
    }

    #[test]
    fn a_series_needs_a_step_that_its_range_allows() {
        let ask = |rest: &str| series(&format!("type=a&{rest}"), now_ms(), &RetentionSettings::default());
        let day = "from=2026-11-19T12:00:00Z&to=2026-11-20T12:00:00Z";
        let question = ask(&format!("{day}&step=5m")).expect("a question");
        assert_eq!(question.shape, Shape::Series { step_ms: 300_000, resolution: Resolution::Minute });
        let old = "from=2026-11-01T00:00:00Z&to=2026-11-01T01:00:00Z&step=minute";
        for (rest, parameter) in [
            (day.to_owned(), "step"),
            (format!("{day}&step=x"), "step"),
            (format!("{day}&step=90"), "step"),
            (format!("{day}&step=minute"), "step"),
            (old.to_owned(), "from"),
            (format!("{day}&step=5m&period=daily"), "period"),
        ] {
            let shown = serde_json::to_value(ask(&rest).expect_err(&rest)).expect("serialises");
            assert_eq!(shown["errors"][0]["parameter"], parameter, "{rest}");
        }
    }
}
