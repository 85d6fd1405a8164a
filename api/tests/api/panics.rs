//! A defect in a handler: its request is answered and named, and nobody else notices.
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use shared::id::ItemKey;
use shared::store::{Fate, Store, StoreError};
use testkit::store::{Layer, Layered};

use crate::support::{embedded_over, problem};

/// A store that has a defect in one read, which handlers call themselves.
struct Defective(Arc<dyn Store>);

#[async_trait]
impl Layer for Defective {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.0
    }

    async fn fates(&self, _: Arc<[ItemKey]>) -> Result<Vec<Option<Fate>>, StoreError> {
        panic!("on purpose")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_answered_with_500_and_the_id_of_its_request() {
    embedded_over(&|store| Arc::new(Layered(Defective(store))), |installation| async move {
        let id = installation.increment(0, "panics", 1).await;
        let path = format!("/v1/receipts/{id}");
        for given in [Some("mine-1"), None, Some("mine-2")] {
            let mut request = installation.at(0, Method::GET, &path);
            if let Some(given) = given {
                request = request.header("x-request-id", given);
            }
            let response = request.send().await.expect("an answer");
            let named = response.headers()["x-request-id"].to_str().expect("text").to_owned();
            assert!(given.map_or(named.len() == 16, |given| named == given), "{named}");
            let problem = problem(response, 500).await;
            assert_eq!(problem["type"], "urn:forebay:problem:internal");
            assert!(!problem.to_string().contains("purpose"), "{problem}");
        }
        installation.wait_for_value(0, "panics", 1).await;
        // The places of those requests are free again.
        let metrics = format!("http://{}/metrics", installation.apis[0].ops_address);
        let metrics =
            installation.client.get(metrics).send().await.expect("an answer").text().await.expect("text");
        assert!(metrics.contains("status=\"5xx\"") || metrics.contains("\"500\""), "{metrics}");
        assert_eq!(installation.get("/health").await.status(), 200);
        installation
    })
    .await;
}
