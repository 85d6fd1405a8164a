//! The programs of a pair: started on fixed loopback ports, killed, frozen and asked to stop, and
//! started again on them. In the cluster each reaches broker and store through proxies of its own.
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use testkit::clock::Clock;
use testkit::proxy::Proxy;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::send;
use crate::servers::{Servers, free_address, in_path};

/// Data directory of the embedded program, in the folder of the run.
pub const DATA: &str = "data";
const HEALTHY_PATIENCE: Duration = Duration::from_mins(1);
/// Time within which a program must stop when asked: its own limit for open requests, and some more.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

pub struct Fleet {
    pub members: Vec<Member>,
}

/// Proxies between a program and the servers.
pub struct Links {
    pub broker: Proxy,
    pub store: Proxy,
}

/// One program, killed when this is dropped.
pub struct Member {
    pub name: String,
    /// Its public port, if it is an API.
    pub api: Option<SocketAddr>,
    pub links: Option<Links>,
    pub clock: Option<Clock>,
    ops: SocketAddr,
    binary: PathBuf,
    settings: Vec<(String, String)>,
    folder: PathBuf,
    child: Child,
}

/// Settings that all programs of a fleet share.
pub struct Base<'a> {
    pub binaries: &'a Path,
    pub folder: &'a Path,
    /// Path of libfaketime.
    pub faketime: Option<&'a Path>,
}

impl Fleet {
    /// Starts two APIs and two consumers on the servers, or one embedded API without servers.
    pub async fn start(base: Base<'_>, servers: Option<&Servers>) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        match servers {
            None => {
                let url = format!("embedded:{}", base.folder.join(DATA).display());
                let settings = [("QUEUE__URL", url.clone()), ("STORE__URL", url), admin()];
                members.push(Member::start("api-0", &base, &settings, None)?);
            }
            Some(servers) => {
                for name in ["consumer-0", "consumer-1", "api-0", "api-1"] {
                    let links = Links {
                        broker: Proxy::start_over(servers.broker.addresses()).await?,
                        store: Proxy::start(servers.postgres.address()).await?,
                    };
                    let settings = [
                        ("QUEUE__URL", links.broker.through(&servers.broker.url())),
                        ("STORE__URL", links.store.through(&servers.postgres.url())),
                        ("STORE__MIGRATE", "true".into()),
                        admin(),
                        ("IDS__SECRETS", "a-secret-for-load-tests-on-loopback-only".into()),
                    ];
                    members.push(Member::start(name, &base, &settings, Some(links))?);
                }
            }
        }
        let mut fleet = Self { members };
        fleet.await_healthy().await?;
        Ok(fleet)
    }

    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|member| member.name.clone()).collect()
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

    /// Names of programs that have ended without a request.
    pub fn ended_by_themselves(&mut self) -> anyhow::Result<Vec<String>> {
        let mut findings = Vec::new();
        for member in &mut self.members {
            findings.extend(member.ended_by_itself()?);
        }
        Ok(findings)
    }

    /// Asks all running programs to stop. Returns the findings.
    pub async fn stop(&mut self) -> anyhow::Result<Vec<String>> {
        let mut findings = self.ended_by_themselves()?;
        for member in &mut self.members {
            if member.child.try_wait()?.is_none() {
                findings.extend(member.terminate().await?);
            }
        }
        Ok(findings)
    }
}

/// The administrator's setting, needed for dead letters and definitions.
fn admin() -> (&'static str, String) {
    ("AUTH__ADMIN_WITHOUT_KEYS", "true".into())
}

impl Member {
    fn start(
        name: &str,
        base: &Base<'_>,
        settings: &[(&str, String)],
        links: Option<Links>,
    ) -> anyhow::Result<Self> {
        let is_api = name.starts_with("api");
        let binary = base.binaries.join(if is_api { "forebay-api" } else { "forebay-consumer" });
        let (api, ops) = (if is_api { Some(free_address()?) } else { None }, free_address()?);
        let mut own = vec![("OPS__PORT", ops.port().to_string())];
        own.extend(api.map(|address| ("SERVER__PORT", address.port().to_string())));
        let settings = settings.iter().cloned().chain(own);
        let mut settings: Vec<_> = settings.map(|(key, value)| (format!("FOREBAY__{key}"), value)).collect();
        let folder = base.folder.join(name);
        fs::create_dir_all(&folder)?;
        let mut clock = base.faketime.map(|library| Clock::create(library, &folder)).transpose()?;
        settings.extend(clock.iter().flat_map(Clock::environment));
        let child = spawn(&binary, &settings, &folder)?;
        if let Some(clock) = &mut clock {
            clock.belongs_to(child.id());
        }
        Ok(Self { name: name.to_owned(), api, links, clock, ops, binary, settings, folder, child })
    }

    /// Kills the program by SIGKILL; returns when it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(finding) = self.ended_by_itself()? {
            bail!(finding);
        }
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Stops the program by SIGTERM; returns when it is gone, with the finding, if any.
    pub async fn terminate(&mut self) -> anyhow::Result<Option<String>> {
        if let Some(finding) = self.ended_by_itself()? {
            bail!(finding);
        }
        self.signal(Signal::TERM)?;
        let Ok(status) = timeout(STOP_PATIENCE, self.child.wait()).await else {
            self.child.kill().await?;
            return Ok(Some(format!("{} did not stop within {STOP_PATIENCE:?} of SIGTERM", self.name)));
        };
        let status = status?;
        let words = || format!("{} stopped with {status}\n{}", self.name, self.last_words());
        Ok((!status.success()).then(words))
    }

    /// Freezes the program, or lets it go on.
    pub fn freeze(&self, on: bool) -> anyhow::Result<()> {
        self.signal(if on { Signal::STOP } else { Signal::CONT })
    }

    /// Starts the program again after its end.
    pub fn restart(&mut self) -> anyhow::Result<Instant> {
        let restarted = Instant::now();
        self.child = spawn(&self.binary, &self.settings, &self.folder)?;
        if let Some(clock) = &mut self.clock {
            clock.belongs_to(self.child.id());
        }
        Ok(restarted)
    }

    /// Resident memory, where this system reports it.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let id = id.with_context(|| format!("{} is gone", self.name))?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    async fn await_healthy(&mut self) -> anyhow::Result<()> {
        // An API is ready before it reaches the broker; only its health says that it accepts.
        let path = if self.api.is_some() { "health" } else { "readyz" };
        let url = format!("http://{}/{path}", self.ops);
        tokio::select! {
            outcome = succeeds(&url) => outcome.with_context(|| format!("{}\n{}", self.name, self.last_words())),
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

/// Returns when a program answered 200.
async fn succeeds(url: &str) -> anyhow::Result<()> {
    let client = send::client()?;
    let deadline = Instant::now() + HEALTHY_PATIENCE;
    while !client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
        if Instant::now() > deadline {
            bail!("not healthy after {HEALTHY_PATIENCE:?} ({url})");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Starts a program. Its output goes to one file over all its lives; the environment holds only
/// what is set. It dies with the thread that started it, where this system can do that.
fn spawn(binary: &Path, settings: &[(String, String)], folder: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log_path(folder))?;
    let mut command = match in_path("setpriv") {
        Some(setpriv) => Command::new(setpriv),
        None => Command::new(binary),
    };
    if command.as_std().get_program() != binary {
        command.args(["--pdeathsig", "KILL"]).arg(binary);
    }
    command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A Ctrl-C at the terminal goes to this program only, which then ends the others.
    command.process_group(0).kill_on_drop(true);
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
