//! A broker that takes connections and sends nothing.
use shared::amqp::settings::RabbitSettings;
use shared::queue::QueueError;
use shared::queue::rabbitmq::RabbitQueue;

use super::{Arc, Duration, LIMITS, Lane, Queue};

/// Time limit of connecting.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_ends_a_look_that_a_silent_broker_does_not_answer() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("amqp://{}", silent.local_addr().expect("bound"));
    let queue = RabbitQueue::start(RabbitSettings::new(&url, "silent", LIMITS));
    // Two sessions connect: the publisher's, and the one that reads the queue's depth.
    let publishing = silent.accept().await.expect("connected");
    let looked = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.waiting(Lane::Dead).await }
    });
    let looking = silent.accept().await.expect("connected");
    queue.close().await;
    let error = looked.await.expect("no panic").expect_err("nobody answers").to_string();
    assert!(error.ends_with("the queue was closed"), "{error}");
    drop((publishing, looking));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_a_silent_broker_fails_in_time() {
    // The kernel accepts connections, and no answer is ever sent.
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("amqp://{}", silent.local_addr().expect("bound"));
    let queue = RabbitQueue::start(RabbitSettings::new(&url, "silent", LIMITS));
    let refused = tokio::time::timeout(CALL_TIMEOUT * 2, queue.subscribe(Lane::Writes, 1))
        .await
        .expect("in time")
        .err();
    assert!(matches!(refused, Some(QueueError::Unavailable(_))), "{refused:?}");
    queue.close().await;
}
