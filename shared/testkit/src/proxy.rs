//! A TCP proxy between a program and a server, whose faults a test commands: cut connections and
//! black holes. For plain TCP on loopback; it understands no protocol.
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that one direction moves at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Listens on a port of its own until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<watch::Sender<Faults>>,
    listener: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Faults {
    /// Connections accepted under an earlier number are cut.
    generation: u64,
    /// Nothing is moved in either direction, and nobody is told.
    black_hole: bool,
    /// The server hears and is not heard.
    mute: bool,
    /// New connections are closed at once.
    refuses: bool,
}

impl Proxy {
    /// Forwards to `upstream`, such as `127.0.0.1:5672`.
    pub async fn start(upstream: impl Into<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port for the proxy")?;
        let address = listener.local_addr()?;
        let faults = Arc::new(watch::Sender::new(Faults::default()));
        let listener = tokio::spawn(accept(listener, upstream.into(), Arc::clone(&faults)));
        Ok(Self { address, faults, listener })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `url` with host and port of this proxy instead of its own.
    pub fn through(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}127.0.0.1:{}{path}", self.port())
    }

    /// Closes every connection that is open now; new ones are welcome.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.generation += 1);
    }

    /// While on, nothing comes through, on old connections and new ones alike.
    pub fn black_hole(&self, on: bool) {
        self.faults.send_modify(|faults| faults.black_hole = on);
    }

    /// While on, what the client sends arrives and no answer does: confirms are lost.
    pub fn mute(&self, on: bool) {
        self.faults.send_modify(|faults| faults.mute = on);
    }

    /// While on, old connections are cut and new ones closed at once: the server is down.
    pub fn down(&self, on: bool) {
        self.faults.send_modify(|faults| {
            faults.refuses = on;
            faults.generation += 1;
        });
    }
}

/// Closes the port and cuts what is open.
impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, upstream: String, faults: Arc<watch::Sender<Faults>>) {
    while let Ok((client, _)) = listener.accept().await {
        let follower = faults.subscribe();
        if !follower.borrow().refuses {
            tokio::spawn(join(client, upstream.clone(), follower));
        }
    }
}

/// Moves bytes both ways until one side ends or the connection is cut.
async fn join(client: TcpStream, upstream: String, faults: watch::Receiver<Faults>) {
    let generation = faults.borrow().generation;
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    for stream in [&client, &server] {
        // Without it small frames wait for acknowledgements of the kernel.
        let _ = stream.set_nodelay(true);
    }
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let mut until_cut = faults.clone();
    tokio::select! {
        // First, so that nothing slips through when a hole is closed after a cut.
        biased;
        _ = until_cut.wait_for(|faults| faults.generation != generation) => {}
        () = forward(client_in, server_out, faults.clone(), |faults| faults.black_hole) => {}
        () = forward(server_in, client_out, faults, |faults| faults.black_hole || faults.mute) => {}
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut faults: watch::Receiver<Faults>,
    is_held: fn(&Faults) -> bool,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        // In the hole bytes wait as they would in a network that drops and sends again.
        if faults.wait_for(|faults| !is_held(faults)).await.is_err() {
            return;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}
