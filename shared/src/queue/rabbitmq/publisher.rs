//! Publisher: callers send jobs to one task, which owns the connection and its only publishing channel,
//! because lapin's tags and frames swap when two tasks publish on one channel.
//!
//! This file has the callers' side and the supervisor, which keeps jobs over the loss of a session and
//! publishes the same bytes again on the next. [`publish_session`](super::publish_session) does the work on
//! an open session. A caller is answered by its deadline whatever the task does.
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::Channel;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};

use super::publish_session::{PublishSession, SessionEnd};
use super::refusals::Refusals;
use crate::amqp::connection::{Session, SessionError, SessionRetries};
use crate::amqp::settings::RabbitSettings;
use crate::amqp::topology;
use crate::model::message::Outgoing;
use crate::queue::{Link, PublishError, Publisher};
use crate::runtime::metrics::metrics;
use crate::runtime::shutdown::{self, Shutdown};

/// Name of the session in logs and in the broker's tools.
const NAME: &str = "forebay queue publisher";

/// Interval at which jobs without a caller are removed while they cannot be sent.
pub(super) const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Callers' side.
pub(super) struct RabbitPublisher {
    jobs: mpsc::Sender<Job>,
    link: Arc<LinkState>,
}

/// One publish and the channel of its answer.
pub(super) struct Job {
    pub message: Outgoing,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), PublishError>>,
}

impl Job {
    pub fn answer(self, answer: Result<(), PublishError>) {
        // An error means that the caller has gone.
        let _ = self.reply.send(answer);
    }

    /// The caller no longer waits.
    pub fn is_over(&self, now: Instant) -> bool {
        self.deadline <= now || self.reply.is_closed()
    }
}

/// Starts the supervisor on this runtime and returns its completion signal. It ends once `stopping` was
/// requested and all jobs are answered.
pub(super) fn start(settings: Arc<RabbitSettings>, stopping: Shutdown) -> (Arc<RabbitPublisher>, Shutdown) {
    let (sender, jobs) = mpsc::channel(settings.waiting_max);
    let link = Arc::new(LinkState::default());
    link.set(Link::Opening);
    let supervisor = Supervisor {
        settings,
        link: Arc::clone(&link),
        jobs,
        waiting: VecDeque::new(),
        stopping,
        phase: Phase::Open,
        refusals: Refusals::default(),
        full_was_logged: false,
    };
    (Arc::new(RabbitPublisher { jobs: sender, link }), shutdown::watched(supervisor.run()).1)
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            let job = Job { message, deadline, reply };
            self.jobs.send(job).await.map_err(|_| closed())?;
            // A job whose deadline has passed is dropped, perhaps a moment before the timer here.
            let dropped =
                |_| if deadline <= Instant::now() { PublishError::DeadlineExceeded } else { closed() };
            answer.await.map_err(dropped)?
        };
        timeout_at(deadline.into(), answered).await.unwrap_or(Err(PublishError::DeadlineExceeded))
    }

    fn link(&self) -> Link {
        self.link.get()
    }
}

fn closed() -> PublishError {
    PublishError::Unavailable("it was closed".into())
}

/// [`Link`] that every caller may read and the supervisor sets.
#[derive(Default)]
pub(super) struct LinkState(AtomicU8);

const UP: u8 = 1;
const BLOCKED: u8 = 2;
const FULL: u8 = 3;
const OPENING: u8 = 4;
const SETTLING: u8 = 5;

impl LinkState {
    pub fn set(&self, link: Link) {
        let value = match link {
            Link::Down => 0,
            Link::Up => UP,
            Link::Blocked => BLOCKED,
            Link::Full => FULL,
            Link::Opening => OPENING,
            Link::Settling => SETTLING,
        };
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> Link {
        match self.0.load(Ordering::Relaxed) {
            UP => Link::Up,
            BLOCKED => Link::Blocked,
            FULL => Link::Full,
            OPENING => Link::Opening,
            SETTLING => Link::Settling,
            _ => Link::Down,
        }
    }
}

/// State of the channel of jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new jobs; some may be in the channel.
    Closing,
    /// The channel is empty and stays so.
    Drained,
}

/// Supervisor, with the jobs that wait for a session.
pub(super) struct Supervisor {
    pub settings: Arc<RabbitSettings>,
    pub link: Arc<LinkState>,
    jobs: mpsc::Receiver<Job>,
    /// Oldest first. Publishes in flight at the loss of a session come back to the front.
    pub waiting: VecDeque<Job>,
    stopping: Shutdown,
    phase: Phase,
    pub refusals: Refusals,
    /// A log line said that the queue refuses everything, and none yet that it takes messages again.
    pub full_was_logged: bool,
}

impl Supervisor {
    async fn run(mut self) {
        let mut retries = SessionRetries::new(NAME);
        let (settings, link) = (Arc::clone(&self.settings), Arc::clone(&self.link));
        while let Some(opened) = self.collect_during(open(&settings, &link)).await {
            match opened {
                Ok((session, channel)) => {
                    retries.opened();
                    match retries.during(PublishSession::new(&mut self, session, channel).run()).await {
                        (SessionEnd::Finished, _) => break,
                        (SessionEnd::Lost { reason, was_useful }, lasted) => {
                            metrics().queue_sessions_lost.inc();
                            retries.lost(&reason, was_useful || lasted);
                        }
                    }
                }
                Err(error) => {
                    link.set(Link::Down);
                    retries.failed(&error);
                    self.refuse_if_hopeless(&error);
                }
            }
            self.collect_during(retries.pause()).await;
        }
    }

    /// Takes jobs in while `work` goes on; `None` when nothing is left to do before `work` ends.
    async fn collect_during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_finished() {
            tokio::select! {
                output = &mut work => return Some(output),
                () = self.take_job() => {}
                _ = sweep.tick(), if self.needs_sweeping() => self.sweep(),
            }
        }
        None
    }

    /// Moves the next job to those that wait, or notes that there will be none; pending for ever when no
    /// place is left. Safe to cancel.
    pub async fn take_job(&mut self) {
        let has_room = self.waiting.len() < self.settings.waiting_max;
        tokio::select! {
            job = self.jobs.recv(), if has_room && self.phase != Phase::Drained => match job {
                Some(job) => self.waiting.push_back(job),
                None => self.phase = Phase::Drained,
            },
            () = self.stopping.requested(), if self.phase == Phase::Open => {
                self.jobs.close();
                self.phase = Phase::Closing;
            }
            else => std::future::pending().await,
        }
    }

    /// Moves the jobs that are there, without waiting.
    pub fn take_ready_jobs(&mut self) {
        while self.waiting.len() < self.settings.waiting_max
            && let Ok(job) = self.jobs.try_recv()
        {
            self.waiting.push_back(job);
        }
    }

    /// Tests whether a caller's deadline may decide the next step.
    pub fn needs_sweeping(&self) -> bool {
        !self.waiting.is_empty() || self.phase != Phase::Open
    }

    /// Removes jobs whose callers have been answered by the deadline.
    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|job| !job.is_over(now));
    }

    /// Tests whether it is closed and no job waits to be sent.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Drained && self.waiting.is_empty()
    }

    /// Refuses all jobs when a wait cannot help, as with a queue that an operator has to delete.
    fn refuse_if_hopeless(&mut self, error: &SessionError) {
        if let SessionError::Misdeclared(explanation) = error {
            let explanation: Arc<str> = explanation.as_str().into();
            for job in self.waiting.drain(..) {
                job.answer(Err(PublishError::Unavailable(Arc::clone(&explanation))));
            }
        }
    }
}

/// Shows `Down` however the supervisor ends: no session will come, so no caller should wait.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.link.set(Link::Down);
    }
}

/// Connects, declares the topology and opens the publishing channel.
async fn open(settings: &RabbitSettings, link: &LinkState) -> Result<(Session, Channel), SessionError> {
    let session = Session::open(settings, NAME).await?;
    let names = settings.names();
    let settle = async {
        link.set(Link::Settling);
        sleep(settings.settle).await;
    };
    topology::declare_queues(&session, &names, settings.limits.bytes_max, settle).await?;
    let channel = session.publishing_channel().await?;
    Ok((session, channel))
}
