//! The view of operators and of readers of the documents.
use reqwest::Method;

use crate::support::{embedded, json, on_both_pairs, problem};

on_both_pairs! {
    async fn the_operations_port_has_metrics_and_health_and_the_public_one_no_metrics(installation) {
        installation.increment(0, "metric", 1).await;
        let ops = installation.apis[0].ops_address;
        let get = async |path: &str| {
            let response = installation.client.get(format!("http://{ops}{path}")).send().await.expect("an answer");
            (response.status().as_u16(), response.text().await.expect("text"))
        };
        let (status, metrics) = get("/metrics").await;
        assert_eq!(status, 200);
        for name in ["forebay_http_request_seconds_count", "forebay_api_items_accepted_total", "forebay_breaker_state"] {
            assert!(metrics.contains(name), "{name}");
        }
        assert_eq!(get("/livez").await.0, 200);
        assert_eq!(get("/readyz").await.0, 200);
        let (status, health) = get("/health").await;
        assert_eq!(status, 200);
        assert!(health.contains("\"queue\":\"healthy\""), "{health}");
        problem(installation.get("/metrics").await, 404).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_are_served() {
    embedded(|installation| async move {
        let document = json(installation.get("/openapi.json").await).await;
        assert!(document["openapi"].as_str().expect("a version").starts_with("3.1"));
        assert!(document["paths"]["/v1/counters/{name}/increments"]["post"].is_object());
        let page = installation.get("/docs").await;
        assert_eq!(page.status(), 200);
        assert!(page.text().await.expect("text").contains("swagger-ui"));
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_is_open_and_refuses_nothing_it_took() {
    embedded(|mut installation| async move {
        let url = format!("http://{}/v1/counters/stop/increments", installation.apis[0].address);
        let writers: Vec<_> = (0..16)
            .map(|_| {
                let (client, url) = (installation.client.clone(), url.clone());
                tokio::spawn(async move {
                    let mut accepted = 0;
                    // The loop ends when the port is closed.
                    while let Ok(response) = client.post(&url).send().await {
                        assert_eq!(response.status(), 202);
                        accepted += 1;
                    }
                    accepted
                })
            })
            .collect();
        installation
            .wait_for("load", async || {
                let response = installation.at(0, Method::GET, "/counter").send().await.ok()?;
                let seen = installation.get("/v1/counters/stop").await;
                (response.status() == 200 && json(seen).await["value"].as_i64() > Some(100)).then_some(())
            })
            .await;
        installation.apis.remove(0).stop().await;
        let mut accepted = 0;
        for writer in writers {
            accepted += writer.await.expect("only 202s");
        }
        installation.restart_api();
        let counter = installation.wait_for_value(0, "stop", accepted).await;
        assert_eq!(counter["version"], accepted);
        installation
    })
    .await;
}
