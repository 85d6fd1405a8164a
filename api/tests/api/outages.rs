//! Outages of the broker or the store: answers during them, and recovery without help.
use std::time::{Duration, Instant};

use reqwest::Method;
use testkit::proxy::Proxy;

use crate::support::{Installation, cluster_with, json, problem};

/// Upper limit for an accept, generous beside the configured one: the machine may be busy.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(1_500);

pub struct Proxies {
    pub broker: Proxy,
    pub store: Proxy,
}

/// Runs a test with an installation whose every connection goes through a proxy.
pub async fn behind_proxies(word: &str, test: impl AsyncFnOnce(Installation, &Proxies) -> Installation) {
    let place = |url: &str| {
        let after_user = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
        after_user.split('/').next().expect("a host and a port").to_owned()
    };
    let broker = Proxy::start(place(&testkit::amqp_url())).await.expect("a proxy");
    let store = Proxy::start(place(&testkit::admin_database_url())).await.expect("a proxy");
    let proxies = Proxies { broker, store };
    let adjust = |config: &mut shared::config::Config| {
        config.queue.url = proxies.broker.through(&config.queue.url);
        config.store.url = proxies.store.through(&config.store.url);
        config.server.accept_timeout_ms = u64::try_from(ACCEPT_TIMEOUT.as_millis()).expect("small");
        config.queue.confirm_timeout_ms = 500;
        config.store.read_timeout_ms = 500;
        config.store.connect_timeout_ms = 500;
        config.cache.ttl_ms = 200;
    };
    cluster_with(word, adjust, |installation| test(installation, &proxies)).await;
}

async fn write(installation: &Installation, name: &str) -> (reqwest::Response, Duration) {
    let started = Instant::now();
    let request = installation.at(0, Method::POST, &format!("/v1/counters/{name}/increments"));
    (request.send().await.expect("an answer"), started.elapsed())
}

async fn accepted_again(installation: &Installation, name: &str) {
    installation
        .wait_for("writes are accepted again", async || {
            (write(installation, name).await.0.status() == 202).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_noticed_in_time_then_told_at_once_and_comes_back_by_itself() {
    behind_proxies("silent", async |installation, proxies| {
        installation.increment(0, "before", 1).await;
        proxies.broker.black_hole(true);
        let (response, took) = write(&installation, "during").await;
        assert_eq!(response.headers()["retry-after"].to_str().expect("text"), "1");
        problem(response, 503).await;
        assert!(took < ACCEPT_TIMEOUT * 2, "{took:?}");
        let health = installation.get("/health").await;
        assert_eq!(health.status(), 503);
        // From now on no request waits for the silent broker, also past the times at which the
        // breaker lets one try: within the time of one accept there are many answers.
        let (began, mut taken) = (Instant::now(), Vec::new());
        while taken.len() < 20 || began.elapsed() < ACCEPT_TIMEOUT {
            let (response, took) = write(&installation, "during").await;
            problem(response, 503).await;
            assert!(took < ACCEPT_TIMEOUT, "{took:?}");
            taken.push(took);
        }
        taken.sort_unstable();
        assert!(taken[taken.len() / 2] < ACCEPT_TIMEOUT / 10, "{taken:?}");
        proxies.broker.black_hole(false);
        proxies.broker.cut();
        // Health changes without a write: a load balancer that routes by health would never send one.
        installation
            .wait_for("a healthy replica", async || {
                (installation.get("/health").await.status() == 200).then_some(())
            })
            .await;
        accepted_again(&installation, "after").await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_broker_connection_costs_no_accepted_write() {
    behind_proxies("cut", async |installation, proxies| {
        let mut accepted = 0;
        for round in 0..30 {
            if round % 10 == 5 {
                proxies.broker.cut();
            }
            if write(&installation, "cut").await.0.status() == 202 {
                accepted += 1;
            }
        }
        assert!(accepted > 20, "{accepted}");
        // Writes that got no 202 may count as well: each at most once.
        installation
            .wait_for("every accepted write", async || {
                let counter = json(installation.get("/v1/counters/cut").await).await;
                let value = counter["value"].as_i64().unwrap_or(0);
                assert!(value <= 30);
                (value >= accepted).then_some(())
            })
            .await;
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_writes_are_accepted_and_known_values_are_answered_stale() {
    behind_proxies("store", async |installation, proxies| {
        installation.increment(0, "known", 5).await;
        installation.wait_for_value(0, "known", 5).await;
        proxies.store.down(true);
        for _ in 0..10 {
            installation.increment(0, "known", 1).await;
        }
        let stale = installation
            .wait_for("a stale answer", async || {
                let response = installation.get("/v1/counters/known").await;
                assert_eq!(response.status(), 200);
                let how = response.headers()["cache-status"].to_str().expect("text").to_owned();
                let value = json(response).await["value"].clone();
                (how == "forebay; hit; detail=stale").then_some(value)
            })
            .await;
        assert_eq!(stale, 5);
        let unknown = installation.get("/v1/counters/unknown").await;
        assert!(unknown.headers().contains_key("retry-after"));
        problem(unknown, 503).await;
        installation
            .wait_for("a degraded replica", async || {
                let health = installation.get("/health").await;
                assert_eq!(health.status(), 200, "writes are still accepted");
                (json(health).await["status"] == "degraded").then_some(())
            })
            .await;
        proxies.store.down(false);
        let counter = installation.wait_for_value(1, "known", 15).await;
        assert_eq!(counter["version"], 11);
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_nobody_is_kept_waiting_for_it() {
    behind_proxies("waits", async |installation, proxies| {
        installation.wait_until_events_arrive().await;
        proxies.store.down(true);
        let started = Instant::now();
        let waiting =
            installation.at(0, Method::POST, "/v1/counters/w/increments").header("prefer", "wait=30");
        let waiting = tokio::spawn(waiting.send());
        installation
            .wait_for("a release", async || {
                installation.increment(0, "w", 1).await;
                waiting.is_finished().then_some(())
            })
            .await;
        assert_eq!(waiting.await.expect("no panic").expect("an answer").status(), 202);
        assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
        installation
            .wait_for("an answer at once", async || {
                let started = Instant::now();
                let response = installation.increment_and_wait(1, "w").await;
                (response.status() == 202 && started.elapsed() < ACCEPT_TIMEOUT).then_some(())
            })
            .await;
        proxies.store.down(false);
        installation
            .wait_for("waits as before", async || {
                let response = installation.increment_and_wait(0, "w").await;
                (response.status() == 200).then_some(())
            })
            .await;
        installation
    })
    .await;
}
