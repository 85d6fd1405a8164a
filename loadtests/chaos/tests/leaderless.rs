//! A publisher whose channel meets the queue for the first time while the leader's node is gone and
//! the others cannot elect a new one. RabbitMQ 3.10 makes such a channel refuse everything until
//! that very node comes back. Three nodes of a broker of this test show that we do not wait for it.
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chaos::servers::{Programs, rabbitmq};
use shared::amqp::settings::RabbitSettings;
use shared::config::queue_limits::QueueLimits;
use shared::model::id::IdIssuer;
use shared::model::message::{Builder, Outgoing, encode_increment};
use shared::queue::rabbitmq::RabbitQueue;
use shared::queue::{Link, PublishError, Queue};

const LIMITS: QueueLimits = QueueLimits { bytes_max: 64 << 20, confirm_timeout: Duration::from_secs(5) };
const PREFIX: &str = "leaderless";
/// Time for an election and the last back-off.
const PATIENCE: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(10);

fn message() -> Outgoing {
    let mut builder =
        Builder::new(IdIssuer::new(rand::random(), 0).next(1_763_600_000_000), 1_763_600_000_000);
    let mut item = Vec::new();
    encode_increment(&mut item, "counter", 1);
    builder.push(&item, 1);
    builder.finish()
}

async fn publish(queue: &RabbitQueue) -> Result<(), PublishError> {
    queue.publisher().publish(message(), Instant::now() + PATIENCE).await
}

async fn await_up(queue: &RabbitQueue) -> anyhow::Result<()> {
    let (deadline, mut tick) = (Instant::now() + PATIENCE, tokio::time::interval(ASK_EVERY));
    while queue.publisher().link() != Link::Up {
        anyhow::ensure!(Instant::now() < deadline, "the link stays {:?}", queue.publisher().link());
        tick.tick().await;
    }
    Ok(())
}

async fn open(url: &str) -> anyhow::Result<Arc<RabbitQueue>> {
    let queue = RabbitQueue::start(RabbitSettings::new(url, PREFIX, LIMITS));
    await_up(&queue).await?;
    Ok(queue)
}

async fn in_folder(programs: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut broker = rabbitmq::RabbitMq::create(programs, &folder.join("rabbitmq"), 3).await?;
    let declaring = open(&broker.url()).await?;
    publish(&declaring).await?;
    declaring.close().await;

    let leader = broker.leader(&format!("{PREFIX}.writes.v1")).await?;
    let (here, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let queue = open(&broker.url_of(here)).await?;
    broker.kill(other).await?;
    broker.kill(leader).await?;
    anyhow::ensure!(
        publish(&queue).await == Err(PublishError::Full),
        "a queue without a leader took a message"
    );
    broker.restart(other).await?;
    let (began, mut tick) = (Instant::now(), tokio::time::interval(ASK_EVERY));
    while let Err(error) = publish(&queue).await {
        anyhow::ensure!(began.elapsed() < PATIENCE, "with a leader for {:?}: {error}", began.elapsed());
        tick.tick().await;
    }
    await_up(&queue).await?;
    queue.close().await;
    broker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_met_a_queue_without_a_leader_works_once_there_is_one() {
    let (Ok(_), Some(programs)) = (Programs::find(), rabbitmq::programs()) else {
        // Written past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no RabbitMQ is installed here to start a private one");
        return;
    };
    let folder = std::env::temp_dir().join(testkit::unique("leaderless"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(&folder, open_to_all).expect("the broker's user gets through");
    let outcome = in_folder(&programs, &folder).await;
    if outcome.is_ok() {
        testkit::servers::remove_folder(&folder).await.expect("removed");
    }
    outcome.expect("publishing goes on");
}
