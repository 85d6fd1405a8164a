//! The path from the trace of a request to the outcome of its write, by the log of the consumer.
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use reqwest::Method;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::support::{Installation, json, on_both_pairs, problem, wait_for};

/// The JSON log of this process, with the lines of all its threads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture() -> &'static Self {
        static LOG: LazyLock<Log> = LazyLock::new(|| {
            let log = Log::default();
            let writer = log.clone();
            let filter = EnvFilter::new("info,consumer=debug");
            let lines = shared::program::logs::json_logs(filter, move || writer.clone());
            tracing::subscriber::set_global_default(lines).expect("no other test captures the log");
            log
        });
        &LOG
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }

    /// Waits for the line with this message that holds the trace.
    async fn line(&self, message: &str, trace: &str) -> Value {
        let read = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON");
        wait_for(&format!("{message:?} with the trace"), async || {
            let text = self.text();
            let mut lines = text.lines().filter(|line| line.contains(trace)).map(read);
            lines.find(|line| line["message"] == message)
        })
        .await
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes a trace id of its own for each call.
fn trace() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Sends an array of increments with the trace in this header.
async fn send(installation: &Installation, counter: &str, body: &str, traceparent: &str) -> Value {
    let request = installation.at(0, Method::POST, &format!("/v1/counters/{counter}/increments"));
    let request = request.header("content-type", "application/json").header("traceparent", traceparent);
    let response = request.body(body.to_owned()).send().await.expect("an answer");
    assert_eq!(response.status(), 202, "{traceparent}");
    json(response).await
}

on_both_pairs! {
    async fn the_log_leads_from_a_trace_to_what_became_of_its_items(installation) {
        let log = Log::capture();
        let (good, aside) = (trace(), trace());
        let parent = |trace: &str| format!("00-{trace}-00f067aa0ba902b7-01");
        send(&installation, "full", &format!(r#"[{{"by":{}}}]"#, i64::MAX), &parent(&good)).await;
        let line = log.line("message applied", &good).await;
        assert_eq!((&line["level"], &line["message.items"]), (&"DEBUG".into(), &1.into()));
        installation.wait_for_value(0, "full", i64::MAX).await;
        let sent = send(&installation, "full", r#"[{"by":-1},{"by":1},{"by":1}]"#, &parent(&aside)).await;
        let line = log.line("item set aside", &aside).await;
        assert_eq!((&line["level"], &line["trace.id"]), (&"WARN".into(), &aside.into()));
        assert_eq!((&line["item.kind"], &line["item.reason"]), (&"increment".into(), &"counter_overflow".into()));
        assert_eq!(line["item.id"], sent["ids"][2], "the id that its client knows");
    }

    async fn what_is_no_sampled_trace_changes_nothing_and_is_not_carried(installation) {
        let log = Log::capture();
        let (not_sampled, wrong) = (trace(), trace());
        for header in [
            format!("00-{not_sampled}-00f067aa0ba902b7-00"),
            format!("ff-{wrong}-00f067aa0ba902b7-01"),
            format!("00-{wrong}-00f067aa0ba902b7-01-more"),
        ] {
            send(&installation, "quiet", "[{}]", &header).await;
        }
        installation.wait_for_value(0, "quiet", 3).await;
        // It is logged after these, which were applied before it.
        let last = trace();
        send(&installation, "quiet", "[{}]", &format!("01-{last}-00f067aa0ba902b7-01-more")).await;
        log.line("message applied", &last).await;
        let text = log.text();
        assert!(!text.contains(&not_sampled) && !text.contains(&wrong));
        installation.wait_until_events_arrive().await;
        installation.increment(0, "plain", i64::MAX).await;
        installation.wait_for_value(0, "plain", i64::MAX).await;
        let receipt = problem(installation.increment_and_wait(0, "plain").await, 422).await;
        let id = receipt["receipt"]["id"].as_str().expect("an id").to_owned();
        let line = log.line("item set aside", &id).await;
        assert!(line.get("trace.id").is_none(), "{line}");
    }
}
