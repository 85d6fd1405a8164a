//! An ingest that stands still with messages in hand, in contrast to one that waits for a store;
//! and a program with such an ingest.
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shared::model::message::Outgoing;
use shared::runtime::progress::Progress;

use crate::stops::{Process, beside_a_process};
use crate::{Rig, wait_for};

/// Time until a loop counts as stuck, beside the time-outs of the store.
const STUCK_AFTER: Duration = Duration::from_millis(200);
const STEP_MS_MAX: u64 = 300;

/// Time longer than an ingest may stand still here, with the time of a step.
const AWAY_MIN: Duration = Duration::from_millis(2_500);

/// Number of lines that is more than a pipe holds.
const UNREADABLE: usize = 600;

on_both_pairs! {
    an_ingest_whose_store_does_not_come_back_stands_still_until_it_does
    an_ingest_that_waits_for_an_away_store_does_not_stand_still
}

fn impatient(mut rig: Rig) -> Rig {
    rig.config.store.connect_timeout_ms = STEP_MS_MAX / 2;
    rig.config.store.write_timeout_ms = STEP_MS_MAX / 2;
    rig.backend.progress = Progress::start(STUCK_AFTER).expect("a thread");
    rig
}

impl Rig {
    fn stuck(&self) -> Vec<&'static str> {
        self.backend.progress.stuck().iter().map(|stuck| stuck.name).collect()
    }
}

async fn an_ingest_whose_store_does_not_come_back_stands_still_until_it_does(rig: Rig) -> Rig {
    let mut rig = impatient(rig);
    let message = rig.message("still", 1);
    rig.publish(message).await;
    rig.consuming(async {
        let answers = rig.store.0.answering.lock().await;
        wait_for("the ingest", async || rig.stuck() == ["ingest"]).await;
        drop(answers);
        wait_for("progress", async || rig.stuck().is_empty()).await;
        rig.wait_for_value("still", 1).await;
    })
    .await;
    assert_eq!(rig.stuck(), <[&str; 0]>::default());
    rig
}

async fn an_ingest_that_waits_for_an_away_store_does_not_stand_still(rig: Rig) -> Rig {
    let mut rig = impatient(rig);
    // This time is longer than any pause between two attempts.
    rig.backend.progress = Progress::start(Duration::from_secs(2)).expect("a thread");
    rig.store.0.away.store(true, Ordering::Relaxed);
    let message = rig.message("away", 1);
    rig.publish(message).await;
    rig.consuming(async {
        rig.wait_for_failures(1).await;
        let since = Instant::now();
        wait_for("a while", async || {
            assert_eq!(rig.stuck(), <[&str; 0]>::default());
            since.elapsed() > AWAY_MIN
        })
        .await;
        rig.store.0.away.store(false, Ordering::Relaxed);
        rig.wait_for_value("away", 1).await;
    })
    .await;
    rig
}

/// Its log is a pipe without a reader; each message that it cannot read is a line.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_ingest_does_not_come_back_fails_liveness_and_a_signal_ends_it() {
    beside_a_process("stuck", async |mut rig, mut config, _, port| {
        config.ops.stuck_ms_max = 500;
        config.telemetry.log_filter = "off,consumer=error".into();
        let unreadable =
            (0..UNREADABLE).map(|_| Outgoing { body: "no json".into(), ..rig.message("never", 1) });
        let unreadable = unreadable.collect::<Vec<_>>();
        let publishing = unreadable.into_iter().map(|message| rig.publish(message));
        futures_util::future::join_all(publishing).await;
        let good = rig.message("stuck", 1);
        rig.publish(good).await;
        let process = Process::start_with_full_log(&config, port);
        wait_for("a failed liveness", async || {
            process
                .page("/livez")
                .await
                .is_some_and(|(status, said)| status == 503 && said.contains("ingest stands still"))
        })
        .await;
        assert_eq!(process.page("/readyz").await.map(|(status, _)| status), Some(503));
        process.send(Signal::TERM);
        let (status, took) = process.ended().await;
        assert_eq!(status.code(), Some(1), "an error, for its supervisor");
        assert!(took < consumer::STOP_MAX + Duration::from_secs(5), "{took:?}");
        rig.consuming(rig.wait_for_value("stuck", 1)).await;
        rig
    })
    .await;
}
