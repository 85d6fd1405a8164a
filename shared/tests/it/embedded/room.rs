//! Embedded files on a full disk, and the operations that take no space.
use super::*;

#[tokio::test]
async fn a_full_queue_refuses_until_something_is_acknowledged() {
    let directory = Directory::new("full");
    let queue = directory.queue_of(1_000).await;
    let publisher = queue.publisher();
    publish(&publisher, vec![1; 600]).await.expect("fits");
    assert_eq!(publisher.link(), Link::Up);
    assert_eq!(publish(&publisher, vec![2; 401]).await, Err(PublishError::Full));
    assert_eq!(publisher.link(), Link::Full);
    publish(&publisher, vec![3; 400]).await.expect("fits");
    assert_eq!(publisher.link(), Link::Up, "it took a smaller one");
    drop((queue, publisher));
    let queue = directory.queue_of(1_000).await;
    let publisher = queue.publisher();
    assert_eq!(publish(&publisher, vec![4; 1]).await, Err(PublishError::Full), "counted from the file");
    assert_eq!(publisher.link(), Link::Full);
    let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribes");
    let delivery = next(&mut subscription).await;
    subscription.ack(vec![delivery]).await.expect("acknowledged");
    assert_eq!(publisher.link(), Link::Up, "reported without a publish");
    publish(&publisher, vec![5; 600]).await.expect("fits again");
    assert_eq!(publish(&publisher, vec![6; 1]).await, Err(PublishError::Full));
    queue.close().await;
}

#[tokio::test]
async fn the_log_does_not_grow_with_what_passes_through() {
    let directory = Directory::new("log");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribes");
    for _ in 0..120 {
        publish(&publisher, vec![9; 1 << 20]).await.expect("confirmed");
        let delivery = next(&mut subscription).await;
        subscription.ack(vec![delivery]).await.expect("acknowledged");
    }
    let bytes = |name: &str| std::fs::metadata(directory.0.join(name)).expect("the file exists").len();
    assert!(bytes("queue.db-wal") < 40 << 20, "{}", bytes("queue.db-wal"));
    assert!(bytes("queue.db") < 40 << 20, "{}", bytes("queue.db"));
    queue.close().await;
}

/// The file can thus be opened after a crash on a full disk, and its messages can be settled.
#[tokio::test]
async fn opening_what_is_there_writes_nothing() {
    let directory = Directory::new("open");
    directory.queue().await.close().await;
    let queue = directory.queue().await;
    let log = std::fs::metadata(directory.0.join("queue.db-wal"));
    assert_eq!(log.map_or(0, |log| log.len()), 0);
    publish(&queue.publisher(), "first").await.expect("confirmed");
    let log = std::fs::metadata(directory.0.join("queue.db-wal")).expect("there is a log");
    assert!(log.len() > 0, "it would have shown");
    queue.close().await;
}
