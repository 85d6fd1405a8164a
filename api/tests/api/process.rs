//! The API as a program: in a process of its own, stopped by signals.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shared::config::Config;

use crate::support::wait_for;

/// A running API, killed when dropped.
pub struct Process {
    child: Child,
    /// Host and port of the public port.
    pub address: String,
    /// URL of the operations port.
    pub ops: String,
}

impl Process {
    /// Starts it with the backend and server settings of `config`; returns when it listens.
    pub fn start(config: &Config) -> Self {
        Self::launch(config, Command::new(env!("CARGO_BIN_EXE_forebay-api")))
    }

    /// Starts it with a soft limit of open files.
    pub fn start_with_files(config: &Config, soft_limit: u32) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -Sn {soft_limit} && exec \"$0\"")]);
        shell.arg(env!("CARGO_BIN_EXE_forebay-api"));
        Self::launch(config, shell)
    }

    fn launch(config: &Config, mut command: Command) -> Self {
        let directory = std::env::temp_dir();
        command.current_dir(directory).env_clear().stdout(Stdio::piped()).stderr(Stdio::null());
        for (name, value) in [
            ("QUEUE__URL", config.queue.url.clone()),
            ("QUEUE__PREFIX", config.queue.prefix.clone()),
            ("QUEUE__BYTES_MAX", config.queue.bytes_max.to_string()),
            ("QUEUE__SETTLE_MS", config.queue.settle_ms.to_string()),
            ("QUEUE__CONFIRM_TIMEOUT_MS", config.queue.confirm_timeout_ms.to_string()),
            ("STORE__URL", config.store.url.clone()),
            ("STORE__MIGRATE", config.store.migrate.to_string()),
            ("IDS__SECRETS", config.ids.secrets[0].clone()),
            ("SERVER__PORT", config.server.port.to_string()),
            ("SERVER__WORKERS", config.server.workers().to_string()),
            ("SERVER__ACCEPT_TIMEOUT_MS", config.server.accept_timeout_ms.to_string()),
            ("SERVER__WAIT_MS_MAX", config.server.wait_ms_max.to_string()),
            ("SERVER__BODIES_BYTES_MAX", config.server.bodies_bytes_max.to_string()),
            ("SERVER__ANSWERS_BYTES_MAX", config.server.answers_bytes_max.to_string()),
            ("SERVER__ANSWER_TIMEOUT_MS", config.server.answer_timeout_ms.to_string()),
            ("SERVER__DRAIN_GRACE_MS", config.server.drain_grace_ms.to_string()),
            ("SERVER__SHUTDOWN_TIMEOUT_MS", config.server.shutdown_timeout_ms.to_string()),
            ("AUTH__ADMIN_WITHOUT_KEYS", config.auth.admin_without_keys.to_string()),
            ("OPS__PORT", "0".into()),
        ] {
            command.env(format!("FOREBAY__{name}"), value);
        }
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (mut address, mut ops) = (None, None);
        for line in lines.map(|line| line.expect("text")) {
            let after = |prefix: &str| Some(line.split_once(prefix)?.1.split([',', ' ']).next()?.to_owned());
            address = address.or_else(|| after("Forebay listens on http://"));
            ops = ops.or_else(|| Some(after("Metrics: ")?.strip_suffix("/metrics")?.to_owned()));
            if ops.is_some() {
                break;
            }
        }
        Self { child, address: address.expect("an address"), ops: ops.expect("an address") }
    }

    /// Number of requests that wait for the outcome of a write, or for a change.
    pub async fn waiting(&self, client: &reqwest::Client) -> usize {
        let answer = client.get(format!("{}/metrics", self.ops)).send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("forebay_api_waiters "));
        line.map_or(0, |number| number.parse().expect("a number"))
    }

    pub fn send(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it has not been waited for");
    }

    /// Memory that it occupies, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Threads that run, or wait for a core.
    pub fn running_threads(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux");
        let is_running = |path: std::path::PathBuf| {
            // A thread may end meanwhile.
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
        };
        let running = tasks.map(|task| task.expect("an entry")).filter(|task| is_running(task.path()));
        running.map(|task| task.file_name().to_string_lossy().parse().expect("a number")).collect()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.send(Signal::TERM);
    }

    /// Waits for the end; returns its status and the time that it took.
    pub async fn ended(&mut self) -> (ExitStatus, Duration) {
        self.ended_during(|_| ()).await
    }

    /// Repeats a signal until the end, as an impatient operator does: two in quick succession count as one.
    pub async fn ended_by_repeated(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        self.ended_during(|pid| kill_process(pid, signal).expect("it has not been waited for")).await
    }

    async fn ended_during(&mut self, at_each_look: impl Fn(Pid)) -> (ExitStatus, Duration) {
        let (begun, pid) = (Instant::now(), Pid::from_child(&self.child));
        let child = std::sync::Mutex::new(&mut self.child);
        let status = wait_for("the end of the process", async || {
            let ended = child.lock().expect("no panic").try_wait().expect("it is our child");
            if ended.is_none() {
                at_each_look(pid);
            }
            ended
        });
        (status.await, begun.elapsed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
