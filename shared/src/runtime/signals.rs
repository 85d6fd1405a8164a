//! SIGTERM and SIGINT of a process, and the limit of the stop that follows.
//!
//! All of it runs on a thread with a runtime of its own, so that a stop ends in time whatever the other
//! threads do. Ending at once loses nothing: everything acknowledged is durable, everything in hand comes
//! again.
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// Time within which two interrupts are one request: a forwarded interrupt may reach the program twice,
/// from the process group and from its parent.
const REPEATED_WITHIN: Duration = Duration::from_millis(300);

/// Time for the last log line. The program may be stuck at standard error itself.
const LAST_LINE_MAX: Duration = Duration::from_millis(500);

/// Stages of a stop that may be announced before the thread has taken note of one.
const STAGES_MAX: usize = 16;

/// Signal that Ctrl-C sends.
const INTERRUPT: &str = "SIGINT";

/// Signals of this process, received from the time this is made: they no longer end the process by
/// themselves, and none is missed. After the first one, an interrupt ends the process at once. A supervisor
/// may repeat SIGTERM and means no more by it.
pub struct Signals {
    first: oneshot::Receiver<&'static str>,
    stages: Sender<Duration>,
}

impl Signals {
    /// Starts to listen. `stop_max` is the time from the first signal until the process is ended, unless
    /// [`Self::allow`] says otherwise by then.
    pub fn listen(stop_max: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let context = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(context);
        let (stages, allowed) = channel(STAGES_MAX);
        let (sender, first) = oneshot::channel();
        let watchdog = Watchdog { terminate, interrupt, allowed, stop_max };
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || runtime.block_on(watchdog.run(sender)))?;
        Ok(Self { first, stages })
    }

    /// Resolves at the first signal; never again after that. Safe to cancel.
    pub async fn first(&mut self) -> &'static str {
        match (&mut self.first).await {
            Ok(signal) => signal,
            Err(_) => std::future::pending().await,
        }
    }

    /// Begins a stage of the stop: the process is ended unless the next stage begins, or the process
    /// ends by itself, within `stage_max`.
    pub fn allow(&self, stage_max: Duration) {
        // An error says that the thread is gone, which happens at the end of the process.
        let _ = self.stages.try_send(stage_max);
    }
}

struct Watchdog {
    terminate: Signal,
    interrupt: Signal,
    allowed: Receiver<Duration>,
    stop_max: Duration,
}

impl Watchdog {
    async fn run(mut self, first: oneshot::Sender<&'static str>) {
        let (mut first, mut asked_at) = (Some(first), Instant::now());
        let mut deadline: Option<(Instant, Duration)> = None;
        loop {
            let signal = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => INTERRUPT,
                Some(stage_max) = self.allowed.recv() => {
                    deadline = Some((Instant::now() + stage_max, stage_max));
                    continue;
                }
                limit = passed(deadline) => return end_at_once(move || tracing::error!(
                    limit.ms = limit.as_millis(),
                    "the stop takes longer than its limit, a thread may be stuck: ending at once"
                )),
            };
            if let Some(first) = first.take() {
                asked_at = Instant::now();
                deadline = deadline.or(Some((asked_at + self.stop_max, self.stop_max)));
                // The program may be stopping already, for another reason.
                let _ = first.send(signal);
            } else if signal == INTERRUPT && asked_at.elapsed() >= REPEATED_WITHIN {
                return end_at_once(move || {
                    tracing::warn!(signal, "stopping was interrupted, ending at once");
                });
            }
        }
    }
}

/// Resolves with its limit when the deadline is over; never without a deadline.
async fn passed(deadline: Option<(Instant, Duration)>) -> Duration {
    match deadline {
        Some((at, limit)) => {
            sleep_until(at).await;
            limit
        }
        None => std::future::pending().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "other threads may never come back to run destructors")]
fn end_at_once(line: impl FnOnce() + Send + 'static) {
    let (written, is_written) = mpsc::channel();
    std::thread::spawn(move || {
        line();
        let _ = written.send(());
    });
    let _ = is_written.recv_timeout(LAST_LINE_MAX);
    std::process::exit(1);
}
