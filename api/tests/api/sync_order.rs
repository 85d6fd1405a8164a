//! 202 means durable: the system calls of one write, in their order. The log of the queue is synced
//! after the request was read and before a byte of the answer is sent.
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::Client;

use crate::cli::{API, Serving, command_of};
use crate::support::wait_for;

const REQUEST: &str = "POST /v1/counters/traced/increments";
const ANSWER: &str = "HTTP/1.1 202";

/// A call of the trace: its text, and the lines at which it began and returned.
#[derive(Debug)]
struct Call {
    text: String,
    began: usize,
    /// Line of its return; `None` when the trace ends within it.
    returned: Option<usize>,
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.text.starts_with(&format!("{name}(")))
    }
}

/// Joins calls that other threads interrupted in the trace: `1 read(3 <unfinished ...>`, later `1
/// <... read resumed>"x", 1) = 1`.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open = std::collections::HashMap::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, text)) = text.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(begin) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, calls.len());
            calls.push(Call { text: begin.into(), began: line, returned: None });
        } else if let Some((_, rest)) = text.split_once(" resumed>").filter(|_| text.starts_with("<... ")) {
            let Some(call) = open.remove(thread).and_then(|place: usize| calls.get_mut(place)) else {
                continue;
            };
            call.text.push_str(rest);
            call.returned = Some(line);
        } else {
            calls.push(Call { text: text.into(), began: line, returned: Some(line) });
        }
    }
    calls
}

/// Checks the order: the request was read, then the log of the queue was written, then synced, then
/// the answer was begun.
fn check_order(calls: &[Call]) -> Result<(), String> {
    let find = |what: &str, names: &[&str], part: &str| {
        let found = calls.iter().find(|call| call.is(names) && call.text.contains(part));
        found.ok_or_else(|| format!("not in the trace: {what}"))
    };
    let request = find("the request", &["read", "recvfrom", "recvmsg"], REQUEST)?;
    let answer = find("the answer", &["write", "writev", "sendto", "sendmsg"], ANSWER)?;
    let read = request.returned.ok_or("the request was never read")?;
    let is_within = |call: &&Call| call.began > read && call.returned.is_some_and(|line| line < answer.began);
    let of_log = |names: &[&str]| -> Vec<&Call> {
        calls.iter().filter(|call| call.is(names) && call.text.contains("queue.db-wal>")).collect()
    };
    let (writes, syncs) = (of_log(&["pwrite64", "write", "pwritev"]), of_log(&["fdatasync", "fsync"]));
    // The first write counts: a later one may belong to another transaction, that of the acknowledgement.
    let write = writes.into_iter().find(is_within).ok_or("nothing was written in between")?;
    let is_after = |sync: &&Call| write.returned.is_some_and(|written| written < sync.began);
    let is_done = |sync: &&Call| sync.text.trim_end().ends_with("= 0");
    let mut synced = syncs.into_iter().filter(is_within).filter(is_after).filter(is_done);
    synced.next().map(|_| ()).ok_or_else(|| "no sync of the log between its write and the answer".into())
}

/// Starts the program under strace, which writes the trace into a file.
fn traced(directory: &Path, trace: &Path) -> Serving {
    let calls = "trace=read,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,fdatasync,fsync";
    let path = trace.display().to_string();
    // Strace runs as a grandchild (-D), so that the program is the child here, and all is over when that is.
    let arguments = ["-D", "-f", "-y", "-s", "256", "-e", "signal=none", "-e", calls, "-o", &path, API];
    Serving::of(command_of("strace", directory, &arguments), directory)
}

/// Checks that strace is here and may trace; says so loudly if not.
fn may_trace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-D", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    let may = command.status().is_ok_and(|status| status.success());
    if !may {
        let _ = writeln!(std::io::stderr(), "SKIPPED: strace is not here or may not trace (Debian: strace)");
    }
    may
}

#[tokio::test]
async fn an_answer_is_sent_after_the_log_is_synced() {
    if !may_trace() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("trace");
    let serving = traced(directory.path(), &path);
    let client = Client::builder().no_proxy().build().expect("a client");
    let url = format!("{}/v1/counters/traced/increments", serving.url);
    assert_eq!(client.post(url).send().await.expect("an answer").status(), 202);
    assert!(serving.stop());
    let trace = wait_for("the end of the trace", async || {
        let trace = std::fs::read_to_string(&path).expect("is read");
        trace.contains("+++ exited with 0 +++").then_some(trace)
    })
    .await;
    let calls = calls(&trace);
    check_order(&calls).unwrap_or_else(|why| panic!("{why}\n{calls:#?}"));
}

const READ: &str = r#"1 recvfrom(9<socket:[7]>, "POST /v1/counters/traced/increments HTTP"..., 9, 0) = 9"#;
const WRITTEN: &str = r#"2 pwrite64(8</data/queue.db-wal>, "x"..., 9, 0) = 9"#;
const SYNCED: &str = "2 fdatasync(8</data/queue.db-wal>) = 0";
const SENT: &str = r#"1 sendto(9<socket:[7]>, "HTTP/1.1 202 Accepted"..., 9, 0) = 9"#;

fn order_of(lines: &[&str]) -> Result<(), String> {
    check_order(&calls(&lines.join("\n")))
}

#[test]
fn the_right_order_is_known_from_all_others() {
    assert_eq!(order_of(&[READ, WRITTEN, SYNCED, SENT]), Ok(()));
    for wrong in [
        [READ, WRITTEN, SENT, SYNCED],
        [SYNCED, READ, WRITTEN, SENT],
        [READ, SYNCED, WRITTEN, SENT],
        [WRITTEN, SYNCED, READ, SENT],
    ] {
        order_of(&wrong).expect_err("another order");
    }
    let other_file = SYNCED.replace("queue", "store");
    let failed = SYNCED.replace("= 0", "= -1 EIO (Input/output error)");
    for sync in [other_file, failed] {
        order_of(&[READ, WRITTEN, &sync, SENT]).expect_err("no sync of the log");
    }
    // The sync began before the answer, and did not finish.
    let (begun, finished) = (SYNCED.replace(") = 0", " <unfinished ...>"), "2 <... fdatasync resumed>) = 0");
    assert_eq!(order_of(&[READ, WRITTEN, &begun, finished, SENT]), Ok(()));
    order_of(&[READ, WRITTEN, &begun, SENT, finished]).expect_err("answered while it was synced");
}
