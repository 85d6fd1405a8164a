//! The client's record: every request that it meant to send, written down and synced before the
//! request leaves, and its answer. A file keeps it as evidence of findings.
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::kind::Kind;
use crate::refused::is_refused;

/// Sum of the numbers and count of the items that took effect at a target.
pub type SumAndCount = (i64, i64);

/// The outcome of a request, as far as its sender knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 202, with one id per item.
    Accepted(Vec<String>),
    /// 200 or 201 to a request that waited: it took effect.
    Applied(Applied),
    /// A refused connection: the server never saw the request.
    NotSent,
    /// No answer, a broken answer, or 503, which means *unknown*.
    Unknown,
}

/// The effect in the answer to a request that waited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Id of a document or a point.
    pub id: Option<String>,
    /// Value and version of a counter right after the increment.
    pub standing: Option<SumAndCount>,
}

impl Outcome {
    /// The request certainly takes effect.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Accepted(_) | Self::Applied(_))
    }

    /// Ids of the items, where they are known.
    pub fn ids(&self) -> &[String] {
        match self {
            Self::Accepted(ids) => ids,
            Self::Applied(applied) => applied.id.as_slice(),
            Self::NotSent | Self::Unknown => &[],
        }
    }

    /// A repetition under the same key may have this outcome: with the same ids, or without.
    pub fn agrees_with(&self, first: &Self) -> bool {
        let (ids, again) = (first.ids(), self.ids());
        ids.is_empty() || again.is_empty() || ids == again
    }
}

/// The content of one request: one unit of durability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    pub kind: Kind,
    /// Name of the counter, the collection or the type.
    pub target: String,
    /// Number in each item: for a counter the increment.
    pub items: Vec<i64>,
    /// The Idempotency-Key. A request with one is repeated until it is answered, and again after that.
    pub key: Option<String>,
    /// Id of the document that it deletes; then `items` is the number in it.
    pub deletes: Option<String>,
    /// Time of the points, in milliseconds since 1970.
    pub at_ms: i64,
    /// Seconds within which it asks to be answered with its effect.
    pub wait_seconds: Option<u64>,
    /// An array is sent as lines.
    pub lines: bool,
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
    pub fn new(kind: Kind, target: impl Into<String>, items: Vec<i64>) -> Self {
        let (key, deletes, wait_seconds) = (None, None, None);
        Self { kind, target: target.into(), items, key, deletes, at_ms: 0, wait_seconds, lines: false }
    }

    /// The store takes the item at this index.
    pub fn takes_effect(&self, index: usize) -> bool {
        !is_refused(self.kind, self.items[index])
    }

    /// Sum and count that it adds to its target when it takes effect.
    pub fn effect(&self) -> SumAndCount {
        let places = (0..self.items.len()).filter(|index| self.takes_effect(*index));
        let (sum, count) = places.fold((0, 0), |(sum, count), index| (sum + self.items[index], count + 1));
        if self.deletes.is_some() { (-sum, -count) } else { (sum, count) }
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

    /// Writes down a request that is about to be sent; returns its number once that is on the disk.
    /// Its outcome is unknown until [`settle`](Self::settle).
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

/// Writes with one sync for all lines that came meanwhile. After a failure the intents are never confirmed.
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
        let write = Write::new(Kind::Counter, "c", vec![1, -2]);
        let request = ledger.intend(write).await.expect("an intent");
        let text = std::fs::read_to_string(&path).expect("the file");
        let line = r#"{"request":0,"kind":"counter","target":"c","items":[1,-2],"key":null,"deletes":null,"at_ms":0,"wait_seconds":null,"lines":false,"outcome":"unknown"}"#;
        assert_eq!(text, format!("{line}\n"));
        ledger.settle(request, Outcome::Accepted(vec!["a".into(), "b".into()])).expect("settled");
        assert_eq!(ledger.entries()[0].outcome, Outcome::Accepted(vec!["a".into(), "b".into()]));
        std::fs::remove_file(&path).expect("removed");
    }
    #[test]
    fn a_deletion_takes_away_and_what_is_refused_adds_nothing() {
        let write = |items: &[i64]| Write::new(Kind::Document, "c", items.to_vec());
        assert_eq!(write(&[2, crate::refused::NUMBER, 3]).effect(), (5, 2));
        assert_eq!(Write { deletes: Some("id".into()), ..write(&[7]) }.effect(), (-7, -1));
    }
}
