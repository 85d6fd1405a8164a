//! Start and stop of the measured programs. They are found beside this one and get free loopback
//! ports and an environment that holds nothing but what is set here.
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::control::Client;
use crate::stop::Stop;

const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// Ports below the range from which the kernel takes those of outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Paths of the three binaries.
pub struct Binaries {
    pub api: PathBuf,
    pub consumer: PathBuf,
    pub bare: PathBuf,
}

impl Binaries {
    /// Finds the binaries of the profile that this program was built with, building them only
    /// when one is missing.
    pub fn find_or_build() -> anyhow::Result<Self> {
        let here = std::env::current_exe().context("own path")?;
        let folder = here.parent().context("a binary lies in a folder")?;
        let binaries = Self {
            api: folder.join("forebay-api"),
            consumer: folder.join("forebay-consumer"),
            bare: folder.join("examples/bare"),
        };
        if !binaries.complete() {
            build()?;
        }
        if !binaries.complete() {
            bail!("no forebay-api, forebay-consumer and examples/bare in {}", folder.display());
        }
        Ok(binaries)
    }

    fn complete(&self) -> bool {
        [&self.api, &self.consumer, &self.bare].iter().all(|path| path.is_file())
    }
}

fn build() -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "-p", "api", "-p", "consumer", "--bins"]);
    cargo.args(["--example", "bare"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build failed");
    }
    Ok(())
}

/// Returns a free loopback address. Another program may take it before it is used; the start then
/// fails and says so.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// A running program; dropping it kills it.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `binary` in `folder`, where its log goes, too, and waits until `ready` answers 200.
    pub fn start(
        binary: &Path,
        name: &str,
        arguments: &[String],
        settings: &[(&str, String)],
        folder: &Path,
        ready: (SocketAddr, &str),
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command = Command::new(binary);
        command.args(arguments).current_dir(folder).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        for (key, _) in std::env::vars_os() {
            let key_text = key.to_string_lossy();
            if key_text.starts_with("FOREBAY")
                || ["DATABASE_URL", "AMQP_URL", "REDIS_URL"].contains(&&*key_text)
            {
                command.env_remove(&key);
            }
        }
        command.envs(settings.iter().map(|(key, value)| (format!("FOREBAY__{key}"), value)));
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let mut program = Self { name: name.to_owned(), child, log };
        let (address, path) = ready;
        let is_ready = stop.poll(START_PATIENCE, PAUSE, || {
            program.check()?;
            Ok(Client::new(address).get(path).is_ok_and(|answer| answer.status == 200).then_some(()))
        })?;
        is_ready.with_context(|| format!("{name} is not ready in time\n{}", program.last_words()))?;
        Ok(program)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Checks the program; an error once it has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}\n{}", self.name, self.last_words()),
        }
    }

    /// Asks the program to stop and waits; kills it, and says so, when it does not.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let raw = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a pid")?;
        kill_process(raw, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        match self.wait(STOP_PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} stopped with {status}\n{}", self.name, self.last_words()),
            None => bail!("{} did not stop within {STOP_PATIENCE:?}\n{}", self.name, self.last_words()),
        }
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        // A `Stop` of its own: a cleanup after an interrupt waits as well.
        Stop::default().poll(patience, PAUSE, || Ok(self.child.try_wait()?))
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only when the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
