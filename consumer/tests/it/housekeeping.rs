//! Housekeeping runs beside the ingest and ends with it.
use std::collections::VecDeque;
use std::sync::Mutex;

use shared::store::{Housekept, Retention};

use crate::*;

/// A store whose housekeeping is answered by a script, then by the store behind it.
struct Scripted {
    store: Arc<dyn Store>,
    script: Mutex<VecDeque<Result<Housekept, StoreError>>>,
    asked: Mutex<Vec<Retention>>,
    /// What the store behind it answered.
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
    keys_are_forgotten_by_what_was_read_of_the_queue
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
    let more = Ok(Housekept { rows: 5, partitions: 0, more: true });
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
    let keys_aside = |retention: &Retention| Retention { keys_before_ms: None, ..*retention };
    assert!(asked.iter().all(|retention| keys_aside(retention) == keys_aside(&asked[0])));
    rig
}

/// By the clock alone the key of a first attempt would be gone when its repetition is read.
async fn keys_are_forgotten_by_what_was_read_of_the_queue(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 1, partitions: 0, more: true });
    let (mut rig, layer) = scripted(rig, vec![more; 100_000]);
    let last = || layer.0.asked.lock().expect("no panic").last().map(|retention| retention.keys_before_ms);
    let begin_ms = shared::clock::now_ms();
    let accepted_ms = begin_ms - 72 * 3_600_000;
    let kept_ms = 24 * 3_600_000 + 30 * 60_000;
    let mut builder = Builder::new(rig.issuer.next(accepted_ms), accepted_ms);
    let mut encoded = Vec::new();
    encode_increment(&mut encoded, "old", 1);
    builder.push(&encoded, 1);
    rig.consuming(async {
        // Before anything was read, none.
        wait_for("the first housekeeping", async || last().is_some()).await;
        assert_eq!(last(), Some(None));
        rig.publish(builder.finish()).await;
        wait_for("a bound by the message", async || last() == Some(Some(accepted_ms - kept_ms))).await;
        wait_for("a bound by the empty queue", async || {
            last().flatten().is_some_and(|before_ms| before_ms >= begin_ms - kept_ms)
        })
        .await;
    })
    .await;
    rig
}

/// There is always more to delete, and a pause is always under way or about to be.
async fn it_does_not_hold_up_a_stop(rig: Rig) -> Rig {
    let more = Ok(Housekept { rows: 1, partitions: 0, more: true });
    let (rig, layer) = scripted(rig, vec![more; 100_000]);
    let asked = || layer.0.asked.lock().expect("no panic").len();
    rig.consuming(wait_for("housekeeping", async || asked() >= 3)).await;
    assert!(asked() < 100_000, "the stop waited for the end of the work");
    rig
}
