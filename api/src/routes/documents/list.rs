//! Lists of documents: newest first, a page at a time, filtered by indexed fields.
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{Path, ThinData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use shared::model::collection::{Wanted, has_all};
use shared::model::id::{ItemKey, Kind, MessageId};
use shared::store::{Document, DocumentPage, DocumentsFound};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{DocumentBody, render_into};
use crate::http::body;
use crate::http::problem::Problem;
use crate::http::query::{Parameters, check_parameter, limit_of};
use crate::read::definitions::KnownDefinition;
use crate::rfc3339::{self, NO_TIME, rfc3339};
use crate::routes::counters::unavailable;
use crate::state::Shared;
use crate::store_breaker::guarded;

/// Documents, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct DocumentsBody {
    items: Vec<DocumentBody>,
    /// Pass it as `after` to get the next page, also when this one is empty; null on the last one.
    next: Option<String>,
}

/// For the document: [`params_of`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only their description is used")]
pub struct DocumentsParams {
    /// Documents on a page at most.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only documents that were accepted later than this: RFC 3339 with a zone (write `+` as `%2B`).
    #[param(format = DateTime)]
    accepted_after: Option<String>,
    /// Only documents that were accepted earlier than this.
    #[param(format = DateTime)]
    accepted_before: Option<String>,
    /// Only documents with these values, by the names of indexed fields: `?sku=A-1&count=3`.
    #[param(style = Form, explode, additional_properties, value_type = Option<HashMap<String, String>>)]
    fields: Option<HashMap<String, String>>,
}

/// Parameters of a query; filters are fields with their values.
#[derive(Debug, PartialEq, Eq)]
struct Params {
    limit: u32,
    /// Places behind `accepted_after`.
    from: Option<Uuid>,
    /// Places before `accepted_before` and behind the page before.
    before: Option<Uuid>,
    wanted: Vec<(String, Wanted)>,
}

/// Parameters that came after collections could index members of these names.
pub const TIME_PARAMETERS: [&str; 2] = ["accepted_after", "accepted_before"];

/// Fields with the index values that they shall have.
type Filters = Vec<(String, String)>;

/// Documents that are read at once: as many of the largest fit into memory for many requests.
const ROWS_AT_ONCE: u32 = 64;

/// A page whose reading took longer ends with what it has.
const PAGE_TIME_MAX: Duration = Duration::from_secs(1);

/// Ways to spell the filters of one request, each of which costs a read.
const SPELLINGS_MAX: usize = 8;

/// Lists the documents of a collection.
///
/// The newest accepted come first. A page ends early, with `next`, where its documents grow larger
/// than `server.page_bytes_max`, or where filters that hardly ever match together leave much to search:
/// then it may hold no item at all, and only a `next` of null says that there are no more.
///
/// `accepted_after` and `accepted_before` are outside of their interval; an empty interval has no documents.
/// They go by the time that orders the list. It is `accepted_at`, or later where the clock of the accepting
/// replica had been set back. Any other parameter is the name of an indexed field: the text of a string, a number, `true`, `false` or
/// `null`; all of them must match. A number is found by its exact value, however it is spelled:
/// `1e18` finds 1000000000000000000, and 0.1 not 0.1000000000000000055; `1.0` finds the string `1.0`, too.
#[utoipa::path(
    get,
    path = "/v1/data/{collection}",
    operation_id = "list_documents",
    tag = "documents",
    params(
        ("collection" = String, Path, description = "1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
        DocumentsParams
    ),
    responses(
        (status = 200, description = "one page", body = DocumentsBody,
         example = json!({"items": [{"id": "019a9c1e-7a10-8c01-9f3c-5a1d20000a41", "status": "applied",
                          "accepted_at": "2025-11-20T00:53:20.042Z", "data": {"sku": "A-1", "count": 3}}], "next": null})),
        (status = 422, description = "a parameter is invalid, or names a field that is not indexed", body = Problem,
         content_type = "application/problem+json"),
        (status = 503, description = "the store is away, or the field is still being indexed", body = Problem,
         content_type = "application/problem+json", headers(("Retry-After" = u32, description = "seconds")))
    )
)]
pub async fn list(
    request: HttpRequest,
    collection: Path<String>,
    shared: ThinData<Shared>,
) -> Result<HttpResponse, Problem> {
    list_of(&request, &collection, &shared).await
}

/// Also behind the short path.
pub async fn list_of(
    request: &HttpRequest,
    collection: &str,
    shared: &Shared,
) -> Result<HttpResponse, Problem> {
    check_parameter("collection", collection)?;
    let Params { limit, from, before, mut wanted } = params_of(request.query_string())?;
    if !wanted.is_empty() {
        check_indexed(shared, collection, &wanted).await?;
    }
    let spelled = spellings(&wanted)?;
    // The others are decided by the index.
    wanted.retain(|(_, wanted)| wanted.is_number());
    let begun = Instant::now();
    let collection = collection.to_owned();
    let mut asked = DocumentPage { collection, filters: Filters::new(), from, before, limit };
    let mut page = Page { body: r#"{"items":["#.to_owned(), count: 0, bytes: 0, last: None };
    let has_next = loop {
        if asked.is_empty() {
            break false;
        }
        // One more than asked for tells whether there is a next page.
        asked.limit = (limit - page.count + 1).min(ROWS_AT_ONCE);
        let found = read(shared, &asked, &spelled).await?;
        let is_last = found.documents.len() < asked.limit as usize;
        let mut matching = found.documents.iter().filter(|document| has_all(&document.data, &wanted));
        if !matching.all(|document| page.take(shared, limit, document)) {
            break true;
        }
        page.last = found.documents.last().map(|document| document.place).or(page.last);
        if found.stopped_at.is_some() {
            page.last = found.stopped_at;
            break true;
        }
        if is_last {
            break false;
        }
        if begun.elapsed() > PAGE_TIME_MAX {
            break true;
        }
        asked.before = page.last;
    };
    let body = page.into_body(has_next);
    let json = (CONTENT_TYPE, "application/json");
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).insert_header(json).body(body))
}

/// A page as it is answered, while it grows.
struct Page {
    body: String,
    count: u32,
    /// Of data.
    bytes: usize,
    /// Where the next page goes on: the place of the last document, or where the search stopped.
    last: Option<Uuid>,
}

impl Page {
    /// Takes a document, unless the page is full: then it begins the next page.
    fn take(&mut self, shared: &Shared, limit: u32, document: &Document) -> bool {
        let bytes = self.bytes + document.data.len();
        if self.count == limit || (self.count > 0 && bytes > shared.page_bytes_max) {
            return false;
        }
        if self.count > 0 {
            self.body.push(',');
        }
        let mut buffer = [0; 36];
        let id = shared.ids.sign(document.id).encode(&mut buffer);
        render_into(&mut self.body, id, &rfc3339(document.accepted_at_ms), &document.data);
        (self.count, self.bytes, self.last) = (self.count + 1, bytes, Some(document.place));
        true
    }

    fn into_body(mut self, has_next: bool) -> String {
        let next = self.last.filter(|_| has_next);
        let next = next.map_or_else(|| "null".to_owned(), |place| format!("\"{}\"", place.simple()));
        self.body.extend([r#"],"next":"#, &next, "}"]);
        self.body
    }
}

/// The next documents in the order of the list. No document is found by two spellings: each has one
/// value in a field. What lies beyond the place at which any search stopped comes with the next page. No more
/// documents than were asked for are held, beside those of one read.
async fn read(shared: &Shared, asked: &DocumentPage, spelled: &[Filters]) -> Result<DocumentsFound, Problem> {
    let mut all = DocumentsFound::default();
    let (limit, mut from) = (asked.limit as usize, asked.from);
    for filters in spelled {
        let page = DocumentPage { filters: filters.clone(), from, ..asked.clone() };
        let read = guarded(&shared.store_breaker, shared.store.documents(page));
        let mut found = read.await.map_err(|error| unavailable(&error))?;
        all.documents.append(&mut found.documents);
        all.stopped_at = all.stopped_at.max(found.stopped_at);
        all.documents.sort_unstable_by_key(|document| Reverse(document.place));
        all.documents.truncate(limit);
        if all.documents.len() == limit {
            from = all.documents.last().map(|last| last.place);
        }
    }
    if spelled.len() > 1 {
        all.documents.retain(|document| all.stopped_at.is_none_or(|place| document.place >= place));
        if all.documents.len() == limit {
            all.stopped_at = None;
        }
    }
    Ok(all)
}

/// Text that the index is asked for. A text such as `1.0` may be meant as a string, or as the number that
/// the index spells `1`: both are looked for.
fn spellings(wanted: &[(String, Wanted)]) -> Result<Vec<Filters>, Problem> {
    let mut spelled = vec![Filters::new()];
    for (field, wanted) in wanted {
        let texts = wanted.index_values();
        if spelled.len() * texts.len() > SPELLINGS_MAX {
            let detail = "one of too many numbers in unusual spellings, or beyond 2^53, in one query";
            return Err(Problem::invalid_parameter(body::shorten(field), detail));
        }
        let with = |before: &Filters, text: &String| [&**before, &[(field.clone(), text.clone())]].concat();
        spelled =
            spelled.iter().flat_map(|before| texts.iter().map(move |text| with(before, text))).collect();
    }
    Ok(spelled)
}

fn params_of(query: &str) -> Result<Params, Problem> {
    let mut params = Parameters::of(query)?;
    let limit = limit_of(params.take("limit"))?;
    let cursor = params.take("after").map(|cursor| place_of(&cursor)).transpose()?;
    let [after, before] = TIME_PARAMETERS.map(|name| (name, params.take(name)));
    // Ids have whole milliseconds.
    let from = time_of(after, rfc3339::parse)?.map(|after_ms| MessageId::lowest_at(after_ms + 1));
    let until = time_of(before, rfc3339::parse_up)?.map(MessageId::lowest_at);
    let before = cursor.into_iter().chain(until).min();
    let of_text = |(field, text): (String, String)| (field, Wanted::of(&text));
    Ok(Params { limit, from, before, wanted: params.into_rest().into_iter().map(of_text).collect() })
}

fn time_of(
    (name, text): (&'static str, Option<String>),
    parse: impl Fn(&str) -> Option<i64>,
) -> Result<Option<i64>, Problem> {
    let time = text.map(|text| parse(&text).ok_or_else(|| Problem::invalid_parameter(name, NO_TIME)));
    time.transpose()
}

/// A cursor is the place of the last document of its page.
fn place_of(cursor: &str) -> Result<Uuid, Problem> {
    let place = Uuid::try_parse(cursor).ok().filter(|_| cursor.len() == 32).and_then(ItemKey::from_uuid);
    place
        .filter(|place| place.kind() == Some(Kind::Document) && !place.is_keyed())
        .map(ItemKey::as_uuid)
        .ok_or_else(|| Problem::invalid_parameter("after", "not the `next` of a page"))
}

/// Filters are answered from the index only, and only from a whole one.
async fn check_indexed(
    shared: &Shared,
    collection: &str,
    wanted: &[(String, Wanted)],
) -> Result<(), Problem> {
    let unknown = |known: &KnownDefinition| {
        let indexed = &known.collection.definition.indexed;
        wanted.iter().find(|(field, _)| !indexed.contains(field)).map(|(field, _)| field)
    };
    let mut known = shared.definitions.current(collection).await.map_err(|error| unavailable(&error))?;
    if unknown(&known).is_some() || !known.collection.is_indexed {
        // It may have been defined, or indexed, a moment ago by another replica.
        known = shared.definitions.reread(collection).await.map_err(|error| unavailable(&error))?;
    }
    if let Some(field) = unknown(&known) {
        let detail = "neither a parameter of lists nor an indexed field of this collection";
        return Err(Problem::invalid_parameter(body::shorten(field), detail));
    }
    if known.collection.is_indexed {
        return Ok(());
    }
    // The replica that defined it may have stopped half-way.
    shared.definitions.resume_indexing(collection);
    Err(Problem::indexing())
}

#[cfg(test)]
mod tests {
    use shared::model::id::IdIssuer;

    use super::*;
    use crate::http::query::PAGE_LIMIT_DEFAULT;

    #[test]
    fn parameters_are_a_limit_a_cursor_and_filters() {
        let place = IdIssuer::new(1, 2).next(3).item(Kind::Document, 4).as_uuid();
        let query = format!("limit=7&after={}&name=a%20b&n=1", place.simple());
        let wanted = vec![("name".into(), Wanted::of("a b")), ("n".into(), Wanted::of("1"))];
        let expected = Params { limit: 7, from: None, before: Some(place), wanted };
        assert_eq!(params_of(&query).expect("parameters"), expected);
        assert_eq!(params_of("").expect("none").limit, PAGE_LIMIT_DEFAULT);
    }

    #[test]
    fn an_interval_leaves_its_bounds_out_whatever_their_spelling() {
        let bounds = |query: &str| {
            let Params { from, before, .. } = params_of(query).expect(query);
            (from, before)
        };
        let at = |ms: i64| Some(MessageId::lowest_at(1_763_600_000_000 + ms));
        let time = "2025-11-20T00:53:20";
        for (after, before, expected) in [
            (format!("{time}.042Z"), format!("{time}.044Z"), (at(43), at(44))),
            (format!("{time}.0429Z"), format!("{time}.0431Z"), (at(43), at(44))),
            (
                "2025-11-20T02:53:20.042%2B02:00".into(),
                "2025-11-19T23:53:21-01:00".into(),
                (at(43), at(1_000)),
            ),
            ("1960-01-01T00:00:00Z".into(), "9999-12-31T23:59:59.9999-23:59".into(), {
                let last_ms = rfc3339::parse_up("9999-12-31T23:59:59.9999-23:59").expect("a time");
                (Some(Uuid::nil()), Some(MessageId::lowest_at(last_ms)))
            }),
        ] {
            assert_eq!(bounds(&format!("accepted_after={after}&accepted_before={before}")), expected);
        }
        // A cursor goes on within the interval, wherever it came from.
        let place = IdIssuer::new(1, 2).next(1_763_600_000_050).item(Kind::Document, 4).as_uuid();
        let cursor = format!("after={}&accepted_before={time}", place.simple());
        assert_eq!(bounds(&format!("{cursor}.051Z")), (None, Some(place)));
        assert_eq!(bounds(&format!("{cursor}.050Z")), (None, at(50)));
    }

    #[test]
    fn bad_parameters_are_named() {
        let point = IdIssuer::new(1, 2).next(3).item(Kind::Point, 4).as_uuid();
        let keyed = ItemKey::keyed(Kind::Document, 5).as_uuid();
        for (query, parameter) in [
            ("limit=0".into(), "limit"),
            ("limit=1001".into(), "limit"),
            ("limit=x".into(), "limit"),
            ("limit=1&limit=1".into(), "limit"),
            ("after=".into(), "after"),
            ("after=%00".into(), "after"),
            (format!("after={}", "0".repeat(32)), "after"),
            (format!("after={}", point.simple()), "after"),
            (format!("after={}", keyed.simple()), "after"),
            ("a=1&b=2&a=3".into(), "a"),
            ("accepted_after=".into(), "accepted_after"),
            ("accepted_after=2026-11-20T08:00:00".into(), "accepted_after"),
            ("accepted_before=2026-11-20T08:00:00+02:00".into(), "accepted_before"),
            ("accepted_before=1763600000".into(), "accepted_before"),
        ] {
            let problem = serde_json::to_value(params_of(&query).expect_err(&query)).expect("serialises");
            assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}");
        }
    }

    #[test]
    fn a_number_is_looked_for_as_it_stands_there_and_as_the_index_spells_it() {
        let filters = |pairs: &[(&str, &str)]| -> Filters {
            pairs.iter().map(|(field, text)| ((*field).to_owned(), (*text).to_owned())).collect()
        };
        let wanted = |pairs: &[(&str, &str)]| -> Vec<_> {
            pairs.iter().map(|(field, text)| ((*field).to_owned(), Wanted::of(text))).collect()
        };
        let found = |pairs: &[(&str, &str)]| spellings(&wanted(pairs)).expect("few");
        assert_eq!(found(&[]), [Filters::new()]);
        assert_eq!(found(&[("a", "x"), ("b", "1")]), [filters(&[("a", "x"), ("b", "1")])]);
        let both = [filters(&[("a", "x"), ("b", "1.0")]), filters(&[("a", "x"), ("b", "1")])];
        assert_eq!(found(&[("a", "x"), ("b", "1.0")]), both);
        assert_eq!(found(&[("a", "1.0"), ("b", "2e0")]).len(), 4);
        let many = wanted(&[("a", "1.0"), ("b", "2e0"), ("c", "3.0"), ("d", "4.0")]);
        let problem = serde_json::to_value(spellings(&many).expect_err("sixteen")).expect("serialises");
        assert_eq!(problem["errors"][0]["parameter"], "d");
    }
}
