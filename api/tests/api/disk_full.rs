//! A full disk under the real program with its own files: writes are refused and no accepted write
//! is lost, reads go on, and the service recovers by itself.
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::{Client, Response};
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{API, Serving, command_of};
use crate::support::{json, problem, wait_for};

/// Number of refused writes while memory is watched, and its growth that is allowed meanwhile.
const REFUSED: usize = 500;
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// Shell line that becomes the program, in which writes beyond a limit fail instead of ending it.
const LIMITABLE: &str = r#"trap '' XFSZ; exec "$0""#;

/// Shell line that mounts a disk of `$1` MiB in a namespace that ends with the program, and becomes
/// the program.
const WITH_DISK: &str = r#"mount -t tmpfs -o "size=$1m" tmpfs "$2" && exec "$0""#;

/// The program and a client that writes to one counter, each increment under a key of its own.
struct Rig {
    directory: TempDir,
    serving: Serving,
    client: Client,
    sent: usize,
    /// Keys of writes that got no 202; their outcome is unknown.
    refused: Vec<usize>,
}

impl Rig {
    /// Starts the API: `arguments` of `program` make it become the API.
    fn start(directory: TempDir, program: &str, arguments: &[&str]) -> Self {
        let mut command = command_of(program, directory.path(), arguments);
        let data = format!("embedded:{}", directory.path().join("data").display());
        command.env("FOREBAY__QUEUE__URL", &data).env("FOREBAY__STORE__URL", &data);
        command.env("FOREBAY__AUTH__ADMIN_WITHOUT_KEYS", "true");
        let serving = Serving::of(command, directory.path());
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { directory, serving, client, sent: 0, refused: Vec::new() }
    }

    /// Starts the API with a disk of this many MiB, mounted at a folder of the directory.
    fn start_with_disk(directory: TempDir, mebibytes: &str, folder: &str) -> Self {
        let place = directory.path().join(folder).display().to_string();
        Self::start(directory, "unshare", &["-Urm", "sh", "-c", WITH_DISK, API, mebibytes, &place])
    }

    /// Path of a file in the directory, as the program sees it.
    fn inside(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.serving.child.id());
        let path = self.directory.path().join(path);
        Path::new(&root).join(path.strip_prefix("/").expect("an absolute path"))
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.serving.url)).send().await.expect("an answer")
    }

    /// Adds 1 under this key; returns whether it was accepted. All other answers must be those of a
    /// service that is there and has no space.
    async fn add(&self, key: usize) -> bool {
        let url = format!("{}/v1/counters/c/increments", self.serving.url);
        let request = self.client.post(url).header("idempotency-key", key.to_string());
        let response = request.send().await.expect("an answer");
        if response.status() == 202 {
            return true;
        }
        assert!(response.headers().contains_key("retry-after"), "{:?}", response.headers());
        problem(response, 503).await;
        false
    }

    async fn add_next(&mut self) -> bool {
        self.sent += 1;
        let is_accepted = self.add(self.sent).await;
        if !is_accepted {
            self.refused.push(self.sent);
        }
        is_accepted
    }

    async fn add_many(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.add_next().await);
        }
    }

    /// Status of the health, and its words for the service, the queue and the store.
    async fn health(&self) -> (u16, [String; 3]) {
        let response = self.get("/health").await;
        let (status, health) = (response.status().as_u16(), json(response).await);
        (status, ["status", "queue", "store"].map(|name| health[name].as_str().expect("a word").to_owned()))
    }

    async fn wait_for_health(&self, status: u16, words: [&str; 3]) {
        wait_for(&format!("{words:?}"), async || {
            (self.health().await == (status, words.map(str::to_owned))).then_some(())
        })
        .await;
    }

    async fn wait_for_count(&self, count: usize) -> Value {
        wait_for(&format!("{count} increments"), async || {
            let counter = json(self.get("/v1/counters/c").await).await;
            (counter["version"] == count).then_some(counter)
        })
        .await
    }

    async fn check_reads(&self) {
        assert_eq!(self.get("/v1/counters/c").await.status(), 200);
        // This read does not come from memory.
        let listed = json(self.get("/v1/counters").await).await;
        assert_eq!(listed["items"][0]["name"], "c");
    }

    /// Memory that the program uses.
    fn resident_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.serving.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it uses some");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Checks that every write is there once, whether it was accepted at its first attempt or at a later one.
    async fn check_all_applied_once(mut self) {
        for key in std::mem::take(&mut self.refused) {
            wait_for("a write is accepted", async || self.add(key).await.then_some(())).await;
        }
        self.add_many(5).await;
        assert_eq!(self.wait_for_count(self.sent).await["value"], self.sent);
        let aside = json(self.get("/v1/dead-letters").await).await;
        assert_eq!(aside["items"], serde_json::json!([]), "nothing was set aside");
        assert!(self.serving.stop(), "a clean end of the process that was there all the time");
    }
}

/// Goes from a service with space through one without to one with space again.
async fn lose_room_and_get_it_back(mut rig: Rig, begin: impl FnOnce(&Rig), end: impl FnOnce(&Rig)) {
    rig.add_many(20).await;
    rig.wait_for_count(20).await;
    begin(&rig);
    for attempt in 0.. {
        assert!(attempt < 10_000, "always accepted");
        if !rig.add_next().await {
            break;
        }
    }
    rig.wait_for_health(503, ["down", "unhealthy", "healthy"]).await;
    rig.check_reads().await;
    let before_kib = rig.resident_kib();
    for _ in 0..REFUSED {
        assert!(!rig.add_next().await, "there is no room");
    }
    let after_kib = rig.resident_kib();
    assert!(after_kib < before_kib + GROWTH_KIB_MAX, "{before_kib} KiB, then {after_kib} KiB");
    rig.check_reads().await;
    assert_eq!(rig.get("/readyz").await.status(), 200);
    end(&rig);
    rig.wait_for_health(200, ["ok", "healthy", "healthy"]).await;
    rig.check_all_applied_once().await;
}

fn limit_files(rig: &Rig, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(rig.serving.pid()), Resource::Fsize, limit).expect("a limit below the hard one");
}

#[tokio::test]
async fn files_that_take_no_more_lose_nothing_and_heal_by_themselves() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory, "sh", &["-c", LIMITABLE, API]);
    lose_room_and_get_it_back(rig, |rig| limit_files(rig, Some(1)), |rig| limit_files(rig, None)).await;
}

/// Checks that this machine lets us mount a disk in a namespace of its own; says so loudly if not.
fn may_mount() -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("unshare");
    command.args(["-Urm", "mount", "-t", "tmpfs", "tmpfs"]).arg(directory.path());
    let may = command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !may {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no full disk without a mount in a namespace of its own (unshare -Urm)"
        );
    }
    may
}

/// Writes a file until no byte is left.
fn fill(filler: &Path) {
    let mut file = File::create(filler).expect("the disk has room");
    for bytes in [1 << 20, 4_096, 1] {
        let block = vec![0; bytes];
        while file.write_all(&block).is_ok() {}
    }
    let full = fs::write(filler.with_extension("more"), "x").expect_err("no room");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_heals_by_itself() {
    if !may_mount() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("data")).expect("a directory");
    let rig = Rig::start_with_disk(directory, "96", "data");
    let filler = rig.inside("data/filler");
    lose_room_and_get_it_back(rig, |_| fill(&filler), |_| fs::remove_file(&filler).expect("is removed"))
        .await;
}

/// Starts the API with one of the two files on a small disk; the other has all the space of this machine.
fn start_with_small_disk_for(file: &str) -> Rig {
    let directory = tempfile::tempdir().expect("a directory");
    for folder in ["data", "small"] {
        fs::create_dir(directory.path().join(folder)).expect("a directory");
    }
    let link = directory.path().join("data").join(file);
    std::os::unix::fs::symlink(format!("../small/{file}"), link).expect("a link");
    Rig::start_with_disk(directory, "8", "small")
}

/// The queue gets no warning: the disk of its directory has space.
#[tokio::test]
async fn a_queue_that_runs_out_of_room_while_it_writes_loses_nothing_and_heals_by_itself() {
    if !may_mount() {
        return;
    }
    let rig = start_with_small_disk_for("queue.db");
    let filler = rig.inside("small/filler");
    lose_room_and_get_it_back(rig, |_| fill(&filler), |_| fs::remove_file(&filler).expect("is removed"))
        .await;
}

#[tokio::test]
async fn while_only_the_store_has_no_room_writes_wait_in_the_queue() {
    if !may_mount() {
        return;
    }
    let mut rig = start_with_small_disk_for("store.db");
    rig.add_many(20).await;
    rig.wait_for_count(20).await;
    let filler = rig.inside("small/filler");
    fill(&filler);
    rig.add_many(50).await;
    rig.wait_for_health(200, ["degraded", "healthy", "unhealthy"]).await;
    rig.add_many(200).await;
    rig.check_reads().await;
    assert_eq!(json(rig.get("/v1/counters/c").await).await["version"], 20, "nothing can be applied");
    fs::remove_file(&filler).expect("is removed");
    rig.wait_for_health(200, ["ok", "healthy", "healthy"]).await;
    rig.wait_for_count(270).await;
    rig.check_all_applied_once().await;
}
