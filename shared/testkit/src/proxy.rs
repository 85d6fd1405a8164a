//! A TCP proxy between a program and a server, with faults at a test's command: cut connections,
//! black holes, delays, half-open connections. It forwards plain TCP on loopback and understands no
//! protocol.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that one direction moves at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A proxy that listens on a port of its own until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
    listener: JoinHandle<()>,
}

struct ProxyState {
    /// Servers tried in turn; each connection begins with another one.
    upstreams: Vec<String>,
    faults: watch::Sender<Faults>,
    /// Bytes that clients may still send before their connection is cut; [`UNLIMITED`] without that fault.
    allowance: AtomicU64,
    connections: AtomicU64,
    said: AtomicU64,
}

const UNLIMITED: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Faults {
    /// Connections accepted under an earlier number are cut.
    generation: u64,
    /// The server's side of connections accepted under an earlier number is closed, without notice
    /// to the client.
    abandoned: u64,
    /// Nothing is moved in either direction, and no side gets notice.
    black_hole: bool,
    /// Bytes reach the server, its answers do not come back.
    mute: bool,
    /// New connections are closed at once.
    refuses: bool,
    /// Delay of each chunk, in both directions.
    delay: Duration,
}

impl Proxy {
    /// Forwards to `upstream`, such as `127.0.0.1:5672`.
    pub async fn start(upstream: impl Into<String>) -> anyhow::Result<Self> {
        Self::start_over(vec![upstream.into()]).await
    }

    /// Spreads connections over `upstreams` and passes over those that refuse, as a load balancer does.
    pub async fn start_over(upstreams: Vec<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port for the proxy")?;
        let address = listener.local_addr()?;
        let state = Arc::new(ProxyState {
            upstreams,
            faults: watch::Sender::new(Faults::default()),
            allowance: AtomicU64::new(UNLIMITED),
            connections: AtomicU64::new(0),
            said: AtomicU64::new(0),
        });
        let listener = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, listener })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Chunks that clients have sent in all. A question takes one chunk or more, so a protocol that
    /// waits for each answer asks at most this often.
    pub fn said(&self) -> u64 {
        self.state.said.load(Ordering::Relaxed)
    }

    /// Returns `url` with host and port of this proxy.
    pub fn through(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}127.0.0.1:{}{path}", self.port())
    }

    /// Connections that clients have made so far, without those that were refused.
    pub fn accepted(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Closes every connection that is open now; new ones are welcome.
    pub fn cut(&self) {
        self.state.faults.send_modify(|faults| faults.generation += 1);
    }

    /// Cuts each connection, open now or new, in the chunk with which the clients will have sent
    /// `bytes` more in all, in the middle of a message. [`Proxy::cut_never`] ends it.
    pub fn cut_after(&self, bytes: u64) {
        self.state.allowance.store(bytes, Ordering::Relaxed);
    }

    pub fn cut_never(&self) {
        self.state.allowance.store(UNLIMITED, Ordering::Relaxed);
    }

    /// Closes the server's side of every connection that is open now. Clients get no notice: what
    /// they send is lost, and nothing comes back. New connections are welcome.
    pub fn half_open(&self) {
        self.state.faults.send_modify(|faults| faults.abandoned += 1);
    }

    /// Delays every chunk in both directions; zero ends it.
    pub fn delay(&self, delay: Duration) {
        self.state.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Stops all bytes while on, on old connections and new ones alike.
    pub fn black_hole(&self, on: bool) {
        self.state.faults.send_modify(|faults| faults.black_hole = on);
    }

    /// Stops the answers while on; what the client sends arrives. Confirms are lost.
    pub fn mute(&self, on: bool) {
        self.state.faults.send_modify(|faults| faults.mute = on);
    }

    /// Cuts old connections while on and closes new ones at once: the server is down.
    pub fn down(&self, on: bool) {
        self.state.faults.send_modify(|faults| {
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

async fn accept(listener: TcpListener, state: Arc<ProxyState>) {
    while let Ok((client, _)) = listener.accept().await {
        if !state.faults.borrow().refuses {
            tokio::spawn(join(client, Arc::clone(&state)));
        }
    }
}

/// Moves bytes both ways until one side ends or the connection is cut.
async fn join(client: TcpStream, state: Arc<ProxyState>) {
    let faults = state.faults.subscribe();
    let Faults { generation, abandoned, .. } = *faults.borrow();
    let Some(server) = connect(&state).await else { return };
    for stream in [&client, &server] {
        // Without it, small frames wait for acknowledgements of the kernel.
        let _ = stream.set_nodelay(true);
    }
    let (mut client_in, mut client_out) = client.into_split();
    let (mut until_cut, mut until_abandoned) = (faults.clone(), faults.clone());
    let is_cut = until_cut.wait_for(|faults| faults.generation != generation);
    let joined = async {
        let (mut server_in, mut server_out) = server.into_split();
        let there = Direction { state: &state, faults: faults.clone(), generation, is_there: true };
        let back = Direction { state: &state, faults, generation, is_there: false };
        tokio::select! {
            // This arm comes first, so that nothing slips through when a hole is closed after a cut.
            biased;
            _ = until_abandoned.wait_for(|faults| faults.abandoned != abandoned) => true,
            () = there.forward(&mut client_in, &mut server_out) => false,
            () = back.forward(&mut server_in, &mut client_out) => false,
        }
    };
    tokio::pin!(is_cut);
    let is_abandoned = tokio::select! {
        biased;
        _ = &mut is_cut => false,
        is_abandoned = joined => is_abandoned,
    };
    if is_abandoned {
        tokio::select! {
            _ = is_cut => {}
            () = swallow(&mut client_in) => {}
        }
    }
}

async fn connect(state: &ProxyState) -> Option<TcpStream> {
    let number = state.connections.fetch_add(1, Ordering::Relaxed);
    let count = state.upstreams.len();
    let first = usize::try_from(number).unwrap_or_default() % count;
    for upstream in state.upstreams.iter().cycle().skip(first).take(count) {
        if let Ok(server) = TcpStream::connect(upstream).await {
            return Some(server);
        }
    }
    None
}

/// Reads until the client gives up.
async fn swallow(from: &mut OwnedReadHalf) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while from.read(&mut chunk).await.is_ok_and(|read| read > 0) {}
}

/// One direction of one connection.
struct Direction<'a> {
    state: &'a ProxyState,
    faults: watch::Receiver<Faults>,
    /// Number under which the connection was accepted.
    generation: u64,
    /// The direction from the client to the server.
    is_there: bool,
}

impl Direction<'_> {
    async fn forward(mut self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match from.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            };
            if self.is_there {
                self.state.said.fetch_add(1, Ordering::Relaxed);
            }
            let delay = self.faults.borrow().delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            // Bytes wait in the black hole as they would in a network that drops and sends again.
            let (is_there, generation) = (self.is_there, self.generation);
            // Of one look: what is cut and then unmuted forwards nothing more.
            let is_free = |faults: &Faults| {
                faults.generation == generation && !faults.black_hole && (is_there || !faults.mute)
            };
            if self.faults.wait_for(is_free).await.is_err() {
                return;
            }
            let allowed = if self.is_there { self.state.allow(read) } else { read };
            if to.write_all(&chunk[..allowed]).await.is_err() || allowed < read {
                return;
            }
        }
    }
}

impl ProxyState {
    /// Number of these bytes that may still go to the server.
    fn allow(&self, bytes: usize) -> usize {
        let bytes = bytes as u64;
        let take = |left| if left == UNLIMITED { None } else { Some(u64::saturating_sub(left, bytes)) };
        let left = self.allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let allowed = left.map_or(bytes, |left| left.min(bytes));
        usize::try_from(allowed).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connects a client to a server that sends back what it receives, for any number of connections.
    async fn echoed() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let upstream = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        // The first upstream refuses: no server listens at port 1.
        let upstreams = vec!["127.0.0.1:1".to_owned(), upstream.to_string()];
        let proxy = Proxy::start_over(upstreams).await.expect("a proxy");
        let client = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("a connection");
        (proxy, client)
    }

    async fn say(client: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(bytes).await?;
        let mut answer = vec![0; bytes.len()];
        client.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn an_upstream_that_refuses_is_passed_over() {
        let (proxy, mut client) = echoed().await;
        assert_eq!(say(&mut client, b"one").await.expect("an echo"), b"one");
        let mut second = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("a connection");
        assert_eq!(say(&mut second, b"two").await.expect("an echo"), b"two");
    }

    #[tokio::test]
    async fn a_connection_is_cut_in_the_middle_of_a_message_after_so_many_bytes() {
        let (proxy, mut client) = echoed().await;
        proxy.cut_after(5);
        assert_eq!(say(&mut client, b"abc").await.expect("an echo"), b"abc");
        client.write_all(b"defg").await.expect("sent");
        let mut rest = Vec::new();
        // A reset counts as an end.
        let _ = client.read_to_end(&mut rest).await;
        assert!(b"de".starts_with(&rest), "{rest:?}");
        proxy.cut_never();
        let mut second = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("a connection");
        assert_eq!(say(&mut second, b"hijkl").await.expect("an echo"), b"hijkl");
    }

    #[tokio::test]
    async fn half_open_connections_stay_open_and_silent_and_new_ones_work() {
        let (proxy, mut client) = echoed().await;
        assert_eq!(say(&mut client, b"one").await.expect("an echo"), b"one");
        proxy.half_open();
        let silence = tokio::time::timeout(Duration::from_millis(200), say(&mut client, b"two")).await;
        assert!(silence.is_err(), "{silence:?}");
        let mut second = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("a connection");
        assert_eq!(say(&mut second, b"two").await.expect("an echo"), b"two");
        proxy.cut();
        assert_eq!(client.read(&mut [0; 8]).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn a_delay_holds_every_chunk_in_both_directions() {
        let (proxy, mut client) = echoed().await;
        proxy.delay(Duration::from_millis(50));
        let began = tokio::time::Instant::now();
        assert_eq!(say(&mut client, b"slow").await.expect("an echo"), b"slow");
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }
}
