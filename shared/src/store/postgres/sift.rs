//! Finds the items of a batch that the server refuses even when they are alone.
//!
//! A batch that is refused is halved until single items are left: its messages first, then their
//! items, because items stand in this order. Each part is tried in a transaction that is rolled
//! back. So one item that the server does not take costs a number of transactions that grows with
//! the logarithm of the batch, and all others are applied.
//!
//! The search is bounded, and it gives up where much is refused: that speaks of the server and not
//! of the items, and then nothing is set aside.
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::apply::{Choice, attempt};
use super::failure::Failure;
use super::known::Known;
use crate::id::ItemKey;
use crate::message::Message;
use crate::store::ledger::TooOld;
use crate::store::plan::set_aside;
use crate::store::{Reason, SetAside};

/// Parts of a batch that are tried at most.
const PROBES_MAX: usize = 1_000;

/// How long the search may take, well below `store.write_timeout_ms`.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(10);

/// Items with the same code that are set aside however small the batch is: in a batch of one the
/// only item is all of it.
const REFUSED_FEW: usize = 4;

/// Beyond those, the part of a batch that may be refused with the same code: one in ten.
const REFUSED_SHARE: usize = 10;

/// By the places of the items.
pub type Refused = HashMap<ItemKey, Refusal>;

/// What the server said of an item that was alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

impl Refusal {
    /// In ASCII: the server may have refused the text as such, and takes it no better here.
    pub fn set_aside(&self, message: &Message, index: usize) -> SetAside {
        let mut aside = set_aside(message, index, Reason::RefusedByStore, &self.detail());
        spell_in_ascii(&mut aside);
        aside
    }

    pub fn detail(&self) -> String {
        in_ascii(&format!("{} ({})", self.message, self.code))
    }
}

/// For a server that may refuse other characters.
pub fn spell_in_ascii(aside: &mut SetAside) {
    aside.json = escape(&aside.json);
    aside.detail = in_ascii(&aside.detail);
}

fn in_ascii(text: &str) -> String {
    text.chars().map(|character| if character.is_ascii() { character } else { '?' }).collect()
}

/// The same JSON, spelt without anything but ASCII, which stands in strings only.
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

pub async fn refused(
    connection: &mut PgConnection,
    known: &Known,
    batch: &[&Message],
    too_old: TooOld,
) -> Result<Refused, Failure> {
    let places: Vec<ItemKey> = batch
        .iter()
        .flat_map(|message| (0..message.entries.len()).map(|index| message.place(index)))
        .collect();
    let mut search = Search { connection, known, batch, too_old, begin: Instant::now(), probes: 0 };
    // The rows of the messages themselves are nobody's fault.
    if let Some(refusal) = search.probe(&[]).await? {
        return Err(give_up(&format!("it refuses any batch: {}", refusal.detail())));
    }
    let mut refused = Refused::new();
    // Each part here was refused.
    let mut suspects: Vec<&[ItemKey]> = vec![&places];
    while let Some(suspect) = suspects.pop() {
        let (one, other) = suspect.split_at(suspect.len() / 2);
        for part in [one, other].into_iter().filter(|part| !part.is_empty()) {
            match (search.probe(part).await?, part) {
                (None, _) => {}
                (Some(refusal), [place]) => {
                    check_share(&refused, &refusal, places.len())?;
                    refused.insert(*place, refusal);
                }
                (Some(_), part) => suspects.push(part),
            }
        }
    }
    let codes: HashSet<&str> = refused.values().map(|refusal| &*refusal.code).collect();
    tracing::warn!(items = refused.len(), ?codes, probes = search.probes, "store refused items of a batch");
    Ok(refused)
}

/// Before one more is set aside with the same code.
fn check_share(refused: &Refused, refusal: &Refusal, items: usize) -> Result<(), Failure> {
    let alike = refused.values().filter(|other| other.code == refusal.code).count();
    if alike < REFUSED_FEW.max(items / REFUSED_SHARE) {
        return Ok(());
    }
    let detail = refusal.detail();
    Err(give_up(&format!("it refuses more than {alike} of {items} items alike: {detail}")))
}

fn give_up(why: &str) -> Failure {
    Failure::GaveUp(why.to_owned())
}

struct Search<'s> {
    connection: &'s mut PgConnection,
    known: &'s Known,
    batch: &'s [&'s Message],
    too_old: TooOld,
    begin: Instant,
    probes: usize,
}

impl Search<'_> {
    /// What the server says of these items; `None` when it takes them.
    async fn probe(&mut self, places: &[ItemKey]) -> Result<Option<Refusal>, Failure> {
        self.probes += 1;
        if self.probes > PROBES_MAX || self.begin.elapsed() > SEARCH_TIME_MAX {
            return Err(give_up("it refuses a batch, and the search for the reason took too long"));
        }
        let places = places.iter().copied().collect();
        let choice = Choice::Only(&places);
        match attempt(self.connection, self.known, self.batch, choice, self.too_old).await {
            Ok(_) => Ok(None),
            Err(Failure::Refused { code, message }) => Ok(Some(Refusal { code, message })),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{IdIssuer, Kind};

    #[test]
    fn few_are_refused_whatever_the_batch_and_a_large_share_never() {
        let refusal = |code: &str| Refusal { code: code.into(), message: "no".into() };
        for (items, allowed) in [(1, REFUSED_FEW), (5, REFUSED_FEW), (1_000, 100)] {
            let message = IdIssuer::new(1, 1).next(5);
            let mut refused = Refused::new();
            for index in 0..allowed {
                check_share(&refused, &refusal("22001"), items).expect("not yet too many");
                refused.insert(message.item(Kind::Point, index), refusal("22001"));
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
        let refusal = Refusal { code: "22001".into(), message: "zu lang für c".into() };
        assert_eq!(refusal.detail(), "zu lang f?r c (22001)");
    }
}
