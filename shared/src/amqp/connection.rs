//! AMQP connection with time-outs on every call, which ends when it is dropped, whatever the other side
//! does.
//!
//! For the last part the TCP socket is kept besides: lapin's own threads wait for a silent peer, in a
//! handshake without any limit, and a close stops the heartbeats that would notice. Cutting the socket
//! below them ends them all, so that a day behind a black hole does not leave a day's worth of threads.
//! Nothing here retries; sessions are supervised by their owners.
use std::future::Future;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::TLSConfig;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::time::{sleep, timeout};

use super::settings::RabbitSettings;
use crate::runtime::backoff::Backoff;

/// Least and longest pause between two attempts at a session.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Time that connecting and any call with an answer may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which a session counts as lasting: the reason that ended the one before does not end it at
/// once.
const LASTING_AFTER: Duration = Duration::from_secs(5);

/// Events of a connection that lapin reports.
pub(crate) type ConnectionEvents = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Reasons for which a session could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("queue.url is not an AMQP URL")]
    Url,
    #[error("the queue was closed")]
    Closed,
    #[error("no answer to {0} in time")]
    Timeout(&'static str),
    #[error(transparent)]
    Amqp(#[from] lapin::Error),
    #[error("{0}")]
    Misdeclared(String),
}

impl SessionError {
    /// AMQP's reply code, when the broker gave one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Amqp(error) => match error.kind() {
                ErrorKind::ProtocolError(error) => Some(error.get_id()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Bounds a call that lapin would wait for without end.
pub(crate) async fn call<T>(
    what: &'static str,
    future: impl Future<Output = lapin::Result<T>>,
) -> Result<T, SessionError> {
    timeout(CALL_TIMEOUT, future).await.map_err(|_| SessionError::Timeout(what))?.map_err(SessionError::from)
}

/// An open connection.
pub(crate) struct Session {
    connection: Connection,
    /// Declared last, so that it is cut after lapin has begun to close.
    _socket: CutOnDrop,
}

impl Session {
    /// Opens a connection and its socket. `name` is shown by the broker's tools.
    pub(crate) async fn open(settings: &RabbitSettings, name: &str) -> Result<Self, SessionError> {
        let uri = settings.uri.clone().ok_or(SessionError::Url)?;
        let socket = CutOnDrop::default();
        let keeper = Arc::clone(&socket.0);
        // No automatic recovery: it gives up after minutes and does not recover channel errors.
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let opened = Connection::connector(
            uri,
            runtime,
            async move |uri: AMQPUri, runtime| {
                let host = uri.authority.host.as_str();
                let addresses = tokio::net::lookup_host((host, uri.authority.port)).await?;
                let connected = AsyncTcpStream::connect(&runtime, addresses.collect::<Vec<_>>());
                let stream = timeout(CALL_TIMEOUT, connected).await.map_err(io::Error::from)??;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    keep(&keeper, plain.get_ref().as_fd().try_clone_to_owned()?.into())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => Ok(stream.into_tls(host, TLSConfig::default()).await?),
                }
            },
            properties,
        );
        let connection = call("connect", opened).await?;
        Ok(Self { connection, _socket: socket })
    }

    pub(crate) async fn channel(&self) -> Result<Channel, SessionError> {
        call("channel.open", self.connection.create_channel()).await
    }

    /// A channel on which every publish is confirmed.
    pub(crate) async fn publishing_channel(&self) -> Result<Channel, SessionError> {
        let channel = self.channel().await?;
        call("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Events from now on. To be called once: two listeners would share the events.
    pub(crate) fn events(&self) -> ConnectionEvents {
        Box::pin(self.connection.events_listener())
    }

    /// True when connection and channel are usable as far as is known.
    pub(crate) fn is_alive(&self, channel: &Channel) -> bool {
        self.connection.status().connected() && channel.status().connected()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Closes in order, which sends everything that was handed over before. Skipped for a broker that
    /// blocks us: it would read nothing, and the client library writes nothing.
    pub(crate) async fn close(self) {
        if self.is_blocked() {
            return;
        }
        // Dropping ends the session even when this fails.
        let _ = call("connection.close", self.connection.close(200, "done".into())).await;
    }
}

enum Socket {
    NotYet,
    Open(TcpStream),
    Cut,
}

/// Ends the TCP connection when dropped, also one that comes about only later.
struct CutOnDrop(Arc<Mutex<Socket>>);

impl Default for CutOnDrop {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Socket::NotYet)))
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        let socket = std::mem::replace(&mut *lock(&self.0), Socket::Cut);
        if let Socket::Open(stream) = socket {
            // It fails when the connection is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn keep(keeper: &Mutex<Socket>, stream: TcpStream) -> io::Result<()> {
    let mut socket = lock(keeper);
    if matches!(*socket, Socket::Cut) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    *socket = Socket::Open(stream);
    Ok(())
}

fn lock(socket: &Mutex<Socket>) -> std::sync::MutexGuard<'_, Socket> {
    socket.lock().expect("no code panics while it holds this lock")
}

/// Log and pauses of a session that its owner rebuilds for ever. The reason for which it is missing is
/// logged only when it has changed, not at each attempt.
#[derive(Debug)]
pub(crate) struct SessionRetries {
    name: &'static str,
    backoff: Backoff,
    last: Option<String>,
    /// Reason for which the last session was lost, if it was lost before it was of any use: the next one
    /// may end the same way.
    useless: Option<String>,
}

impl SessionRetries {
    /// Builds the state before the first attempt at the session with this name.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, backoff: Backoff::new(RETRY_FIRST, RETRY_MAX), last: None, useless: None }
    }

    /// Waits before the next attempt, shorter after a session that was of use.
    pub(crate) async fn pause(&mut self) {
        sleep(self.backoff.delay()).await;
    }

    /// Logs a failed attempt.
    pub(crate) fn failed(&mut self, error: &SessionError) {
        let (name, reason) = (self.name, error.to_string());
        if self.last.as_ref() == Some(&reason) {
            tracing::debug!(session.name = name, error.message = reason, "session still not opened");
            return;
        }
        if matches!(error, SessionError::Misdeclared(_)) {
            tracing::error!(session.name = name, error.message = reason, "session not opened");
        } else {
            tracing::warn!(session.name = name, error.message = reason, "session not opened, retrying");
        }
        self.last = Some(reason);
    }

    pub(crate) fn opened(&mut self) {
        self.last = None;
        if self.useless.is_some() {
            tracing::debug!(session.name = self.name, "session opened, perhaps in vain");
        } else {
            tracing::info!(session.name = self.name, "session opened");
        }
    }

    /// Runs a session to its end; returns also whether it lasted, which shows that it was of use.
    pub(crate) async fn during<T>(&mut self, session: impl Future<Output = T>) -> (T, bool) {
        tokio::pin!(session);
        tokio::select! {
            ended = &mut session => (ended, false),
            () = sleep(LASTING_AFTER) => {
                if self.useless.take().is_some() {
                    tracing::info!(session.name = self.name, "session opened, and lasting this time");
                }
                (session.await, true)
            }
        }
    }

    /// Logs a lost session. A reason is logged once while it ends sessions before they were of any use.
    pub(crate) fn lost(&mut self, reason: &str, was_useful: bool) {
        let name = self.name;
        if was_useful {
            self.backoff.reset();
        }
        if !was_useful && self.useless.as_deref() == Some(reason) {
            tracing::debug!(session.name = name, error.message = reason, "session lost again");
            return;
        }
        tracing::warn!(session.name = name, error.message = reason, "session lost");
        self.useless = (!was_useful).then(|| reason.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Lines that are logged meanwhile, from the level that is usual.
    fn logged(during: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no panic").write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, during);
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn sessions_that_are_lost_again_and_again_by_one_reason_are_told_once() {
        let mut log = SessionRetries::new("s");
        let lines = logged(|| {
            for _ in 0..5 {
                log.opened();
                log.lost("no right", false);
            }
            log.opened();
            log.lost("another", false);
        });
        assert_eq!(lines.len(), 3, "{lines:?}");
        let lines = logged(|| {
            for _ in 0..2 {
                log.opened();
                log.lost("another", true);
            }
        });
        assert_eq!(lines.len(), 3, "each loss of one that worked, {lines:?}");
    }
}
