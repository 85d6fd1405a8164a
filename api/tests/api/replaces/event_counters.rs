//! Counters by name, incremented by many clients and read by dashboards.
//!
//! ```text
//! POST /v1/counters/page-views/increments   {"by": 3}   → 202, counted soon
//! GET  /v1/counters/page-views                          → 200 {"name", "value", …}
//! GET  /v1/counters?prefix=page-                        → 200 {"items": […], "next": null}
//! ```
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{json, on_both_pairs};

on_both_pairs! {
    async fn events_are_counted_by_name(installation) {
        let path = "/v1/counters/page-views/increments";
        // No part of them has the sum of all: they may be applied in any order.
        for by in [2, 3, -1] {
            assert_eq!(installation.post(path, &json!({ "by": by }).to_string()).await.status(), 202);
        }
        let counter = installation.wait_for_value(0, "page-views", 4).await;
        assert_eq!((&counter["name"], &counter["version"]), (&json!("page-views"), &json!(3)));
        assert_eq!(installation.get("/v1/counters/never-seen").await.status(), 404);
    }

    async fn who_wants_to_see_the_result_waits_for_it(installation) {
        let request = installation.at(0, Method::POST, "/v1/counters/orders/increments");
        let response = request.header("prefer", "wait=20").json(&json!({"by": 5})).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["preference-applied"], "wait=20");
        let counter = json(response).await;
        assert_eq!((&counter["name"], &counter["value"], &counter["version"]), (&json!("orders"), &json!(5), &json!(1)));
    }

    async fn a_client_that_is_not_sure_sends_again(installation) {
        let send = async |replica: usize| {
            let request = installation.at(replica, Method::POST, "/v1/counters/sold/increments");
            let request = request.header("idempotency-key", "\"order-4711\"").json(&json!({"by": 2}));
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 202);
            json(response).await["id"].clone()
        };
        let ids = join_all((0..6).map(send)).await;
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        installation.wait_for_value(0, "sold", 2).await;
        // This write is applied after all of them, since a counter's writes that wait come back applied.
        let request = installation.at(0, Method::POST, "/v1/counters/sold/increments").header("prefer", "wait=20");
        let counter = json(request.json(&json!({"by": 1})).send().await.expect("an answer")).await;
        assert_eq!((&counter["value"], &counter["version"]), (&json!(3), &json!(2)));
    }

    async fn counters_are_listed_for_a_dashboard(installation) {
        for name in ["page-home", "page-about", "api-calls"] {
            installation.increment(0, name, 1).await;
        }
        for name in ["page-home", "page-about", "api-calls"] {
            installation.wait_for_value(0, name, 1).await;
        }
        let page = json(installation.get("/v1/counters?prefix=page-").await).await;
        let names: Vec<_> = page["items"].as_array().expect("items").iter().map(|item| &item["name"]).collect();
        assert_eq!(names, ["page-about", "page-home"]);
        assert!(page["next"].is_null());
    }
}
