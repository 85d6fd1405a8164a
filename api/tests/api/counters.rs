//! Increments in, values out.
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{json, on_both_pairs};

on_both_pairs! {
    async fn an_increment_is_accepted_then_applied(installation) {
        let response = installation.post("/v1/counters/clicks/increments", r#"{"by":5}"#).await;
        assert_eq!(response.status(), 202);
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        assert!(response.headers().contains_key("x-request-id"));
        let accepted = json(response).await;
        assert_eq!(accepted["status"], "accepted");
        assert!(accepted["accepted_at"].as_str().expect("a time").ends_with('Z'));
        assert_eq!(location, format!("/v1/receipts/{}", accepted["id"].as_str().expect("an id")));
        let counter = installation.wait_for_value(0, "clicks", 5).await;
        assert_eq!(counter["name"], "clicks");
        assert_eq!(counter["version"], 1);
    }

    async fn without_a_body_an_increment_adds_one(installation) {
        let request = installation.at(0, Method::POST, "/v1/counters/clicks/increments");
        assert_eq!(request.send().await.expect("an answer").status(), 202);
        assert_eq!(installation.post("/v1/counters/clicks/increments", "{}").await.status(), 202);
        installation.wait_for_value(0, "clicks", 2).await;
    }

    async fn an_array_and_lines_are_accepted_as_one(installation) {
        let array = r#"[{"by":1},{"by":"x"},{"by":-3},{}]"#;
        let response = installation.post("/v1/counters/many/increments", array).await;
        assert_eq!(response.status(), 202);
        let accepted = json(response).await;
        assert_eq!(accepted["accepted"], 3);
        assert_eq!(accepted["ids"].as_array().expect("ids").len(), 3);
        assert_eq!(accepted["rejected"][0]["index"], 1);
        assert_eq!(accepted["rejected"][0]["problem"]["errors"][0]["pointer"], "/by");
        let request = installation.at(0, Method::POST, "/v1/counters/many/increments");
        let request = request.header("content-type", "application/x-ndjson");
        let lines = "{\"by\":10}\n{\"by\":\n\n{\"by\":20}\n";
        let accepted = json(request.body(lines).send().await.expect("an answer")).await;
        assert_eq!(accepted["accepted"], 2);
        assert_eq!(accepted["rejected"][0]["index"], 1);
        assert_eq!(accepted["rejected"][0]["problem"]["status"], 400);
        let counter = installation.wait_for_value(0, "many", 1 - 3 + 1 + 30).await;
        assert_eq!(counter["version"], 5);
    }

    async fn a_thousand_items_in_one_request_are_applied_each(installation) {
        let items = vec![json!({"by": 2}); 1_000];
        let body = serde_json::to_string(&items).expect("JSON");
        let accepted = json(installation.post("/v1/counters/bulk/increments", &body).await).await;
        assert_eq!(accepted["accepted"], 1_000);
        let counter = installation.wait_for_value(0, "bulk", 2_000).await;
        assert_eq!(counter["version"], 1_000);
    }

    async fn a_read_tells_its_version_and_answers_304_for_it(installation) {
        installation.increment(0, "read", 7).await;
        installation.wait_for_value(0, "read", 7).await;
        let response = installation.get("/v1/counters/read").await;
        assert_eq!(response.headers()["etag"], "\"1\"");
        assert!(response.headers().contains_key("age"));
        assert_eq!(response.headers()["cache-status"], "forebay; hit");
        let conditional = installation.at(0, Method::GET, "/v1/counters/read").header("if-none-match", "\"1\"");
        let response = conditional.send().await.expect("an answer");
        assert_eq!(response.status(), 304);
        assert_eq!(response.headers()["etag"], "\"1\"");
        installation.increment(0, "read", 1).await;
        installation.wait_for_value(0, "read", 8).await;
        let conditional = installation.at(0, Method::GET, "/v1/counters/read").header("if-none-match", "\"1\"");
        assert_eq!(conditional.send().await.expect("an answer").status(), 200);
    }

    async fn a_counter_that_was_never_written_is_not_found(installation) {
        crate::support::problem(installation.get("/v1/counters/never").await, 404).await;
    }

    async fn counters_are_listed_by_name_in_pages(installation) {
        for name in ["b", "a:2", "a:1", "B", "a:3"] {
            installation.increment(0, name, 1).await;
        }
        for name in ["b", "a:2", "a:1", "B", "a:3"] {
            installation.wait_for_value(0, name, 1).await;
        }
        let names = |page: &Value| -> Vec<String> {
            let items = page["items"].as_array().expect("items");
            items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
        };
        let first = json(installation.get("/v1/counters?limit=3").await).await;
        assert_eq!(names(&first), ["B", "a:1", "a:2"]);
        let next = first["next"].as_str().expect("a next page");
        let second = json(installation.get(&format!("/v1/counters?limit=3&after={next}")).await).await;
        assert_eq!(names(&second), ["a:3", "b"]);
        assert_eq!(second["next"], Value::Null);
        let prefixed = json(installation.get("/v1/counters?prefix=a:").await).await;
        assert_eq!(names(&prefixed), ["a:1", "a:2", "a:3"]);
    }

    async fn the_short_path_is_the_counter_default(installation) {
        assert_eq!(json(installation.get("/counter").await).await, json!({"count": 0}));
        let has = async |etag: &str| {
            let request = installation.at(0, Method::GET, "/counter").header("if-none-match", etag);
            request.send().await.expect("an answer").status()
        };
        assert_eq!(has("\"c0\"").await, 304);
        let request = installation.at(0, Method::POST, "/counter");
        let answer = request.send().await.expect("an answer");
        // Its value may be lost while the API does not receive the consumer's events yet.
        assert!(matches!(answer.status().as_u16(), 200 | 202), "{answer:?}");
        installation.wait_for_value(0, "default", 1).await;
        let answer = installation.get("/counter").await;
        assert_eq!(answer.headers()["etag"], "\"c1\"");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        assert_eq!(json(answer).await, json!({"count": 1}));
        assert_eq!(has("W/\"c1\"").await, 304);
        // The entity tag of the counter itself belongs to another body.
        assert_eq!(installation.get("/v1/counters/default").await.headers()["etag"], "\"1\"");
        assert_eq!(has("\"1\"").await, 200);
        assert_eq!(has("\"c0\"").await, 200);
    }
}
