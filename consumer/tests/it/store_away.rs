//! The store is there and cannot be used. Each way of it pauses the ingest, sets nothing aside,
//! spends no delivery count and heals by itself, whatever SQLSTATE it comes with.
use std::sync::atomic::Ordering;

use shared::store::Fate;
use testkit::inspect;

use crate::{Rig, base_config, wait_for};

/// Messages that are applied before, so that the window of the consumer is open.
const BEFORE: u32 = 30;
/// Messages that come while the store is away.
const DURING: u32 = 40;

/// Statements of an administrator. Each runs on a session of its own.
struct Trouble {
    begins: Vec<Statement>,
    ends: Vec<Statement>,
}

enum Statement {
    /// In the database of the test.
    Within(String),
    /// From another database, as what concerns the whole of it must.
    About(String),
}

impl Statement {
    async fn run(&self, database_url: &str) {
        let done = match self {
            Self::Within(statement) => testkit::execute(database_url, statement.clone()).await,
            Self::About(statement) => {
                testkit::execute(&testkit::admin_database_url(), statement.clone()).await
            }
        };
        done.expect("the administrator may do that");
    }
}

fn name_of(database_url: &str) -> &str {
    database_url.rsplit_once('/').expect("a database URL has a path").1
}

/// Ends all sessions: settings of a database or a role hold for later ones only.
fn cut(database: &str) -> Statement {
    Statement::About(format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
    ))
}

/// The database, as the role sees it, is in `trouble` for a while.
async fn survives(word: &str, user: Option<&str>, trouble: impl FnOnce(&str) -> Trouble) {
    testkit::isolated(word, |isolated| async move {
        let (administered, mut config) = (isolated.database_url.clone(), base_config());
        config.queue.url = isolated.amqp_url;
        config.queue.prefix = isolated.prefix;
        config.store.url = isolated.database_url;
        if let Some(user) = user {
            let owned = format!("alter database \"{}\" owner to \"{user}\"", name_of(&administered));
            Statement::About(owned).run(&administered).await;
            let server = administered.rsplit_once('@').map_or(administered.as_str(), |(_, server)| server);
            config.store.url = format!("postgres://{user}:{user}@{server}");
        }
        let rig = Rig::new(config).await;
        let trouble = trouble(name_of(&administered));
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
        for statement in &trouble.begins {
            statement.run(database_url).await;
        }
        for message in during {
            rig.publish(message).await;
        }
        wait_for("probes", async || rig.store.0.failed.load(Ordering::Relaxed) >= 4).await;
        // All but the probe are left to the queue, and nobody takes them.
        let waiting = async || inspect::waiting(&broker, &writes).await.expect("the broker answers");
        wait_for("a pause", async || waiting().await == DURING - 1).await;
        let counts = inspect::delivery_counts(&broker, &writes).await.expect("the broker answers");
        assert_eq!(u32::try_from(counts.len()).expect("few"), DURING - 1);
        assert!(counts.iter().all(|count| *count <= 1), "{counts:?}");
        assert_eq!(rig.store.0.asked.lock().expect("no panic").last(), Some(&1), "one message probes");
        for statement in &trouble.ends {
            statement.run(database_url).await;
        }
        rig.wait_for_value("away", i64::from(BEFORE + DURING)).await;
        for id in ids {
            let fate = rig.wait_for_fate(id).await;
            assert!(matches!(fate, Fate::Applied { .. }), "{fate:?}");
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
    survives("read_only", None, |database| {
        let set = |word| {
            Statement::About(format!(
                "alter database \"{database}\" {word} default_transaction_read_only{}",
                if word == "set" { " = on" } else { "" }
            ))
        };
        Trouble { begins: vec![set("set"), cut(database)], ends: vec![set("reset"), cut(database)] }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_out_of_connections_is_waited_for() {
    testkit::role(|role| async move {
        survives("crowded", Some(&role), |database| {
            let limit = |limit| Statement::About(format!("alter role \"{role}\" connection limit {limit}"));
            Trouble { begins: vec![limit(0), cut(database)], ends: vec![limit(-1)] }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_a_table_is_waited_for() {
    survives("skewed", None, |_| {
        let rename = |from, to| Statement::Within(format!("alter table {from} rename to {to}"));
        Trouble { begins: vec![rename("counters", "gone")], ends: vec![rename("gone", "counters")] }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_waited_for() {
    survives("disk_full", None, |_| {
        let begins = [
            "create function refuse() returns trigger language plpgsql as \
             $$ begin raise exception 'could not extend file' using errcode = '53100'; end $$",
            "create trigger full_disk before insert on applied_message for each statement execute function refuse()",
        ];
        let begins = begins.map(|statement| Statement::Within(statement.into())).into();
        Trouble { begins, ends: vec![Statement::Within("drop trigger full_disk on applied_message".into())] }
    })
    .await;
}
