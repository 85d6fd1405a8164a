//! Metrics in real time, and their summary.
//!
//! ```text
//! POST /api/metrics   {"timestamp": "2026-11-20T12:00:00Z", "value": 12.5, "type": "cpu"}   → 201
//! GET  /api/metrics/summary?type=cpu&period=daily   → 200 {"count", "average_value", "p95", …}
//! ```
use api::rfc3339::rfc3339;
use reqwest::Method;
use serde_json::{Value, json};
use shared::runtime::clock;

use crate::support::{json, on_both_pairs, problem};

fn now() -> String {
    rfc3339(clock::now_ms())
}

fn point(value: f64) -> Value {
    json!({"timestamp": now(), "value": value, "type": "cpu"})
}

on_both_pairs! {
    async fn points_are_taken_in_and_summed_up(installation) {
        for value in [10.0, 20.0, 60.0] {
            let response = installation.post("/api/metrics", &point(value).to_string()).await;
            assert_eq!(response.status(), 201);
            let stored = json(response).await;
            assert_eq!((&stored["value"], &stored["type"]), (&json!(value), &json!("cpu")));
        }
        let summary = json(installation.get("/api/metrics/summary?type=cpu&period=monthly").await).await;
        assert_eq!((&summary["type"], &summary["period"]), (&json!("cpu"), &json!("monthly")));
        assert_eq!(summary["count"], 3);
        assert_eq!((&summary["average_value"], &summary["sum"]), (&json!(30.0), &json!(90.0)));
        assert_eq!((&summary["min"], &summary["max"]), (&json!(10.0), &json!(60.0)));
        let p50 = summary["p50"].as_f64().expect("a number");
        assert!((p50 - 20.0).abs() <= 0.2, "{p50}");
        assert_eq!(summary["external_data"]["status"], "disabled");
    }

    async fn a_batch_of_points_is_seen_by_every_replica(installation) {
        let points: Vec<Value> = (1..=100).map(|value| point(f64::from(value))).collect();
        let response = installation.post("/api/metrics", &json!(points).to_string()).await;
        assert_eq!(response.status(), 202);
        assert_eq!(json(response).await["accepted"], 100);
        for replica in 0..installation.apis.len() {
            let path = "/api/metrics/summary?type=cpu&period=monthly";
            let summary = installation.wait_for("all points at each replica", async || {
                let response = installation.at(replica, Method::GET, path).send().await.expect("an answer");
                let summary = json(response).await;
                (summary["count"] == 100).then_some(summary)
            })
            .await;
            assert_eq!(summary["sum"], json!(5050.0));
            for (name, exact) in [("p50", 50.0), ("p95", 95.0), ("p99", 99.0)] {
                let reported = summary[name].as_f64().expect("a number");
                assert!((reported - exact).abs() <= exact / 100.0, "{name}: {reported}");
            }
        }
    }

    async fn what_is_no_point_is_refused_with_its_field(installation) {
        for (pointer, bad) in [
            ("/timestamp", json!({"timestamp": "2026-11-20T12:00:00", "value": 1, "type": "cpu"})),
            ("/timestamp", json!({"timestamp": "1970-01-01T00:00:00Z", "value": 1, "type": "cpu"})),
            ("/value", json!({"timestamp": now(), "value": "1", "type": "cpu"})),
            ("/type", json!({"timestamp": now(), "value": 1, "type": ""})),
        ] {
            let reported = problem(installation.post("/api/metrics", &bad.to_string()).await, 422).await;
            assert_eq!(reported["errors"][0]["pointer"], pointer, "{bad}");
        }
    }
}
