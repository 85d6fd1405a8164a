//! Programs with a thread that does not come back: the operations port reports it, and a signal ends them.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{API, command_of};
use crate::support::wait_for;

/// Time until a loop counts as stuck.
const STUCK_MS_MAX: &str = "500";

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for background tasks on a busy machine.
const MARGIN: Duration = Duration::from_secs(8);

fn program(directory: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = command_of(API, directory, &[]);
    command.env("FOREBAY__OPS__STUCK_MS_MAX", STUCK_MS_MAX);
    command.env("FOREBAY__SERVER__SHUTDOWN_TIMEOUT_MS", SHUTDOWN_TIMEOUT.as_millis().to_string());
    command.env("FOREBAY__SERVER__WORKERS", "1");
    command.envs(settings.iter().map(|(name, value)| (format!("FOREBAY__{name}"), *value)));
    command
}

/// A program whose standard error is a pipe, killed when dropped.
struct Piped {
    child: Child,
    address: String,
    ops: String,
    client: Client,
}

impl Piped {
    fn start(directory: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = program(directory, settings);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (mut address, mut ops) = (None, None);
        for line in lines.map(|line| line.expect("text")) {
            let after = |prefix: &str| Some(line.split_once(prefix)?.1.split([',', ' ']).next()?.to_owned());
            address = address.or_else(|| after("Forebay listens on "));
            ops = ops.or_else(|| Some(after("Metrics: ")?.strip_suffix("/metrics")?.to_owned()));
            if ops.is_some() {
                break;
            }
        }
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().expect("a client");
        Self { child, address: address.expect("an address"), ops: ops.expect("an address"), client }
    }

    /// Calls `ask` until the log is full, which is when the liveness fails; returns that answer.
    async fn fill_log(&self, ask: impl AsyncFn(&Client, &str)) -> String {
        wait_for("a loop that stands still", async || {
            for _ in 0..20 {
                ask(&self.client, &self.address).await;
            }
            let (status, said) = self.ops("/livez").await;
            (status == 503).then_some(said)
        })
        .await
    }

    async fn ops(&self, path: &str) -> (u16, String) {
        let answer = self.client.get(format!("{}{path}", self.ops)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Reads what it has logged, and goes on in the background.
    fn drain_log(&mut self) {
        let mut log = self.child.stderr.take().expect("not taken before");
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end; returns exit code and duration.
async fn ended(child: &mut Child) -> (Option<i32>, Duration) {
    let (begun, child) = (Instant::now(), std::sync::Mutex::new(child));
    let look = async || child.lock().expect("no panic").try_wait().expect("it is our child");
    (wait_for("the end of the process", look).await.code(), begun.elapsed())
}

/// Reads from a store that is away; each read logs a line.
async fn read_in_vain(client: &Client, address: &str) {
    // There is no answer once the worker is stuck.
    let _ =
        client.get(format!("{address}/v1/counters/stuck")).timeout(Duration::from_millis(500)).send().await;
}

/// Writes with a trace; each applied message logs a line.
async fn write(client: &Client, address: &str) {
    let request = client.post(format!("{address}/v1/counters/stuck/increments"));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let _ = request.header("traceparent", trace).send().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_come_back_fails_liveness_and_a_signal_ends_the_program() {
    testkit::isolated("stuck", |isolated| async move {
        let directory = tempfile::tempdir().expect("a directory");
        let nowhere = testkit::servers::free_address().expect("an address");
        let mut api = Piped::start(
            directory.path(),
            &[
                ("QUEUE__URL", &isolated.amqp_url),
                ("QUEUE__PREFIX", &isolated.prefix),
                ("STORE__URL", &format!("postgres://postgres@{nowhere}/none")),
                ("IDS__SECRETS", "0123456789abcdef0123456789abcdef"),
                ("TELEMETRY__LOG_FILTER", "off,api::routes=debug"),
            ],
        );
        assert_eq!(api.ops("/livez").await.0, 200, "a store that is away is not stuck");
        let said = api.fill_log(read_in_vain).await;
        assert!(said.contains("http_worker stands still"), "{said}");
        assert_eq!(api.ops("/readyz").await.0, 503);
        wait_for("the metric", async || {
            let (_, metrics) = api.ops("/metrics").await;
            let line =
                metrics.lines().find(|line| line.starts_with("forebay_stuck_seconds{loop=\"http_worker\"}"));
            (!line.expect("it is there from the start").ends_with(" 0")).then_some(())
        })
        .await;
        kill_process(api.pid(), Signal::TERM).expect("it runs");
        let (code, took) = ended(&mut api.child).await;
        assert_eq!(code, Some(1), "an error, for its supervisor");
        assert!(took < SHUTDOWN_TIMEOUT + MARGIN, "{took:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_stands_still_fails_liveness_until_it_moves_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut api = Piped::start(directory.path(), &[("TELEMETRY__LOG_FILTER", "off,consumer=debug")]);
    let said = api.fill_log(write).await;
    assert!(said.contains("ingest stands still"), "{said}");
    assert_eq!(api.ops("/readyz").await.0, 503);
    api.drain_log();
    wait_for("liveness", async || (api.ops("/livez").await.0 == 200).then_some(())).await;
    assert_eq!(api.ops("/readyz").await.0, 200);
    kill_process(api.pid(), Signal::TERM).expect("it runs");
    assert_eq!(ended(&mut api.child).await.0, Some(0));
}

/// Starts a program; returns once it catches signals by itself.
async fn starting(mut command: Command) -> Child {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let path = format!("/proc/{}/status", child.id());
    wait_for("a program that catches SIGTERM", async || {
        let status = std::fs::read_to_string(&path).expect("Linux");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
        let mask = u64::from_str_radix(caught.trim(), 16).expect("a mask");
        (mask & (1 << (Signal::TERM.as_raw() - 1)) != 0).then_some(())
    })
    .await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_program_that_migrates_obeys_a_signal_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("forebay-data");
    std::fs::create_dir(&data).expect("it is new");
    let store = data.join("store.db");
    let lock = testkit::sqlite::create_locked(&store).await.expect("it is new");
    let mut child = starting(program(directory.path(), &[])).await;
    let files = format!("/proc/{}/fd", child.id());
    wait_for("a program that has its store open", async || {
        let mut open = std::fs::read_dir(&files).expect("Linux").filter_map(Result::ok);
        open.any(|file| std::fs::read_link(file.path()).is_ok_and(|path| path == store)).then_some(())
    })
    .await;
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let (code, took) = ended(&mut child).await;
    drop(lock);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "it waited for the store: {took:?}");
}
