//! The programs of a pair: started on fixed loopback ports, killed, and started again on them.
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::Rng;
use testkit::Isolated;
use tokio::process::{Child, Command};

use crate::traffic;

const HEALTHY_PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(10);
/// Below the range from which the kernel takes the ports of outgoing connections, so that a
/// restarted program finds its own port free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

pub struct Fleet {
    pub members: Vec<Member>,
}

/// One program. It is killed when this is dropped.
pub struct Member {
    pub name: String,
    /// Its public port, if it is an API.
    pub api: Option<SocketAddr>,
    ops: SocketAddr,
    binary: PathBuf,
    settings: Vec<(String, String)>,
    folder: PathBuf,
    child: Child,
}

impl Fleet {
    /// Two APIs and two consumers on what is `isolated`, or one embedded API.
    pub async fn start(binaries: &Path, isolated: Option<&Isolated>, folder: &Path) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        match isolated {
            None => {
                let url = format!("embedded:{}", folder.join("data").display());
                let settings = [("QUEUE__URL", url.clone()), ("STORE__URL", url)];
                members.push(Member::start("api-0", binaries, &settings, folder)?);
            }
            Some(isolated) => {
                let settings = [
                    ("QUEUE__URL", isolated.amqp_url.clone()),
                    ("QUEUE__PREFIX", isolated.prefix.clone()),
                    ("STORE__URL", isolated.database_url.clone()),
                    ("STORE__MIGRATE", "true".into()),
                    ("IDS__SECRETS", "a-secret-for-load-tests-on-loopback-only".into()),
                ];
                for name in ["consumer-0", "consumer-1", "api-0", "api-1"] {
                    members.push(Member::start(name, binaries, &settings, folder)?);
                }
            }
        }
        let mut fleet = Self { members };
        fleet.await_healthy().await?;
        Ok(fleet)
    }

    pub fn api_addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().filter_map(|member| member.api).collect()
    }

    /// Returns once every program is ready and can make writes durable.
    pub async fn await_healthy(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.await_healthy().await?;
        }
        Ok(())
    }

    /// Kills what is left and tells of programs that had ended by themselves. How they stop when
    /// asked is for other tests; here the audit is over.
    pub async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        let mut findings = Vec::new();
        for member in &mut self.members {
            findings.extend(member.ended_by_itself()?);
            member.child.kill().await?;
        }
        Ok(findings)
    }
}

impl Member {
    fn start(
        name: &str,
        binaries: &Path,
        settings: &[(&str, String)],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let is_api = name.starts_with("api");
        let binary = binaries.join(if is_api { "forebay-api" } else { "forebay-consumer" });
        let (api, ops) = (if is_api { Some(free_address()?) } else { None }, free_address()?);
        let mut own = vec![("OPS__PORT", ops.port().to_string())];
        own.extend(api.map(|address| ("SERVER__PORT", address.port().to_string())));
        let settings = settings.iter().cloned().chain(own);
        let settings: Vec<_> = settings.map(|(key, value)| (format!("FOREBAY__{key}"), value)).collect();
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let child = spawn(&binary, &settings, &folder)?;
        Ok(Self { name: name.to_owned(), api, ops, binary, settings, folder, child })
    }

    /// Kills without warning and starts again at once. Returns when the new process was started.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<Instant> {
        if let Some(finding) = self.ended_by_itself()? {
            bail!(finding);
        }
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
        let restarted = Instant::now();
        self.child = spawn(&self.binary, &self.settings, &self.folder)?;
        Ok(restarted)
    }

    pub fn health(&self) -> Probe {
        // An API is ready before it reaches the broker; only its health tells that it accepts.
        let path = if self.api.is_some() { "health" } else { "readyz" };
        Probe { url: format!("http://{}/{path}", self.ops), name: self.name.clone() }
    }

    async fn await_healthy(&mut self) -> anyhow::Result<()> {
        let probe = self.health();
        tokio::select! {
            outcome = probe.succeeds() => outcome.map(|_| ()),
            status = self.child.wait() => bail!("{} ended by itself: {}\n{}", self.name, status?, self.last_words()),
        }
    }

    fn ended_by_itself(&mut self) -> anyhow::Result<Option<String>> {
        let status = self.child.try_wait()?;
        Ok(status.map(|status| format!("{} ended by itself: {status}\n{}", self.name, self.last_words())))
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(log_path(&self.folder)).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Asks one program for its health, apart from the borrow of the program.
pub struct Probe {
    url: String,
    name: String,
}

impl Probe {
    /// Returns when the program answered 200.
    pub async fn succeeds(&self) -> anyhow::Result<Instant> {
        let client = traffic::client()?;
        let deadline = Instant::now() + HEALTHY_PATIENCE;
        loop {
            let answer = client.get(&self.url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(Instant::now());
            }
            if Instant::now() > deadline {
                bail!("{} is not healthy after {HEALTHY_PATIENCE:?} ({})", self.name, self.url);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Output goes to one file over all lives of the program; the environment holds only what is set.
fn spawn(binary: &Path, settings: &[(String, String)], folder: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log_path(folder))?;
    let mut command = Command::new(binary);
    command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    for (key, _) in std::env::vars() {
        if key.starts_with("FOREBAY") || ["DATABASE_URL", "AMQP_URL", "REDIS_URL"].contains(&key.as_str()) {
            command.env_remove(key);
        }
    }
    let settings = settings.iter().map(|(key, value)| (key, value));
    command.envs(settings).spawn().with_context(|| format!("cannot start {}", binary.display()))
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}
