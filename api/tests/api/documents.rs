//! JSON objects into collections, and out again.
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Installation, cluster_with, json, on_both_pairs, problem};

/// Sends one document and returns its id.
async fn send(installation: &Installation, collection: &str, data: &str) -> String {
    let response = installation.post(&format!("/v1/data/{collection}"), data).await;
    assert_eq!(response.status(), 202, "{data}");
    json(response).await["id"].as_str().expect("an id").to_owned()
}

/// Waits until a replica shows this status of a document and returns it.
async fn wait_for_status(installation: &Installation, replica: usize, path: &str, status: &str) -> Value {
    installation
        .wait_for(&format!("{path} is {status}"), async || {
            let response = installation.at(replica, Method::GET, path).send().await.expect("an answer");
            let body: Value = response.json().await.expect("JSON");
            (body["status"] == status).then_some(body)
        })
        .await
}

async fn wait_until_stored(installation: &Installation, collection: &str, id: &str) {
    wait_for_status(installation, 0, &format!("/v1/data/{collection}/{id}"), "applied").await;
}

async fn delete(installation: &Installation, path: &str) -> Response {
    installation.at(0, Method::DELETE, path).send().await.expect("an answer")
}

async fn wait_for_problem(installation: &Installation, replica: usize, path: &str, status: u16) {
    installation
        .wait_for(&format!("{path} answers {status}"), async || {
            let response = installation.at(replica, Method::GET, path).send().await.expect("an answer");
            (response.status() == status).then_some(())
        })
        .await;
}

async fn define(installation: &Installation, collection: &str, definition: &Value) -> Response {
    let request = installation.at(0, Method::PUT, &format!("/v1/collections/{collection}"));
    request.json(definition).send().await.expect("an answer")
}

async fn list(installation: &Installation, path: &str) -> (Vec<Value>, Option<String>) {
    let response = installation.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    let page = json(response).await;
    let data =
        page["items"].as_array().expect("items").iter().map(|item| item["data"]["n"].clone()).collect();
    (data, page["next"].as_str().map(str::to_owned))
}

on_both_pairs! {
    async fn a_document_is_accepted_then_stored_as_it_was_written(installation) {
        let data = r#"{ "b" : 1.50, "a":["ä", "\ud83d\ude00"], "big": 1e300, "b2":{"z":1,"y":2} }"#;
        let response = installation.post("/v1/data/things", data).await;
        assert_eq!(response.status(), 202);
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let accepted = json(response).await;
        let id = accepted["id"].as_str().expect("an id");
        assert_eq!(location, format!("/v1/data/things/{id}"));
        // Both replicas answer, whether it is stored already or not.
        for replica in 0..2 {
            let body = json(installation.at(replica, Method::GET, &location).send().await.expect("an answer")).await;
            assert_eq!(body["id"], id);
            assert!(body["status"] == "accepted" || body["status"] == "applied", "{body}");
        }
        let stored = wait_for_status(&installation, 1, &location, "applied").await;
        assert_eq!(stored["accepted_at"], accepted["accepted_at"]);
        let text = installation.get(&location).await.text().await.expect("text");
        assert!(text.ends_with(&format!(r#","data":{data}}}"#)), "{text}");
    }

    async fn a_stored_document_is_answered_from_memory_with_an_etag(installation) {
        let id = send(&installation, "things", r#"{"n":1}"#).await;
        let path = format!("/v1/data/things/{id}");
        wait_until_stored(&installation, "things", &id).await;
        let response = installation.get(&path).await;
        assert_eq!(response.headers()["cache-status"], "forebay; hit");
        assert!(response.headers().contains_key("age"));
        let etag = response.headers()["etag"].to_str().expect("text").to_owned();
        let conditional = installation.at(0, Method::GET, &path).header("if-none-match", etag);
        assert_eq!(conditional.send().await.expect("an answer").status(), 304);
        let head = installation.at(0, Method::HEAD, &path).send().await.expect("an answer");
        assert_eq!(head.status(), 200);
    }

    async fn an_array_and_lines_are_accepted_as_one(installation) {
        let array = r#"[{"n":1},5,{"n":"\ud800"},{"n":2}]"#;
        let response = installation.post("/v1/data/many", array).await;
        assert_eq!(response.status(), 202);
        let accepted = json(response).await;
        assert_eq!(accepted["accepted"], 2);
        assert_eq!(accepted["rejected"][0]["index"], 1);
        assert_eq!(accepted["rejected"][1]["index"], 2);
        assert_eq!(accepted["rejected"][1]["problem"]["errors"][0]["pointer"], "/n");
        let request = installation.at(0, Method::POST, "/v1/data/many").header("content-type", "application/x-ndjson");
        let lines = "{\"n\":3}\n{\"n\":\n\n{\"n\":4}\n";
        let accepted = json(request.body(lines).send().await.expect("an answer")).await;
        assert_eq!(accepted["accepted"], 2);
        assert_eq!(accepted["rejected"][0]["index"], 1);
        assert_eq!(accepted["rejected"][0]["problem"]["status"], 400);
        for id in accepted["ids"].as_array().expect("ids") {
            wait_until_stored(&installation, "many", id.as_str().expect("an id")).await;
        }
        let (newest_first, next) = list(&installation, "/v1/data/many").await;
        assert_eq!((newest_first, next), (vec![json!(4), json!(3), json!(2), json!(1)], None));
    }

    async fn a_deleted_document_is_gone_at_every_replica(installation) {
        let id = send(&installation, "things", r#"{"n":1}"#).await;
        let path = format!("/v1/data/things/{id}");
        for replica in 0..2 {
            wait_for_status(&installation, replica, &path, "applied").await;
        }
        for _ in 0..2 {
            let response = delete(&installation, &path).await;
            assert_eq!(response.status(), 202);
            let receipt = response.headers()["location"].to_str().expect("text");
            assert!(receipt.starts_with("/v1/receipts/"), "{receipt}");
            for replica in 0..2 {
                wait_for_problem(&installation, replica, &path, 404).await;
            }
        }
        assert_eq!(list(&installation, "/v1/data/things").await.0, Vec::<Value>::new());
    }

    async fn a_deletion_takes_no_parameters_and_no_encoding(installation) {
        let id = send(&installation, "kept", r#"{"n":1}"#).await;
        let path = format!("/v1/data/kept/{id}");
        let refused = problem(delete(&installation, &format!("{path}?force=1")).await, 422).await;
        assert_eq!(refused["errors"][0]["parameter"], "force");
        let encoded = installation.at(0, Method::DELETE, &path).header("content-encoding", "gzip");
        problem(encoded.send().await.expect("an answer"), 415).await;
        let refused = problem(installation.get(&format!("{path}?payload=x")).await, 422).await;
        assert_eq!(refused["errors"][0]["parameter"], "payload");
        wait_for_status(&installation, 0, &path, "applied").await;
    }

    async fn a_deletion_right_behind_its_insert_wins(installation) {
        let mut paths = Vec::new();
        for n in 0..20 {
            let id = send(&installation, "brief", &format!(r#"{{"n":{n}}}"#)).await;
            let path = format!("/v1/data/brief/{id}");
            assert_eq!(delete(&installation, &path).await.status(), 202);
            paths.push(path);
        }
        for path in &paths {
            wait_for_problem(&installation, 0, path, 404).await;
        }
        assert_eq!(list(&installation, "/v1/data/brief").await.0, Vec::<Value>::new());
    }

    async fn ids_that_were_never_issued_and_other_collections_are_not_found(installation) {
        let id = send(&installation, "here", r#"{"n":1}"#).await;
        wait_until_stored(&installation, "here", &id).await;
        problem(installation.get(&format!("/v1/data/there/{id}")).await, 404).await;
        let increment = installation.increment(0, "a", 1).await;
        let made_up = format!("{}0000", &id[..32]);
        for never in [&increment, &made_up, "x", "%00", &id.replace('-', "")] {
            let path = format!("/v1/data/here/{never}");
            problem(installation.get(&path).await, 404).await;
            problem(delete(&installation, &path).await, 404).await;
        }
        let differs = format!("/v1/data/here/{id}?payload=");
        problem(installation.get(&format!("{differs}x")).await, 422).await;
        problem(installation.get(&format!("/v1/data/here/{id}?other=1")).await, 422).await;
        // Without a key there is no payload to compare with.
        let answer = installation.get(&format!("{differs}{}", "0".repeat(32))).await;
        assert_eq!(json(answer).await["status"], "applied");
    }

    async fn documents_are_listed_newest_first_in_pages(installation) {
        let mut last = String::new();
        for n in 0..7 {
            last = send(&installation, "paged", &format!(r#"{{"n":{n}}}"#)).await;
            wait_until_stored(&installation, "paged", &last).await;
        }
        let (mut seen, mut path) = (Vec::new(), "/v1/data/paged?limit=3".to_owned());
        loop {
            let (page, next) = list(&installation, &path).await;
            assert!(page.len() <= 3);
            seen.extend(page);
            let Some(next) = next else { break };
            path = format!("/v1/data/paged?limit=3&after={next}");
        }
        assert_eq!(seen, (0..7).rev().map(Value::from).collect::<Vec<_>>());
        let newest = json(installation.get("/v1/data/paged?limit=1").await).await;
        assert_eq!(newest["items"][0]["id"], last);
        assert_eq!(newest["items"][0]["status"], "applied");
        assert!(newest["items"][0]["accepted_at"].as_str().expect("a time").ends_with('Z'));
    }

    async fn a_page_ends_before_its_data_grows_too_large(installation) {
        let (page_max, item_max) =
            (installation.config.server.page_bytes_max, installation.config.server.item_bytes_max);
        let (small, large) = (70, 2 * page_max / item_max + 1);
        let mut ids = Vec::new();
        for n in 0..small + large {
            let spaces = if n < small { 0 } else { item_max - 10 };
            ids.push(send(&installation, "heavy", &format!(r#"{{"n":{n}{}}}"#, " ".repeat(spaces))).await);
        }
        for id in &ids {
            wait_until_stored(&installation, "heavy", id).await;
        }
        let (mut seen, mut pages) = (Vec::new(), Vec::new());
        let mut path = "/v1/data/heavy?limit=1000".to_owned();
        loop {
            let response = installation.get(&path).await;
            let bytes = response.bytes().await.expect("a body");
            let page: Value = serde_json::from_slice(&bytes).expect("JSON");
            let items = page["items"].as_array().expect("items");
            assert!(bytes.len() <= page_max + items.len() * 200 + 100, "{}", bytes.len());
            seen.extend(items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()));
            pages.push(items.len());
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/data/heavy?limit=1000&after={next}");
        }
        // Ids follow the order of acceptance only at one worker; none is missing, none there twice.
        seen.sort_unstable();
        ids.sort_unstable();
        assert_eq!(seen, ids);
        assert!(pages.len() >= 3 && !pages.contains(&0), "{pages:?}");
    }

    async fn only_indexed_fields_filter(installation) {
        let early = send(&installation, "shop", r#"{"sku":"a b","n":1,"ok":true}"#).await;
        wait_until_stored(&installation, "shop", &early).await;
        let unindexed = problem(installation.get("/v1/data/shop?sku=x").await, 422).await;
        assert_eq!(unindexed["errors"][0]["parameter"], "sku");
        let definition = json!({"indexed": ["sku", "n"]});
        let defined = json(define(&installation, "shop", &definition).await).await;
        assert_eq!(defined["indexed"], definition["indexed"]);
        for data in [r#"{"sku":"a b","n":2.0}"#, r#"{"sku":"other","n":2}"#, r#"{"sku":["a b"],"n":3}"#] {
            let id = send(&installation, "shop", data).await;
            wait_until_stored(&installation, "shop", &id).await;
        }
        // Documents from before the definition are found as well.
        assert_eq!(list(&installation, "/v1/data/shop?sku=a%20b").await.0, [json!(2.0), json!(1)]);
        assert_eq!(list(&installation, "/v1/data/shop?n=2").await.0, [json!(2), json!(2.0)]);
        assert_eq!(list(&installation, "/v1/data/shop?n=2&sku=other").await.0, [json!(2)]);
        for spelled in ["2.0", "2e0", "0.2e1"] {
            let path = format!("/v1/data/shop?n={spelled}&limit=1");
            let (first, next) = list(&installation, &path).await;
            assert_eq!(first, [json!(2)], "{spelled}");
            let path = format!("{path}&after={}", next.expect("another page"));
            assert_eq!(list(&installation, &path).await, (vec![json!(2.0)], None), "{spelled}");
        }
        // A string that looks like a number is found as it was written, and not as another.
        for data in [r#"{"sku":"1.10","n":4}"#, r#"{"sku":"1.100","n":5}"#, r#"{"sku":1.1,"n":6}"#] {
            let id = send(&installation, "shop", data).await;
            wait_until_stored(&installation, "shop", &id).await;
        }
        assert_eq!(list(&installation, "/v1/data/shop?sku=1.10").await.0, [json!(6), json!(4)]);
        let refused = problem(installation.get("/v1/data/shop?n=1.0&n=2").await, 422).await;
        assert_eq!(refused["errors"][0]["parameter"], "n");
        assert_eq!(list(&installation, "/v1/data/shop?sku=%00").await.0, Vec::<Value>::new());
        let refused = problem(installation.get("/v1/data/shop?sku=other&ok=true").await, 422).await;
        assert_eq!(refused["errors"][0]["parameter"], "ok");
    }

    /// There are more of them than the search for one page reads: the page is empty, and its `next` leads on.
    async fn a_search_that_finds_nothing_for_long_ends_its_page_with_a_next(installation) {
        define(&installation, "turns", &json!({"indexed": ["f", "g"]})).await;
        let both = send(&installation, "turns", r#"{"f":1,"g":1,"n":7}"#).await;
        wait_until_stored(&installation, "turns", &both).await;
        let by_turns = r#"{"f":1},{"g":1},"#.repeat(500);
        let batch = format!("[{}]", by_turns.trim_end_matches(','));
        let mut last = String::new();
        for _ in 0..12 {
            let accepted = json(installation.post("/v1/data/turns", &batch).await).await;
            assert_eq!(accepted["accepted"], 1_000);
            accepted["ids"][999].as_str().expect("an id").clone_into(&mut last);
        }
        wait_until_stored(&installation, "turns", &last).await;
        let path = "/v1/data/turns?f=1&g=1";
        let (items, next) = list(&installation, path).await;
        assert!(items.is_empty(), "{items:?}");
        let (mut items, mut next) = (items, Some(next.expect("there is more to search")));
        while let Some(after) = next {
            assert!(items.is_empty(), "{items:?}");
            (items, next) = list(&installation, &format!("{path}&after={after}")).await;
        }
        assert_eq!(items, [json!(7)]);
        // This holds also where each spelling is a search of its own.
        let (items, next) = list(&installation, "/v1/data/turns?f=1.0&g=1.0").await;
        assert!(items.is_empty() && next.is_some());
    }

    async fn a_schema_refuses_what_does_not_hold_it(installation) {
        let schema = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
        assert_eq!(define(&installation, "strict", &json!({"schema": schema})).await.status(), 200);
        let refused = problem(installation.post("/v1/data/strict", r#"{"n":"x"}"#).await, 422).await;
        assert_eq!(refused["errors"][0]["pointer"], "/n");
        let accepted = json(installation.post("/v1/data/strict", r#"[{"n":1},{},{"n":2}]"#).await).await;
        assert_eq!(accepted["accepted"], 2);
        assert_eq!(accepted["rejected"][0]["index"], 1);
        for id in accepted["ids"].as_array().expect("ids") {
            wait_until_stored(&installation, "strict", id.as_str().expect("an id")).await;
        }
    }

    async fn a_definition_is_kept_until_it_is_removed(installation) {
        problem(installation.get("/v1/collections/orders").await, 404).await;
        let definition = json!({"schema": {"required": ["n"]}, "indexed": ["n"], "retention_days": 30});
        let defined = json(define(&installation, "orders", &definition).await).await;
        assert_eq!(defined["name"], "orders");
        for member in ["schema", "indexed", "retention_days"] {
            assert_eq!(defined[member], definition[member]);
        }
        let read = installation.at(1, Method::GET, "/v1/collections/orders").send().await.expect("an answer");
        assert_eq!(json(read).await, defined);
        let replaced = json(define(&installation, "orders", &json!({})).await).await;
        assert_eq!((&replaced["schema"], &replaced["indexed"]), (&json!({}), &json!([])));
        assert!(replaced["version"].as_i64() > defined["version"].as_i64());
        let id = send(&installation, "orders", r#"{"other":1}"#).await;
        wait_until_stored(&installation, "orders", &id).await;
        let removed = delete(&installation, "/v1/collections/orders").await;
        assert_eq!(json(removed).await, replaced);
        problem(delete(&installation, "/v1/collections/orders").await, 404).await;
        problem(installation.get("/v1/collections/orders").await, 404).await;
        wait_until_stored(&installation, "orders", &id).await;
    }

    async fn a_bad_definition_is_pointed_at(installation) {
        for (definition, pointer) in [
            (json!({"schema": {"properties": {"a": {"type": "strin"}}}}), "/schema/properties/a/type"),
            (json!({"schema": {"$ref": "http://127.0.0.1:1/x"}}), "/schema"),
            (json!({"schema": 5}), "/schema"),
            (json!({"indexed": ["a", "limit"]}), "/indexed/1"),
            (json!({"indexed": "a"}), "/indexed"),
            (json!({"retention_days": 0}), "/retention_days"),
            (json!({"retention_days": -1}), "/retention_days"),
        ] {
            let refused = problem(define(&installation, "bad", &definition).await, 422).await;
            assert_eq!(refused["errors"][0]["pointer"], pointer, "{definition}");
        }
        problem(define(&installation, "bad", &json!({"indices": []})).await, 422).await;
        problem(define(&installation, "bad", &json!([])).await, 422).await;
        problem(define(&installation, "a%20b", &json!({})).await, 422).await;
        let empty = installation.at(0, Method::PUT, "/v1/collections/bad").send().await.expect("an answer");
        problem(empty, 400).await;
        problem(installation.get("/v1/collections/bad").await, 404).await;
    }

    async fn the_short_path_is_the_collection_default(installation) {
        assert_eq!(json(installation.get("/data").await).await, json!({"items": [], "next": null}));
        let response = installation.post("/data", r#"{"n":1}"#).await;
        assert!(response.headers()["location"].to_str().expect("text").starts_with("/v1/data/default/"));
        let id = json(response).await["id"].as_str().expect("an id").to_owned();
        wait_until_stored(&installation, "default", &id).await;
        assert_eq!(list(&installation, "/data").await.0, [json!(1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_reaches_the_cache_of_every_replica_by_events() {
    let no_expiry = |config: &mut shared::config::Config| config.cache.ttl_ms = 3_600_000;
    cluster_with("deleted", no_expiry, |installation| async move {
        let id = send(&installation, "things", r#"{"n":1}"#).await;
        let path = format!("/v1/data/things/{id}");
        for replica in 0..2 {
            wait_for_status(&installation, replica, &path, "applied").await;
            // A load that an event came into is not kept.
            let from_cache = async || {
                let again = installation.at(replica, Method::GET, &path).send().await.expect("an answer");
                (again.headers()["cache-status"] == "forebay; hit").then_some(())
            };
            installation.wait_for("an answer from the cache", from_cache).await;
        }
        assert_eq!(delete(&installation, &path).await.status(), 202);
        for replica in 0..2 {
            wait_for_problem(&installation, replica, &path, 404).await;
        }
        installation
    })
    .await;
}
