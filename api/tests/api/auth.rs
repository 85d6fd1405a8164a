//! Keys, their scopes and their principals; and the protection from web pages where there are no keys.
use std::path::Path;

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use shared::config::Config;
use shared::model::api_key::{ApiKey, KeyId, Principal, Scope, Scopes, generate};
use shared::runtime::clock;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Installation, cluster_with, embedded_with, json, on_both_pairs, problem};

const PATH: &str = "/v1/counters/kept/increments";

fn key_until(
    id: &str,
    principal: &str,
    scopes: &[Scope],
    expires_at: Option<OffsetDateTime>,
) -> (String, ApiKey) {
    let id = KeyId::try_from(id.to_owned()).expect("an id");
    let principal = Principal::try_from(principal.to_owned()).expect("a name");
    generate(id, principal, Scopes::try_from(scopes.to_vec()).expect("some"), expires_at)
}

fn key(id: &str, principal: &str, scopes: &[Scope]) -> (String, ApiKey) {
    key_until(id, principal, scopes, None)
}

async fn sent(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

async fn increment(installation: &Installation, authorization: &str) -> Response {
    sent(installation.at(0, Method::POST, PATH).header("authorization", authorization)).await
}

/// Scope that an operation requires, kept apart from the table in the code.
fn scope_of(method: &str, path: &str) -> Option<Scope> {
    match (method, path) {
        (_, "/livez" | "/readyz" | "/health") => None,
        _ if path.starts_with("/v1/collections") || path.starts_with("/v1/dead-letters") => {
            Some(Scope::Admin)
        }
        ("get", _) => Some(Scope::Read),
        _ => Some(Scope::Write),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_closed_to_who_lacks_its_scope() {
    let scopes = [Scope::Read, Scope::Write, Scope::Admin];
    let made = scopes.map(|scope| key(scope.name(), "p", &[scope]));
    let keys: Vec<_> = made.iter().map(|(_, key)| key.clone()).collect();
    // Switched on for all clients, which holds without keys only.
    let adjust = |config: &mut Config| {
        config.auth.keys = keys;
        config.auth.admin_without_keys = true;
    };
    embedded_with(adjust, async |installation: Installation| {
        let document = api::routes::openapi::document();
        let paths = document["paths"].as_object().expect("paths");
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("operations") {
                let needed = scope_of(method, path);
                let declared = needed.map_or(json!([]), |scope| json!([{"key": [scope.name()]}, {}]));
                assert_eq!(operation["security"], declared, "{method} {path}");
                let upper: Method = method.to_uppercase().parse().expect("a method");
                let at = path.replace(['{', '}'], "");
                let bare = sent(installation.at(0, upper.clone(), &at)).await;
                let Some(needed) = needed else {
                    assert_eq!(bare.status(), 200, "{method} {path}");
                    continue;
                };
                assert_eq!(bare.headers()["www-authenticate"], "Bearer", "{method} {path}");
                problem(bare, 401).await;
                for ((text, _), scope) in made.iter().zip(scopes) {
                    let answer = sent(installation.at(0, upper.clone(), &at).bearer_auth(text)).await;
                    if scope == needed || scope == Scope::Admin {
                        assert!(
                            ![401, 403].contains(&answer.status().as_u16()),
                            "{method} {path}: {answer:?}"
                        );
                        continue;
                    }
                    let challenge = answer.headers()["www-authenticate"].to_str().expect("text").to_owned();
                    assert!(challenge.contains("insufficient_scope") && challenge.contains(needed.name()));
                    assert_eq!(problem(answer, 403).await["type"], "urn:forebay:problem:forbidden");
                }
            }
        }
        for path in ["/openapi.json", "/docs", "/docs/index.css"] {
            assert_eq!(installation.get(path).await.status(), 200, "{path}");
        }
        // The same paths in other spellings are the same routes, or none.
        let (reading, _) = &made[0];
        for (path, status) in
            [("/v1/dead%2Dletters", 403), ("//v1/dead-letters", 404), ("/V1/dead-letters", 404)]
        {
            let answer = sent(installation.at(0, Method::GET, path).bearer_auth(reading)).await;
            assert!([status, 404].contains(&answer.status().as_u16()), "{path}: {answer:?}");
        }
        let head = sent(installation.at(0, Method::HEAD, "/v1/counters")).await;
        assert_eq!(head.status(), 401);
        problem(sent(installation.at(0, Method::PATCH, "/v1/counters")).await, 405).await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_key_or_none_any_more_opens_nothing() {
    let now = OffsetDateTime::from_unix_timestamp(clock::now_ms() / 1_000).expect("a time");
    let (good, one) = key_until("one", "p", &[Scope::Write], Some(now + Duration::days(1)));
    let (other, two) = key("two", "p", &[Scope::Write]);
    let (late, expired) = key_until("late", "p", &[Scope::Write], Some(now - Duration::SECOND));
    let keys = vec![one, two, expired];
    embedded_with(
        |config| config.auth.keys = keys,
        async |installation: Installation| {
            for scheme in ["Bearer", "bearer", "BEARER"] {
                assert_eq!(increment(&installation, &format!("{scheme} {good}")).await.status(), 202);
            }
            let swapped = format!("fb_one_{}", &other["fb_two_".len()..]);
            let (stranger, _) = key("one", "p", &[Scope::Write]);
            for (authorization, detail) in [
                (format!("Bearer {late}"), "expired"),
                (format!("Bearer {stranger}"), "not known"),
                (format!("Bearer {swapped}"), "not known"),
                (format!("Bearer {}", good.replace("fb_one", "fb_none")), "not known"),
                (format!("Bearer {}", good.to_uppercase()), "no key"),
                (format!("Bearer {good}x"), "no key"),
                (format!("Basic {good}"), "no key"),
                (good.clone(), "no key"),
                ("Bearer".into(), "no key"),
                (String::new(), "no key"),
            ] {
                let refused = increment(&installation, &authorization).await;
                assert_eq!(refused.headers()["www-authenticate"], r#"Bearer error="invalid_token""#);
                let refused = problem(refused, 401).await;
                assert!(refused["detail"].as_str().expect("text").contains(detail), "{authorization}");
                // No part of a key comes back.
                assert!(!refused.to_string().contains(&good[10..]), "{refused}");
            }
            // A key in the query is no key. A foreign host is no ground for refusal where keys are required.
            assert_eq!(
                sent(installation.at(0, Method::POST, &format!("{PATH}?key={good}"))).await.status(),
                401
            );
            let proxied = installation.at(0, Method::POST, PATH).header("host", "forebay.example");
            assert_eq!(sent(proxied.bearer_auth(&good)).await.status(), 202);
            installation
        },
    )
    .await;
}

async fn keyed(installation: &Installation, replica: usize, key: &str) -> String {
    let request = installation.at(replica, Method::POST, PATH).header("idempotency-key", "order-1");
    let accepted = sent(request.bearer_auth(key).json(&json!({"by": 1}))).await;
    assert_eq!(accepted.status(), 202);
    json(accepted).await["id"].as_str().expect("an id").to_owned()
}

async fn value(installation: &Installation, key: &str) -> Value {
    json(sent(installation.at(0, Method::GET, "/v1/counters/kept").bearer_auth(key)).await).await
}

/// Two keys of one client, and one of another.
struct Clients {
    old: String,
    new: String,
    other: String,
}

fn clients() -> (Clients, Vec<ApiKey>) {
    let scopes = [Scope::Read, Scope::Write];
    let (old, one) = key("shop-1", "shop", &scopes);
    let (new, two) = key("shop-2", "shop", &scopes);
    let (other, three) = key("till-1", "till", &scopes);
    (Clients { old, new, other }, vec![one, two, three])
}

async fn an_idempotency_key_belongs_to_the_principal(
    installation: Installation,
    Clients { old, new, other }: Clients,
) -> Installation {
    let first = keyed(&installation, 0, &old).await;
    assert_eq!(keyed(&installation, 1, &new).await, first, "a rotated key is the same client");
    let foreign = keyed(&installation, 1, &other).await;
    assert_ne!(foreign, first);
    assert_eq!(keyed(&installation, 0, &other).await, foreign);
    installation
        .wait_for("both effects", async || (value(&installation, &old).await["value"] == 2).then_some(()))
        .await;
    // Another payload under a key is a conflict for its own principal only.
    let of = async |key: &str, by: i64| {
        let request = installation.at(0, Method::POST, PATH).header("idempotency-key", "order-2");
        sent(request.header("prefer", "wait=20").bearer_auth(key).json(&json!({"by": by}))).await
    };
    for (key, by) in [(&old, 10), (&other, 100)] {
        let answer = of(key, by).await.status();
        assert!([200, 202].contains(&answer.as_u16()), "{answer}");
    }
    installation
        .wait_for("all effects", async || (value(&installation, &old).await["value"] == 112).then_some(()))
        .await;
    problem(of(&new, 100).await, 422).await;
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_belongs_to_the_principal_embedded() {
    let (clients, keys) = clients();
    embedded_with(
        |config| config.auth.keys = keys,
        |installation| an_idempotency_key_belongs_to_the_principal(installation, clients),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_belongs_to_the_principal_cluster() {
    let (clients, keys) = clients();
    cluster_with(
        "principal",
        |config| config.auth.keys = keys,
        |installation| an_idempotency_key_belongs_to_the_principal(installation, clients),
    )
    .await;
}

/// Replaces a file by a rename, as a mounted secret changes.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("is written");
    std::fs::rename(&next, path).expect("takes its place");
}

fn list(keys: &[&ApiKey]) -> String {
    serde_json::to_string(keys).expect("plain values")
}

async fn failed_reloads(installation: &Installation) -> u64 {
    let ops = installation.apis[0].ops_address;
    let metrics = sent(installation.client.get(format!("http://{ops}/metrics"))).await.text().await;
    let metrics = metrics.expect("text");
    let line = metrics.lines().find_map(|line| {
        line.strip_prefix("forebay_api_key_reloads_total{outcome=\"failed\"} ").map(str::to_owned)
    });
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_file_counts_without_a_restart_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys.yaml");
    let ((old, first), (new, second)) = (key("a", "p", &[Scope::Write]), key("b", "p", &[Scope::Write]));
    replace(&path, &list(&[&first]));
    let keys_file = path.to_str().expect("text").to_owned();
    let adjust = |config: &mut Config| config.auth.keys_file.clone_from(&keys_file);
    cluster_with("keys-file", adjust, async |installation: Installation| {
        let status = async |replica: usize, key: &str| {
            sent(installation.at(replica, Method::POST, PATH).bearer_auth(key)).await.status().as_u16()
        };
        let until = async |expected: [u16; 2]| {
            for replica in 0..2 {
                let is_so = async || {
                    let both = [status(replica, &old).await, status(replica, &new).await];
                    (both == expected).then_some(())
                };
                installation.wait_for(&format!("{expected:?}"), is_so).await;
            }
        };
        until([202, 401]).await;
        replace(&path, &list(&[&first, &second]));
        until([202, 202]).await;
        replace(&path, &list(&[&second]));
        until([401, 202]).await;
        let before = failed_reloads(&installation).await;
        for broken in [Some("- {id: a"), Some(""), None] {
            match broken {
                Some(text) => replace(&path, text),
                None => std::fs::remove_file(&path).expect("is removed"),
            }
            let reported = failed_reloads(&installation).await;
            // Two looks later every replica has seen it.
            let seen = async || (failed_reloads(&installation).await >= reported + 4).then_some(());
            installation.wait_for("a look at the broken file", seen).await;
            until([401, 202]).await;
        }
        assert!(failed_reloads(&installation).await > before);
        replace(&path, &list(&[&first]));
        until([202, 401]).await;
        // No key left is not an open service.
        replace(&path, "[]");
        until([401, 401]).await;
        installation
    })
    .await;
}

/// Returns status and headers of the answer to a request that is sent byte for byte.
async fn raw(installation: &Installation, head: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(installation.apis[0].address).await.expect("a connection");
    let head = format!("{}\r\nconnection: close\r\n\r\n", head.replace('\n', "\r\n"));
    stream.write_all(head.as_bytes()).await.expect("is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    (answer.split(' ').nth(1).expect("a status").parse().expect("a number"), answer.to_lowercase())
}

on_both_pairs! {
    async fn without_keys_only_who_means_this_service_is_answered(installation) {
        let post = format!("POST {PATH}");
        for (head, status) in [
            (format!("{post} HTTP/1.1\nhost: LocalHost:8080"), 202),
            (format!("{post} HTTP/1.1\nhost: [::1]:8080"), 202),
            (format!("{post} HTTP/1.1\nhost: 127.0.0.1"), 202),
            (format!("{post} HTTP/1.0\ncontent-length: 0"), 202),
            (format!("{post} HTTP/1.1"), 400),
            (format!("{post} HTTP/1.1\nhost: evil.example:8080"), 421),
            (format!("{post} HTTP/1.1\nhost: localhost\nhost: localhost"), 400),
            (format!("{post} HTTP/1.1\nhost: localhost:x"), 400),
            (format!("{post} HTTP/1.1\nhost: localhost\norigin: https://evil.example"), 403),
            (format!("{post} HTTP/1.1\nhost: localhost\norigin: null"), 403),
            (format!("{post} HTTP/1.1\nhost: localhost\norigin: http://localhost:3000"), 202),
            (format!("POST http://evil.example{PATH} HTTP/1.1\nhost: localhost"), 421),
            ("GET /v1/counters HTTP/1.1\nhost: evil.example".into(), 421),
            ("GET /openapi.json HTTP/1.1\nhost: evil.example".into(), 421),
            ("GET /docs/ HTTP/1.1\nhost: evil.example".into(), 421),
            // Probes come by the address of their pod, and their answers disclose nothing.
            ("GET /livez HTTP/1.1\nhost: 10.1.2.3:8080".into(), 200),
            ("GET /readyz HTTP/1.1\nhost: 10.1.2.3:8080".into(), 200),
            ("GET /health HTTP/1.1\nhost: 10.1.2.3:8080".into(), 200),
        ] {
            let (found, answer) = raw(&installation, &head).await;
            assert_eq!(found, status, "{head}");
            assert!(!answer.contains("access-control-"), "{answer}");
            // A request that is not HTTP/1.1 is answered before there is a request to a route.
            let is_bare = status == 400 && answer.contains("content-length: 0");
            assert!(status < 300 || is_bare || answer.contains("application/problem+json"), "{answer}");
        }
        let preflight = "OPTIONS /v1/data/x HTTP/1.1\nhost: localhost\norigin: http://localhost:3000\n\
                         access-control-request-method: POST";
        let (status, answer) = raw(&installation, preflight).await;
        assert!(status == 405 && !answer.contains("access-control-"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_of_the_service_are_answered_when_they_are_allowed() {
    let adjust = |config: &mut Config| config.server.allowed_hosts = vec!["forebay.internal".into()];
    embedded_with(adjust, async |installation: Installation| {
        for (host, status) in [("Forebay.Internal:80", 202), ("forebay.internal.evil.example", 421)] {
            let (found, _) = raw(&installation, &format!("POST {PATH} HTTP/1.1\nhost: {host}")).await;
            assert_eq!(found, status, "{host}");
        }
        installation
    })
    .await;
}
