//! An intake for JSON objects.
//!
//! ```text
//! POST   /data   {"sensor": "a1", "reading": 7}   → 201 {"id", "data", …}
//! GET    /data                                    → 200 {"items": […], "next": null}, newest first
//! GET    /v1/data/default/{id}                    → 200 {"id", "data", …}
//! DELETE /v1/data/default/{id}                    → 202
//! ```
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Installation, json, on_both_pairs};

async fn take_in(installation: &Installation, data: &Value) -> String {
    let response = installation.post("/data", &data.to_string()).await;
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().expect("text").to_owned();
    let document = json(response).await;
    assert_eq!(&document["data"], data);
    assert!(document["accepted_at"].as_str().expect("a time").ends_with('Z'));
    let id = document["id"].as_str().expect("an id").to_owned();
    assert_eq!(location, format!("/v1/data/default/{id}"));
    id
}

fn data_of(page: &Value) -> Vec<&Value> {
    page["items"].as_array().expect("items").iter().map(|item| &item["data"]).collect()
}

on_both_pairs! {
    async fn objects_are_taken_in_and_listed_newest_first(installation) {
        assert_eq!(json(installation.get("/data").await).await, json!({"items": [], "next": null}));
        let sent: Vec<Value> = (0..5).map(|n| json!({"sensor": "a1", "reading": n, "tags": ["x", null]})).collect();
        for data in &sent {
            take_in(&installation, data).await;
        }
        let page = json(installation.get("/data").await).await;
        assert_eq!(data_of(&page), sent.iter().rev().collect::<Vec<_>>());

        let first = json(installation.get("/data?limit=3").await).await;
        assert_eq!(data_of(&first), [&sent[4], &sent[3], &sent[2]]);
        let next = first["next"].as_str().expect("a next page");
        let second = json(installation.get(&format!("/data?limit=3&after={next}")).await).await;
        assert_eq!(data_of(&second), [&sent[1], &sent[0]]);
        assert!(second["next"].is_null());
    }

    async fn an_object_is_found_by_its_id_until_it_is_deleted(installation) {
        let id = take_in(&installation, &json!({"name": "Zoë", "n": 1.5e3})).await;
        let path = format!("/v1/data/default/{id}");
        for replica in 0..installation.apis.len() {
            let response = installation.at(replica, Method::GET, &path).send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            assert_eq!(json(response).await["data"], json!({"name": "Zoë", "n": 1500.0}));
        }
        let deleted = installation.at(0, Method::DELETE, &path).send().await.expect("an answer");
        assert_eq!(deleted.status(), 202);
        installation.wait_for("the deletion", async || {
            (installation.get(&path).await.status() == 404).then_some(())
        })
        .await;
        assert_eq!(json(installation.get("/data").await).await["items"], json!([]));
    }

    async fn many_objects_go_in_one_request_and_a_bad_one_is_told(installation) {
        let body = r#"[{"n":1},["no object"],{"n":3}]"#;
        let response = installation.post("/data", body).await;
        assert_eq!(response.status(), 202);
        let answer = json(response).await;
        assert_eq!((&answer["accepted"], &answer["rejected"][0]["index"]), (&json!(2), &json!(1)));
        installation.wait_for("both objects", async || {
            let page = json(installation.get("/data").await).await;
            (data_of(&page) == [&json!({"n": 3}), &json!({"n": 1})]).then_some(())
        })
        .await;
        for (bad, status) in [("{\"n\":", 400), ("[]", 422), ("7", 422), ("\"text\"", 422)] {
            assert_eq!(installation.post("/data", bad).await.status(), status, "{bad}");
        }
    }
}
