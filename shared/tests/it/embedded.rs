//! Features of the embedded form alone: a file that survives, and its lock. The contract that it
//! shares with RabbitMQ is tested in `queue.rs`.
mod pairing;
mod room;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shared::config::queue_limits::QueueLimits;
use shared::event::in_process::InProcessEvents;
use shared::event::{Body, Event, Events, Signal};
use shared::model::id::IdIssuer;
use shared::model::message::Outgoing;
use shared::program::data_directory::{DirectoryLock, secret_of};
use shared::queue::embedded::EmbeddedQueue;
use shared::queue::{Delivery, Lane, Link, PublishError, Publisher, Queue, Subscription};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, Row};

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that is removed after the test.
struct Directory(PathBuf);

impl Directory {
    fn new(word: &str) -> Self {
        let path = std::env::temp_dir().join(testkit::unique(word));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    async fn queue(&self) -> Arc<EmbeddedQueue> {
        self.queue_of(1 << 30).await
    }

    async fn queue_of(&self, bytes_max: u64) -> Arc<EmbeddedQueue> {
        let limits = QueueLimits { bytes_max, confirm_timeout: Duration::from_secs(1) };
        EmbeddedQueue::open(&self.0, limits).await.expect("opens")
    }

    /// Opens the file as another program does.
    async fn file(&self) -> sqlx::SqliteConnection {
        let file = SqliteConnectOptions::new().filename(self.0.join("queue.db"));
        file.connect().await.expect("connects")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn outgoing(body: impl Into<Bytes>) -> Outgoing {
    static BATCHER: AtomicU32 = AtomicU32::new(0);
    let id = IdIssuer::new(BATCHER.fetch_add(1, Ordering::Relaxed), 0).next(1_763_600_000_000);
    Outgoing { id, body: body.into(), traces: None, items: 1 }
}

async fn publish(publisher: &Arc<dyn Publisher>, body: impl Into<Bytes>) -> Result<(), PublishError> {
    publisher.publish(outgoing(body), Instant::now() + PATIENCE).await
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, subscription.next());
    next.await.expect("a delivery in time").expect("not lost")
}

async fn take(subscription: &mut Box<dyn Subscription>, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::with_capacity(count);
    while deliveries.len() < count {
        deliveries.push(next(subscription).await);
    }
    deliveries
}

fn bodies(deliveries: &[Delivery]) -> HashSet<Bytes> {
    deliveries.iter().map(|delivery| delivery.body.clone()).collect()
}

fn numbers(range: std::ops::Range<u32>) -> HashSet<Bytes> {
    range.map(|number| Bytes::from(number.to_string())).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let (started, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(5)));
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tick.tick().await;
    }
}

#[tokio::test]
async fn every_confirmed_message_is_there_after_a_restart_without_a_close() {
    let directory = Directory::new("restart");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    for number in 0..50_u32 {
        publish(&publisher, number.to_string()).await.expect("confirmed");
    }
    drop((queue, publisher));
    let queue = directory.queue().await;
    let mut subscription = queue.subscribe(Lane::Writes, 100).await.expect("subscribes");
    let deliveries = take(&mut subscription, 50).await;
    assert_eq!(bodies(&deliveries), numbers(0..50));
    assert!(deliveries.iter().all(|delivery| delivery.redelivered), "an earlier process may have had them");
    assert!(subscription.try_next().expect("not lost").is_none());
    queue.close().await;
}

#[tokio::test]
async fn after_a_restart_what_was_acknowledged_is_gone_and_the_rest_comes_again() {
    let directory = Directory::new("unacked");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    for number in 0..20_u32 {
        publish(&publisher, number.to_string()).await.expect("confirmed");
    }
    let mut subscription = queue.subscribe(Lane::Writes, 20).await.expect("subscribes");
    let mut deliveries = take(&mut subscription, 20).await;
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
    let acked = deliveries.split_off(10);
    let left = bodies(&deliveries);
    subscription.ack(acked).await.expect("acknowledged");
    drop((subscription, queue, publisher));
    let queue = directory.queue().await;
    let mut subscription = queue.subscribe(Lane::Writes, 20).await.expect("subscribes");
    assert_eq!(bodies(&take(&mut subscription, 10).await), left);
    assert!(subscription.try_next().expect("not lost").is_none());
    queue.close().await;
}

#[tokio::test]
async fn a_file_that_knew_no_traces_is_used_on_and_an_earlier_build_can_have_it_back() {
    let directory = Directory::new("columns");
    directory.queue().await.close().await;
    let earlier = "insert into message (seq, id, body) values (?, zeroblob(16), ?)";
    let mut file = directory.file().await;
    file.execute("alter table message drop column traces").await.expect("as it was");
    sqlx::query(earlier).bind(1).bind(&b"old"[..]).execute(&mut file).await.expect("written");
    file.close().await.expect("closed");
    let queue = directory.queue().await;
    let traces = Some("[]".into());
    let message = Outgoing { traces: traces.clone(), ..outgoing("new") };
    queue.publisher().publish(message, Instant::now() + PATIENCE).await.expect("confirmed");
    let mut subscription = queue.subscribe(Lane::Writes, 2).await.expect("subscribes");
    let deliveries = take(&mut subscription, 2).await;
    let found: Vec<_> =
        deliveries.iter().map(|delivery| (&*delivery.body, delivery.traces.clone())).collect();
    assert_eq!(found, [(&b"old"[..], None), (&b"new"[..], traces)]);
    drop((subscription, deliveries));
    queue.close().await;
    let mut file = directory.file().await;
    sqlx::query(earlier).bind(3).bind(&b"older"[..]).execute(&mut file).await.expect("still possible");
}

#[tokio::test]
async fn a_rejected_message_moves_to_the_table_of_the_dead() {
    let directory = Directory::new("reject");
    let queue = directory.queue().await;
    publish(&queue.publisher(), "bad").await.expect("confirmed");
    let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribes");
    let delivery = next(&mut subscription).await;
    subscription.reject(delivery).await.expect("rejected");
    let mut file = directory.file().await;
    let sql = "select (select count(*) from message), body, length(id), rejected_at_ms from dead";
    let row = sqlx::query(sql).fetch_one(&mut file).await.expect("one dead message");
    assert_eq!(row.get::<i64, _>(0), 0);
    assert_eq!(row.get::<Vec<u8>, _>(1), b"bad");
    assert_eq!(row.get::<i64, _>(2), 16);
    assert!(row.get::<i64, _>(3) > 0);
    queue.close().await;
}

#[tokio::test]
async fn a_rejected_message_takes_room_until_it_is_acknowledged_among_the_dead() {
    let directory = Directory::new("room");
    for reopened in [false, true] {
        let queue = directory.queue_of(10).await;
        let publisher = queue.publisher();
        if !reopened {
            publish(&publisher, "0123456789").await.expect("it fits");
            let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribes");
            let delivery = next(&mut subscription).await;
            subscription.reject(delivery).await.expect("rejected");
        }
        assert_eq!(publish(&publisher, "x").await, Err(PublishError::Full), "reopened: {reopened}");
        if reopened {
            let mut dead = queue.subscribe(Lane::Dead, 1).await.expect("subscribes");
            let delivery = next(&mut dead).await;
            assert!(delivery.redelivered);
            dead.ack(vec![delivery]).await.expect("acknowledged");
            publish(&publisher, "x").await.expect("there is room again");
        }
        queue.close().await;
    }
    let sql = "select (select count(*) from message), (select count(*) from dead)";
    let row = sqlx::query(sql).fetch_one(&mut directory.file().await).await.expect("counts");
    assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_on_other_threads_and_a_consumer_lose_and_double_nothing() {
    let directory = Directory::new("threads");
    let queue = directory.queue().await;
    let mut subscription = queue.subscribe(Lane::Writes, 64).await.expect("subscribes");
    let mut threads = Vec::new();
    for thread in 0..4_u32 {
        let publisher = queue.publisher();
        threads.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                for number in thread * 250..(thread + 1) * 250 {
                    publish(&publisher, number.to_string()).await.expect("confirmed");
                }
            });
        }));
    }
    let mut seen = HashSet::new();
    while seen.len() < 1_000 {
        let mut deliveries = vec![next(&mut subscription).await];
        while let Some(delivery) = subscription.try_next().expect("not lost") {
            deliveries.push(delivery);
        }
        for delivery in &deliveries {
            assert!(seen.insert(delivery.body.clone()), "delivered twice while unacknowledged");
        }
        subscription.ack(deliveries).await.expect("acknowledged");
    }
    for thread in threads {
        thread.join().expect("published");
    }
    assert_eq!(seen, numbers(0..1_000));
    assert!(subscription.try_next().expect("not lost").is_none());
    queue.close().await;
}

#[tokio::test]
async fn a_backlog_larger_than_memory_keeps_is_read_back_in_whole() {
    let directory = Directory::new("backlog");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    let body = |number: u32| Bytes::from([&number.to_be_bytes()[..], &vec![7; 300_000]].concat());
    for number in 0..80 {
        publish(&publisher, body(number)).await.expect("confirmed");
    }
    let mut subscription = queue.subscribe(Lane::Writes, 3).await.expect("subscribes");
    for number in 0..80 {
        if number % 10 == 0 {
            // More messages come while the backlog is read.
            publish(&publisher, body(80 + number / 10)).await.expect("confirmed");
        }
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.body, body(number), "{number}");
        subscription.ack(vec![delivery]).await.expect("acknowledged");
    }
    for number in 80..88 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.body, body(number), "{number}");
        subscription.ack(vec![delivery]).await.expect("acknowledged");
    }
    assert!(subscription.try_next().expect("not lost").is_none());
    queue.close().await;
}

#[tokio::test]
async fn a_close_answers_what_was_sent_and_empties_the_log() {
    let directory = Directory::new("close");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100_u32 {
        let publisher = Arc::clone(&publisher);
        tasks.spawn(async move { (number, publish(&publisher, number.to_string()).await) });
    }
    // One publish has run, so others are on their way.
    let first = tasks.join_next().await.expect("there are some").expect("no panic");
    let (mut outcomes, ()) = (vec![first], queue.close().await);
    queue.close().await;
    outcomes.extend(tasks.join_all().await);
    assert_eq!(publisher.link(), Link::Down);
    assert!(matches!(publish(&publisher, "late").await, Err(PublishError::Unavailable(_))));
    let mut subscription = queue.subscribe(Lane::Writes, 1).await.expect("subscribes");
    assert!(subscription.next().await.is_err());
    assert!(!directory.0.join("queue.db-wal").exists(), "the log is in the database");
    let queue = directory.queue().await;
    let mut subscription = queue.subscribe(Lane::Writes, 100).await.expect("subscribes");
    let confirmed = outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
    let confirmed: HashSet<_> = confirmed.map(|(number, _)| Bytes::from(number.to_string())).collect();
    assert!(confirmed.len() > 1);
    assert_eq!(bodies(&take(&mut subscription, confirmed.len()).await), confirmed);
    queue.close().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_told_and_recovers_by_itself() {
    let directory = Directory::new("locked");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    publish(&publisher, "before").await.expect("confirmed");
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribes");
    let delivery = next(&mut subscription).await;

    let mut intruder = directory.file().await;
    intruder.execute("begin immediate").await.expect("locks the file");
    assert!(matches!(publish(&publisher, "during").await, Err(PublishError::Unavailable(_))));
    until("the link is down", || publisher.link() == Link::Down).await;
    let started = Instant::now();
    assert!(matches!(publish(&publisher, "during").await, Err(PublishError::Unavailable(_))));
    assert!(started.elapsed() < PATIENCE / 2, "refused without waiting for the deadline");
    subscription.ack(vec![delivery]).await.expect_err("nothing can be made durable");
    subscription.next().await.expect_err("a lost subscription stays lost");

    intruder.execute("rollback").await.expect("unlocks the file");
    intruder.close().await.expect("closes");
    until("the link is up", || publisher.link() == Link::Up).await;
    publish(&publisher, "after").await.expect("confirmed");
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribes");
    let deliveries = take(&mut subscription, 2).await;
    assert_eq!(bodies(&deliveries), HashSet::from([Bytes::from("before"), Bytes::from("after")]));
    assert!(deliveries[0].redelivered);
    queue.close().await;
}

#[tokio::test]
async fn a_publish_whose_deadline_has_passed_is_not_done() {
    let directory = Directory::new("deadline");
    let queue = directory.queue().await;
    let late = queue.publisher().publish(outgoing("late"), Instant::now()).await;
    assert_eq!(late, Err(PublishError::DeadlineExceeded));
    publish(&queue.publisher(), "in time").await.expect("confirmed");
    let mut subscription = queue.subscribe(Lane::Writes, 10).await.expect("subscribes");
    assert_eq!(next(&mut subscription).await.body, "in time");
    assert!(subscription.try_next().expect("not lost").is_none());
    queue.close().await;
}

#[test]
fn a_data_directory_belongs_to_one_at_a_time() {
    let directory = Directory::new("lock");
    let data = directory.0.join("data");
    let lock = DirectoryLock::take(&data).expect("free");
    let refused = DirectoryLock::take(&data).expect_err("taken").to_string();
    assert!(refused.contains(&data.display().to_string()) && refused.contains("in use"), "{refused}");
    drop(lock);
    DirectoryLock::take(&data).expect("free again");
    let mode = std::fs::metadata(&data).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

#[test]
fn the_secret_of_a_directory_is_made_once_and_readable_by_its_owner_only() {
    let directory = Directory::new("secret");
    let secret = secret_of(&directory.0).expect("made");
    assert_eq!(secret_of(&directory.0).expect("read"), secret);
    let other = Directory::new("secret");
    assert_ne!(secret_of(&other.0).expect("made"), secret);
    let path = directory.0.join("ids.secret");
    let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    std::fs::write(&path, &secret[1..]).expect("writes");
    secret_of(&directory.0).expect_err("a damaged secret is not replaced in silence");
}

#[tokio::test]
async fn two_subscribers_share_the_messages_and_inherit_from_one_that_leaves() {
    let directory = Directory::new("two");
    let queue = directory.queue().await;
    let publisher = queue.publisher();
    for number in 0..10_u32 {
        publish(&publisher, number.to_string()).await.expect("confirmed");
    }
    let (mut one, mut two) = (
        queue.subscribe(Lane::Writes, 4).await.expect("subscribes"),
        queue.subscribe(Lane::Writes, 10).await.expect("subscribes"),
    );
    let of_one = bodies(&take(&mut one, 4).await);
    assert!(one.try_next().expect("not lost").is_none(), "its window is full");
    let of_two = bodies(&take(&mut two, 6).await);
    assert!(of_one.is_disjoint(&of_two));
    assert!(two.try_next().expect("not lost").is_none(), "the rest is in the other's hands");
    drop(one);
    let inherited = take(&mut two, 4).await;
    assert_eq!(bodies(&inherited), of_one);
    assert!(inherited.iter().all(|delivery| delivery.redelivered));
    queue.close().await;
}

#[tokio::test]
async fn a_subscriber_of_events_that_falls_behind_is_told_and_goes_on() {
    let events = InProcessEvents::start();
    let mut stream = events.subscribe().await;
    let event = |number| Event {
        publisher: 1,
        number,
        store_time_ms: None,
        body: Body::Heartbeat { store_away: false },
    };
    events.publish(event(0));
    assert_eq!(stream.next().await, Signal::Event(Arc::new(event(0))));
    for number in 1..=10_000 {
        events.publish(event(number));
    }
    assert_eq!(stream.next().await, Signal::Interrupted);
    let mut last = 0;
    while last < 10_000 {
        let Signal::Event(event) = stream.next().await else { panic!("reported once") };
        assert!(event.number > last);
        last = event.number;
    }
}
