//! Housekeeping runs beside the ingest and ends with it.
use std::collections::VecDeque;
use std::sync::Mutex;

use shared::store::{ConsumerWatermark, Housekept, Retention};
use testkit::inspect;

use crate::*;

/// A store whose housekeeping is answered by a script, then by the real store.
struct Scripted {
    store: Arc<dyn Store>,
    script: Mutex<VecDeque<Result<Housekept, StoreError>>>,
    asked: Mutex<Vec<Retention>>,
    /// Answers of the store behind it.
    answered: Mutex<Vec<Result<Housekept, StoreError>>>,
}

#[async_trait]
impl Layer for Scripted {
    fn behind(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn housekeep(&self, retention: Retention) -> Result<Housekept, StoreError> {
        self.asked.lock().expect("no panic").push(retention);
        if let Some(answer) = self.script.lock().expect("no panic").pop_front() {
            return answer;
        }
        let answer = self.store.housekeep(retention).await;
        self.answered.lock().expect("no panic").push(answer.clone());
        answer
    }
}

on_both_pairs! {
    it_goes_on_at_once_while_there_is_more_and_after_an_error_while_writes_are_applied
    it_does_not_hold_up_a_stop
    what_is_forgotten_follows_the_messages_and_not_the_clock
    what_another_consumer_holds_is_not_forgotten
    an_old_message_that_comes_after_it_was_forgotten_is_set_aside
}

fn scripted(
    rig: Rig,
    script: impl IntoIterator<Item = Result<Housekept, StoreError>>,
) -> (Rig, Arc<Layered<Scripted>>) {
    let layer = Arc::new(Layered(Scripted {
        store: rig.backend.store.clone(),
        script: Mutex::new(script.into_iter().collect()),
        asked: Mutex::default(),
        answered: Mutex::default(),
    }));
    let backend = Backend { store: layer.clone(), ..rig.backend };
    (Rig { backend, ..rig }, layer)
}

async fn it_goes_on_at_once_while_there_is_more_and_after_an_error_while_writes_are_applied(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 5, more: true, ..Housekept::default() });
    let away = Err(StoreError::Unavailable("away".into()));
    let (mut rig, layer) = scripted(rig, [more.clone(), more.clone(), away, more.clone(), more]);
    for _ in 0..10 {
        let message = rig.message("beside", 1);
        rig.publish(message).await;
    }
    rig.consuming(async {
        rig.wait_for_value("beside", 10).await;
        wait_for("the store's own housekeeping", async || {
            let answered = layer.0.answered.lock().expect("no panic");
            answered.last().is_some_and(|answer| matches!(answer, Ok(Housekept { more: false, .. })))
        })
        .await;
    })
    .await;
    let asked = layer.0.asked.lock().expect("no panic").clone();
    assert!(asked.len() >= 6, "{asked:?}");
    let day_ms = 86_400_000;
    let Retention { points_ms, minutes_ms, hours_ms, rows_max, .. } = asked[0];
    assert_eq!((points_ms, minutes_ms, hours_ms), (30 * day_ms, 2 * day_ms, 90 * day_ms));
    assert!(rows_max > 0);
    let fixed = |retention: &Retention| Retention { now_ms_max: 0, forget_before_ms: None, ..*retention };
    assert!(asked.iter().all(|retention| fixed(retention) == fixed(&asked[0])));
    rig
}

/// The clock alone would forget the first attempt before its repetition is read.
async fn what_is_forgotten_follows_the_messages_and_not_the_clock(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 1, more: true, ..Housekept::default() });
    let (rig, layer) = scripted(rig, vec![more; 100_000]);
    let asked = || layer.0.asked.lock().expect("no panic").len();
    let last = || layer.0.asked.lock().expect("no panic").last().map(|retention| retention.forget_before_ms);
    let hours_ms = |hours: i64| hours * 3_600_000;
    let now_ms = shared::runtime::clock::now_ms();
    rig.consuming(async {
        // Before a message was read, nothing may be forgotten.
        wait_for("the first housekeeping", async || last().is_some()).await;
        assert_eq!(last(), Some(None));
        rig.publish_accepted(now_ms - hours_ms(72)).await;
        let bound = Some(Some(now_ms - hours_ms(72 + 24)));
        wait_for("a bound by the message", async || last() == bound).await;
        // Newer messages move nothing while an older one may come again, and an empty queue moves nothing.
        rig.publish_accepted(now_ms).await;
        rig.wait_for_value("accepted", 2).await;
        let then = asked();
        wait_for("more housekeeping", async || asked() >= then + 20).await;
        assert_eq!(last(), bound);
        // An older message moves the limit.
        rig.publish_accepted(now_ms - hours_ms(80)).await;
        wait_for("an earlier bound", async || last() == Some(Some(now_ms - hours_ms(80 + 24)))).await;
    })
    .await;
    rig
}

/// Another consumer holds an older message.
async fn what_another_consumer_holds_is_not_forgotten(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 1, more: true, ..Housekept::default() });
    let (rig, layer) = scripted(rig, vec![more; 100_000]);
    let last = || layer.0.asked.lock().expect("no panic").last().and_then(|asked| asked.forget_before_ms);
    let (now_ms, day_ms) = (shared::runtime::clock::now_ms(), 24 * 3_600_000);
    let hold = ConsumerWatermark { consumer: 7, oldest_ms: now_ms - 9 * day_ms };
    rig.backend.store.hold(hold, Vec::new()).await.expect("is reported");
    rig.consuming(async {
        rig.publish_accepted(now_ms).await;
        wait_for("a bound by the other", async || last() == Some(now_ms - 10 * day_ms)).await;
        // The other consumer settled it, or its process ended.
        let hold = ConsumerWatermark { oldest_ms: now_ms - day_ms, ..hold };
        rig.backend.store.hold(hold, Vec::new()).await.expect("is reported");
        wait_for("a later bound", async || last() == Some(now_ms - 2 * day_ms)).await;
    })
    .await;
    rig
}

/// A forgotten message comes once more, as from a consumer that had stopped.
async fn an_old_message_that_comes_after_it_was_forgotten_is_set_aside(rig: Rig) -> Rig {
    let (now_ms, day_ms) = (shared::runtime::clock::now_ms(), 24 * 3_600_000);
    let old = Rig::accepted(now_ms - 5 * day_ms);
    rig.publish(old.clone()).await;
    rig.consuming(rig.wait_for_value("accepted", 1)).await;
    let retention = Retention {
        now_ms_max: i64::MAX,
        points_ms: 90 * day_ms,
        minutes_ms: 90 * day_ms,
        hours_ms: 90 * day_ms,
        discarded_ms: 90 * day_ms,
        remembered_ms: 0,
        forget_before_ms: Some(now_ms - 3 * day_ms),
        rows_max: 1_000,
    };
    rig.backend.store.housekeep(retention).await.expect("is kept");
    rig.publish(old.clone()).await;
    rig.publish_accepted(now_ms).await;
    rig.consuming(async {
        rig.wait_for_value("accepted", 2).await;
        wait_for("it is set aside", async || {
            let fates = rig.backend.store.item_statuses([old.id.item(Kind::Increment, 0)].into()).await;
            let fate = fates.ok().and_then(|fates| fates.into_iter().next().flatten());
            matches!(fate, Some(ItemStatus::Failed { reason, .. }) if reason == "too_old")
        })
        .await;
    })
    .await;
    assert_eq!(rig.value("accepted").await, Some(2));
    rig
}

impl Rig {
    /// Increment with this accept time.
    fn accepted(at_ms: i64) -> Outgoing {
        // An issuer never goes back, so each message has one of its own.
        let mut builder = Builder::new(IdIssuer::new(rand::random(), 0).next(at_ms), at_ms);
        let mut encoded = Vec::new();
        encode_increment(&mut encoded, "accepted", 1);
        builder.push(&encoded, 1);
        builder.finish()
    }

    async fn publish_accepted(&self, at_ms: i64) {
        let message = Self::accepted(at_ms);
        self.publish(message).await;
    }
}

/// There is always more to delete, and a pause is always under way or about to be.
async fn it_does_not_hold_up_a_stop(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 1, more: true, ..Housekept::default() });
    let (rig, layer) = scripted(rig, vec![more; 100_000]);
    let asked = || layer.0.asked.lock().expect("no panic").len();
    rig.consuming(wait_for("housekeeping", async || asked() >= 3)).await;
    assert!(asked() < 100_000, "the stop waited for the end of the work");
    rig
}

/// The consumer gets no notice of that: each round of housekeeping looks at the dead queue, and finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_exchange_that_is_deleted_under_a_consumer_is_made_again_and_dead_letters_come() {
    crate::cluster("exchange", |rig| async move {
        let more = Ok(Housekept { rows: 1, more: true, ..Housekept::default() });
        let (mut rig, _layer) = scripted(rig, vec![more; 100_000]);
        let (good, bad) =
            (rig.message("good", 1), Outgoing { body: "no json".into(), ..rig.message("bad", 1) });
        rig.publish(good).await;
        let (broker, dead) = (rig.config.queue.url.clone(), format!("{}.dead.v1", rig.config.queue.prefix));
        rig.consuming(async {
            rig.wait_for_value("good", 1).await;
            inspect::delete_exchange(&broker, &dead).await.expect("deleted");
            wait_for("the exchange", async || inspect::exchange_exists(&broker, &dead).await.expect("asked"))
                .await;
            rig.publish(bad).await;
            wait_for("the dead letter", async || {
                inspect::dead_messages(&rig.config.store.url).await.expect("asked") == [b"no json"]
            })
            .await;
        })
        .await;
        rig
    })
    .await;
}
