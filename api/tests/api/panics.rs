//! A defect in a handler: its request is answered and named, and no other request notices. A defect
//! in a background task: the program must end.
use std::sync::Arc;
use std::time::Duration;

use api::server::Server;
use async_trait::async_trait;
use reqwest::Method;
use shared::event::{Event, EventStream, Events, Signal};
use shared::model::id::ItemKey;
use shared::model::outcome::ItemStatus;
use shared::program::backend::Backend;
use shared::store::{Store, StoreError};
use testkit::store::{Layer, Layered};

use crate::support::{base_config, close, embedded_over, open, problem};

/// A store with a defect in one read, which handlers call themselves.
struct Defective(Arc<dyn Store>);

#[async_trait]
impl Layer for Defective {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.0
    }

    async fn item_statuses(&self, _: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
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
        // The permits of those requests are free again.
        let metrics = format!("http://{}/metrics", installation.apis[0].ops_address);
        let metrics =
            installation.client.get(metrics).send().await.expect("an answer").text().await.expect("text");
        assert!(metrics.contains("status=\"5xx\"") || metrics.contains("\"500\""), "{metrics}");
        assert_eq!(installation.get("/health").await.status(), 200);
        installation
    })
    .await;
}

/// Events whose subscribers run into a defect.
struct DefectiveEvents;

struct DefectiveStream;

#[async_trait]
impl Events for DefectiveEvents {
    fn publish(&self, _: Event) {}

    async fn subscribe(&self) -> Box<dyn EventStream> {
        Box::new(DefectiveStream)
    }

    async fn close(&self) {}
}

#[async_trait]
impl EventStream for DefectiveStream {
    async fn next(&mut self) -> Signal {
        panic!("on purpose")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_of_which_a_part_is_gone_is_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let backend = open(&config).await;
    let healthy = Server::start(&config, &backend).expect("the API starts");
    let events = Arc::new(DefectiveEvents);
    let api = Server::start(&config, &Backend { events, ..backend.clone() }).expect("the API starts");
    let ends = api.completions().into_iter().map(|mut part| Box::pin(async move { part.requested().await }));
    let first = tokio::time::timeout(Duration::from_secs(30), futures_util::future::select_all(ends)).await;
    first.expect("one of its parts ended");
    assert!(
        healthy.completions().len() >= 4
            && !healthy.completions().iter().any(shared::runtime::shutdown::Shutdown::is_requested)
    );
    api.stop().await;
    healthy.stop().await;
    close(backend).await;
}
