//! Callers that go away at any moment, with their whole runtime: both stores stay exact.
use std::sync::Arc;

use shared::model::message::Message;
use shared::store::Store;

use super::{Directory, Messages, apply, apply_until_known, postgres, postgres_config, standing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_apply_that_is_repeated_is_exact_on_sqlite() {
    let directory = Directory::new("cancel");
    a_cancelled_apply_that_is_repeated_is_exact(directory.store().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_apply_that_is_repeated_is_exact_on_postgres() {
    testkit::isolated("cancel", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        a_cancelled_apply_that_is_repeated_is_exact(store).await;
    })
    .await;
}

async fn a_cancelled_apply_that_is_repeated_is_exact(store: Arc<dyn Store>) {
    const ROUNDS: u64 = 100;
    let mut messages = Messages::new();
    let mut given_up = 0;
    for round in 0..ROUNDS {
        // The end of a long value makes some rounds take the exact path.
        let edge = if round % 5 == 0 { i64::MAX } else { 0 };
        let batch = messages.each(&[("a", 1), ("b", 2), ("a", 1), ("edge", edge), ("edge", -edge)]);
        // It is cancelled at another point each time, from right after its beginning to after its end.
        tokio::select! {
            biased;
            outcome = store.apply(batch.clone().into()) => drop(outcome),
            () = turns(round * round) => given_up += 1,
        }
        apply_until_known(&store, &batch).await;
    }
    assert!(given_up > 0, "none of {ROUNDS} was cancelled");
    let rounds = i64::try_from(ROUNDS).expect("small");
    assert_eq!(standing(&store, "a").await, (2 * rounds, 2 * rounds));
    assert_eq!(standing(&store, "b").await, (2 * rounds, rounds));
    assert_eq!(standing(&store, "edge").await, (0, 2 * rounds));
}

/// Lets the scheduler take this many turns.
async fn turns(count: u64) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_ends_takes_nothing_along_on_sqlite() {
    let directory = Directory::new("runtime");
    a_runtime_that_ends_takes_nothing_along(directory.store().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_ends_takes_nothing_along_on_postgres() {
    testkit::isolated("runtime", async |isolated| {
        let store = postgres(&postgres_config(&isolated.database_url)).await;
        a_runtime_that_ends_takes_nothing_along(store).await;
    })
    .await;
}

async fn a_runtime_that_ends_takes_nothing_along(store: Arc<dyn Store>) {
    const ROUNDS: i64 = 20;
    let mut messages = Messages::new();
    for _ in 0..ROUNDS {
        let batch: Arc<[Message]> = messages.each(&[("a", 1), ("b", 1)]).into();
        let (caller, work) = (Arc::clone(&store), Arc::clone(&batch));
        let other_thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                tokio::spawn({
                    let caller = Arc::clone(&caller);
                    async move { caller.apply(work).await }
                });
                // This is a whole operation of the caller: no part of it may stay on this runtime.
                caller.counter("a").await.expect("is read");
            });
        });
        tokio::task::spawn_blocking(|| other_thread.join()).await.expect("joins").expect("no panic");
        apply_until_known(&store, &batch).await;
    }
    assert_eq!(standing(&store, "a").await, (ROUNDS, ROUNDS));
    apply(&store, &[messages.increments(&[("a", 1)])]).await;
    assert_eq!(standing(&store, "b").await, (ROUNDS, ROUNDS));
}
