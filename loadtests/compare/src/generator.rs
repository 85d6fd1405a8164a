//! The load generator: one thread, epoll, keep-alive connections, requests built beforehand.
//!
//! Closed loop: every connection sends its next request when the last was answered; that shows
//! throughput and hides waiting. Open loop: requests are due at a constant rate whatever the server
//! does, and latency counts from the time a request was due, not from when a connection was free
//! for it (no coordinated omission). The generator must stay about as cheap as `wrk -t1`, because
//! it shares the cores with what it measures; `compare --check-generator` shows that.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::{Events, Poll, Registry};

use crate::connection::{Connection, Progress};
use crate::histogram::Histogram;
use crate::stop::Stop;

/// Time for answers after the last request.
const GRACE: Duration = Duration::from_secs(10);
/// Interval at which an open loop checks its schedule and its sockets. A shorter one would cost the
/// cores that it shares; latencies are overstated by this much at most.
const TICK: Duration = Duration::from_micros(250);
const EVENTS: usize = 1_024;
const READ_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Closed,
    /// Open loop at this many requests per second.
    Open(f64),
}

/// One run. `requests` are sent round robin over all connections.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub target: SocketAddr,
    pub connections: usize,
    pub requests: &'a [Vec<u8>],
    pub pace: Pace,
    pub duration: Duration,
}

/// Counts and times of a finished run.
pub struct LoadResult {
    pub began: Instant,
    /// Time of the last answer.
    pub ended: Instant,
    /// Duration of sending.
    pub window: Duration,
    pub succeeded: u64,
    /// Answers of the 2xx class that came within `window`.
    pub succeeded_in_window: u64,
    /// Answers 429 and 503.
    pub refused: u64,
    /// The 503s among the refused: whether such a write took effect is unknown.
    pub refused_unknown: u64,
    /// Answers with any other status.
    pub failed: u64,
    /// Requests without an answer: the connection broke, or none came in time.
    pub unanswered: u64,
    /// Requests of an open loop that were due and never found a free connection.
    pub unsent: u64,
    pub latency: Histogram,
}

impl LoadResult {
    /// Answers of the 2xx class per second.
    pub fn per_second(&self) -> f64 {
        self.succeeded_in_window as f64 / self.window.as_secs_f64()
    }

    /// Requests whose effect is unknown.
    pub fn unknown(&self) -> u64 {
        self.unanswered + self.refused_unknown + self.failed
    }
}

/// Opens the connections, sends for the duration, waits for what is open.
pub fn run(load: Load<'_>, stop: &Stop) -> anyhow::Result<LoadResult> {
    Generator::connect(load, stop)?.run()
}

struct Generator<'a> {
    load: Load<'a>,
    stop: &'a Stop,
    poll: Poll,
    connections: Vec<Connection>,
    /// Connections without an open request, in the order in which they became free.
    free: VecDeque<usize>,
    read_buffer: Vec<u8>,
    sent: u64,
    /// Requests that a closed loop or the schedule of an open one may still send.
    due_max: u64,
    /// Time between two requests of an open loop.
    interval_ns: u64,
    /// Time of the last look at the schedule of an open loop.
    woke: Instant,
    open: usize,
    deadline: Instant,
    outcome: LoadResult,
}

impl<'a> Generator<'a> {
    fn connect(load: Load<'a>, stop: &'a Stop) -> anyhow::Result<Self> {
        let poll = Poll::new().context("no epoll")?;
        let mut connections = Vec::with_capacity(load.connections);
        for index in 0..load.connections {
            stop.check()?;
            let connection = Connection::open(load.target, index, poll.registry());
            connections
                .push(connection.with_context(|| format!("connection {index} of {}", load.connections))?);
        }
        let began = Instant::now();
        // Rounded to nanoseconds: at 60 000 per second the rate is exact to 0.01 %.
        let interval_ns = match load.pace {
            Pace::Closed => 1,
            Pace::Open(per_second) => whole_ns(Duration::from_secs_f64(1.0 / per_second)).max(1),
        };
        let due_max = match load.pace {
            Pace::Closed => u64::MAX,
            Pace::Open(_) => whole_ns(load.duration) / interval_ns,
        };
        let outcome = LoadResult {
            began,
            ended: began,
            window: load.duration,
            succeeded: 0,
            succeeded_in_window: 0,
            refused: 0,
            refused_unknown: 0,
            failed: 0,
            unanswered: 0,
            unsent: 0,
            latency: Histogram::new(),
        };
        let free = (0..load.connections).collect();
        let read_buffer = vec![0; READ_BYTES];
        let deadline = began + load.duration;
        Ok(Self {
            load,
            stop,
            poll,
            connections,
            free,
            read_buffer,
            sent: 0,
            due_max,
            interval_ns,
            woke: began,
            open: 0,
            deadline,
            outcome,
        })
    }

    fn run(mut self) -> anyhow::Result<LoadResult> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let now = Instant::now();
            self.stop.check()?;
            self.send_due(now)?;
            let sending = now < self.deadline || self.sent < self.due(now);
            if (!sending && self.open == 0) || now > self.deadline + GRACE {
                break;
            }
            self.wait(&mut events, now)?;
            for event in &events {
                self.advance(event.token().0)?;
            }
        }
        self.outcome.ended = Instant::now();
        self.count_what_is_open();
        Ok(self.outcome)
    }

    /// Number of requests that should have been sent by `now`.
    fn due(&self, now: Instant) -> u64 {
        match self.load.pace {
            // A closed loop sends nothing after the deadline.
            Pace::Closed => {
                if now < self.deadline {
                    u64::MAX
                } else {
                    0
                }
            }
            Pace::Open(_) => {
                let elapsed = now.duration_since(self.outcome.began);
                (whole_ns(elapsed) / self.interval_ns + 1).min(self.due_max)
            }
        }
    }

    fn send_due(&mut self, now: Instant) -> anyhow::Result<()> {
        let due = self.due(now);
        while self.sent < due {
            let Some(index) = self.free.pop_front() else { break };
            let since = match self.load.pace {
                Pace::Closed => now,
                Pace::Open(_) => self.due_at(self.sent),
            };
            self.send(index, since)?;
        }
        Ok(())
    }

    /// Due time of a request of an open loop.
    fn due_at(&self, number: u64) -> Instant {
        self.outcome.began + Duration::from_nanos(self.interval_ns * number)
    }

    fn send(&mut self, index: usize, since: Instant) -> anyhow::Result<()> {
        let which = usize::try_from(self.sent).unwrap_or(0) % self.load.requests.len();
        self.sent += 1;
        self.open += 1;
        let progress = self.connections[index].send(which, self.load.requests, since);
        if progress.is_err() {
            self.replace(index)?;
        }
        Ok(())
    }

    /// Blocks until a socket is ready; in an open loop at most until the next look at the schedule.
    fn wait(&mut self, events: &mut Events, now: Instant) -> anyhow::Result<()> {
        let timeout = match self.load.pace {
            Pace::Closed => Duration::from_millis(100),
            // Epoll counts in milliseconds, which is too coarse here.
            Pace::Open(_) => {
                #[expect(clippy::disallowed_methods, reason = "a blocking thread, on which no task runs")]
                std::thread::sleep(TICK.saturating_sub(now.duration_since(self.woke)));
                self.woke = Instant::now();
                Duration::ZERO
            }
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => events.clear(),
            other => other.context("epoll failed")?,
        }
        Ok(())
    }

    /// Reads what arrived on one connection; in a closed loop sends its next request at once.
    fn advance(&mut self, index: usize) -> anyhow::Result<()> {
        let progress = self.connections[index].advance(self.load.requests, &mut self.read_buffer);
        match progress {
            Ok(Progress::Nothing) => Ok(()),
            Ok(Progress::Answered { status, since, close }) => {
                let now = Instant::now();
                self.open -= 1;
                self.count(status, now.duration_since(since), now);
                if close {
                    self.connections[index].reopen(self.load.target, index, self.poll.registry())?;
                }
                if matches!(self.load.pace, Pace::Closed) && now < self.deadline {
                    return self.send(index, now);
                }
                self.free.push_back(index);
                Ok(())
            }
            Err(_) => self.replace(index),
        }
    }

    fn count(&mut self, status: u16, latency: Duration, now: Instant) {
        self.outcome.latency.record(latency);
        match status {
            200..=299 => {
                self.outcome.succeeded += 1;
                self.outcome.succeeded_in_window += u64::from(now < self.deadline);
            }
            429 => self.outcome.refused += 1,
            503 => {
                self.outcome.refused += 1;
                self.outcome.refused_unknown += 1;
            }
            _ => self.outcome.failed += 1,
        }
    }

    /// Replaces a broken connection; its request has no answer.
    fn replace(&mut self, index: usize) -> anyhow::Result<()> {
        let registry: &Registry = self.poll.registry();
        if self.connections[index].is_waiting() {
            self.open -= 1;
            self.outcome.unanswered += 1;
            self.free.push_back(index);
        }
        self.connections[index].reopen(self.load.target, index, registry)
    }

    /// Counts requests that were never answered or never sent: they waited at least until now.
    fn count_what_is_open(&mut self) {
        let end = self.outcome.ended;
        for connection in &self.connections {
            if let Some(since) = connection.waiting_since() {
                self.outcome.unanswered += 1;
                self.outcome.latency.record(end.duration_since(since));
            }
        }
        if matches!(self.load.pace, Pace::Open(_)) {
            for number in self.sent..self.due_max {
                self.outcome.unsent += 1;
                let waited = end.saturating_duration_since(self.due_at(number));
                self.outcome.latency.record(waited);
            }
        }
    }
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
