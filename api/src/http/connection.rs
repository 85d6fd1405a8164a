//! A connection that is given up when nothing is done on it for too long.
//!
//! The HTTP server bounds the head of the first request and the time between two requests, and
//! [`body`](crate::http::body) each body that is wanted. Nothing bounds a later head that comes byte by
//! byte, the rest of an unwanted body, or an answer that is not read; such a client would
//! hold a place for ever. Here, whatever comes in: while no request is in work on it, a connection on
//! which nothing was written for its patience is closed; one whose client takes nothing of an answer
//! is closed earlier, and until then nothing more is read from it.
//!
//! The HTTP server reads and decodes all that is there, also behind a request in work. So it gets
//! [`READ_AHEAD_BYTES`] at a time, and behind a request in work no more than that.
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::web::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::admission::memory_budget::Reserved;
use crate::http::connection_state::{ConnectionLimits, ConnectionState, READ_AHEAD_BYTES};
use crate::http::large_answer;
use crate::http::refused_head;
use crate::http::request_id::RequestIds;
use crate::metrics::metrics;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Stream that a worker reads from and writes to.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    state: Rc<ConnectionState>,
    timer: Pin<Box<Sleep>>,
    /// Set while the client takes nothing.
    blocked: Option<Blocked>,
    request_ids: Rc<RequestIds>,
    targets: refused_head::Targets,
    /// The last answer, in place of the HTTP library's.
    refusal: Option<RefusedHead>,
}

/// How long the client may go on sending after the answer to a head that was refused: else the system
/// would take the answer back.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read meanwhile.
const REFUSAL_READ_MAX: usize = 1 << 20;

#[derive(Debug)]
struct RefusedHead {
    left: Bytes,
    /// Bytes of the answer in whose place it is sent.
    instead_of: usize,
    linger: Pin<Box<Sleep>>,
    read: usize,
}

#[derive(Debug)]
struct Blocked {
    since: Instant,
    /// Room for what is written and not taken.
    room: Option<Reserved>,
    /// Somebody wanted to read meanwhile.
    has_reader: bool,
}

impl Connection {
    pub fn new(stream: TcpStream, limits: Arc<ConnectionLimits>, request_ids: Rc<RequestIds>) -> Self {
        let state = ConnectionState::new(limits);
        let timer = Box::pin(sleep_until(state.since.get() + state.limits.patience));
        let (targets, refusal) = (refused_head::Targets::default(), None);
        Self { stream, state, timer, blocked: None, request_ids, targets, refusal }
    }

    pub fn state(&self) -> &Rc<ConnectionState> {
        &self.state
    }

    /// Fails when it is overdue; else whoever polls is woken when it may be.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = match &self.blocked {
                Some(blocked) => blocked.since + self.state.limits.answer_timeout,
                None => self.state.due(now),
            };
            if due <= now {
                if self.blocked.is_some() {
                    self.abandon();
                }
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(due);
        }
        Ok(())
    }

    /// Has the system forget what the client did not take.
    fn abandon(&self) {
        metrics().room.unread_closed.inc();
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "an unread answer stays with the system for a while");
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, from);
        match written {
            Poll::Pending => {
                self.block(from.len())?;
                self.check(cx)?;
            }
            Poll::Ready(Ok(1..)) => {
                self.state.since.set(Instant::now());
                self.unblock(cx);
            }
            Poll::Ready(_) => {}
        }
        written
    }

    /// Sends the last answer, then reads for a while what the client still sends. The HTTP library closes
    /// when this is done.
    fn refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(left) = self.refusal.as_ref().map(|refusal| refusal.left.clone()) {
            if left.is_empty() {
                break;
            }
            let sent = ready!(self.send(cx, &left))?;
            if let Some(refusal) = &mut self.refusal {
                refusal.left = left.slice(sent..);
            }
        }
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(Ok(0)) };
        // The client sees the end of the answer, and closes its side.
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).ok();
        let mut unread = [0; 8 << 10];
        while refusal.read < REFUSAL_READ_MAX {
            let mut into = ReadBuf::new(&mut unread);
            match Pin::new(&mut self.stream).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => refusal.read += into.filled().len(),
                Poll::Ready(_) => break,
                Poll::Pending if refusal.linger.as_mut().poll(cx).is_ready() => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        let instead_of = refusal.instead_of;
        self.refusal = None;
        Poll::Ready(Ok(instead_of))
    }

    /// The client takes nothing of so much. Fails when there is no room for it.
    fn block(&mut self, bytes: usize) -> io::Result<()> {
        let limits = &self.state.limits;
        let blocked = self.blocked.get_or_insert_with(|| {
            let since = Instant::now();
            self.timer.as_mut().reset(since + limits.answer_timeout);
            Blocked { since, room: None, has_reader: false }
        });
        self.state.is_blocked.set(true);
        let counted = if self.state.is_sending.get() { large_answer::BUFFER_BYTES } else { 0 };
        let more = bytes.saturating_sub(counted);
        if more > blocked.room.as_ref().map_or(0, Reserved::bytes) {
            blocked.room = None;
            blocked.room = limits.answers.reserve(more);
            if blocked.room.is_none() {
                self.abandon();
                return Err(io::ErrorKind::OutOfMemory.into());
            }
        }
        Ok(())
    }

    /// The client has taken something.
    fn unblock(&mut self, cx: &Context<'_>) {
        if let Some(blocked) = self.blocked.take() {
            self.state.is_blocked.set(false);
            // A large answer ends by itself only when it is asked once more.
            if blocked.has_reader || self.state.is_sending.get() {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl Connection {
    /// No request is left undone, so what was read is decoded before more is read.
    fn refill(&self) -> bool {
        let is_idle = !self.state.is_busy();
        if is_idle {
            self.state.read_ahead.set(READ_AHEAD_BYTES);
        }
        is_idle
    }

    /// Reads nothing for now.
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refill() {
            cx.waker().wake_by_ref();
        } else {
            self.state.held_reader.replace(Some(cx.waker().clone()));
        }
        self.check(cx)?;
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Each further request could bring an answer that is not read.
        if let Some(blocked) = &mut self.blocked {
            blocked.has_reader = true;
            self.check(cx)?;
            return Poll::Pending;
        }
        let ahead = self.state.read_ahead.get();
        if ahead == 0 {
            return self.hold(cx);
        }
        let before = into.filled().len();
        let mut part = (&mut self.stream).take(ahead as u64);
        let read = Pin::new(&mut part).poll_read(cx, into);
        self.state.read_ahead.set(ahead - (into.filled().len() - before));
        match read {
            // The server reads until nothing is there, so what comes byte by byte ends here, too.
            Poll::Pending => {
                self.refill();
                self.check(cx)?;
            }
            Poll::Ready(Ok(())) if into.filled().len() == before && into.remaining() > 0 => {
                self.state.half_closed.set(Some(Instant::now()));
                self.state.half_closes.notify_waiters();
            }
            Poll::Ready(Ok(())) => self.targets.take(&into.filled()[before..]),
            Poll::Ready(Err(_)) => {}
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        // Its answer is behind it already: the body need not be sent.
        if self.state.has_asked.take() && from.len() > CONTINUE.len() && from.starts_with(CONTINUE) {
            return Poll::Ready(Ok(CONTINUE.len()));
        }
        if self.refusal.is_none() {
            match refused_head::find(from) {
                None => return self.send(cx, from),
                Some((start @ 1.., _)) => return self.send(cx, &from[..start]),
                Some((0, status)) => {
                    let left = refused_head::render(status, &self.targets, &self.request_ids.draw());
                    let linger = Box::pin(sleep_until(Instant::now() + REFUSAL_LINGER));
                    self.refusal = Some(RefusedHead { left, instead_of: from.len(), linger, read: 0 });
                }
            }
        }
        self.refuse(cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
