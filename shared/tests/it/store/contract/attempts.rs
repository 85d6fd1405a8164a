//! The contract of both stores on attempts, on a probe, and on a message that is given up.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use shared::model::dead_letter::RedriveOutcome;
use shared::model::outcome::{ItemStatus, Reason};
use shared::store::{GiveUp, Store};

use super::dead_letters::{everything, redrive};
use crate::store::sent::{document, increment, with_key};
use crate::store::{Messages, apply, fate, standing};

on_both!(
    an_attempt_is_noted_until_it_is_over,
    a_store_with_a_schema_takes_a_probe,
    a_message_that_is_given_up_is_done_and_each_item_can_be_redriven,
    a_message_that_was_applied_cannot_be_given_up,
    a_batch_within_its_time_is_applied,
);

fn given_up() -> GiveUp {
    GiveUp { why: "it failed".into(), search: false }
}

async fn an_attempt_is_noted_until_it_is_over([one, other]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let [a, b, c] = [messages.id(), messages.id(), messages.id()];
    let begin = async |store: &Arc<dyn Store>, ids: &[_], again| {
        store.begin_attempts(ids.into(), again).await.expect("is noted")
    };
    assert_eq!(begin(&one, &[a, b], false).await, HashMap::from([(a, 1), (b, 1)]));
    assert_eq!(begin(&other, &[c, a, b, a], false).await, HashMap::from([(c, 1)]));
    assert_eq!(begin(&other, &[a], true).await, HashMap::from([(a, 2)]));
    assert_eq!(begin(&one, &[a], true).await, HashMap::from([(a, 3)]));
    one.end_attempts([a, c].into()).await.expect("is forgotten");
    one.end_attempts([a].into()).await.expect("nothing is there");
    assert_eq!(begin(&other, &[a, b, c], false).await, HashMap::from([(a, 1), (c, 1)]));
    assert!(begin(&one, &[], true).await.is_empty());
}

async fn a_store_with_a_schema_takes_a_probe([one, other]: [Arc<dyn Store>; 2]) {
    let floor = one.floor_ms().await.expect("is read");
    for store in [&one, &other, &one] {
        store.probe().await.expect("is written");
    }
    assert_eq!(one.floor_ms().await.expect("is read"), floor);
    one.close().await;
    one.probe().await.expect_err("is closed");
}

async fn a_message_that_is_given_up_is_done_and_each_item_can_be_redriven([store, _]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let items = [increment("a", 2), document("c", "{}"), with_key("k", increment("a", 3)), increment("b", 1)];
    let message = messages.of(&items);
    let applied = store.give_up_on(message.clone(), given_up()).await.expect("is given up");
    assert_eq!((applied.fresh, applied.keyed.len()), (vec![message.id], 0));
    let aside: Vec<_> = applied.set_aside.iter().map(|aside| (aside.item, aside.reason)).collect();
    assert_eq!(aside, [0, 1, 2, 3].map(|index| (message.item_key(index), Reason::NotApplied)));
    assert!(apply(&store, std::slice::from_ref(&message)).await.fresh.is_empty(), "it is done for good");
    for index in 0..4 {
        let fate = fate(&store, message.item_key(index)).await;
        let Some(ItemStatus::Failed { reason, detail, .. }) = fate else { panic!("{fate:?}") };
        assert_eq!((&*reason, &*detail), ("not_applied", "it failed"));
    }
    assert_eq!((standing(&store, "a").await, standing(&store, "b").await), ((0, 0), (0, 0)));
    // A repetition under its key does nothing.
    apply(&store, &[messages.of(&[with_key("k", increment("a", 3))])]).await;
    let redriven = redrive(&store, everything(), false).await;
    assert_eq!(redriven.len(), 4);
    assert!(redriven.iter().all(|redriven| redriven.outcome == RedriveOutcome::Applied), "{redriven:?}");
    assert_eq!((standing(&store, "a").await, standing(&store, "b").await), ((5, 2), (1, 1)));
}

async fn a_message_that_was_applied_cannot_be_given_up([store, _]: [Arc<dyn Store>; 2]) {
    let mut messages = Messages::new();
    let message = messages.increments(&[("a", 2)]);
    apply(&store, std::slice::from_ref(&message)).await;
    let applied = store.give_up_on(message.clone(), given_up()).await.expect("it is there");
    assert!(applied.fresh.is_empty() && applied.set_aside.is_empty(), "{applied:?}");
    assert!(matches!(fate(&store, message.item_key(0)).await, Some(ItemStatus::Applied { .. })));
}

async fn a_batch_within_its_time_is_applied([store, _]: [Arc<dyn Store>; 2]) {
    let batch = [Messages::new().increments(&[("a", 2)])];
    let applied = store.apply_within(batch.as_slice().into(), Duration::from_secs(20)).await;
    assert_eq!(applied.expect("is applied").fresh, [batch[0].id]);
    assert_eq!(standing(&store, "a").await, (2, 1));
}
