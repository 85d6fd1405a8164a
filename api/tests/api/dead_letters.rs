//! Dead letters: listed, redriven, discarded, by administrators only.
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Installation, cluster_with, json as body_of, on_both_pairs, problem};

const LETTERS: &str = "/v1/dead-letters";

/// Fills a counter and adds 1, which fails; returns the id of that increment.
async fn overflow(installation: &Installation, counter: &str) -> String {
    installation.increment(0, counter, i64::MAX).await;
    installation.wait_for_value(0, counter, i64::MAX).await;
    let failed = problem(installation.increment_and_wait(0, counter).await, 422).await;
    failed["receipt"]["id"].as_str().expect("an id").to_owned()
}

async fn redrive(installation: &Installation, replica: usize, asked: &Value) -> Value {
    let request = installation.at(replica, Method::POST, &format!("{LETTERS}/redrive")).json(asked);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 202);
    body_of(response).await
}

async fn get(installation: &Installation, path: &str) -> Value {
    let response = installation.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    body_of(response).await
}

async fn send(installation: &Installation, method: &Method, path: &str) -> Response {
    let request = installation.at(0, method.clone(), path);
    let request = if method == Method::POST { request.json(&json!({})) } else { request };
    request.send().await.expect("an answer")
}

async fn status(installation: &Installation, replica: usize, id: &str) -> Value {
    let request = installation.at(replica, Method::GET, &format!("/v1/receipts/{id}"));
    body_of(request.send().await.expect("an answer")).await["status"].take()
}

on_both_pairs! {
    async fn a_redriven_letter_takes_effect(installation) {
        installation.wait_until_events_arrive().await;
        let id = overflow(&installation, "full").await;
        let listed = get(&installation, &format!("{LETTERS}?kind=increment&reason=counter_overflow")).await;
        let letter = get(&installation, &format!("{LETTERS}/{id}")).await;
        assert_eq!(listed, json!({"items": [letter], "next": null}));
        assert_eq!(letter["id"], id.as_str());
        assert_eq!(letter["item"], json!({"increment": {"counter": "full", "by": 1}}));
        assert_eq!((&letter["reason"], &letter["discarded_at"]), (&json!("counter_overflow"), &Value::Null));
        // The counter is still full.
        let asked = json!({"filter": {"id": id}});
        let again = redrive(&installation, 0, &asked).await;
        assert_eq!((&again["redriven"], &again["failed_again"]), (&json!(0), &json!(1)));
        assert_eq!(again["items"][0]["reason"], "counter_overflow");
        installation.increment(0, "full", -10).await;
        installation.wait_for_value(0, "full", i64::MAX - 10).await;
        let would = redrive(&installation, 1, &json!({"dry_run": true})).await;
        let items = json!([{"id": id, "status": "applied"}]);
        let expected = json!({"dry_run": true, "redriven": 1, "failed_again": 0, "items": items, "next": null});
        assert_eq!(would, expected);
        assert_eq!(status(&installation, 0, &id).await, "failed");
        let done = redrive(&installation, 0, &asked).await;
        assert_eq!((&done["redriven"], &done["dry_run"]), (&json!(1), &json!(false)));
        // The replica that redrove it shows the effect at once.
        let counter = get(&installation, "/v1/counters/full").await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(i64::MAX - 9), &json!(3)));
        for replica in 0..2 {
            assert_eq!(status(&installation, replica, &id).await, "applied");
        }
        assert_eq!(redrive(&installation, 0, &asked).await["items"], json!([]));
        problem(installation.get(&format!("{LETTERS}/{id}")).await, 404).await;
    }

    async fn a_discarded_letter_stays_failed(installation) {
        installation.wait_until_events_arrive().await;
        let id = overflow(&installation, "full").await;
        installation.increment(0, "full", -10).await;
        for _ in 0..2 {
            let path = format!("{LETTERS}/{id}");
            assert_eq!(send(&installation, &Method::DELETE, &path).await.status(), 204);
        }
        assert_eq!(get(&installation, LETTERS).await["items"], json!([]));
        let listed = get(&installation, &format!("{LETTERS}?discarded=true")).await;
        assert_eq!(listed["items"][0]["id"], id.as_str());
        assert!(listed["items"][0]["discarded_at"].as_str().expect("a time").ends_with('Z'));
        assert_eq!(redrive(&installation, 0, &json!({})).await["items"], json!([]));
        assert_eq!(status(&installation, 1, &id).await, "failed");
    }

    async fn letters_are_walked_page_by_page(installation) {
        installation.wait_until_events_arrive().await;
        let mut ids = vec![overflow(&installation, "full").await];
        for _ in 0..2 {
            let failed = problem(installation.increment_and_wait(0, "full").await, 422).await;
            ids.push(failed["receipt"]["id"].as_str().expect("an id").to_owned());
        }
        let (mut walked, mut after) = (Vec::new(), String::new());
        loop {
            let page = get(&installation, &format!("{LETTERS}?limit=1{after}")).await;
            walked.extend(page["items"][0]["id"].as_str().map(str::to_owned));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        ids.sort_unstable();
        walked.sort_unstable();
        assert_eq!(walked, ids);
        // Letters that failed again are passed over.
        let first = redrive(&installation, 0, &json!({"limit": 2})).await;
        assert_eq!(first["failed_again"], 2);
        let rest = redrive(&installation, 0, &json!({"limit": 2, "after": first["next"]})).await;
        assert_eq!((&rest["failed_again"], &rest["next"]), (&json!(1), &Value::Null));
    }

    async fn a_message_that_nobody_can_read_is_shown_and_discarded(installation) {
        let mut shown = Vec::new();
        for (body, item, reason) in [
            (&b"no JSON, \xc3\xa4"[..], json!("no JSON, ä"), "undecodable"),
            (br#"{"v":1,"new":[1.0]}"#, json!({"v": 1, "new": [1.0]}), "undecodable"),
            (b"\xff\x00", json!("base64:/wA="), "undecodable"),
            (
                br#"{"v":99,"id":"019a9c1e-7a10-8c01-9f3c-5a1d00000000","accepted_at_ms":5,"items":[]}"#,
                json!({"v": 99, "id": "019a9c1e-7a10-8c01-9f3c-5a1d00000000", "accepted_at_ms": 5, "items": []}),
                "unknown_version",
            ),
        ] {
            installation.put_into_queue(body).await;
            let id = shared::model::id::BodyId::of(body).to_string();
            let path = format!("{LETTERS}/{id}");
            let letter = installation
                .wait_for("a dead letter", async || {
                    let response = installation.get(&path).await;
                    if response.status() == 200 { Some(body_of(response).await) } else { None }
                })
                .await;
            assert_eq!((&letter["id"], &letter["kind"]), (&json!(id), &json!("message")));
            assert_eq!((&letter["item"], &letter["reason"]), (&item, &json!(reason)));
            // This id was never given to a client.
            problem(installation.get(&format!("/v1/receipts/{id}")).await, 404).await;
            shown.push(letter);
        }
        shown.sort_by_key(|letter| letter["id"].as_str().map(str::to_owned));
        let listed = get(&installation, &format!("{LETTERS}?kind=message")).await;
        assert_eq!(listed, json!({"items": shown, "next": null}));
        let newer = get(&installation, &format!("{LETTERS}?kind=message&reason=unknown_version")).await;
        assert_eq!(newer["items"].as_array().expect("a list").len(), 1);
        let asked = json!({"filter": {"kind": "message"}});
        let again = redrive(&installation, 0, &asked).await;
        assert_eq!((&again["redriven"], &again["failed_again"]), (&json!(0), &json!(4)));
        for letter in &shown {
            let only = json!({"filter": {"id": letter["id"]}});
            assert_eq!(redrive(&installation, 0, &only).await["items"][0]["reason"], letter["reason"]);
            let path = format!("{LETTERS}/{}", letter["id"].as_str().expect("an id"));
            assert_eq!(send(&installation, &Method::DELETE, &path).await.status(), 204);
        }
        assert_eq!(get(&installation, LETTERS).await["items"], json!([]));
        // Other writes go on.
        installation.increment(0, "beside", 1).await;
        installation.wait_for_value(0, "beside", 1).await;
    }

    async fn what_is_asked_wrongly_is_told(installation) {
        let id = installation.increment(0, "a", 1).await;
        for path in ["limit=0", "limit=1001", "after=x", "kin=increment", "discarded=maybe"] {
            problem(installation.get(&format!("{LETTERS}?{path}")).await, 422).await;
        }
        for unknown in [&*id, "x", "redrives", "01234567-89ab-8cde-8f01-23456789abcd"] {
            let path = format!("{LETTERS}/{unknown}");
            problem(installation.get(&path).await, 404).await;
            problem(send(&installation, &Method::DELETE, &path).await, 404).await;
        }
        let path = format!("{LETTERS}/redrive");
        for (text, pointer) in [
            (r#"{"limit":0}"#, "/limit"),
            (r#"{"after":"x"}"#, "/after"),
            (r#"{"filter":{"id":"x"}}"#, "/filter/id"),
        ] {
            let reported = problem(installation.post(&path, text).await, 422).await;
            assert_eq!(reported["errors"][0]["pointer"], pointer, "{text}");
        }
        problem(installation.post(&path, r#"{"filters":{}}"#).await, 422).await;
        problem(installation.post(&path, "").await, 400).await;
        problem(installation.post(&path, "{").await, 400).await;
    }
}

/// Cached reads of another replica are known to be old long before they expire.
#[tokio::test(flavor = "multi_thread")]
async fn other_replicas_hear_of_a_redrive() {
    let patient = |config: &mut shared::config::Config| {
        // One hour.
        config.cache.ttl_ms = 3_600_000;
    };
    cluster_with("redriven", patient, async |installation: Installation| {
        installation.wait_until_events_arrive().await;
        overflow(&installation, "full").await;
        installation.increment(0, "full", -10).await;
        installation.wait_for_value(1, "full", i64::MAX - 10).await;
        assert_eq!(redrive(&installation, 0, &json!({})).await["redriven"], 1);
        installation.wait_for_value(1, "full", i64::MAX - 9).await;
        installation
    })
    .await;
}

/// A failure of one letter at the server does not count against other reads.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_the_server_refuses_end_no_reads() {
    const REFUSE: &str = "create function refuse() returns trigger language plpgsql as $$ begin
            raise exception 'not with me'; end $$;
        create trigger refuse before update on counters for each row when (new.name = 'full')
        execute function refuse()";
    cluster_with(
        "refused",
        |_| {},
        async |installation: Installation| {
            installation.wait_until_events_arrive().await;
            overflow(&installation, "full").await;
            installation.increment(0, "full", -10).await;
            installation.wait_for_value(0, "full", i64::MAX - 10).await;
            let url = &installation.config.store.url;
            testkit::execute(url, REFUSE.into()).await.expect("it may");
            // One more than the failures in a row that open the breaker.
            for round in 0..5 {
                let request = installation.at(0, Method::POST, &format!("{LETTERS}/redrive"));
                problem(request.json(&json!({})).send().await.expect("an answer"), 503).await;
                let health = get(&installation, "/health").await;
                assert_eq!(health["breakers"]["store"], "closed", "{round}: {health}");
            }
            assert_eq!(installation.get("/v1/counters/never").await.status(), 404);
            testkit::execute(url, "drop trigger refuse on counters".into()).await.expect("it may");
            assert_eq!(redrive(&installation, 0, &json!({})).await["redriven"], 1);
            installation
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_administrator_sees_or_touches_them() {
    let off = |config: &mut shared::config::Config| config.auth.admin_without_keys = false;
    cluster_with("letters_off", off, async |installation: Installation| {
        let id = installation.increment(0, "a", 1).await;
        let one = format!("{LETTERS}/{id}");
        let redrive = format!("{LETTERS}/redrive");
        for (method, path) in
            [(Method::GET, LETTERS), (Method::GET, &*one), (Method::POST, &*redrive), (Method::DELETE, &*one)]
        {
            problem(send(&installation, &method, path).await, 403).await;
        }
        installation
    })
    .await;
}
