//! Idle programs send their store next to no requests.
use shared::event::{Body, EventStream, Signal};
use testkit::proxy::Proxy;

use crate::support::{RunningConsumer, base_config, client, close, open};

/// Heartbeats of one consumer, which come once a second and later on a busy machine.
const HEARTBEATS: u64 = 7;

/// Requests per program and heartbeat that are too many.
const TOO_MANY: u64 = 2;

async fn heartbeats(stream: &mut dyn EventStream, count: u64) {
    for _ in 0..count {
        loop {
            if let Signal::Event(event) = stream.next().await
                && matches!(event.body, Body::Heartbeat { .. })
            {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_programs_ask_their_store_less_than_twice_a_second_each() {
    testkit::isolated("idle", |isolated| async move {
        let (_, place) = isolated.database_url.rsplit_once('@').expect("a URL with a user");
        let place = place.split('/').next().expect("a host");
        // One proxy before each program.
        let proxies =
            [Proxy::start(place).await.expect("a proxy"), Proxy::start(place).await.expect("a proxy")];
        let configs = proxies.each_ref().map(|proxy| {
            let mut config = base_config();
            config.queue.url.clone_from(&isolated.amqp_url);
            config.queue.prefix.clone_from(&isolated.prefix);
            config.store.url = proxy.through(&isolated.database_url);
            config
        });
        let backends = [open(&configs[0]).await, open(&configs[1]).await];
        let consumer = RunningConsumer::start(&configs[0], &backends[0]);
        let api = api::server::Server::start(&configs[1], &backends[1]).expect("the API starts");
        let mut stream = backends[1].events.subscribe().await;
        // Both programs have worked.
        let url = format!("http://{}/v1/counters/idle/increments", api.address);
        crate::support::wait_for("a write that is applied", async || {
            let answer = client().post(&url).header("prefer", "wait=20").send().await.expect("an answer");
            (answer.status() == 200).then_some(())
        })
        .await;
        // The work at the start of the programs is over.
        heartbeats(stream.as_mut(), 3).await;
        let said = || proxies.each_ref().map(Proxy::said);
        let before = said();
        heartbeats(stream.as_mut(), HEARTBEATS).await;
        let asked = [said()[0] - before[0], said()[1] - before[1]];
        assert!(
            asked.iter().all(|asked| *asked < TOO_MANY * HEARTBEATS),
            "consumer and API asked {asked:?} times"
        );
        assert!(asked.iter().any(|asked| *asked > 0), "nobody looks whether the store is there");
        api.stop().await;
        consumer.stop().await;
        for backend in backends {
            close(backend).await;
        }
    })
    .await;
}
