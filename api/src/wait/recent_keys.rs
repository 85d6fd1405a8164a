//! Keys that were processed lately, to spare a client the way through the queue. The store decides.
use std::time::Duration;

use shared::event::Committed;
use shared::model::id::ItemKey;
use shared::model::idempotency::{Fingerprint, Keyed};
use shared::model::outcome::KeyedVerdict;

/// Number of keys that one process remembers.
const REMEMBERED_MAX: u64 = 100_000;

/// Time for which one process remembers a key: much shorter than the store.
const REMEMBERED_FOR: Duration = Duration::from_mins(10);

/// Keys that events reported as processed lately, with the payload that counts. A key that was only
/// accepted is not remembered: another payload may have been processed first, elsewhere.
#[derive(Clone)]
pub struct RecentKeys(moka::sync::Cache<ItemKey, Processed>);

#[derive(Clone, Copy)]
struct Processed {
    fingerprint: Fingerprint,
    /// The item took effect, which is final. A dead-lettered item may be redriven.
    is_applied: bool,
}

impl Default for RecentKeys {
    fn default() -> Self {
        let keys = moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED_FOR);
        Self(keys.build())
    }
}

impl RecentKeys {
    /// Returns true when another payload was processed under this key.
    pub fn conflicts(&self, keyed: Keyed) -> bool {
        self.0.get(&keyed.id).is_some_and(|known| known.fingerprint != keyed.fingerprint)
    }

    /// Returns true when this payload took effect under this key.
    pub fn is_applied(&self, keyed: Keyed) -> bool {
        self.0.get(&keyed.id).is_some_and(|known| known.fingerprint == keyed.fingerprint && known.is_applied)
    }

    /// Notes that this payload took effect, according to the store.
    pub fn note_applied(&self, keyed: Keyed) {
        self.0.insert(keyed.id, Processed { fingerprint: keyed.fingerprint, is_applied: true });
    }

    /// Notes the keys that an event reports as processed.
    pub fn on_event(&self, committed: &Committed) {
        for reported in &committed.keyed {
            let keyed = Keyed { id: reported.item, fingerprint: reported.fingerprint };
            match reported.verdict {
                KeyedVerdict::Applied => self.note_applied(keyed),
                KeyedVerdict::Repeated if self.is_applied(keyed) => {}
                KeyedVerdict::Repeated => self.note_processed(keyed),
                KeyedVerdict::Conflict => {}
            }
        }
        for failed in &committed.failed {
            if let Some(fingerprint) = failed.fingerprint {
                self.note_processed(Keyed { id: failed.item, fingerprint });
            }
        }
    }

    fn note_processed(&self, keyed: Keyed) {
        self.0.insert(keyed.id, Processed { fingerprint: keyed.fingerprint, is_applied: false });
    }
}

#[cfg(test)]
mod tests {
    use shared::event::ItemFailed;
    use shared::model::id::Kind;
    use shared::model::idempotency::{fingerprint_of, id_of};
    use shared::model::outcome::KeyedOutcome;

    use super::*;

    #[test]
    fn what_was_processed_counts_and_nothing_else() {
        let recent = RecentKeys::default();
        let keyed = |name: &str, by: i32| Keyed {
            id: id_of("anonymous", Kind::Increment, name, 0),
            fingerprint: fingerprint_of("POST", "a", &by.to_string()),
        };
        let reported = |name: &str, by, verdict| {
            let Keyed { id, fingerprint } = keyed(name, by);
            KeyedOutcome { item: id, fingerprint, verdict }
        };
        let keyed_told = vec![
            reported("loser", 1, KeyedVerdict::Conflict),
            reported("first", 1, KeyedVerdict::Applied),
            reported("again", 1, KeyedVerdict::Repeated),
        ];
        let Keyed { id: item, fingerprint } = keyed("failed", 1);
        let failed = ItemFailed {
            item,
            fingerprint: Some(fingerprint),
            reason: "counter_overflow".into(),
            detail: "".into(),
        };
        recent.on_event(&Committed { keyed: keyed_told, failed: vec![failed], ..Committed::default() });
        for name in ["first", "again", "failed"] {
            assert!(recent.conflicts(keyed(name, 2)) && !recent.conflicts(keyed(name, 1)), "{name}");
        }
        assert!(!recent.conflicts(keyed("loser", 1)) && !recent.conflicts(keyed("loser", 2)));
        for (name, by, is_applied) in [
            ("first", 1, true),
            ("first", 2, false),
            ("again", 1, false),
            ("failed", 1, false),
            ("loser", 1, false),
        ] {
            assert_eq!(recent.is_applied(keyed(name, by)), is_applied, "{name} {by}");
        }
        recent.on_event(&Committed {
            keyed: vec![reported("first", 1, KeyedVerdict::Repeated)],
            ..Committed::default()
        });
        assert!(recent.is_applied(keyed("first", 1)), "a repetition takes nothing back");
    }
}
