//! The form of a line of the log.
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shared::config;
use shared::program::logs::{init_logs, json_logs, text_logs};
use shared::runtime::breaker::{Breaker, BreakerLimits};
use tracing_subscriber::EnvFilter;

/// A buffer that keeps all written bytes.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl LogBuffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("is UTF-8")
    }
}

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log_something() {
    let name = "a\u{1b}[31m\nlevel=FAKE";
    tracing::info!(counter.name = %name, items = 3, "batch\r applied");
    tracing::debug!("too fine");
}

#[test]
fn a_line_of_json_has_its_fields_beside_the_message() {
    let page = LogBuffer::default();
    let writer = page.clone();
    let logs = json_logs(EnvFilter::new("info"), move || writer.clone());
    tracing::subscriber::with_default(logs, log_something);
    let text = page.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["message"], "batch\r applied");
    assert_eq!(line["counter.name"], "a\u{1b}[31m\nlevel=FAKE");
    assert_eq!(line["items"], 3);
    assert!(line["target"].is_string() && line["timestamp"].is_string(), "{text}");
    assert!(text.trim_end().chars().all(|character| !character.is_control()), "{text:?}");
}

#[test]
fn a_line_of_text_cannot_be_forged_by_what_it_quotes() {
    let page = LogBuffer::default();
    let writer = page.clone();
    let logs = text_logs(EnvFilter::new("info"), false, move || writer.clone());
    tracing::subscriber::with_default(logs, log_something);
    let text = page.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.trim_end().chars().all(|character| !character.is_control()), "{text:?}");
    assert!(text.contains(r"counter.name=a\u{1b}[31m\nlevel=FAKE items=3"), "{text}");
}

#[test]
fn an_outage_is_two_lines_with_its_reason_however_many_probes_fail() {
    let page = LogBuffer::default();
    let writer = page.clone();
    let logs = text_logs(EnvFilter::new("info"), false, move || writer.clone());
    tracing::subscriber::with_default(logs, || {
        let open_for = Duration::from_secs(1);
        let breaker = Breaker::new("told", BreakerLimits { failures_max: 2, open_for, probes_max: 1 });
        let begin = Instant::now();
        let tries = |number: u32| breaker.permit(begin + open_for * number).expect("a try");
        for number in [0, 0, 1, 2, 3] {
            tries(number).failure(begin + open_for * number, &"connection refused");
        }
        tries(4).success();
    });
    let text = page.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("breaker opened") && lines[0].contains("connection refused"), "{text}");
    assert!(lines[1].contains("breaker closed"), "{text}");
}

#[test]
fn logs_may_be_started_twice() {
    init_logs(&config::Telemetry::default());
    init_logs(&config::Telemetry { log_filter: "not=a=filter".into(), ..config::Telemetry::default() });
}
