//! Checks of documents that no API process checked by the definition that is stored now.
//!
//! A transaction only finds out which documents those are. It is rolled back, the documents are checked here,
//! on a thread that no other work waits for and within a budget of CPU time, and the transaction is tried
//! again with the verdicts. So no check holds locks or blocks the event loops. A verdict belongs to the
//! version of a definition and to a text: after a change of the definition there is none, and the documents
//! are checked anew. For both stores.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::config;
use crate::model::collection::{Budget, Checker, Violation};
use crate::model::outcome::Reason;

/// Maximum of verdicts that are remembered; beyond, all older ones are forgotten.
const VERDICTS_MAX: usize = 10_000;

/// Budgets of one document that the documents of a batch may take together. Afterwards the documents of a
/// collection that has taken one of them get no more than the rest.
const BUDGETS_PER_BATCH: u32 = 3;

/// Divisor of a document's budget that gives its rest: a fiftieth is enough, ordinary checks take
/// microseconds.
const REST: u32 = 50;

/// Time after which a check that was ended is made again: it says something of its batch only.
const OVERRUN_KEPT_FOR: Duration = Duration::from_mins(1);

/// A document that needs a verdict.
#[derive(Debug)]
pub struct Unchecked {
    pub collection: String,
    pub checker: Arc<Checker>,
    pub data: String,
}

/// Result of a check: the reason why a document does not belong into its collection.
pub type Verdict = Result<(), (Reason, String)>;

type VerdictKey = [u8; 32];

/// Verdicts on documents of batches that are being applied.
#[derive(Debug)]
pub struct Checks {
    document_max: Duration,
    verdicts: Mutex<HashMap<VerdictKey, (Verdict, Instant)>>,
}

impl Checks {
    pub fn new(config: &config::Collections) -> Arc<Self> {
        let document_max = Duration::from_millis(config.check_ms_max);
        Arc::new(Self { document_max, verdicts: Mutex::default() })
    }

    /// Returns the remembered result of a check by this version.
    pub fn verdict(&self, collection: &str, version: i64, data: &str) -> Option<Verdict> {
        let verdicts = self.lock();
        let (verdict, at) = verdicts.get(&key(collection, version, data))?;
        let is_overrun = matches!(verdict, Err((Reason::CheckOverrun, _)));
        (!is_overrun || at.elapsed() < OVERRUN_KEPT_FOR).then(|| verdict.clone())
    }

    /// Checks documents, and remembers the verdicts at least until the next call.
    pub async fn check(self: &Arc<Self>, documents: Vec<Unchecked>) {
        let checks = Arc::clone(self);
        let checked = tokio::task::spawn_blocking(move || checks.check_all(&documents)).await;
        if let Err(error) = checked {
            // The transaction will ask again.
            tracing::error!(%error, "documents could not be checked");
        }
    }

    fn check_all(&self, documents: &[Unchecked]) {
        let batch_max = self.document_max * BUDGETS_PER_BATCH;
        let (mut all, mut by_collection) = (Duration::ZERO, HashMap::<&str, Duration>::new());
        self.make_room(documents.len());
        for Unchecked { collection, checker, data } in documents {
            // Another transaction with this document, or one that its caller gave up, has found it meanwhile.
            if self.verdict(collection, checker.version, data).is_some() {
                continue;
            }
            let taken = by_collection.entry(collection).or_default();
            let is_late = all >= batch_max && *taken >= self.document_max;
            let budget_max = if is_late { self.document_max / REST } else { self.document_max };
            let budget = Budget::new(budget_max);
            let checked = checker.check(data, &budget);
            let used = budget_max.saturating_sub(budget.left());
            (all, *taken) = (all + used, *taken + used);
            let verdict = checked.map_err(|violation| match reason_of(&violation) {
                Reason::CheckOverrun if is_late => (
                    Reason::CheckOverrun,
                    format!("{violation}; others of its collection had taken most of it before"),
                ),
                reason => (reason, violation.to_string()),
            });
            // At once: a caller that gave up and asks again goes on from here.
            self.lock().insert(key(collection, checker.version, data), (verdict, Instant::now()));
        }
    }

    fn make_room(&self, documents: usize) {
        let mut verdicts = self.lock();
        if verdicts.len() + documents > VERDICTS_MAX {
            verdicts.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VerdictKey, (Verdict, Instant)>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reason_of(violation: &Violation) -> Reason {
    if violation.overrun.is_some() { Reason::CheckOverrun } else { Reason::SchemaViolation }
}

/// Returns the digest of its arguments. The name is followed by a byte that it cannot have.
fn key(collection: &str, version: i64, data: &str) -> VerdictKey {
    let digest = Sha256::new().chain_update(version.to_be_bytes());
    digest.chain_update(collection).chain_update([0]).chain_update(data).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::collection::Collection;

    #[test]
    fn what_was_found_before_is_not_checked_again() {
        let checks = Checks::new(&config::Collections::default());
        let checker = Arc::new(Checker::new(&Collection::default()).expect("a definition"));
        let unchecked = |data: &str| Unchecked {
            collection: "c".into(),
            checker: Arc::clone(&checker),
            data: data.into(),
        };
        let known: Verdict = Err((Reason::SchemaViolation, "found by another".into()));
        checks.lock().insert(key("c", checker.version, "{}"), (known.clone(), Instant::now()));
        checks.check_all(&[unchecked("{}"), unchecked(r#"{"a":1}"#)]);
        assert_eq!(checks.verdict("c", checker.version, "{}"), Some(known));
        assert_eq!(checks.verdict("c", checker.version, r#"{"a":1}"#), Some(Ok(())));
    }
}
