//! Full load beside the writers: many connections that increment a few counters as fast as they are
//! answered. The ledger does not hold them, so only bounds are known of each counter: the accepted
//! increments must be there, and no more than were sent.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Prefix of the names of its counters.
pub const PREFIX: &str = "crowd-";
const COUNTERS: usize = 100;
/// Time limit of a request, longer than any answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const DRAIN_PATIENCE: Duration = Duration::from_mins(2);
/// Time without a change after which no unknown increment is expected any more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
const RESPONSE_BYTES_MAX: usize = 16 * 1_024;

/// Answers to the increments of one counter.
#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU64,
    unknown: AtomicU64,
    /// A status outside the contract, 0 for none.
    strange: AtomicU64,
}

pub struct Crowd {
    tallies: Arc<Vec<Tally>>,
    connections: JoinSet<()>,
    stop: watch::Sender<bool>,
    began: Instant,
}

/// Figures of a finished crowd.
#[derive(Clone, Debug, Serialize)]
pub struct Crowded {
    pub connections: usize,
    pub accepted: u64,
    pub unknown: u64,
    pub accepted_per_second: f64,
}

impl Crowd {
    /// Starts this many connections, spread over the APIs.
    pub fn start(apis: &[SocketAddr], connections: usize) -> Self {
        let tallies: Arc<Vec<Tally>> = Arc::new((0..COUNTERS).map(|_| Tally::default()).collect());
        let (stop, _) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let one = One {
                api: apis[number % apis.len()],
                // The division lets each counter be written through every API.
                counter: number / apis.len() % COUNTERS,
                tallies: tallies.clone(),
            };
            tasks.spawn(one.run(stop.subscribe()));
        }
        Self { tallies, connections: tasks, stop, began: Instant::now() }
    }

    /// Ends the load after all open requests are answered.
    pub async fn stop(mut self) -> anyhow::Result<(Crowded, Expected)> {
        self.stop.send_replace(true);
        let (connections, lasted) = (self.connections.len(), self.began.elapsed());
        while let Some(connection) = self.connections.join_next().await {
            connection.context("a connection panicked")?;
        }
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let strange = self.tallies.iter().map(|tally| load(&tally.strange)).find(|status| *status != 0);
        ensure!(strange.is_none(), "the crowd was answered {strange:?}");
        let counts: Vec<_> =
            self.tallies.iter().map(|tally| (load(&tally.accepted), load(&tally.unknown))).collect();
        let (accepted, unknown) = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let accepted_per_second = accepted as f64 / lasted.as_secs_f64();
        Ok((Crowded { connections, accepted, unknown, accepted_per_second }, Expected(counts)))
    }
}

/// Accepted and unknown increments of each counter.
pub struct Expected(Vec<(u64, u64)>);

#[derive(Debug, Deserialize, PartialEq)]
struct CrowdCounter {
    value: u64,
    version: u64,
}

impl Expected {
    /// Findings at any API, read once everything accepted is applied or should be, and nothing
    /// changes any more.
    pub async fn check(&self, client: &Client, apis: &[SocketAddr]) -> anyhow::Result<Vec<String>> {
        let mut findings = Vec::new();
        for api in apis {
            let deadline = Instant::now() + DRAIN_PATIENCE;
            let (mut held, mut since) = (self.read(client, *api).await?, Instant::now());
            while since.elapsed() < SETTLED_AFTER && Instant::now() < deadline {
                tokio::time::sleep(PAUSE).await;
                let now = self.read(client, *api).await?;
                // A lost increment is waited for until the time limit.
                let is_complete =
                    now.iter().zip(&self.0).all(|(counter, (accepted, _))| counter.value >= *accepted);
                if now != held || !is_complete {
                    (held, since) = (now, Instant::now());
                }
            }
            let judged = held.iter().zip(&self.0).enumerate();
            let judged = judged.filter_map(|(number, (counter, (accepted, unknown)))| {
                judge(number, counter, *accepted, *unknown)
            });
            findings.extend(judged.map(|finding| format!("{finding} (at {api})")));
        }
        Ok(findings)
    }

    async fn read(&self, client: &Client, api: SocketAddr) -> anyhow::Result<Vec<CrowdCounter>> {
        let mut counters = Vec::new();
        for number in 0..self.0.len() {
            counters.push(read(client, api, number).await?);
        }
        Ok(counters)
    }
}

fn judge(number: usize, counter: &CrowdCounter, accepted: u64, unknown: u64) -> Option<String> {
    let CrowdCounter { value, version } = *counter;
    let most = accepted + unknown;
    let what = if value < accepted {
        "LOST"
    } else if value > most {
        "DOUBLED"
    } else if value != version {
        "WRONG"
    } else {
        return None;
    };
    Some(format!("{what}: {PREFIX}{number} is {value} at version {version}, not {accepted} to {most}"))
}

/// Reads a counter; one that was never written is 0.
async fn read(client: &Client, api: SocketAddr, number: usize) -> anyhow::Result<CrowdCounter> {
    let answer = client.get(format!("http://{api}/v1/counters/{PREFIX}{number}")).send().await?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok(CrowdCounter { value: 0, version: 0 });
    }
    answer.error_for_status()?.json().await.context("no counter")
}

/// One connection, which sends in a loop.
struct One {
    api: SocketAddr,
    counter: usize,
    tallies: Arc<Vec<Tally>>,
}

impl One {
    async fn run(self, stop: watch::Receiver<bool>) {
        let request = format!(
            "POST /v1/counters/{PREFIX}{}/increments HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\r\n",
            self.counter, self.api
        );
        while !*stop.borrow() {
            // Broken connections are expected in this run.
            if let Ok(mut stream) = TcpStream::connect(self.api).await {
                let _ = self.converse(&mut stream, request.as_bytes(), &stop).await;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn converse(
        &self,
        stream: &mut TcpStream,
        request: &[u8],
        stop: &watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let tally = &self.tallies[self.counter];
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(1_024);
        while !*stop.borrow() {
            let exchange = async {
                stream.write_all(request).await?;
                status(stream, &mut buffer).await
            };
            match timeout(ANSWER_PATIENCE, exchange).await {
                Ok(Ok(202)) => {
                    tally.accepted.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Ok(503)) => {
                    tally.unknown.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Ok(Ok(status)) => {
                    tally.strange.store(status.into(), Ordering::Relaxed);
                    bail!("answered {status}");
                }
                Ok(Err(error)) => {
                    tally.unknown.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
                Err(_) => {
                    tally.unknown.fetch_add(1, Ordering::Relaxed);
                    bail!("no answer within {ANSWER_PATIENCE:?}");
                }
            }
        }
        Ok(())
    }
}

/// Reads one response to its end.
async fn status(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    buffer.clear();
    loop {
        ensure!(stream.read_buf(buffer).await? > 0, "the connection was closed");
        if let Some((status, length)) = parse(buffer)?
            && buffer.len() >= length
        {
            return Ok(status);
        }
        ensure!(buffer.len() < RESPONSE_BYTES_MAX, "the response does not end");
    }
}

/// Parses the status and the length of the whole response; `None` before its head is complete.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head])?;
    let status = text.get(9..12).context("no status")?.parse()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    Ok(Some((status, head + 4 + length.context("no length")??)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_ends_where_its_length_says() {
        let response = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(response).expect("a response"), Some((202, response.len())));
        assert_eq!(parse(&response[..30]).expect("a beginning"), None);
        assert!(parse(b"HTTP/1.1 202 Accepted\r\n\r\n").is_err());
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_found() {
        let judged = |value, version| judge(1, &CrowdCounter { value, version }, 5, 2);
        assert_eq!([5, 6, 7].map(|value| judged(value, value)), [None, None, None]);
        assert!(judged(4, 4).is_some_and(|finding| finding.starts_with("LOST")));
        assert!(judged(8, 8).is_some_and(|finding| finding.starts_with("DOUBLED")));
        assert!(judged(6, 5).is_some_and(|finding| finding.starts_with("WRONG")));
    }
}
