//! A connection that is given up when nothing is done on it for too long.
//!
//! The HTTP server bounds the head of the first request and the time between two requests, and
//! [`body`](crate::body) each body that is wanted. Nothing bounds a later head that comes byte by
//! byte, or the rest of a body that nobody wants; who sends such a thing, or goes away in the middle of
//! it, would hold a place for ever. Here, whatever comes in: while no request is in work
//! on it, a connection on which nothing was written for its patience is closed.
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What one connection and the requests on it know of each other.
#[derive(Debug)]
pub struct Pace {
    patience: Duration,
    in_work: Cell<usize>,
    /// When it was opened, something was written, or a request was done.
    since: Cell<Instant>,
}

impl Pace {
    fn new(patience: Duration) -> Rc<Self> {
        Rc::new(Self { patience, in_work: Cell::new(0), since: Cell::new(Instant::now()) })
    }

    /// A request is in work until what this returns is dropped.
    pub fn begin(self: &Rc<Self>) -> InWork {
        self.in_work.set(self.in_work.get() + 1);
        InWork(self.clone())
    }

    /// Until when nothing may happen at least.
    fn due(&self, now: Instant) -> Instant {
        let since = if self.in_work.get() > 0 { now } else { self.since.get() };
        since + self.patience
    }
}

/// A request on a connection.
#[derive(Debug)]
pub struct InWork(Rc<Pace>);

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.in_work.set(self.0.in_work.get() - 1);
        self.0.since.set(Instant::now());
    }
}

/// What a worker reads from and writes to.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    pace: Rc<Pace>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub fn new(stream: TcpStream, patience: Duration) -> Self {
        let pace = Pace::new(patience);
        let timer = Box::pin(sleep_until(pace.since.get() + patience));
        Self { stream, pace, timer }
    }

    pub fn pace(&self) -> &Rc<Pace> {
        &self.pace
    }

    /// Fails when it is overdue; else whoever polls is woken when it may be.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = self.pace.due(now);
            if due <= now {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(due);
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        // The server reads until nothing is there, so what comes byte by byte ends here, too.
        if read.is_pending() {
            self.check(cx)?;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, from);
        match written {
            Poll::Pending => self.check(cx)?,
            Poll::Ready(Ok(1..)) => self.pace.since.set(Instant::now()),
            Poll::Ready(_) => {}
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
