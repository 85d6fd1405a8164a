//! The program's command line, as an operator or a container runs it.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

pub const API: &str = env!("CARGO_BIN_EXE_forebay-api");

/// Prepares the program in a directory of its own, with no settings but those of the test.
fn command(directory: &Path, arguments: &[&str]) -> Command {
    command_of(API, directory, arguments)
}

/// Prepares the program to be run through another program, which becomes it.
pub fn command_of(program: &str, directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env_clear();
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("FOREBAY__OPS__PORT", "0").env("FOREBAY__SERVER__PORT", "0");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> (bool, String, String) {
    let Output { status, stdout, stderr } = command(directory, arguments).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.success(), text(stdout), text(stderr))
}

/// Log file of a serving program, in its directory.
const LOG: &str = "log";

/// A serving program; ended when dropped.
pub struct Serving {
    pub child: Child,
    pub url: String,
}

impl Serving {
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    fn start_with(directory: &Path, arguments: &[&str]) -> Self {
        Self::of(command(directory, arguments), directory)
    }

    pub fn of(mut command: Command, directory: &Path) -> Self {
        let log = std::fs::File::create(directory.join(LOG)).expect("a file");
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let url = lines
            .find_map(|line| line.expect("text").strip_prefix("Forebay listens on ").map(str::to_owned))
            .expect("it says where it listens");
        let url = url.split(',').next().expect("an address").to_owned();
        let shown: Vec<_> = lines.take(4).map(|line| line.expect("text")).collect();
        assert_eq!(shown.iter().filter(|line| line.contains("curl ")).count(), 3, "{shown:?}");
        Self { child, url }
    }

    pub fn pid(&self) -> rustix::process::Pid {
        let id = i32::try_from(self.child.id()).expect("a process id");
        rustix::process::Pid::from_raw(id).expect("a process id")
    }

    pub fn stop(mut self) -> bool {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends").success()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn with_nothing_set_it_serves_and_keeps_what_it_accepted_over_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let serving = Serving::start(directory.path());
    for _ in 0..5 {
        let url = format!("{}/v1/counters/kept/increments", serving.url);
        assert_eq!(client.post(url).send().await.expect("an answer").status(), 202);
    }
    assert!(serving.stop(), "a SIGTERM is a clean end");
    let serving = Serving::start(directory.path());
    crate::support::wait_for("the value", async || {
        let url = format!("{}/v1/counters/kept", serving.url);
        let counter = crate::support::json(client.get(url).send().await.expect("an answer")).await;
        (counter["value"] == 5).then_some(())
    })
    .await;
}

#[test]
fn what_is_no_http_is_answered_and_fills_no_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let serving = Serving::start(directory.path());
    for request in
        ["GET / HTTP/9.9\r\n\r\n", "\u{1}\u{2}\r\n\r\n", "GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
    {
        let address = serving.url.strip_prefix("http://").expect("a URL");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert!(serving.stop());
    let log = std::fs::read_to_string(directory.path().join(LOG)).expect("a log");
    assert!(log.contains("listening") && !log.contains("actix_http") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let serving = Serving::start(directory.path());
    let (ok, _, reported) = run(directory.path(), &[]);
    assert!(!ok && reported.contains("in use by another process"), "{reported}");
    assert!(serving.stop());
}

#[test]
fn a_process_that_was_killed_leaves_no_lock_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut serving = Serving::start(directory.path());
    let refused = command(directory.path(), &[]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    serving.child.kill().expect("it runs");
    serving.child.wait().expect("it ends");
    assert!(directory.path().join("forebay-data/lock").exists(), "a file, but nobody holds it");
    // With the lock still held, the program would not come to listen.
    drop(Serving::start(directory.path()));
}

#[test]
fn a_misspelt_setting_is_refused_with_the_nearest_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ok, _, reported) = run(directory.path(), &["--set", "server.prot=1"]);
    assert!(!ok && reported.contains("server.prot") && reported.contains("server.port"), "{reported}");
}

#[test]
fn check_config_shows_origins_and_no_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ok, shown, _) = run(directory.path(), &["check-config", "--set", "ids.secrets=hush-hush"]);
    assert!(ok && shown.contains("FOREBAY__SERVER__PORT") && shown.contains("default"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
}

/// Makes a new key and its entry.
fn new_key(directory: &Path, arguments: &[&str]) -> (String, String) {
    let (ok, shown, reported) = run(directory, &[&["keys", "new"], arguments].concat());
    assert!(ok, "{reported}");
    let (key, entry) = shown.trim_end().split_once('\n').expect("two lines");
    assert!(!reported.contains(key) && !entry.contains(key), "{reported} {entry}");
    (key.to_owned(), entry.strip_prefix("- ").expect("an item of a list").to_owned())
}

#[tokio::test]
async fn a_new_key_opens_with_its_entry_and_is_shown_by_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (key, entry) = new_key(directory.path(), &["--id", "shop-1", "--scopes", "write"]);
    assert!(key.starts_with("fb_shop-1_"), "{key}");
    let hash = &entry.split("sha256\":\"").nth(1).expect("a hash")[..64];
    let setting = format!("auth.keys=[{entry}]");
    let arguments = ["--set", setting.as_str()];
    let (ok, shown, _) = run(directory.path(), &[&["check-config"], &arguments[..]].concat());
    assert!(ok && shown.contains("auth.keys: [\"***\"]") && !shown.contains(hash), "{shown}");
    let serving = Serving::start_with(directory.path(), &arguments);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("{}/v1/counters/kept", serving.url);
    let posted = client.post(format!("{url}/increments")).bearer_auth(&key).send().await.expect("an answer");
    assert_eq!(posted.status(), 202);
    let lacking = client.get(&url).bearer_auth(&key).send().await.expect("an answer");
    assert_eq!(lacking.status(), 403);
    assert_eq!(client.get(&url).send().await.expect("an answer").status(), 401);
    assert!(serving.stop());
    let log = std::fs::read_to_string(directory.path().join(LOG)).expect("a log");
    assert!(!log.contains(&key[10..]) && !log.contains(hash) && !log.contains("no API keys"), "{log}");
}

#[test]
fn a_key_may_end_and_belong_to_somebody_and_what_is_none_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = ["--principal", "shop", "--scopes", "read,admin", "--expires", "2027-01-01T00:00:00Z"];
    let (one, entry) = new_key(directory.path(), &arguments);
    for part in ["\"principal\":\"shop\"", "[\"read\",\"admin\"]", "2027-01-01T00:00:00Z"] {
        assert!(entry.contains(part), "{entry}");
    }
    let (other, _) = new_key(directory.path(), &[]);
    assert_ne!(one[..12], other[..12], "ids are random");
    for bad in [["--id", "a_b"], ["--expires", "tomorrow"], ["--scopes", "all"], ["--principal", "a b"]] {
        let (ok, _, reported) = run(directory.path(), &[&["keys", "new"], &bad[..]].concat());
        assert!(!ok && reported.contains(bad[0]), "{reported}");
    }
}

#[tokio::test]
async fn a_key_that_has_expired_is_named_by_check_config_and_by_a_start_that_it_does_not_stop() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ok, _, reported) = run(directory.path(), &["keys", "new", "--expires", "2020-01-01T00:00:00Z"]);
    assert!(!ok && reported.contains("--expires is in the past"), "{reported}");
    let (old, entry) = new_key(directory.path(), &["--id", "bygone", "--expires", "2099-01-01T00:00:00Z"]);
    let (good, other) = new_key(directory.path(), &["--id", "fresh"]);
    let entry = entry.replace("2099", "2020");
    std::fs::write(directory.path().join("keys.yaml"), format!("- {entry}\n- {other}\n"))
        .expect("is written");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for setting in [&format!("auth.keys=[{entry},{other}]"), "auth.keys_file=keys.yaml"] {
        let (ok, shown, reported) = run(directory.path(), &["check-config", "--set", setting]);
        assert!(!ok && reported.contains("these keys have expired and open nothing: bygone"), "{reported}");
        assert!(shown.contains("auth.keys") && !reported.contains("fresh"), "{reported}");
        let serving = Serving::start_with(directory.path(), &["--set", setting]);
        for (key, status) in [(&old, 401), (&good, 200)] {
            let url = format!("{}/v1/counters", serving.url);
            assert_eq!(client.get(url).bearer_auth(key).send().await.expect("an answer").status(), status);
        }
        assert!(serving.stop());
        let log = std::fs::read_to_string(directory.path().join(LOG)).expect("a log");
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("have expired")).collect();
        assert!(matches!(warnings[..], [line] if line.contains("bygone") && line.contains("WARN")), "{log}");
    }
}

#[test]
fn a_key_in_the_wrong_place_is_told_without_being_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    let (key, entry) = new_key(directory.path(), &["--id", "x"]);
    for bad in [
        entry.replace("\"id\":\"x\"", &format!("\"id\":\"{key}\"")),
        format!("\"{key}\""),
        format!("{{{key}"),
    ] {
        let (ok, shown, reported) = run(directory.path(), &["--set", &format!("auth.keys=[{bad}]")]);
        assert!(!ok && reported.contains("auth.keys"), "{reported}");
        assert!(!reported.contains(&key[5..]) && !shown.contains(&key[5..]), "{reported}");
    }
    let twice = format!("auth.keys=[{entry},{entry}]");
    let (ok, _, reported) = run(directory.path(), &["--set", &twice]);
    assert!(!ok && reported.contains("the id x is there twice"), "{reported}");
    let (ok, _, reported) = run(directory.path(), &["--set", "auth.keys_file=nowhere.yaml"]);
    assert!(!ok && reported.contains("auth.keys_file nowhere.yaml"), "{reported}");
}

#[test]
fn without_keys_it_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let _serving = Serving::start(directory.path());
    let log = std::fs::read_to_string(directory.path().join(LOG)).expect("a log");
    assert!(log.contains("no API keys") && log.contains("WARN"), "{log}");
}

#[test]
fn the_openapi_document_is_printed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ok, shown, _) = run(directory.path(), &["openapi"]);
    let document: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert!(ok && document["paths"]["/v1/receipts/{id}"].is_object());
}

#[test]
fn a_healthcheck_fails_when_nobody_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ok, _, reported) = run(directory.path(), &["healthcheck", "--set", "ops.port=1"]);
    assert!(!ok && reported.contains("error:"), "{reported}");
}

#[test]
fn without_servers_the_cluster_form_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = command(directory.path(), &["--env", "local"]);
    command.env("AMQP_URL", "amqp://127.0.0.1:1/%2f").env("DATABASE_URL", "postgres://127.0.0.1:1/none");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut missing = vec!["no RabbitMQ at 127.0.0.1:1", "no Postgres at 127.0.0.1:1", "listening"];
    for line in lines {
        let line = line.expect("text");
        missing.retain(|expected| !line.contains(expected));
        if missing.is_empty() {
            break;
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
}
