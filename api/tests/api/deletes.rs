//! Deletions that name a document of another collection.
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Installation, json, on_both_pairs, problem};

async fn store(installation: &Installation, key: Option<&str>) -> String {
    let mut request = installation.at(0, Method::POST, "/v1/data/a").header("prefer", "wait=20");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = request.json(&json!({"n": 1})).send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    json(response).await["id"].as_str().expect("an id").to_owned()
}

async fn delete(installation: &Installation, replica: usize, path: &str) -> Response {
    let request = installation.at(replica, Method::DELETE, path).header("prefer", "wait=20");
    request.send().await.expect("an answer")
}

async fn read(installation: &Installation, replica: usize, path: &str) -> (u16, Value) {
    let response = installation.at(replica, Method::GET, path).send().await.expect("an answer");
    (response.status().as_u16(), json(response).await)
}

on_both_pairs! {
    async fn a_document_of_another_collection_is_not_told_as_deleted(installation) {
        installation.wait_until_events_arrive().await;
        for key in [None, Some("k")] {
            let id = store(&installation, key).await;
            let [there, elsewhere] = ["a", "b"].map(|collection| format!("/v1/data/{collection}/{id}"));
            for replica in 0..2 {
                let answer = problem(delete(&installation, replica, &elsewhere).await, 404).await;
                assert_eq!(answer["detail"], "this collection does not hold the document");
                assert_eq!(read(&installation, replica, &elsewhere).await.0, 404);
                assert_eq!(read(&installation, replica, &there).await.1["data"], json!({"n": 1}));
            }
            for _ in 0..2 {
                let deleted = delete(&installation, 0, &there).await;
                assert_eq!(deleted.status(), 200);
                assert_eq!(json(deleted).await, json!({"id": id, "status": "deleted"}));
            }
            assert_eq!(read(&installation, 0, &there).await.0, 404);
            assert_eq!(problem(delete(&installation, 1, &elsewhere).await, 404).await["status"], 404);
        }
    }
}
