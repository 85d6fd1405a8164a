//! The side channel: plain blocking requests that ask for readiness and for counters. They are
//! never part of what is timed.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::http::{self, Parsed};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Counters requested at once; the server may give fewer and says where to go on.
const PAGE: usize = 1_000;

pub struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

pub struct ControlAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Sums over all counters whose names begin with one prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub value: i64,
    pub version: i64,
}

#[derive(Deserialize)]
struct CounterPage {
    items: Vec<CounterValue>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct CounterValue {
    value: i64,
    version: i64,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None }
    }

    pub fn get(&mut self, path: &str) -> anyhow::Result<ControlAnswer> {
        let request = http::get(self.address, path);
        self.exchange(&request)
    }

    /// Reads every page of the list of counters.
    pub fn sums(&mut self, prefix: &str) -> anyhow::Result<Sums> {
        let (mut sums, mut after) = (Sums::default(), String::new());
        loop {
            let answer = self.get(&format!("/v1/counters?prefix={prefix}&limit={PAGE}{after}"))?;
            let text = String::from_utf8_lossy(&answer.body);
            ensure!(answer.status == 200, "the list of counters: {} {text}", answer.status);
            let page: CounterPage = serde_json::from_slice(&answer.body).context("the list of counters")?;
            for counter in &page.items {
                sums.value += counter.value;
                sums.version += counter.version;
            }
            let Some(next) = page.next else { return Ok(sums) };
            after = format!("&after={next}");
        }
    }

    fn exchange(&mut self, request: &[u8]) -> anyhow::Result<ControlAnswer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect_timeout(&self.address, TIMEOUT)?,
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        let (mut bytes, mut buffer) = (Vec::new(), [0; 16 << 10]);
        loop {
            let length = stream.read(&mut buffer)?;
            ensure!(length > 0, "closed by the server");
            bytes.extend_from_slice(&buffer[..length]);
            if let Parsed::Complete { status, head, length, close } = http::parse(&bytes)? {
                if !close {
                    self.stream = Some(stream);
                }
                return Ok(ControlAnswer { status, body: bytes[head..length].to_vec() });
            }
        }
    }
}
