//! Effects of a plan: all statements of a transaction but those for ledger and keys, in the order of
//! tables that [`apply`](super::apply) keeps.
use sqlx::PgConnection;

use super::counters::{add_merged, add_one_by_one};
use super::failure::PgFailure;
use super::known::KnownState;
use super::points::TypeIds;
use super::{documents, ledger, points, rollups};
use crate::model::outcome::Applied;
use crate::store::rules::plan::Plan;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// One addition per counter.
    Merged,
    /// Increment by increment.
    Exact,
}

/// Ids to be remembered once the transaction is committed.
#[derive(Default)]
pub struct NewlyKnown {
    types: TypeIds,
    rollups: Vec<rollups::RollupRowKey>,
}

impl NewlyKnown {
    pub fn absorb(&mut self, later: Self) {
        self.types.extend(later.types);
        self.rollups.extend(later.rollups);
    }

    pub fn remember(self, known: &KnownState) {
        known.types.remember(&self.types);
        known.rollups.remember(self.rollups);
    }
}

/// Writes all effects of a plan, without ledger and keys. Items that cannot be applied are added to the items
/// that are set aside.
pub async fn take_effect(
    connection: &mut PgConnection,
    known: &KnownState,
    plan: &Plan<'_>,
    path: Path,
    applied: &mut Applied,
) -> Result<NewlyKnown, PgFailure> {
    // Named one by one, so that a new kind of write is not forgotten here.
    let Plan { increments, documents: _, deletes: _, points, aside: _, keyed: _, own: _ } = plan;
    let written = documents::write(connection, known, plan).await?;
    applied.set_aside.extend(written.set_aside);
    applied.deleted = written.deleted;
    let mut newly_known = NewlyKnown::default();
    if !points.is_empty() {
        newly_known.types = points::types(connection, &known.types, points).await?;
        points::insert(connection, &newly_known.types, points).await?;
        newly_known.rollups = rollups::merge(connection, &known.rollups, &newly_known.types, points).await?;
        applied.types = newly_known.types.keys().cloned().collect();
        applied.types.sort_unstable();
    }
    let counted = match path {
        Path::Merged => add_merged(connection, increments).await?,
        Path::Exact => add_one_by_one(connection, increments).await?,
    };
    // Only now is it known which increments overflow. No transaction waits for these rows: one that writes
    // the same rows has waited for the ledger or for the keys.
    ledger::insert_dead_letters(connection, &counted.set_aside).await?;
    applied.set_aside.extend(counted.set_aside);
    applied.standings = counted.standings;
    applied.counters = counted.counters;
    Ok(newly_known)
}
