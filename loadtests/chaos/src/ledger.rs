//! What the client knows: every request it meant to send, written down and synced before the
//! request leaves, and what it was answered. Also in a file, as evidence when something is wrong.
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::kind::Kind;

/// What became of a request, as far as its sender knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 202, with one id per item.
    Accepted(Vec<String>),
    /// The server never saw it: the connection was refused.
    NotSent,
    /// No answer, a broken answer, or 503, which means *unknown*.
    Unknown,
}

impl Outcome {
    /// Whether a repetition may be answered so after `ids`: with the same ones, or not at all.
    pub fn agrees_with(&self, ids: &[String]) -> bool {
        !matches!(self, Self::Accepted(again) if again != ids)
    }
}

/// What one request asks for: one unit of durability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    pub kind: Kind,
    /// What it writes to: for a counter its name.
    pub target: String,
    /// The number that each item carries: for a counter what it is incremented by.
    pub items: Vec<i64>,
    /// The Idempotency-Key. Such a request is repeated until it is answered, and again after that.
    pub key: Option<String>,
}

/// One request. A keyed one stays one request however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub request: usize,
    #[serde(flatten)]
    pub write: Write,
    pub outcome: Outcome,
}

impl Write {
    pub fn sum(&self) -> i64 {
        self.items.iter().sum()
    }
}

pub struct Ledger {
    entries: Mutex<Vec<Entry>>,
    lines: Sender<Line>,
}

struct Line {
    text: String,
    durable: Option<oneshot::Sender<()>>,
}

impl Ledger {
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        #[expect(clippy::disallowed_methods, reason = "each client waits for its line")]
        let (lines, receiver) = channel();
        std::thread::spawn(move || write(file, &receiver));
        Ok(Self { entries: Mutex::default(), lines })
    }

    /// Writes down what is about to be sent; returns its number once that is on the disk.
    /// Until it is settled its outcome is unknown.
    pub async fn intend(&self, write: Write) -> anyhow::Result<usize> {
        let entry = {
            let mut entries = self.lock();
            let entry = Entry { request: entries.len(), write, outcome: Outcome::Unknown };
            entries.push(entry.clone());
            entry
        };
        let (durable, done) = oneshot::channel();
        self.append(&entry, Some(durable))?;
        done.await.context("the ledger cannot be written")?;
        Ok(entry.request)
    }

    pub fn settle(&self, request: usize, outcome: Outcome) -> anyhow::Result<()> {
        let entry = {
            let mut entries = self.lock();
            let entry = entries.get_mut(request).context("settled without an intent")?;
            entry.outcome = outcome;
            entry.clone()
        };
        self.append(&entry, None)
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn append(&self, entry: &Entry, durable: Option<oneshot::Sender<()>>) -> anyhow::Result<()> {
        let text = serde_json::to_string(entry)?;
        self.lines.send(Line { text, durable }).context("the ledger cannot be written")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sync for all lines that came meanwhile. After a failure the intents are never confirmed.
fn write(mut file: File, lines: &Receiver<Line>) {
    while let Ok(first) = lines.recv() {
        let batch: Vec<Line> = std::iter::once(first).chain(lines.try_iter()).collect();
        let text: String = batch.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect();
        if file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        for durable in batch.into_iter().filter_map(|line| line.durable) {
            // A writer that is gone needs no answer.
            let _ = durable.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_intent_is_in_the_file_before_it_may_be_sent() {
        let path = std::env::temp_dir().join(testkit::unique("ledger"));
        let ledger = Ledger::create(&path).expect("a ledger");
        let write = Write { kind: Kind::Counter, target: "c".into(), items: vec![1, -2], key: None };
        let request = ledger.intend(write).await.expect("an intent");
        let text = std::fs::read_to_string(&path).expect("the file");
        let line =
            r#"{"request":0,"kind":"counter","target":"c","items":[1,-2],"key":null,"outcome":"unknown"}"#;
        assert_eq!(text, format!("{line}\n"));
        ledger.settle(request, Outcome::Accepted(vec!["a".into(), "b".into()])).expect("settled");
        assert_eq!(ledger.entries()[0].outcome, Outcome::Accepted(vec!["a".into(), "b".into()]));
        std::fs::remove_file(&path).expect("removed");
    }
}
