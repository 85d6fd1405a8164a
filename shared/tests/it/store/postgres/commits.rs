//! Transactions that did not commit, which must never be taken for one that did. The client library
//! calls the commit of an aborted transaction a success, so every failure on the way must be
//! reported.
use std::collections::BTreeSet;
use std::sync::Arc;

use shared::model::collection::Definition;
use shared::model::message::Message;
use shared::store::Store;
use sqlx::PgConnection;

use crate::store::sent::{document, increment, point, with_key};
use crate::store::{Messages, NOON_MS, apply, postgres, postgres_config, standing, unavailable};

use super::{execute, ledger_rows, session};

/// Makes a batch that writes every table which batches write.
async fn batch_of_all(store: &Arc<dyn Store>, messages: &mut Messages) -> Arc<[Message]> {
    let definition = Definition { indexed: ["a".to_owned()].into_iter().collect(), ..Definition::default() };
    store.define("c", definition).await.expect("is defined");
    while store.index_page("c").await.expect("is indexed") {}
    [
        messages.of(&[increment("a", 1), document("c", r#"{"a":1}"#), point("t", NOON_MS, 1.0)]),
        messages.of(&[with_key("k", increment("a", 1))]),
        // The first of these is dead-lettered.
        messages.increments(&[("full", i64::MAX), ("full", 1)]),
    ]
    .into()
}

async fn names(session: &mut PgConnection, query: &'static str) -> BTreeSet<String> {
    let names: Vec<String> = sqlx::query_scalar(query).fetch_all(session).await.expect("is read");
    names.into_iter().collect()
}

async fn dead_letters(session: &mut PgConnection) -> i64 {
    let count = sqlx::query_scalar("select count(*) from dead_letters");
    count.fetch_one(session).await.expect("is counted")
}

const TABLES: &str = "select relname::text from pg_class where relkind in ('r', 'p') and not relispartition
    and relnamespace = 'public'::regnamespace and relname not like '\\_sqlx%'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_statement_fails_nothing_is_told_as_applied_and_nothing_is() {
    testkit::isolated("each", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let (mut session, mut messages) = (session(&url).await, Messages::new());
        let batch = batch_of_all(&store, &mut messages).await;
        let refuse = "create function refuse() returns trigger language plpgsql as
            $$ begin raise exception 'not now' using errcode = '53100'; end $$";
        execute(&mut session, refuse).await;
        let mut refused = BTreeSet::new();
        for table in names(&mut session, TABLES).await {
            let trigger = format!(
                "create trigger refuse before insert or update or delete on {table}
                 for each statement execute function refuse()"
            );
            execute(&mut session, &trigger).await;
            // This store remembers nothing, so it writes rows that another may know to be there.
            let store = postgres(&postgres_config(&url)).await;
            if let Err(error) = store.apply(Arc::clone(&batch)).await {
                assert!(unavailable(error).contains("53100"), "{table}");
                assert_eq!((ledger_rows(&url).await, standing(&store, "a").await), (0, (0, 0)), "{table}");
                refused.insert(table.clone());
            } else {
                // The table has nothing to do with batches; the reported writes are there.
                assert_eq!((ledger_rows(&url).await, standing(&store, "a").await), (3, (2, 2)), "{table}");
                execute(
                    &mut session,
                    "truncate applied_message, counters, documents, document_fields, points, rollups,
                     metric_types, keyed_writes, dead_letters",
                )
                .await;
            }
            execute(&mut session, &format!("drop trigger refuse on {table}")).await;
        }
        let written = [
            "applied_message",
            "counters",
            "dead_letters",
            "document_fields",
            "documents",
            "keyed_writes",
            "metric_types",
            "points",
            "rollups",
        ];
        assert_eq!(refused, written.map(String::from).into());
        let store = postgres(&postgres_config(&url)).await;
        assert_eq!(apply(&store, &batch).await.fresh.len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_at_the_commit_itself_is_not_taken_for_committed() {
    testkit::isolated("late", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let (mut session, mut messages) = (session(&url).await, Messages::new());
        let batch = batch_of_all(&store, &mut messages).await;
        let late = "create constraint trigger late after insert or update on counters
            deferrable initially deferred for each row execute function late()";
        // The codes include some about an item: the item cannot be known any more.
        for (number, code) in ["23503", "23514", "22001", "23505", "40001", "53100"].into_iter().enumerate() {
            let function = format!(
                "create or replace function late() returns trigger language plpgsql as
                 $$ begin raise exception 'too late' using errcode = '{code}'; end $$"
            );
            execute(&mut session, &function).await;
            if number == 0 {
                execute(&mut session, late).await;
            }
            let reported = store.apply(Arc::clone(&batch)).await.expect_err("is refused").to_string();
            assert!(reported.contains(code), "{reported}");
            let left = (ledger_rows(&url).await, dead_letters(&mut session).await);
            assert_eq!((left, standing(&store, "a").await), ((0, 0), (0, 0)), "{code}");
        }
        execute(&mut session, "drop trigger late on counters").await;
        assert_eq!(apply(&store, &batch).await.fresh.len(), 3);
        assert_eq!((ledger_rows(&url).await, standing(&store, "a").await), (3, (2, 2)));
    })
    .await;
}

/// A conflict that may pass at once is tried again within the same call; a sequence counts, since
/// it is not rolled back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_that_passes_is_repeated_and_applied_once() {
    testkit::isolated("conflict", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let (mut session, mut messages) = (session(&url).await, Messages::new());
        for (number, code) in ["40001", "40P01", "55P03"].into_iter().enumerate() {
            let name = format!("a{number}");
            execute(
                &mut session,
                &format!(
                    "drop sequence if exists attempts; create sequence attempts;
                     create or replace function twice() returns trigger language plpgsql as $$ begin
                         if nextval('attempts') <= 2 then
                             raise exception 'once more' using errcode = '{code}';
                         end if;
                         return null;
                     end $$;
                     create or replace trigger twice before insert on applied_message
                     for each statement execute function twice()"
                ),
            )
            .await;
            let batch = [messages.increments(&[(&name, 1)]), messages.increments(&[(&name, 1)])];
            let applied = apply(&store, &batch).await;
            assert_eq!((applied.fresh.len(), applied.set_aside.len()), (2, 0), "{code}");
            assert_eq!(standing(&store, &name).await, (2, 2), "{code}");
            let attempts = sqlx::query_scalar::<_, i64>("select last_value from attempts");
            assert_eq!(attempts.fetch_one(&mut session).await.expect("is read"), 3, "{code}");
        }
    })
    .await;
}
