//! Versions side by side: messages, events and ids of a newer version, met by this one.
use serde_json::{Value, json};
use shared::model::id::{IdIssuer, ItemKey, Kind};
use shared::model::message::{Builder, decode};
use shared::store::StoreError;
use testkit::inspect;
use uuid::Uuid;

use crate::support::{Installation, cluster, json as body_of, on_both_pairs};

/// Makes the key of an item of a kind that only a newer version knows.
fn later_kind(known: ItemKey) -> ItemKey {
    let bits = known.as_uuid().as_u128() & !(0b111 << 28) | 6 << 28;
    ItemKey::from_uuid(Uuid::from_u128(bits)).expect("the layout of a key")
}

async fn holes(installation: &Installation) -> u64 {
    let metrics = format!("http://{}/metrics", installation.apis[0].ops_address);
    let text = installation.client.get(metrics).send().await.expect("an answer").text().await.expect("text");
    let line = text.lines().find(|line| line.starts_with("forebay_api_event_holes_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric")
}

/// The events are as a newer consumer would send them: a new kind in every list, and a body of their own.
async fn newer_events_empty_no_cache(installation: Installation) -> Installation {
    installation.wait_until_events_arrive().await;
    installation.increment(0, "known", 1).await;
    installation.wait_for_value(0, "known", 1).await;
    let exchange = format!("{}.events.v1", installation.config.queue.prefix);
    let url = installation.config.queue.url.clone();
    let later = later_kind(IdIssuer::new(1, 1).next(shared::runtime::clock::now_ms()).item(Kind::Point, 0));
    let print = "00112233445566778899aabbccddeeff";
    let send = async |number: u64, body: Value| {
        let event =
            json!({"publisher": 77, "number": number, "store_time_ms": null, "body": body, "later": 1});
        inspect::send(&url, &exchange, event.to_string().as_bytes()).await.expect("is sent");
    };
    send(0, json!({"heartbeat": {"store_away": false, "load": 5}})).await;
    let before = holes(&installation).await;
    for number in 1..=8 {
        let counter = json!({"name": "known", "value": 1_000 + number, "version": 1_000 + number, "updated_at_ms": 5, "unit": 1});
        send(
            number,
            match number % 4 {
                0 => json!({"rested": {"for": number}}),
                _ => json!({"committed": {
                    "counters": [{"gauge": 1}, counter],
                    "keyed": [{"item": later.as_uuid(), "fingerprint": print, "verdict": "delayed"}],
                    "standings": [{"item": later.as_uuid(), "value": 1.5}],
                    "failed": [{"item": later.as_uuid(), "because": []}],
                    "jobs": [{"job": number}],
                }}),
            },
        )
        .await;
    }
    installation.wait_for_value(0, "known", 1_007).await;
    assert_eq!(holes(&installation).await, before, "nothing was missed");
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_newer_consumer_empty_no_cache_and_what_is_known_of_them_counts() {
    cluster("newer", newer_events_empty_no_cache).await;
}

async fn receipt(installation: &Installation, item: ItemKey) -> Value {
    let id = installation.backends[0].ids.sign(item);
    let answer = installation.get(&format!("/v1/receipts/{id}")).await;
    assert_eq!(answer.status(), 200, "an issued id is never unknown");
    let receipt = body_of(answer).await;
    assert_eq!((&receipt["id"], &receipt["kind"]), (&json!(id.to_string()), &json!("unknown")));
    receipt
}

/// Dead-letters an item as a newer consumer would.
async fn set_aside(installation: &Installation, item: ItemKey) {
    let id = item.as_uuid();
    if let Some(directory) = installation.config.store.url.strip_prefix("embedded:") {
        let file = std::path::Path::new(directory).join("store.db");
        let row = format!(
            "insert into dead_letters values (x'{}', 'job', 'no_target', 'why', '{{}}', 1, 2, null)",
            id.simple()
        );
        testkit::sqlite::execute(&file, row).await.expect("is written");
    } else {
        let row = format!(
            "insert into dead_letters (id, kind, reason, detail, item, accepted_at, set_aside_at)
             values ('{id}', 'job', 'no_target', 'why', '{{}}', now(), now())"
        );
        testkit::execute(&installation.config.store.url, row).await.expect("is written");
    }
}

on_both_pairs! {
    async fn a_receipt_of_a_kind_that_only_a_newer_version_knows_tells_what_became_of_it(installation) {
        let now_ms = shared::runtime::clock::now_ms();
        let mut builder = Builder::new(IdIssuer::new(rand::random(), 0).next(now_ms), now_ms);
        for _ in 0..2 {
            builder.push(br#"{"increment":{"counter":"beside","by":1}}"#, 1);
        }
        let message = decode(&builder.finish().body).expect("a message");
        let [applied, failed] = [0, 1].map(|index| later_kind(message.item_key(index)));
        assert_eq!(receipt(&installation, applied).await["status"], "accepted");
        let stored: Result<_, StoreError> = installation.backends[0].store.apply([message].into()).await;
        stored.expect("is applied");
        assert_eq!(receipt(&installation, applied).await["status"], "applied");
        set_aside(&installation, failed).await;
        let receipt = receipt(&installation, failed).await;
        assert_eq!((&receipt["status"], &receipt["reason"]), (&json!("failed"), &json!("no_target")));
    }
}
