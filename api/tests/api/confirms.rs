//! Outcomes that arrive before their confirms: a write that took effect is durable.
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use shared::model::message::Outgoing;
use shared::program::backend::Backend;
use shared::queue::{Lane, Link, PublishError, Publisher, Queue, QueueError, Subscription, Waiting};
use tokio::sync::watch;

use crate::support::{RunningConsumer, base_config, close, json, open, problem, wait_for};

/// A queue that takes messages and holds their confirms back.
pub struct Late {
    queue: Arc<dyn Queue>,
    /// Answer to publishes; `None` holds the answer back.
    pub answer: watch::Sender<Option<Result<(), PublishError>>>,
    /// Messages are stored, or dropped.
    stores: watch::Sender<bool>,
}

impl Late {
    /// Wraps the queue of a backend; returns the wrapper too, which releases the confirms.
    pub fn over(backend: &Backend) -> (Arc<Self>, Backend) {
        let late = Arc::new(Self {
            queue: backend.queue.clone(),
            answer: watch::Sender::new(Some(Ok(()))),
            stores: watch::Sender::new(true),
        });
        let queue = Arc::new(LateQueue(late.clone()));
        (late, Backend { queue, ..backend.clone() })
    }
}

struct LatePublisher(Arc<dyn Publisher>, Arc<Late>);

#[async_trait]
impl Publisher for LatePublisher {
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError> {
        if *self.1.stores.borrow() {
            self.0.publish(message, deadline).await?;
        }
        let mut answers = self.1.answer.subscribe();
        let answer = answers.wait_for(Option::is_some).await.expect("the test has it").clone();
        answer.expect("just seen")
    }

    fn link(&self) -> Link {
        self.0.link()
    }
}

struct LateQueue(Arc<Late>);

#[async_trait]
impl Queue for LateQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(LatePublisher(self.0.queue.publisher(), self.0.clone()))
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        self.0.queue.subscribe(lane, window).await
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        self.0.queue.waiting(lane).await
    }

    async fn close(&self) {
        self.0.queue.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_answered_before_its_confirm_and_a_lost_confirm_alone_is_unknown() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = base_config();
    config.server.workers = 1;
    config.queue.publishes_in_flight_max = 8;
    config.queue.url = format!("embedded:{}", directory.path().display());
    config.store.url.clone_from(&config.queue.url);
    let backend = open(&config).await;
    let (late, faulty) = Late::over(&backend);
    let consumer = RunningConsumer::start(&config, &backend);
    let api = api::server::Server::start(&config, &faulty).expect("the API starts");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let post = || {
        let url = format!("http://{}/v1/counters/late/increments", api.address);
        let request = client.post(url).header("prefer", "wait=20").send();
        async { request.await.expect("an answer") }
    };
    wait_for("the events of the consumer", async || (post().await.status() == 200).then_some(())).await;

    late.answer.send_replace(None);
    let early = post().await;
    assert_eq!(early.status(), 200, "although nobody confirmed it");
    let value = json(early).await["value"].as_i64().expect("a value");
    late.stores.send_replace(false);
    let unknown = tokio::spawn(post());
    wait_for("a wait", async || (api.waiting() == 1).then_some(())).await;
    late.answer.send_replace(Some(Err(PublishError::DeadlineExceeded)));
    problem(unknown.await.expect("no panic"), 503).await;
    let counter = backend.store.counter("late").await.expect("the store answers").expect("it was written");
    assert_eq!(counter.value, value);
    api.stop().await;
    consumer.stop().await;
    close(backend).await;
}
