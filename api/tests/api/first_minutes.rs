//! The first minutes of a newcomer: the root, plain words, pages and proxies in between, and
//! figures that begin at 0.
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response};
use shared::config::Config;
use shared::model::api_key::{KeyId, Principal, Scope, Scopes, generate};

use crate::process::Process;
use crate::support::{Installation, base_config, embedded, embedded_with, json, on_both_pairs, problem};

const PAGE: &str = "https://app.example";

/// Limit on the series of an API and a consumer in one process before any request.
const FRESH_SERIES_MAX: usize = 300;

async fn sent(installation: &Installation, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let url = format!("http://{}{path}", installation.apis[0].address);
    let client = Client::builder().redirect(Policy::none()).build().expect("a client");
    let request = client.request(method, url);
    headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value))
        .send()
        .await
        .expect("an answer")
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("text"))
}

/// Finds a word of Rust in a text for readers.
fn word_of_rust(text: &str) -> Option<&str> {
    const WORDS: [&str; 24] = [
        "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize", "f32", "f64",
        "bool", "struct", "enum", "tuple", "variant", "newtype", "Option", "EOF", "serde", "RawValue",
    ];
    text.split(|c: char| !c.is_alphanumeric()).find(|word| WORDS.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_leads_to_the_docs_also_without_a_key() {
    let keyed = |config: &mut Config| {
        let id = KeyId::try_from("one".to_owned()).expect("an id");
        let principal = Principal::try_from("p".to_owned()).expect("a name");
        let scopes = Scopes::try_from(vec![Scope::Read]).expect("some");
        config.auth.keys = vec![generate(id, principal, scopes, None).1];
    };
    embedded_with(keyed, async |installation: Installation| {
        problem(installation.get("/v1/counters").await, 401).await;
        for method in [Method::GET, Method::HEAD] {
            let answer = sent(&installation, method.clone(), "/", &[]).await;
            assert_eq!(
                (answer.status().as_u16(), header(&answer, "location")),
                (308, Some("/docs/")),
                "{method}"
            );
        }
        let refused = sent(&installation, Method::POST, "/", &[]).await;
        assert_eq!(header(&refused, "allow"), Some("GET, HEAD"));
        problem(refused, 405).await;
        let page = installation.get("/").await;
        assert!(page.text().await.expect("text").contains("swagger-ui"));
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_header_or_the_variable_that_helps() {
    embedded(|installation| async move {
        let curl = [("content-type", "application/x-www-form-urlencoded")];
        let request = installation.at(0, Method::POST, "/v1/data/c").body("{}");
        let bare = problem(request.send().await.expect("an answer"), 415).await;
        let request = installation.at(0, Method::POST, "/v1/data/c").header(curl[0].0, curl[0].1).body("{}");
        let by_curl = problem(request.send().await.expect("an answer"), 415).await;
        for refused in [bare, by_curl] {
            let detail = refused["detail"].as_str().expect("a detail");
            assert!(detail.contains("the header Content-Type: application/json"), "{detail}");
        }
        let other = sent(&installation, Method::GET, "/counter", &[("host", "forebay.example")]).await;
        let other = problem(other, 421).await;
        assert!(
            other["detail"].as_str().expect("a detail").contains("FOREBAY__SERVER__ALLOWED_HOSTS"),
            "{other}"
        );
        let origin = sent(&installation, Method::GET, "/counter", &[("origin", PAGE)]).await;
        let origin = problem(origin, 403).await;
        assert!(
            origin["detail"].as_str().expect("a detail").contains("FOREBAY__AUTH__CORS_ORIGINS"),
            "{origin}"
        );
        installation
    })
    .await;
}

on_both_pairs! {
    async fn no_bad_input_is_answered_in_the_words_of_rust(installation) {
        let paths = [
            "/v1/counters/c/increments", "/v1/data/c", "/v1/metrics", "/counter", "/data", "/api/metrics",
            "/v1/collections/c", "/v1/dead-letters/redrive",
        ];
        let members = [
            "by", "timestamp", "value", "type", "idempotency_key", "schema", "indexes", "retention_days", "ids", "kind", "dry_run",
            "limit", "force", "unheard",
        ];
        let values = ["null", "true", "-1", "1.5", "1e400", "99999999999999999999", "\"x\"", "[]", "[1]", "{}", "{\"x\":[]}"];
        let mut bodies: Vec<String> = ["", "{", "[", "[1,", "{\"a\"", "{\"a\":}", "nul", "5", "\"x\"", "null", "[[]]", "[5]", "{}{}"]
            .map(Into::into).into();
        for member in members {
            bodies.extend(values.iter().map(|value| format!("{{\"{member}\":{value}}}")));
        }
        for path in paths {
            let method = if path.starts_with("/v1/collections") { Method::PUT } else { Method::POST };
            for body in &bodies {
                for (content_type, text) in [("application/json", body.clone()), ("application/json", format!("[{body}]")), ("application/x-ndjson", body.clone())] {
                    let request = installation.at(0, method.clone(), path).header("content-type", content_type);
                    let answer = request.body(text.clone()).send().await.expect("an answer");
                    let answer = answer.text().await.expect("text");
                    assert_eq!(word_of_rust(&answer), None, "{path} {text}: {answer}");
                }
            }
        }
    }

    async fn the_place_of_a_broken_line_is_that_in_the_request(installation) {
        let request = installation.at(0, Method::POST, "/v1/counters/c/increments").header("content-type", "application/x-ndjson");
        let answer = json(request.body("{}\n\n{\"by\":}\n").send().await.expect("an answer")).await;
        let detail = answer["rejected"][0]["problem"]["detail"].as_str().expect("a detail");
        assert!(detail.contains("line 3 column 7"), "{detail}");
        let request = installation.at(0, Method::POST, "/v1/counters/c/increments").header("content-type", "application/json");
        let answer = json(request.body("[{\"by\":\n\"one\"},{}]").send().await.expect("an answer")).await;
        let reported = answer["rejected"][0]["problem"]["errors"][0].to_string();
        assert!(reported.contains("an integer from") && !reported.contains("column"), "{reported}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_of_no_other_origin_by_default() {
    embedded(|installation| async move {
        let asks = [("origin", PAGE), ("access-control-request-method", "POST")];
        let preflight = sent(&installation, Method::OPTIONS, "/v1/data/c", &asks).await;
        assert_eq!(header(&preflight, "access-control-allow-origin"), None);
        problem(preflight, 405).await;
        let plain = sent(&installation, Method::GET, "/health", &[]).await;
        assert_eq!(header(&plain, "vary"), None);
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_named_origin_may_ask_send_and_read_and_no_other_may() {
    embedded_with(
        |config| config.auth.cors_origins = vec![PAGE.into()],
        async |installation: Installation| {
            let asks = |origin| [("origin", origin), ("access-control-request-method", "POST")];
            let preflight = sent(&installation, Method::OPTIONS, "/v1/data/c", &asks(PAGE)).await;
            assert_eq!(preflight.status(), 204);
            assert_eq!(header(&preflight, "access-control-allow-origin"), Some(PAGE));
            assert_eq!(header(&preflight, "access-control-allow-credentials"), None);
            assert_eq!(header(&preflight, "vary"), Some("Origin"));
            assert!(header(&preflight, "access-control-allow-methods").expect("methods").contains("POST"));
            let allowed = header(&preflight, "access-control-allow-headers").expect("headers");
            for needed in ["authorization", "content-type", "idempotency-key", "prefer"] {
                assert!(allowed.contains(needed), "{allowed}");
            }
            // Answers and refusals have the header, so that a page sees both.
            for (path, status) in [("/v1/counters", 200), ("/v1/counters?limit=0", 422), ("/none", 404)] {
                let answer = sent(&installation, Method::GET, path, &[("origin", PAGE)]).await;
                assert_eq!(
                    (answer.status().as_u16(), header(&answer, "access-control-allow-origin")),
                    (status, Some(PAGE))
                );
                assert!(
                    header(&answer, "access-control-expose-headers").expect("headers").contains("location")
                );
                let own = sent(&installation, Method::GET, path, &[]).await;
                assert_eq!(
                    (header(&own, "access-control-allow-origin"), header(&own, "vary")),
                    (None, Some("Origin"))
                );
            }
            for other in ["https://evil.example", "http://app.example", "https://app.example:8443", "null"] {
                let preflight = sent(&installation, Method::OPTIONS, "/v1/data/c", &asks(other)).await;
                assert_eq!(
                    (preflight.status().as_u16(), header(&preflight, "access-control-allow-origin")),
                    (405, None),
                    "{other}"
                );
                let answer = sent(&installation, Method::GET, "/v1/counters", &[("origin", other)]).await;
                assert_eq!(
                    (answer.status().as_u16(), header(&answer, "access-control-allow-origin")),
                    (403, None),
                    "{other}"
                );
            }
            installation
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_path_prefix_every_route_and_link_works_whether_the_proxy_strips_it_or_not() {
    embedded_with(
        |config| config.server.path_prefix = "/fore/bay".into(),
        async |installation: Installation| {
            for before in ["", "/fore/bay"] {
                let root = sent(&installation, Method::GET, &format!("{before}/"), &[]).await;
                assert_eq!(header(&root, "location"), Some("/fore/bay/docs/"), "{before}");
                let docs = sent(&installation, Method::GET, &format!("{before}/docs"), &[]).await;
                assert_eq!(header(&docs, "location"), Some("/fore/bay/docs/"), "{before}");
                let page =
                    sent(&installation, Method::GET, &format!("{before}/docs/swagger-initializer.js"), &[])
                        .await;
                assert!(page.text().await.expect("text").contains("\"../openapi.json\""));
                let document =
                    json(sent(&installation, Method::GET, &format!("{before}/openapi.json"), &[]).await)
                        .await;
                assert_eq!(document["servers"][0]["url"], "/fore/bay");
                let accepted =
                    sent(&installation, Method::POST, &format!("{before}/v1/counters/c/increments?"), &[])
                        .await;
                assert_eq!(accepted.status(), 202);
                let location = header(&accepted, "location").expect("a location").to_owned();
                assert!(location.starts_with("/fore/bay/v1/receipts/"), "{location}");
                assert_eq!(sent(&installation, Method::GET, &location, &[]).await.status(), 200);
            }
            let named = sent(&installation, Method::GET, "/fore/bay", &[]).await;
            assert_eq!(header(&named, "location"), Some("/fore/bay/docs/"));
            problem(sent(&installation, Method::GET, "/fore/bays/v1/counters", &[]).await, 404).await;
            installation
        },
    )
    .await;
}

async fn exposition(installation: &Installation) -> String {
    let url = format!("http://{}/metrics", installation.apis[0].ops_address);
    installation.client.get(url).send().await.expect("an answer").text().await.expect("text")
}

fn value_of(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_base_units_help_and_series_that_begin_at_0() {
    embedded(|installation| async move {
        installation.increment(0, "metric", 1).await;
        let metrics = exposition(&installation).await;
        for family in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = family.split_once(' ').expect("a name and a type");
            let help = metrics.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| !help.is_empty()), "{name}");
            assert!(name.starts_with("forebay_") || name.starts_with("process_"), "{name}");
            for unit in ["milli", "_ms", "micro", "minutes", "hours", "kilo", "_mb", "percent"] {
                assert!(!name.contains(unit), "{name}");
            }
            if name.starts_with("forebay_") {
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            }
        }
        for series in [
            "forebay_api_items_accepted_total{kind=\"point\"}",
            "forebay_api_refused_total{reason=\"expired\"}",
            "forebay_api_key_reloads_total{outcome=\"failed\"}",
            "forebay_api_items_redriven_total{outcome=\"applied\"}",
            "forebay_queue_untaken_seconds",
            "forebay_consumer_items_set_aside_total{reason=\"too_old\"}",
            "forebay_consumer_messages_rejected_total{reason=\"undecodable\"}",
        ] {
            assert!(value_of(&metrics, series).is_some(), "{series}");
        }
        assert!(metrics.contains("forebay_build_info{version=\""), "{metrics}");
        assert_eq!(value_of(&metrics, "forebay_consumers").map(|value| value >= 0.0), Some(true));
        installation
    })
    .await;
}

/// It runs in a process of its own: the metrics of this one are those of all its tests.
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_api_has_few_series_and_a_status_class_only_once_it_occurred() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display());
    let mut config = base_config();
    (config.queue.url, config.store.url) = (url.clone(), url);
    let api = Process::start(&config);
    let exposition = async || {
        let answer = reqwest::get(format!("{}/metrics", api.ops)).await.expect("an answer");
        answer.text().await.expect("text")
    };
    let metrics = exposition().await;
    // Operations of the store appear once they occur, and its background tasks have begun.
    let occurred = |line: &str| line.starts_with('#') || line.starts_with("forebay_store_seconds");
    let series = metrics.lines().filter(|line| !occurred(line)).count();
    assert!(series <= FRESH_SERIES_MAX, "{series} series");
    assert!(!metrics.contains("forebay_http_request_seconds_count"), "nobody asked anything");
    let missing = reqwest::get(format!("http://{}/none", api.address)).await.expect("an answer");
    assert_eq!(missing.status(), 404);
    let metrics = exposition().await;
    let classes: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("forebay_http_request_seconds_count")).collect();
    assert_eq!(classes, ["forebay_http_request_seconds_count{route=\"other\",status=\"4xx\"} 1"]);
}
