//! Documents while the store is away or not ready, and after their retention.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::server::Server;
use async_trait::async_trait;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use shared::model::collection::{Collection, Definition};
use shared::model::id::{IdIssuer, IdKeys, ItemKey, Kind};
use shared::model::outcome::ItemStatus;
use shared::program::backend::Backend;
use shared::runtime::clock;
use shared::store::{Store, StoreError, Stored};
use testkit::store::{Layer, Layered};

use crate::support::{RunningConsumer, base_config, close, json, on_both_pairs, open, problem, wait_for};

/// The store as the API sees it; the consumer sees the real one.
#[derive(Default)]
struct View {
    away: AtomicBool,
    unindexed: AtomicBool,
}

struct Veiled(Arc<dyn Store>, Arc<View>);

impl Veiled {
    fn reach(&self) -> Result<(), StoreError> {
        let away = || StoreError::Unavailable("away".into());
        if self.1.away.load(Ordering::Relaxed) { Err(away()) } else { Ok(()) }
    }
}

#[async_trait]
impl Layer for Veiled {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.0
    }

    async fn item_statuses(&self, items: Arc<[ItemKey]>) -> Result<Vec<Option<ItemStatus>>, StoreError> {
        self.reach()?;
        self.0.item_statuses(items).await
    }

    async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        self.reach()?;
        let collection = self.0.collection(name).await?;
        let is_indexed = !self.1.unindexed.load(Ordering::Relaxed);
        Ok(Collection { is_indexed, ..collection })
    }

    async fn document(&self, collection: &str, id: ItemKey) -> Result<Option<Stored>, StoreError> {
        self.reach()?;
        self.0.document(collection, id).await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.reach()?;
        self.0.now_ms().await
    }
}

/// One API over such a view.
struct Rig {
    api: Server,
    view: Arc<View>,
    /// The real store.
    store: Arc<dyn Store>,
    client: reqwest::Client,
}

impl Rig {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.api.address))
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.request(Method::GET, path).send().await.expect("an answer")
    }

    async fn define(&self, collection: &str, definition: &Value) {
        let request = self.request(Method::PUT, &format!("/v1/collections/{collection}"));
        assert_eq!(request.json(definition).send().await.expect("an answer").status(), 200);
    }

    /// Sends one document and returns its path.
    async fn send(&self, collection: &str, data: &Value) -> String {
        let request = self.request(Method::POST, &format!("/v1/data/{collection}"));
        let response = request.json(data).send().await.expect("an answer");
        assert_eq!(response.status(), 202);
        response.headers()["location"].to_str().expect("text").to_owned()
    }

    async fn wait_for_status(&self, path: &str, status: &str) -> Value {
        wait_for(&format!("{path} is {status}"), async || {
            let body: Value = self.get(path).await.json().await.expect("JSON");
            (body["status"] == status).then_some(body)
        })
        .await
    }
}

async fn veiled(test: impl AsyncFnOnce(&Rig)) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    let url = format!("embedded:{}", directory.path().display());
    config.queue.url.clone_from(&url);
    config.store.url = url;
    // Every entry is old at once, so an answer from it is a stale one.
    config.cache.ttl_ms = 1;
    let backend = open(&config).await;
    let consumer = RunningConsumer::start(&config, &backend);
    let view = Arc::new(View::default());
    let store = Arc::new(Layered(Veiled(backend.store.clone(), view.clone())));
    let api = Server::start(&config, &Backend { store, ..backend.clone() }).expect("the API starts");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let rig = Rig { api, view, store: backend.store.clone(), client };
    test(&rig).await;
    rig.api.stop().await;
    consumer.stop().await;
    close(backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_while_the_definition_is_not_known_is_checked_by_the_consumer() {
    veiled(async |rig| {
        let schema = json!({"properties": {"n": {"type": "integer"}}}).to_string();
        let definition = Definition { schema: Some(schema), ..Definition::default() };
        rig.store.define("strict", definition).await.expect("defined past the API");
        rig.view.away.store(true, Ordering::Relaxed);
        let (good, bad) = (json!({"n": 1}), json!({"n": "x"}));
        let (good, bad) = (rig.send("strict", &good).await, rig.send("strict", &bad).await);
        problem(rig.get(&bad).await, 503).await;
        rig.view.away.store(false, Ordering::Relaxed);
        rig.wait_for_status(&good, "applied").await;
        let failed = rig.wait_for_status(&bad, "failed").await;
        assert_eq!(failed["reason"], "schema_violation");
        assert!(failed["detail"].as_str().expect("text").starts_with("/n: "), "{failed}");
        assert_eq!(failed["data"], Value::Null);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_read_is_answered_stale_while_the_store_is_away() {
    veiled(async |rig| {
        let path = rig.send("things", &json!({"n": 1})).await;
        rig.wait_for_status(&path, "applied").await;
        rig.view.away.store(true, Ordering::Relaxed);
        wait_for("a stale answer", async || {
            let response = rig.get(&path).await;
            assert_eq!(response.status(), 200);
            (response.headers()["cache-status"] == "forebay; hit; detail=stale").then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_waits_for_a_whole_index() {
    veiled(async |rig| {
        rig.view.unindexed.store(true, Ordering::Relaxed);
        rig.define("shop", &json!({"indexed": ["sku"]})).await;
        let refused = rig.get("/v1/data/shop?sku=x").await;
        assert!(refused.headers().contains_key("retry-after"));
        assert_eq!(problem(refused, 503).await["type"], "urn:forebay:problem:indexing");
        assert_eq!(rig.get("/v1/data/shop").await.status(), 200);
        rig.view.unindexed.store(false, Ordering::Relaxed);
        wait_for("an answer from the index", async || {
            (rig.get("/v1/data/shop?sku=x").await.status() == 200).then_some(())
        })
        .await;
    })
    .await;
}

on_both_pairs! {
    async fn a_document_older_than_its_retention_is_gone(installation) {
        let two_days_ago = clock::now_ms() - 2 * 24 * 60 * 60 * 1_000;
        let key = IdIssuer::new(1, 2).next(two_days_ago).item(Kind::Document, 0);
        let id = IdKeys::new(&installation.config.ids.secrets).sign(key);
        for (collection, days) in [("brief", 1), ("long", 3)] {
            let request = installation.at(0, Method::PUT, &format!("/v1/collections/{collection}"));
            let defined = request.json(&json!({"retention_days": days})).send().await.expect("an answer");
            assert_eq!(defined.status(), 200);
        }
        problem(installation.get(&format!("/v1/data/brief/{id}")).await, 410).await;
        for collection in ["long", "undefined"] {
            let answer = installation.get(&format!("/v1/data/{collection}/{id}")).await;
            assert_eq!(json(answer).await, json!({"id": id.to_string(), "status": "accepted"}));
        }
    }
}
