//! Expensive checks of schemas: each ends within its budget, away from the workers, with an answer
//! that says so; usual documents are taken.
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::Method;
use serde_json::{Value, json as object};

use crate::support::{Installation, embedded_with, json, on_both_pairs, problem};

async fn define(installation: &Installation, name: &str, schema: &Value) -> u16 {
    let request = installation.at(0, Method::PUT, &format!("/v1/collections/{name}"));
    request.json(&object!({ "schema": schema })).send().await.expect("an answer").status().as_u16()
}

async fn send(installation: &Installation, name: &str, body: String) -> reqwest::Response {
    let request = installation.at(0, Method::POST, &format!("/v1/data/{name}"));
    request.header("content-type", "application/json").body(body).send().await.expect("an answer")
}

/// Makes a text of letters without an order.
fn letters(count: u32) -> String {
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    (0..count).map(letter).collect()
}

/// Sends cheap requests until `done`, and fails when one answer took half of that time. A worker
/// that runs a check answers nothing, and a busy machine delays the check in the same measure.
async fn while_others_are_answered<T>(installation: &Installation, done: impl Future<Output = T>) -> T {
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    let mut done = std::pin::pin!(done);
    loop {
        let asked = Instant::now();
        tokio::select! {
            done = &mut done => {
                longest = longest.max(asked.elapsed());
                assert!(longest < begun.elapsed() / 2, "{longest:?} of {:?}", begun.elapsed());
                return done;
            }
            answer = installation.get("/livez") => assert_eq!(answer.status(), 200),
        }
        longest = longest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

on_both_pairs! {
    async fn events_of_other_services_are_taken_however_many_members_they_have(installation) {
        let person = object!({"name": "a", "email": "e", "username": "u"});
        let commit = |id: u32| object!({
            "id": format!("{id:040x}"), "distinct": true, "author": person, "committer": person, "added": [], "removed": [], "modified": ["f"],
        });
        let event = object!({"ref": "refs/heads/main", "commits": (0..200).map(commit).collect::<Vec<_>>()});
        let all: serde_json::Map<_, _> = (0..20_000).map(|n| (format!("{n}"), object!(0))).collect();
        for data in [event, Value::Object(all)] {
            assert_eq!(send(&installation, "hooks", data.to_string()).await.status(), 202);
        }
        installation
            .wait_for("both are stored", async || {
                let page = json(installation.get("/v1/data/hooks").await).await;
                (page["items"].as_array()?.len() == 2).then_some(())
            })
            .await;
    }

    async fn a_schema_that_doubles_its_work_is_refused_in_every_spelling(installation) {
        let draft = "https://json-schema.org/draft/2019-09/schema";
        for target in ["#", "#/$defs/cheap"] {
            let twice = object!([{"$recursiveRef": target}, {"$recursiveRef": target}]);
            let schema = object!({"$schema": draft, "$defs": {"cheap": true}, "properties": {"a": {"allOf": twice}}});
            assert_eq!(define(&installation, "rec", &schema).await, 422, "{target}");
        }
        let tree = object!({"$schema": draft, "properties": {"a": {"$recursiveRef": "#"}, "n": {"type": "integer"}}});
        assert_eq!(define(&installation, "tree", &tree).await, 200);
        assert_eq!(send(&installation, "tree", r#"{"a":{"a":{"n":1}}}"#.into()).await.status(), 202);
        problem(send(&installation, "tree", r#"{"a":{"a":{"n":"x"}}}"#.into()).await, 422).await;
    }

    async fn patterns_of_people_are_taken_and_others_are_refused_by_their_limit(installation) {
        let many: serde_json::Map<_, _> = (0..50)
            .map(|n| (format!("f{n}"), object!({"pattern": format!("^.{{1,{}}}$", 1_000 + n)})))
            .collect();
        for schema in [
            object!({"properties": {"name": {"pattern": r"^[\p{L} .'-]{1,50}$"}}}),
            object!({"properties": {"name": {"pattern": "^.{1,1024}$"}}}),
            object!({"properties": many}),
        ] {
            assert_eq!(define(&installation, "people", &schema).await, 200);
            assert_eq!(send(&installation, "people", r#"{"name":"Zoë"}"#.into()).await.status(), 202);
        }
        for (pattern, words) in [("((a{1000}){1000}){1000}", "states"), ("^(?!x)", "look-around"), (r"(a)\1", "back-references")] {
            let request = installation.at(0, Method::PUT, "/v1/collections/people");
            let body = object!({"schema": {"properties": {"name": {"pattern": pattern}}}});
            let refused = problem(request.json(&body).send().await.expect("an answer"), 422).await;
            assert_eq!(refused["errors"][0]["pointer"], "/schema/properties/name/pattern");
            let detail = refused["errors"][0]["detail"].as_str().expect("a detail");
            assert!(detail.contains(words) && !detail.contains("is not a"), "{detail}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dear_check_ends_with_422_and_nobody_waits_for_it() {
    let one_worker = |config: &mut shared::config::Config| config.server.workers = 1;
    embedded_with(one_worker, async |installation: Installation| {
        let text = object!({ "log": letters(200_000) }).to_string();
        let of = |pattern: String| object!({"pattern": pattern});
        let thirty: Vec<_> = (0..30).map(|n| of(format!("a[ab]{{{}}}c", 2_000 + n))).collect();
        let definition: serde_json::Map<_, _> =
            (0..600).map(|n| (format!("d{n}"), object!({"multipleOf": 0.7}))).collect();
        let repeated: Vec<_> =
            (0..600).map(|n| object!({"not": {"$ref": format!("#/$defs/d{n}")}})).collect();
        let numbers = format!(r#"{{"log":[{}0.1]}}"#, "0.1,".repeat(40_000));
        let many = format!("[{}]", vec![format!(r#"{{"log":[{}0.1]}}"#, "0.1,".repeat(200)); 900].join(","));
        for (name, schema, body) in [
            ("back", object!({"properties": {"log": {"pattern": "a[ab]{9000}c"}}}), &text),
            ("ways", object!({"properties": {"log": {"pattern": "^(a|b)*a(a|b){1000}c"}}}), &text),
            ("thirty", object!({"properties": {"log": {"anyOf": thirty}}}), &text),
            (
                "repeated",
                object!({"$defs": definition, "properties": {"log": {"items": {"allOf": repeated}}}}),
                &numbers,
            ),
            (
                "request",
                object!({"$defs": definition, "properties": {"log": {"items": {"allOf": repeated}}}}),
                &many,
            ),
        ] {
            assert_eq!(define(&installation, name, &schema).await, 200, "{name}");
            let sent = send(&installation, name, body.clone());
            let answer = while_others_are_answered(&installation, sent).await;
            if name == "request" {
                let answer = json(answer).await;
                let rejected = answer["rejected"].as_array().expect("most are rejected");
                let last = rejected.last().expect("one").to_string();
                assert!(last.contains("collections.check_ms_max"), "{last}");
            } else {
                let refused = problem(answer, 422).await.to_string();
                assert!(refused.contains("collections.check_ms_max"), "{refused}");
            }
        }
        installation
    })
    .await;
}

/// Number of checks per core, of a tenth of a second each: they keep a core busy for longer than a
/// request waits for its turn.
const DEAR_PER_CORE: usize = 30;

async fn write_beside_dear_checks(installation: &Installation) {
    let pattern = |pattern: &str| object!({"properties": {"log": {"pattern": pattern}}});
    assert_eq!(define(installation, "dear", &pattern("^(a|b)*a(a|b){1000}c")).await, 200);
    let numbered = object!({"required": ["n"], "properties": {"n": {"type": "integer"}}});
    assert_eq!(define(installation, "cheap", &numbered).await, 200);
    let dear = object!({ "log": letters(20_000) }).to_string();
    let cheap = object!({"n": 1, "padding": "p".repeat(16 << 10)}).to_string();
    let cores = std::thread::available_parallelism().expect("a number").get();
    let count = DEAR_PER_CORE * (cores - 1).max(1);
    let mut attack: FuturesUnordered<_> =
        (0..count).map(|_| send(installation, "dear", dear.clone())).collect();
    let first = attack.next().await.expect("an answer");
    problem(first, 422).await;
    let others = async {
        for _ in 0..5 {
            assert_eq!(send(installation, "cheap", cheap.clone()).await.status(), 202);
            assert_eq!(define(installation, "other", &numbered).await, 200);
        }
    };
    let mut others = std::pin::pin!(others);
    let mut ended = 1;
    loop {
        tokio::select! {
            biased;
            () = &mut others => break,
            Some(answer) = attack.next() => {
                assert!([422, 503].contains(&answer.status().as_u16()), "{answer:?}");
                ended += 1;
            }
        }
    }
    assert!(ended < count, "the others came last");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_of_others_do_not_wait_for_dear_checks() {
    embedded_with(
        |_| {},
        async |installation: Installation| {
            write_beside_dear_checks(&installation).await;
            installation
        },
    )
    .await;
}
