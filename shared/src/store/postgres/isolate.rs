//! Finds the items of a batch that the server refuses even when they are alone.
//!
//! The parts of the batch are tried inside its own transaction, each behind a savepoint. A part that the
//! server takes stays; another is rolled back and halved, in the order of the items, until single items are
//! left. Those are set aside. One item costs a number of savepoints that grows with the logarithm of the
//! batch; a batch of one item costs one.
//!
//! The search is bounded, and it gives up where many items are refused alike: that speaks of the server and
//! not of the items, and then no item is set aside.
use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use super::effects::{NewlyKnown, Path, take_effect};
use super::failure::PgFailure;
use super::known::KnownState;
use super::ledger;
use crate::model::outcome::{Applied, Reason, SetAside};
use crate::store::rules::plan::{ItemRef, Plan, set_aside};

/// Maximum of parts of a batch that are tried.
const PROBES_MAX: usize = 1_000;

/// Time limit of the search.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(15);

/// Time limit of a statement for a part of a batch, where slow items are searched for. One of 4 096 items
/// costs thirteen times as much.
const PART_TIME_MAX: Duration = Duration::from_millis(500);

/// Items with the same code that are set aside even in a small batch: in a batch of one the only item is all
/// of it.
const REFUSED_FEW: usize = 4;

/// Divisor for the part of a batch, beyond those, that may be refused with the same code: one in ten.
const REFUSED_SHARE: usize = 10;

/// Items that a search sets aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Refused ones, unless they are a large share.
    Refused,
    /// All refused ones: the others are not asked for, or were applied.
    AllRefused,
    /// All refused ones, and those with statements that fail otherwise or take too long.
    Failing,
}

impl Search {
    /// Returns the limit of a statement, within a transaction that has `limit`.
    pub fn part_limit(self, limit: Duration) -> Duration {
        if self == Self::Failing { PART_TIME_MAX.min(limit / 60) } else { limit }
    }
}

/// The server's refusal of an item that was alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub code: String,
    pub message: String,
}

impl Refusal {
    /// Sets the item aside, in ASCII: the server may have refused the text as such, and takes it no better
    /// here.
    fn set_aside(&self, place: ItemRef<'_>) -> SetAside {
        let mut aside = set_aside(place.message, place.index, self.reason, &self.detail());
        spell_in_ascii(&mut aside);
        aside
    }

    pub fn detail(&self) -> String {
        in_ascii(&format!("{} ({})", self.message, self.code))
    }
}

/// Spells an item in ASCII, for a server that may refuse other characters.
pub fn spell_in_ascii(aside: &mut SetAside) {
    aside.json = escape(&aside.json);
    aside.detail = in_ascii(&aside.detail);
}

fn in_ascii(text: &str) -> String {
    text.chars().map(|character| if character.is_ascii() { character } else { '?' }).collect()
}

/// Spells the same JSON in ASCII; other characters stand in strings only.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("text takes all that is written");
            }
        }
    }
    escaped
}

/// A plan that the server may not take as a whole.
pub struct PlanToIsolate<'p, 'm> {
    pub plan: &'p Plan<'m>,
    /// Items of the plan, in the order in which they are tried.
    pub places: Vec<ItemRef<'m>>,
    pub search: Search,
    /// Time limit of the whole transaction.
    pub limit: Duration,
}

impl PlanToIsolate<'_, '_> {
    /// Applies the plan without the items that the server refuses; those are set aside.
    pub async fn take_effect(
        &self,
        connection: &mut PgConnection,
        known: &KnownState,
        applied: &mut Applied,
    ) -> Result<NewlyKnown, PgFailure> {
        let Self { plan, places, search, limit } = self;
        let (begin, time_max) = (Instant::now(), SEARCH_TIME_MAX.min(*limit / 2));
        let (mut newly_known, mut probes) = (NewlyKnown::default(), 0);
        let mut aside: Vec<(Refusal, SetAside)> = Vec::new();
        // The next part is the last of these.
        let mut parts: Vec<&[ItemRef<'_>]> = vec![places];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            probes += 1;
            if probes > PROBES_MAX || begin.elapsed() > time_max {
                return Err(give_up("it refuses a batch, and the search for the reason took too long"));
            }
            match (try_part(connection, known, &plan.part(part), *search).await?, part) {
                (Ok((part_applied, part_known)), _) => {
                    applied.absorb(part_applied);
                    newly_known.absorb(part_known);
                }
                (Err(refusal), [place]) => {
                    if *search == Search::Refused {
                        check_share(&aside, &refusal, places.len())?;
                    }
                    aside.push((refusal.clone(), refusal.set_aside(*place)));
                }
                (Err(_), part) => {
                    let (one, other) = part.split_at(part.len() / 2);
                    parts.extend([other, one]);
                }
            }
        }
        if !aside.is_empty() {
            let codes: HashSet<&str> = aside.iter().map(|(refusal, _)| &*refusal.code).collect();
            tracing::warn!(items = aside.len(), ?codes, probes, "store refused items of a batch");
        }
        let aside: Vec<SetAside> = aside.into_iter().map(|(_, aside)| aside).collect();
        ledger::insert_dead_letters(connection, &aside).await?;
        applied.set_aside.extend(aside);
        Ok(newly_known)
    }
}

/// Tries a part: returns its effects, or the reason why the server refuses it.
async fn try_part(
    connection: &mut PgConnection,
    known: &KnownState,
    part: &Plan<'_>,
    search: Search,
) -> Result<Result<(Applied, NewlyKnown), Refusal>, PgFailure> {
    let mut savepoint = connection.begin().await?;
    let mut applied = Applied::default();
    // Increments that overflow are known at once.
    let outcome = take_effect(&mut savepoint, known, part, Path::Exact, &mut applied).await;
    match outcome.map_err(PgFailure::of_batch) {
        Ok(newly_known) => {
            savepoint.commit().await?;
            Ok(Ok((applied, newly_known)))
        }
        Err(PgFailure::Refused { code, message }) => {
            savepoint.rollback().await?;
            Ok(Err(Refusal { reason: Reason::RefusedByStore, code, message }))
        }
        Err(failure) => match failure.about_item().filter(|_| search == Search::Failing) {
            Some((code, message)) => {
                savepoint.rollback().await?;
                Ok(Err(Refusal { reason: Reason::NotApplied, code, message }))
            }
            None => Err(failure),
        },
    }
}

/// Checks that one more item may be set aside with the same code.
fn check_share(refused: &[(Refusal, SetAside)], refusal: &Refusal, items: usize) -> Result<(), PgFailure> {
    let alike = refused.iter().filter(|(other, _)| other.code == refusal.code).count();
    if alike < REFUSED_FEW.max(items / REFUSED_SHARE) {
        return Ok(());
    }
    let detail = refusal.detail();
    Err(give_up(&format!("it refuses more than {alike} of {items} items alike: {detail}")))
}

pub fn give_up(why: &str) -> PgFailure {
    PgFailure::GaveUp(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{IdIssuer, Kind};

    fn refusal(code: &str) -> Refusal {
        Refusal { reason: Reason::RefusedByStore, code: code.into(), message: "zu lang für c".into() }
    }

    #[test]
    fn few_are_refused_whatever_the_batch_and_a_large_share_never() {
        let aside = SetAside {
            item: IdIssuer::new(1, 1).next(5).item(Kind::Point, 0),
            fingerprint: None,
            reason: Reason::RefusedByStore,
            detail: String::new(),
            json: String::new(),
            accepted_at_ms: 5,
        };
        for (items, allowed) in [(1, REFUSED_FEW), (5, REFUSED_FEW), (1_000, 100)] {
            let mut refused = Vec::new();
            for _ in 0..allowed {
                check_share(&refused, &refusal("22001"), items).expect("not yet too many");
                refused.push((refusal("22001"), aside.clone()));
            }
            check_share(&refused, &refusal("22001"), items).expect_err("a large share");
            check_share(&refused, &refusal("54000"), items).expect("another code");
        }
    }

    #[test]
    fn what_is_set_aside_is_the_same_json_in_ascii() {
        let json = r#"{"a":"ä\n𝄞","\"é":1}"#;
        let escaped = escape(json);
        assert!(escaped.is_ascii());
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&escaped), read(json));
        assert_eq!(refusal("22001").detail(), "zu lang f?r c (22001)");
    }
}
