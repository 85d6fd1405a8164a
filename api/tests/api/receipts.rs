//! Receipts: accepted, applied, failed, or never issued.
use reqwest::Method;
use serde_json::{Value, json as value};
use shared::model::id::{IdIssuer, ItemId, ItemKey, Kind};
use shared::model::idempotency as keyed;
use shared::model::message::{Builder, decode};
use shared::model::outcome::ItemStatus;
use shared::store::{Retention, Stored};

use crate::support::{Installation, cluster, embedded, json, on_both_pairs, problem};

async fn receipt(installation: &Installation, replica: usize, id: &str) -> Value {
    let request = installation.at(replica, Method::GET, &format!("/v1/receipts/{id}"));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200, "an issued id is never unknown");
    json(response).await
}

async fn settled(installation: &Installation, replica: usize, id: &str) -> Value {
    installation
        .wait_for("a settled receipt", async || {
            let receipt = receipt(installation, replica, id).await;
            (receipt["status"] != "accepted").then_some(receipt)
        })
        .await
}

on_both_pairs! {
    async fn a_receipt_becomes_applied_at_every_replica(installation) {
        let id = installation.increment(0, "applied", 1).await;
        for replica in 0..2 {
            let receipt = settled(&installation, replica, &id).await;
            assert_eq!(receipt["status"], "applied");
            assert!(receipt["applied_at"].as_str().expect("a time").ends_with('Z'));
        }
    }

    async fn an_increment_that_overflows_is_set_aside_alone(installation) {
        let body = format!(r#"[{{"by":{}}},{{"by":1}},{{"by":-5}}]"#, i64::MAX);
        let accepted = json(installation.post("/v1/counters/full/increments", &body).await).await;
        let id = |index: usize| accepted["ids"][index].as_str().expect("an id").to_owned();
        assert_eq!(settled(&installation, 0, &id(0)).await["status"], "applied");
        let failed = settled(&installation, 1, &id(1)).await;
        assert_eq!(failed["status"], "failed");
        assert_eq!(failed["reason"], "counter_overflow");
        assert_eq!(settled(&installation, 1, &id(2)).await["status"], "applied");
        let counter = installation.wait_for_value(0, "full", i64::MAX - 5).await;
        assert_eq!(counter["version"], 2);
    }

    async fn an_accepted_write_names_its_target_and_its_receipt_the_time(installation) {
        let document = json(installation.post("/v1/data/shop", "{}").await).await;
        let document_id = document["id"].as_str().expect("an id");
        assert_eq!(document["target"], value!({"collection": "shop"}));
        let now = api::rfc3339::rfc3339(shared::runtime::clock::now_ms());
        let point = value!({"timestamp": now, "value": 1, "type": "cpu"}).to_string();
        for (method, path, body, target) in [
            (Method::POST, "/v1/counters/c/increments", "{}", value!({"counter": "c"})),
            (Method::POST, "/v1/data/shop", "{}", value!({"collection": "shop"})),
            (Method::POST, "/v1/metrics", &*point, value!({"type": "cpu"})),
            (Method::DELETE, &*format!("/v1/data/shop/{document_id}"), "", value!({"collection": "shop", "document": document_id})),
        ] {
            for key in [None, Some("k")] {
                let request = installation.at(0, method.clone(), path).header("content-type", "application/json");
                let request = key.iter().fold(request, |request, key| request.header("idempotency-key", *key));
                let answer = request.body(body.to_owned()).send().await.expect("an answer");
                assert_eq!(answer.status(), 202);
                let accepted = json(answer).await;
                assert_eq!(accepted["target"], target, "{path}");
                let id = accepted["id"].as_str().expect("an id");
                // Accepted or applied: the time of an id without a key is known, and no target.
                for receipt in [receipt(&installation, 1, id).await, settled(&installation, 0, id).await] {
                    let expected = if key.is_none() { &accepted["accepted_at"] } else { &Value::Null };
                    assert_eq!(receipt["accepted_at"], *expected, "{path} {key:?}");
                    assert_eq!(receipt.get("target"), None, "{path} {key:?}");
                }
            }
        }
        let two_types = format!("[{point},{}]", point.replace("cpu", "disk"));
        for (path, body, target) in [
            ("/v1/counters/c/increments", "[{},{},5]", value!({"counter": "c"})),
            ("/v1/data/shop", "[{},{},5]", value!({"collection": "shop"})),
            ("/v1/metrics", &*format!("[{point},{point},5]"), value!({"type": "cpu"})),
            ("/v1/metrics", &*two_types, Value::Null),
        ] {
            let accepted = json(installation.post(path, body).await).await;
            assert_eq!((&accepted["accepted"], &accepted["target"]), (&2.into(), &target), "{path}");
        }
    }

    async fn the_receipt_of_what_was_set_aside_names_time_and_target(installation) {
        let full = format!(r#"{{"by":{}}}"#, i64::MAX);
        assert_eq!(installation.post("/v1/counters/full/increments", &full).await.status(), 202);
        let post = async |key: Option<&str>, wait: bool, by: i64| {
            let request = installation.at(0, Method::POST, "/v1/counters/full/increments").json(&value!({"by": by}));
            let request = key.iter().fold(request, |request, key| request.header("idempotency-key", *key));
            let request = if wait { request.header("prefer", "wait=30") } else { request };
            json(request.send().await.expect("an answer")).await
        };
        installation.wait_for_value(0, "full", i64::MAX).await;
        let target = value!({"counter": "full"});
        for key in [None, Some("k")] {
            let accepted = post(key, false, 1).await;
            let id = accepted["id"].as_str().expect("an id");
            settled(&installation, 0, id).await;
            for replica in 0..2 {
                let failed = receipt(&installation, replica, id).await;
                assert_eq!((&failed["reason"], &failed["target"]), (&"counter_overflow".into(), &target));
                assert_eq!(failed["accepted_at"], accepted["accepted_at"], "{key:?}");
            }
            let reported = post(key, true, 1).await["receipt"].take();
            assert_eq!((&reported["status"], &reported["target"]), (&"failed".into(), &target));
            assert!(reported["accepted_at"].is_string(), "{reported}");
        }
        // Another payload under the key has its own target and no time, because it was never accepted.
        let reported = post(Some("k"), true, 2).await["receipt"].take();
        assert_eq!((&reported["status"], &reported["target"], reported.get("accepted_at")), (&"conflict".into(), &target, None));
    }

    async fn what_cannot_be_read_has_a_receipt_without_a_target(installation) {
        let id = IdIssuer::new(rand::random(), 0).next(shared::runtime::clock::now_ms());
        let body = format!(
            r#"{{"v":1,"id":"{id}","accepted_at_ms":{},"items":[{{"increment":{{"counter":"a b","by":1}}}},{{"document":{{"collection":"c","data":[]}}}}]}}"#,
            id.time_ms()
        );
        installation.put_into_queue(body.as_bytes()).await;
        for (index, kind) in [Kind::Increment, Kind::Document].into_iter().enumerate() {
            let item = installation.backends[0].ids.sign(id.item(kind, index)).to_string();
            let failed = settled(&installation, 0, &item).await;
            assert_eq!((&failed["reason"], failed.get("target")), (&"unreadable".into(), None), "{failed}");
            assert_eq!(failed["accepted_at"], api::rfc3339::rfc3339(id.time_ms()));
        }
    }

    async fn an_id_that_was_never_issued_is_not_found(installation) {
        let id = installation.increment(0, "real", 1).await;
        let other_check = if id.ends_with('0') { "1" } else { "0" };
        let forged = format!("{}{other_check}", &id[..35]);
        for unknown in [forged.as_str(), "x", "01234567-89ab-4cde-8f01-23456789abcd", &id.to_uppercase()[..35]] {
            problem(installation.get(&format!("/v1/receipts/{unknown}")).await, 404).await;
        }
    }
}

async fn known_while_nothing_is_applied(mut installation: Installation) -> Installation {
    for consumer in installation.consumers.drain(..) {
        consumer.stop().await;
    }
    let id = installation.increment(0, "early", 1).await;
    for replica in 0..2 {
        let receipt = receipt(&installation, replica, &id).await;
        assert_eq!(receipt["status"], "accepted");
        assert_eq!(receipt["kind"], "increment");
        assert_eq!(receipt["id"], id.as_str());
    }
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_known_before_its_row_exists_embedded() {
    embedded(known_while_nothing_is_applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_known_at_every_replica_before_its_row_exists_cluster() {
    cluster("early", known_while_nothing_is_applied).await;
}

const DAY_MS: i64 = 24 * 3_600_000;

/// Retention that keeps everything above the floor.
const LONG: Retention = Retention {
    now_ms_max: i64::MAX,
    points_ms: 90 * DAY_MS,
    minutes_ms: 90 * DAY_MS,
    hours_ms: 90 * DAY_MS,
    discarded_ms: 90 * DAY_MS,
    remembered_ms: 0,
    forget_before_ms: None,
    rows_max: 1_000,
};

/// Records that were applied so long ago that their outcome is removed are gone at every replica.
async fn gone_once_it_is_forgotten(installation: Installation) -> Installation {
    let backend = &installation.backends[0];
    let now_ms = shared::runtime::clock::now_ms();
    let mut ids = IdIssuer::new(rand::random(), 0);
    let mut message = |at_ms: i64| {
        let mut builder = Builder::new(ids.next(at_ms), at_ms);
        builder.push(br#"{"increment":{"counter":"forgotten","by":1}}"#, 1);
        builder.push(br#"{"document":{"collection":"forgotten","data":{}}}"#, 1);
        decode(&builder.finish().body).expect("a message")
    };
    let (old, new) = (message(now_ms - 5 * DAY_MS), message(now_ms));
    let id = |item| backend.ids.sign(item).to_string();
    let [increment, document] = [0, 1].map(|index| old.item_key(index));
    backend.store.apply([old.clone(), new.clone()].into()).await.expect("is applied");
    let retention = Retention { forget_before_ms: Some(now_ms - 3 * DAY_MS), ..LONG };
    // Consumers run housekeeping, too, one at a time.
    let forgotten = async || {
        backend.store.housekeep(retention).await.expect("is kept");
        let fates = backend.store.item_statuses([increment].into()).await.expect("is read");
        (fates[0] == Some(ItemStatus::Forgotten)).then_some(())
    };
    installation.wait_for("what is old to be forgotten", forgotten).await;
    for replica in 0..2 {
        let get = async |path: String| {
            installation.at(replica, Method::GET, &path).send().await.expect("an answer")
        };
        let gone = problem(get(format!("/v1/receipts/{}", id(increment))).await, 410).await;
        assert!(gone["detail"].as_str().expect("a detail").contains("no longer known"), "{gone}");
        assert_eq!(receipt(&installation, replica, &id(new.item_key(0))).await["status"], "applied");
        let there = get(format!("/v1/data/forgotten/{}", id(document))).await;
        assert_eq!(json(there).await["status"], "applied");
        // It never came, or not to this collection: the outcome is unknown.
        problem(get(format!("/v1/data/elsewhere/{}", id(document))).await, 410).await;
    }
    // It comes again, and only force applies it.
    backend.store.apply([old].into()).await.expect("is set aside");
    let increment = id(increment);
    assert_eq!(receipt(&installation, 1, &increment).await["reason"], "too_old");
    let mut asked = serde_json::json!({"filter": {"id": increment, "reason": "too_old"}});
    let redrive = async |asked: &Value| {
        let request = installation.at(0, Method::POST, "/v1/dead-letters/redrive").json(asked);
        json(request.send().await.expect("an answer")).await
    };
    let reported = redrive(&asked).await;
    assert_eq!(
        (&reported["failed_again"], &reported["items"][0]["reason"]),
        (&1.into(), &"too_old".into()),
        "{reported}"
    );
    assert!(reported["items"][0]["detail"].as_str().expect("a detail").contains("needs force"), "{reported}");
    asked["force"] = true.into();
    assert_eq!(redrive(&asked).await["redriven"], 1);
    installation.wait_for_value(0, "forgotten", 3).await;
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_gone_embedded() {
    embedded(gone_once_it_is_forgotten).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_gone_at_every_replica_cluster() {
    cluster("forgotten", gone_once_it_is_forgotten).await;
}

/// Removes the records of today, by a message of a later day, until these items have no status.
async fn forget_today(installation: &Installation, gone: &[ItemKey]) {
    let backend = &installation.backends[0];
    let now_ms = shared::runtime::clock::now_ms();
    let mut builder = Builder::new(IdIssuer::new(rand::random(), 0).next(now_ms + 2 * DAY_MS), now_ms);
    builder.push(br#"{"increment":{"counter":"passing","by":1}}"#, 1);
    let passing = decode(&builder.finish().body).expect("a message");
    backend.store.apply([passing].into()).await.expect("is applied");
    let retention = Retention { forget_before_ms: Some(now_ms + 4 * DAY_MS), ..LONG };
    // Consumers run housekeeping, too, one at a time.
    let forgotten = async || {
        backend.store.housekeep(retention).await.expect("is kept");
        let fates = backend.store.item_statuses(gone.into()).await.expect("is read");
        fates.iter().all(Option::is_none).then_some(())
    };
    installation.wait_for("keys to be forgotten", forgotten).await;
}

fn hints_of(location: &str) -> &str {
    location.split_once('?').expect("hints").1
}

on_both_pairs! {
    async fn a_keyed_write_whose_key_was_forgotten_is_gone_by_its_location(installation) {
        let sent = async |path: &str, body: &str| {
            let request = installation.at(0, Method::POST, path).header("idempotency-key", "k");
            let request = request.header("content-type", "application/json").body(body.to_owned());
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), 202);
            let location = answer.headers()["location"].to_str().expect("text").to_owned();
            (json(answer).await["id"].as_str().expect("an id").to_owned(), location)
        };
        let point = r#"{"type":"t","timestamp":"2026-10-31T00:00:00Z","value":1}"#;
        let mut writes = vec![
            sent("/v1/counters/old/increments", "{}").await,
            sent("/v1/metrics", point).await,
            sent("/v1/data/old", r#"{"a":1}"#).await,
        ];
        // This document was deleted again, with a key.
        let path = writes[2].1.split('?').next().expect("a path").to_owned();
        let delete = installation.at(0, Method::DELETE, &path).header("idempotency-key", "k");
        let delete = delete.send().await.expect("an answer");
        let location = delete.headers()["location"].to_str().expect("text").to_owned();
        writes.push((json(delete).await["id"].as_str().expect("an id").to_owned(), location));
        let many = installation.at(0, Method::POST, "/v1/counters/old/increments").header("idempotency-key", "many");
        let many = json(many.json(&serde_json::json!([{"by": 1}, {"by": 2}])).send().await.expect("an answer")).await;
        let (id, payload) = (many["ids"][1].as_str().expect("an id"), many["payloads"][1].as_str().expect("a payload"));
        let message = many["message"].as_str().expect("a message");
        writes.push((id.to_owned(), format!("/v1/receipts/{id}?payload={payload}&message={message}")));
        let receipt_at = |(id, location): &(String, String)| format!("/v1/receipts/{id}?{}", hints_of(location));
        let mut keys = Vec::new();
        for write in &writes {
            let applied = installation.wait_for("an applied write", async || {
                let receipt = json(installation.get(&receipt_at(write)).await).await;
                (receipt["status"] == "applied").then_some(())
            });
            applied.await;
            keys.push(write.0.parse::<ItemId>().expect("an id").key());
        }
        // The first item of an array is as old.
        keys.push(many["ids"][0].as_str().expect("an id").parse::<ItemId>().expect("an id").key());
        forget_today(&installation, &keys).await;
        for write in &writes {
            for replica in 0..2 {
                for wait in ["wait=0", "wait=20"] {
                    let request = installation.at(replica, Method::GET, &receipt_at(write)).header("prefer", wait);
                    problem(request.send().await.expect("an answer"), 410).await;
                }
            }
            // The id alone has no time.
            assert_eq!(receipt(&installation, 1, &write.0).await["status"], "accepted");
        }
        problem(installation.get(&writes[2].1).await, 410).await;
    }

    async fn a_keyed_document_that_retention_took_is_applied_and_then_gone(installation) {
        let backend = &installation.backends[0];
        let brief = installation.at(0, Method::PUT, "/v1/collections/brief").json(&serde_json::json!({"retention_days": 1}));
        assert_eq!(brief.send().await.expect("an answer").status(), 200);
        // The document is as a client sent it two days ago.
        let old_ms = shared::runtime::clock::now_ms() - 2 * DAY_MS;
        let id = keyed::id_of("anonymous", Kind::Document, "k", 0);
        let fingerprint = keyed::fingerprint_of("POST", "brief", r#"{"a":1}"#);
        let message = IdIssuer::new(rand::random(), 0).next(old_ms);
        let mut builder = Builder::new(message, old_ms);
        let item = format!(
            r#"{{"document":{{"collection":"brief","data":{{"a":1}}}},"keyed":{{"id":"{id}","fingerprint":"{fingerprint}"}}}}"#
        );
        builder.push(item.as_bytes(), 1);
        backend.store.apply([decode(&builder.finish().body).expect("a message")].into()).await.expect("is applied");
        let taken = async || {
            backend.store.housekeep(LONG).await.expect("is kept");
            let stored = backend.store.document("brief", id).await.expect("is read");
            (stored == Some(Stored::Deleted)).then_some(())
        };
        installation.wait_for("retention to take it", taken).await;
        let text = backend.ids.sign(id).to_string();
        let location = format!("{text}?payload={fingerprint}&message={message}");
        let read = async |path: &str| installation.at(1, Method::GET, path).send().await.expect("an answer");
        for path in [format!("/v1/receipts/{location}"), format!("/v1/receipts/{text}")] {
            assert_eq!(json(read(&path).await).await["status"], "applied");
        }
        problem(read(&format!("/v1/data/brief/{location}")).await, 410).await;
        problem(read(&format!("/v1/data/brief/{text}")).await, 404).await;
        // Another payload under the key was never stored, whatever became of this one.
        let other = keyed::fingerprint_of("POST", "brief", r#"{"a":2}"#);
        let other = json(read(&format!("/v1/data/brief/{text}?payload={other}&message={message}")).await).await;
        assert_eq!(other["status"], "conflict");
        // A retry is no new document.
        let retry = installation.at(0, Method::POST, "/v1/data/brief").header("idempotency-key", "k");
        let retry = retry.header("prefer", "wait=20").json(&serde_json::json!({"a": 1})).send().await.expect("an answer");
        assert_eq!(retry.status(), 200);
        let retried = json(retry).await;
        assert_eq!((&retried["id"], &retried["status"]), (&text.as_str().into(), &"deleted".into()), "{retried}");
        assert_eq!(json(read("/v1/data/brief").await).await["items"], serde_json::json!([]));
        forget_today(&installation, &[id]).await;
        for path in [format!("/v1/receipts/{location}"), format!("/v1/data/brief/{location}")] {
            problem(read(&path).await, 410).await;
        }
    }

    async fn a_message_in_a_receipt_is_one_or_is_refused(installation) {
        let id = installation.increment(0, "named", 1).await;
        for bad in ["", "x", &id[1..], "01234567-89ab-4cde-8f01-23456789abcd", "{019a9c1e-7a10-8c01-9f3c-5a1d0000}"] {
            let refused = problem(installation.get(&format!("/v1/receipts/{id}?message={bad}")).await, 422).await;
            assert_eq!(refused["errors"][0]["parameter"], "message", "{bad}");
        }
        // An id without a key names its message by itself.
        let old = IdIssuer::new(1, 1).next(5);
        assert_eq!(installation.get(&format!("/v1/receipts/{id}?message={old}")).await.status(), 200);
    }
}
