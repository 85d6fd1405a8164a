//! Refusals of the server: for the content of an item, or for its own state. Triggers stand for the
//! objections of an operator, an encoding or an index.
use std::sync::Arc;

use shared::model::dead_letter::{DeadLetterFilter, DeadMessage, Redrive, RedriveOutcome};
use shared::model::message::Message;
use shared::model::outcome::{ItemStatus, Reason};
use shared::store::{Store, StoreError};
use sqlx::PgConnection;

use crate::store::contract::dead_messages::{body, bury, too_new};
use crate::store::sent::{document, increment, point, with_key};
use crate::store::{
    Messages, NOON_MS, apply, failed, fate, message, postgres, postgres_config, standing, unavailable,
};

use super::{execute, ledger_rows, session};

/// Makes the server raise `code` for rows of a table that `condition` describes.
async fn object_to(session: &mut PgConnection, table: &str, condition: &str, code: &str) {
    execute(
        session,
        &format!(
            "create or replace function object() returns trigger language plpgsql as $$ begin
                 if {condition} then
                     raise exception 'not with me, ü' using errcode = '{code}';
                 end if;
                 return new;
             end $$;
             create or replace trigger object before insert or update on {table}
             for each row execute function object()"
        ),
    )
    .await;
}

async fn dead_letters(session: &mut PgConnection) -> i64 {
    let count = sqlx::query_scalar("select count(*) from dead_letters");
    count.fetch_one(session).await.expect("is counted")
}

/// The server's objection to a text is gone once it is written in base64.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_refused_as_text_is_kept_in_ascii() {
    testkit::isolated("buried", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        object_to(&mut session, "dead_letters", "new.item ~ '[^\x01-\x7f]'", "22P05").await;
        let bury = async |body: &'static str| {
            let error = shared::model::message::decode(body.as_bytes()).expect_err("no message");
            let dead = shared::model::dead_letter::DeadMessage::undecodable(body.into(), &error);
            store.bury(dead.clone()).await.map(|()| dead.id().as_uuid())
        };
        let id = bury("nö").await.expect("is buried");
        let letter = store.dead_letter(id).await.expect("is read").expect("is there");
        assert_eq!(letter.item, "base64:bsO2");
        // Where the server takes nothing, it waits.
        object_to(&mut session, "dead_letters", "true", "53100").await;
        assert!(unavailable(bury("no").await.expect_err("is refused")).contains("53100"));
        assert_eq!(dead_letters(&mut session).await, 1);
    })
    .await;
}

/// A large body takes as long as a write may, in both attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_buried_within_the_time_of_writes() {
    testkit::isolated("slowly", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let limit = "interval '30 s'";
        let other_limit = format!("current_setting('statement_timeout')::interval <> {limit}");
        let objection = format!("new.item ~ '[^\x01-\x7f]' or {other_limit}");
        object_to(&mut session, "dead_letters", &objection, "22P05").await;
        for body in ["no", "nö"] {
            let error = shared::model::message::decode(body.as_bytes()).expect_err("no message");
            store.bury(DeadMessage::undecodable(body.into(), &error)).await.expect("is buried");
        }
        assert_eq!(dead_letters(&mut session).await, 2);
    })
    .await;
}

/// Some items are dead-lettered, whatever the server says about the others: its objection to their
/// text is gone once it is written in ASCII.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_an_item_that_is_set_aside_anyway_does_not_stop_its_batch() {
    testkit::isolated("aside", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let foreign = "concat(new.item, new.detail) ~ '[^\x01-\x7f]'";
        object_to(&mut session, "dead_letters", foreign, "22P05").await;
        let mut messages = Messages::new();
        let unreadable = r#"{"increment":{"counter":"ä𝄞","bü":1}}"#;
        let good = r#"{"increment":{"counter":"a","by":1}}"#;
        let odd = message(messages.id(), &[good, unreadable, good].map(String::from));
        let batch = [odd, messages.of(&[increment("a", 1)])];
        let applied = apply(&store, &batch).await;
        let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
        assert_eq!(aside, [(batch[0].item_key(1), Reason::Unreadable)]);
        assert_eq!(standing(&store, "a").await, (3, 3));
        let letter = store.dead_letter(aside[0].0.as_uuid()).await.expect("is read").expect("is there");
        assert!(letter.item.is_ascii() && letter.detail.is_ascii(), "{letter:?}");
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).expect("JSON");
        assert_eq!(read(&letter.item), read(unreadable));
    })
    .await;
}

/// Letters that another redrive holds are passed over, and the ones behind them are not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_that_passes_letters_over_says_where_to_go_on() {
    testkit::isolated("held", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut messages = Messages::new();
        let mut increments = vec![("full", i64::MAX)];
        increments.extend([("full", 1); 5]);
        apply(&store, &[messages.increments(&increments)]).await;
        apply(&store, &[messages.increments(&[("full", -9)])]).await;
        let mut other = session(&isolated.database_url).await;
        execute(&mut other, "begin").await;
        execute(&mut other, "select id from dead_letters order by id limit 2 for update").await;
        let filter = DeadLetterFilter::default();
        let first = Redrive { filter, after: None, limit: 3, dry_run: false, force: false };
        let done = store.redrive(first.clone()).await.expect("is redriven");
        assert_eq!(done.items.len(), 1, "two are held");
        let rest = store.redrive(Redrive { after: done.next, ..first }).await.expect("is redriven");
        assert_eq!((rest.items.len(), rest.next), (2, None));
        execute(&mut other, "rollback").await;
        assert_eq!(dead_letters(&mut other).await, 2);
    })
    .await;
}

async fn redrive_all(store: &Arc<dyn Store>, dry_run: bool) -> Vec<RedriveOutcome> {
    let filter = DeadLetterFilter::default();
    let redrive = Redrive { filter, after: None, limit: 1_000, dry_run, force: false };
    let redriven = store.redrive(redrive).await.expect("is redriven");
    redriven.items.into_iter().map(|redriven| redriven.outcome).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_refused_alone_is_set_aside_and_all_others_are_applied() {
    testkit::isolated("refused", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        object_to(&mut session, "documents", "new.data like '%poison%'", "22001").await;
        let mut messages = Messages::new();
        let poison = r#"{"a":"poison ä𝄞"}"#;
        let mut batch: Vec<Message> = Vec::new();
        for number in 0..20 {
            let mut items = vec![increment("a", 1), document("c", "{}"), point("t", NOON_MS, 1.0)];
            items.push(with_key(&number.to_string(), increment("keyed", 1)));
            if number == 7 {
                items.insert(2, document("c", poison));
            }
            if number == 13 {
                items.push(with_key("poison", document("c", poison)));
            }
            batch.push(messages.of(&items));
        }
        // A sum overflows as well.
        batch.push(messages.of(&[increment("b", i64::MAX), increment("b", 1)]));
        let applied = apply(&store, &batch).await;
        assert_eq!(applied.fresh.len(), 21);
        let refused = [batch[7].item_key(2), batch[13].item_key(4)];
        let mut aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
        aside.sort_unstable_by_key(|(item, reason)| (*reason != Reason::RefusedByStore, *item != refused[0]));
        let [one, other, overflow] = aside[..] else { panic!("{aside:?}") };
        assert_eq!([one, other], refused.map(|item| (item, Reason::RefusedByStore)));
        assert_eq!(overflow, (batch[20].item_key(1), Reason::CounterOverflow));
        assert_eq!((standing(&store, "a").await, standing(&store, "keyed").await), ((20, 20), (20, 20)));
        assert_eq!(applied.keyed.len(), 20, "the one that was set aside is not reported as applied");
        for item in refused {
            let reported = fate(&store, item).await;
            let Some(ItemStatus::Failed { reason, detail, .. }) = reported else { panic!("{reported:?}") };
            assert_eq!((&*reason, &*detail), ("refused_by_store", "not with me, ? (22001)"));
            let letter = store.dead_letter(item.as_uuid()).await.expect("is read").expect("is there");
            assert!(letter.item.is_ascii(), "{}", letter.item);
        }
        assert!(apply(&store, &batch).await.fresh.is_empty(), "it is done for good");

        // A redrive meets the same refusal, and the letter beside it is applied.
        apply(&store, &[messages.of(&[increment("b", -5)])]).await;
        for dry_run in [true, false] {
            let outcomes = redrive_all(&store, dry_run).await;
            let again = outcomes.iter().filter(|outcome| {
                matches!(outcome, RedriveOutcome::FailedAgain { reason, .. } if reason == "refused_by_store")
            });
            assert_eq!((outcomes.len(), again.count()), (3, 2));
        }
        assert_eq!(dead_letters(&mut session).await, 2);
        execute(&mut session, "drop trigger object on documents").await;
        assert_eq!(redrive_all(&store, false).await, [RedriveOutcome::Applied, RedriveOutcome::Applied]);
        for item in refused {
            let stored = store.document("c", item).await.expect("is read");
            let Some(shared::store::Stored::Document(stored)) = stored else { panic!("{stored:?}") };
            let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).expect("JSON");
            assert_eq!(read(&stored.data), read(poison));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_item_that_is_refused_does_not_block_what_comes_behind_it() {
    testkit::isolated("alone", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        object_to(&mut session, "documents", "true", "54000").await;
        let applied = apply(&store, &[Messages::new().of(&[document("c", "{}")])]).await;
        assert_eq!(applied.set_aside[0].reason, Reason::RefusedByStore);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_speaks_of_the_server_and_not_of_an_item_sets_nothing_aside() {
    testkit::isolated("state", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let mut messages = Messages::new();
        apply(&store, &[messages.of(&[increment("a", 1)])]).await;
        let poison = document("c", r#"{"a":"poison"}"#);
        let batch = [messages.of(&[increment("a", 1), poison]), messages.of(&[increment("a", 1)])];
        let codes = [
            // A missing partition, a read-only server, another schema, rights, a full disk, connections.
            "23514", "25006", "42703", "42501", "53100", "53300",
            // Two that cannot both commit, a deadlock, a lock: these are tried again within the
            // call, in vain.
            "40001", "40P01", "55P03",
            // An administrator, a lost connection, a statement that took too long.
            "57P01", "08006", "57014",
        ];
        for code in codes {
            object_to(&mut session, "documents", "new.data like '%poison%'", code).await;
            let refused = store.apply(batch.clone().into()).await.expect_err("is refused");
            assert_eq!(matches!(refused, StoreError::Failed(_)), code == "57014", "{refused}");
            assert!(refused.to_string().contains(code), "{refused}");
            assert_eq!(
                (dead_letters(&mut session).await, standing(&store, "a").await),
                (0, (1, 1)),
                "{code}"
            );
        }
        execute(&mut session, "drop trigger object on documents").await;
        // The objection is to every batch, whatever is in it.
        object_to(&mut session, "applied_message", "true", "22001").await;
        let refused = failed(store.apply(batch.clone().into()).await.expect_err("is refused"));
        assert!(refused.contains("any batch"), "{refused}");
        execute(&mut session, "drop trigger object on applied_message").await;
        assert_eq!(apply(&store, &batch).await.fresh.len(), 2);
        assert_eq!((dead_letters(&mut session).await, standing(&store, "a").await), (0, (3, 3)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_share_that_is_refused_alike_sets_nothing_aside() {
    testkit::isolated("share", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        let mut session = session(&url).await;
        object_to(&mut session, "documents", "new.data like '%poison%'", "22001").await;
        let mut messages = Messages::new();
        let mut batch_with = |poison: usize| -> Vec<Message> {
            let data = |number| if number < poison { r#"{"a":"poison"}"# } else { "{}" };
            (0..60).map(|number| messages.of(&[document("c", data(number))])).collect()
        };
        let refused = store.apply(batch_with(7).into()).await.expect_err("is refused");
        assert!(failed(refused).contains("more than 6 of 60 items alike"));
        assert_eq!((dead_letters(&mut session).await, ledger_rows(&url).await), (0, 0));
        assert_eq!(apply(&store, &batch_with(6)).await.set_aside.len(), 6);
    })
    .await;
}

/// The content of one message keeps no other letter from being redriven.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buried_message_of_which_much_is_refused_stays_and_the_others_are_redriven() {
    testkit::isolated("bulk", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        object_to(&mut session, "counters", "new.name like 'poison%'", "22001").await;
        let mut messages = Messages::new();
        let names: Vec<String> = (0..10).map(|number| format!("poison{number}")).collect();
        let poison: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
        let poison = bury(&store, &too_new(&body(&mut messages, &poison))).await;
        let before = store.dead_letter(poison).await.expect("is read").expect("is there");
        let mut good = Vec::new();
        // Ids are hashes of bodies: some lie before that one, some behind it.
        for _ in 0..12 {
            good.push(bury(&store, &too_new(&body(&mut messages, &[("a", 1)]))).await);
        }
        let asked = |dry_run| Redrive {
            filter: DeadLetterFilter::default(),
            after: None,
            limit: 100,
            dry_run,
            force: false,
        };
        for dry_run in [true, false] {
            let done = store.redrive(asked(dry_run)).await.expect("is redriven").items;
            assert_eq!(done.len(), 13);
            for redriven in done {
                match redriven.outcome {
                    RedriveOutcome::Applied => assert!(good.contains(&redriven.id)),
                    RedriveOutcome::FailedAgain { reason, detail } => {
                        assert_eq!((redriven.id, &*reason), (poison, "unknown_version"));
                        assert!(detail.contains("items alike"), "{detail}");
                    }
                    RedriveOutcome::NeedsForce => panic!("nothing is old"),
                }
            }
        }
        assert_eq!((standing(&store, "a").await, dead_letters(&mut session).await), ((12, 12), 1));
        assert_eq!(store.dead_letter(poison).await.expect("is read"), Some(before), "it says nothing of it");
        execute(&mut session, "drop trigger object on counters").await;
        assert_eq!(redrive_all(&store, false).await, [RedriveOutcome::Applied]);
        assert_eq!(standing(&store, "poison9").await, (1, 1));
    })
    .await;
}

/// A refusal by a server that is not well says nothing about the letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_at_a_server_that_is_not_well_leaves_every_letter_as_it_is() {
    testkit::isolated("unwell", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        let mut session = session(&isolated.database_url).await;
        let mut messages = Messages::new();
        let mut letters = vec![bury(&store, &too_new(&body(&mut messages, &[("a", 1)]))).await];
        let sent = messages.increments(&[("full", i64::MAX), ("full", 1)]);
        apply(&store, &[sent.clone(), messages.increments(&[("full", -9)])]).await;
        letters.push(sent.item_key(1).as_uuid());
        let all = async || {
            let mut all = Vec::new();
            for id in &letters {
                all.push(store.dead_letter(*id).await.expect("is read").expect("is there"));
            }
            all
        };
        let before = all().await;
        let asked = |id| Redrive {
            filter: DeadLetterFilter { id: Some(id), ..DeadLetterFilter::default() },
            after: None,
            limit: 9,
            dry_run: false,
            force: false,
        };
        // A full disk, a read-only server, no connections, and a stop.
        for code in ["53100", "25006", "53300", "57P01"] {
            object_to(&mut session, "counters", "true", code).await;
            for id in &letters {
                let refused = unavailable(store.redrive(asked(*id)).await.expect_err("is refused"));
                assert!(refused.contains(code), "{refused}");
            }
            assert_eq!(all().await, before, "{code}");
        }
        execute(&mut session, "drop trigger object on counters").await;
        // The objection is to every batch, whatever is in it.
        object_to(&mut session, "applied_message", "true", "22001").await;
        let reported = store.redrive(asked(letters[0])).await.expect("is redriven").items;
        let RedriveOutcome::FailedAgain { reason, detail } = &reported[0].outcome else {
            panic!("{reported:?}")
        };
        assert!(reason == "unknown_version" && detail.contains("any batch"), "{reported:?}");
        assert_eq!(all().await, before);
        execute(&mut session, "drop trigger object on applied_message").await;
        assert_eq!(redrive_all(&store, false).await, [RedriveOutcome::Applied, RedriveOutcome::Applied]);
    })
    .await;
}
