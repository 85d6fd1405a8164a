//! One keep-alive connection of the generator: at most one request is open on it.
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::http::{self, Parsed};

/// A connect on loopback takes this long only when the listen backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Connection {
    stream: TcpStream,
    /// The open request: its number, the bytes sent, and the time from which its latency counts.
    open: Option<Open>,
    /// The beginning of an answer that did not come in one piece.
    partial: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Open {
    which: usize,
    written: usize,
    since: Instant,
}

pub enum Progress {
    /// No complete answer yet.
    Nothing,
    Answered {
        status: u16,
        since: Instant,
        close: bool,
    },
}

impl Connection {
    pub fn open(target: SocketAddr, index: usize, registry: &Registry) -> anyhow::Result<Self> {
        Ok(Self { stream: connect(target, index, registry)?, open: None, partial: Vec::new() })
    }

    /// Forgets the open request and connects anew.
    pub fn reopen(&mut self, target: SocketAddr, index: usize, registry: &Registry) -> anyhow::Result<()> {
        *self = Self::open(target, index, registry)?;
        Ok(())
    }

    pub fn is_waiting(&self) -> bool {
        self.open.is_some()
    }

    pub fn waiting_since(&self) -> Option<Instant> {
        self.open.map(|open| open.since)
    }

    pub fn send(&mut self, which: usize, requests: &[Vec<u8>], since: Instant) -> anyhow::Result<()> {
        self.open = Some(Open { which, written: 0, since });
        self.write(requests)
    }

    /// Goes on writing and reading; call it when the socket became ready. Epoll reports edges only:
    /// a read that fills less than the buffer has emptied the socket.
    pub fn advance(&mut self, requests: &[Vec<u8>], buffer: &mut [u8]) -> anyhow::Result<Progress> {
        self.write(requests)?;
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => anyhow::bail!("closed by the server"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Nothing),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let parsed = if self.partial.is_empty() {
                http::parse(&buffer[..length])?
            } else {
                self.partial.extend_from_slice(&buffer[..length]);
                http::parse(&self.partial)?
            };
            match parsed {
                Parsed::Complete { status, close, .. } => {
                    self.partial.clear();
                    let open = self.open.take().context("an answer that nobody asked for")?;
                    return Ok(Progress::Answered { status, since: open.since, close });
                }
                Parsed::Incomplete if self.partial.is_empty() => {
                    self.partial.extend_from_slice(&buffer[..length]);
                }
                Parsed::Incomplete => {}
            }
            if length < buffer.len() {
                return Ok(Progress::Nothing);
            }
        }
    }

    fn write(&mut self, requests: &[Vec<u8>]) -> anyhow::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let request = &requests[open.which];
        while open.written < request.len() {
            match self.stream.write(&request[open.written..]) {
                Ok(length) => open.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Connects blockingly, one after the other, so that a crowd does not overflow the backlog. Ports
/// of closed connections are free again after a second: Linux reuses them on loopback.
fn connect(target: SocketAddr, index: usize, registry: &Registry) -> anyhow::Result<TcpStream> {
    let stream = std::net::TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}
