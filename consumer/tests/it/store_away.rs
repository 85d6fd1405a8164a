//! The store is there and cannot be used. Each way of it pauses the ingest, sets nothing aside,
//! spends no delivery count and heals by itself, whatever SQLSTATE it comes with.
use shared::model::outcome::ItemStatus;
use testkit::inspect;
use testkit::trouble::{Trouble, give_to};

use crate::{Rig, base_config, wait_for};

/// Number of messages applied before, so that the window of the consumer is open.
const BEFORE: u32 = 30;
/// Number of messages that come while the store is away.
const DURING: u32 = 40;

/// Number of messages that one consumer holds at most by then.
const HELD_ASIDE_MAX: u32 = 10;

/// Runs a consumer through a fault of the database, as seen by the role.
async fn survives(word: &str, role: Option<&str>, trouble: impl FnOnce(&str) -> Trouble) {
    testkit::isolated(word, |isolated| async move {
        let (administered, mut config) = (isolated.database_url.clone(), base_config());
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        if let Some(role) = role {
            config.store.url = give_to(&administered, role).await;
        }
        let rig = Rig::new(config).await;
        let trouble = trouble(&administered);
        through(rig, &administered, &trouble).await.close().await;
    })
    .await;
}

async fn through(mut rig: Rig, database_url: &str, trouble: &Trouble) -> Rig {
    let before: Vec<_> = (0..BEFORE).map(|_| rig.message("away", 1)).collect();
    let during: Vec<_> = (0..DURING).map(|_| rig.message("away", 1)).collect();
    let ids: Vec<_> = during.iter().map(|message| message.id).collect();
    let (broker, prefix) = (rig.config.queue.url.clone(), rig.config.queue.prefix.clone());
    let (writes, dead) = (format!("{prefix}.writes.v1"), format!("{prefix}.dead.v1"));
    for message in before {
        rig.publish(message).await;
    }
    rig.consuming(async {
        rig.wait_for_value("away", i64::from(BEFORE)).await;
        trouble.begin(database_url).await;
        for message in during {
            rig.publish(message).await;
        }
        rig.wait_for_failures(4).await;
        // A message, and a few that were tried in its place where the store answers. All others are left
        // in the queue, and no consumer takes them.
        let waiting = async || inspect::waiting(&broker, &writes).await.expect("the broker answers");
        wait_for("a pause", async || waiting().await >= DURING - HELD_ASIDE_MAX).await;
        let counts = inspect::delivery_counts(&broker, &writes).await.expect("the broker answers");
        assert!(u32::try_from(counts.len()).expect("few") >= DURING - HELD_ASIDE_MAX, "{counts:?}");
        assert!(counts.iter().all(|count| *count <= 1), "{counts:?}");
        trouble.end(database_url).await;
        rig.wait_for_value("away", i64::from(BEFORE + DURING)).await;
        for id in ids {
            let fate = rig.wait_for_fate(id).await;
            assert!(matches!(fate, ItemStatus::Applied { .. }), "{fate:?}");
        }
    })
    .await;
    for queue in [writes, dead] {
        let left = async || inspect::waiting(&broker, &queue).await.expect("the broker answers");
        assert_eq!(left().await, 0, "{queue}");
    }
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_for_a_while_is_waited_for() {
    survives("read_only", None, Trouble::read_only).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_out_of_connections_is_waited_for() {
    testkit::role(|role| async move {
        survives("crowded", Some(&role), |database| Trouble::no_connections(database, &role)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_a_table_is_waited_for() {
    survives("skewed", None, |_| Trouble::other_schema()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_waited_for() {
    survives("disk_full", None, |_| Trouble::full_disk()).await;
}
