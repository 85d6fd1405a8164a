//! A process of its own for a test that measures its process. The usual runner keeps all tests of a
//! binary in one process; there the test starts the binary again for itself.
use std::future::Future;
use std::process::Stdio;

use tokio::process::Command;

/// Environment variable that marks a process that a test has started for itself.
const STARTED: &str = "FOREBAY_TEST_ALONE";

/// Runs `test` in a process without other tests. Call it from the thread of the test, which has its name.
pub async fn alone<F: Future<Output = ()>>(test: F) {
    let thread = std::thread::current();
    // A runner that starts a process for each test may use its main thread.
    let name = thread.name().filter(|name| *name != "main");
    let Some(name) = name.filter(|_| std::env::var_os(STARTED).is_none()) else { return test.await };
    let binary = std::env::current_exe().expect("this binary");
    let run = Command::new(binary)
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .env(STARTED, "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = run.await.expect("starts");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// Value in bytes of a line of this process's status, such as `VmRSS`.
pub fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("is read");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("is reported");
    let kilobytes = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().expect("a number") * 1_024
}
