//! Applies whole messages that an older consumer set aside and that this build can read. Housekeeping
//! calls it, one page a round; nothing waits for it.
//!
//! Single items are left alone. The receipts of a message's writes say `accepted`; the receipt of an item
//! says `failed`, and its client may have sent it again, so an operator decides.
use std::collections::HashSet;
use std::sync::Arc;

use shared::event::{Event, Events};
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, MESSAGE_KIND, Redrive, RedriveOutcome,
};
use shared::model::outcome::Reason;
use shared::program::backend::Backend;
use shared::store::{DeadLetters, StoreError};
use uuid::Uuid;

use crate::metrics::metrics;

/// Reasons for which a newer build may read what an older one could not.
const REASONS: [Reason; 2] = [Reason::UnknownVersion, Reason::UnknownKind];

/// Maximum of messages in one page.
const PAGE_LIMIT: u32 = 100;

/// Maximum of message ids that are remembered as tried.
const TRIED_MAX: usize = 10_000;

pub struct Rescue {
    store: Arc<dyn DeadLetters>,
    events: Arc<dyn Events>,
    /// Index into [`REASONS`] of the present search.
    reason: usize,
    /// Last message of the previous page.
    after: Option<Uuid>,
    /// Messages that this process tried and that are still there: they need an operator.
    tried: HashSet<Uuid>,
}

impl Rescue {
    pub fn new(backend: &Backend) -> Self {
        let (store, events) = (backend.store.clone(), backend.events.clone());
        Self { store, events, reason: 0, after: None, tried: HashSet::new() }
    }

    /// Processes the next page.
    pub async fn step(&mut self) -> Result<(), StoreError> {
        let letters = self.next_page().await?;
        if letters.is_empty() {
            return Ok(());
        }
        // On a blocking thread, because bodies are large.
        let readable = tokio::task::spawn_blocking(move || {
            letters.into_iter().filter(DeadLetter::is_readable_message).map(|letter| letter.id).collect()
        });
        let readable: Vec<Uuid> = readable.await.map_err(|stopped| {
            StoreError::Unavailable(format!("reading set-aside messages failed: {stopped}").into())
        })?;
        self.redrive(readable.into_iter().filter(|id| !self.tried.contains(id)).collect()).await
    }

    /// Reads the next page; empty when no reason has one, or none follows the previous page.
    async fn next_page(&mut self) -> Result<Vec<DeadLetter>, StoreError> {
        for _ in REASONS {
            let reason = Some(REASONS[self.reason].name().to_owned());
            let filter = DeadLetterFilter { kind: Some(MESSAGE_KIND.into()), reason, id: None };
            let page = DeadLetterPage { filter, discarded: false, after: self.after, limit: PAGE_LIMIT };
            let letters = self.store.dead_letters(page).await?;
            self.after = letters.last().map(|letter| letter.id);
            if !letters.is_empty() {
                return Ok(letters);
            }
            self.reason = (self.reason + 1) % REASONS.len();
        }
        Ok(Vec::new())
    }

    async fn redrive(&mut self, ids: Vec<Uuid>) -> Result<(), StoreError> {
        let (mut applied, mut outcome) = (0, Ok(()));
        for id in &ids {
            if self.tried.len() >= TRIED_MAX {
                self.tried.clear();
            }
            let filter = DeadLetterFilter { id: Some(*id), ..DeadLetterFilter::default() };
            let asked = Redrive { filter, after: None, limit: 1, dry_run: false, force: false };
            let done = self.store.redrive(asked).await;
            match done {
                Ok(done) => {
                    let outcomes = done.items.iter().map(|item| &item.outcome);
                    applied += outcomes.filter(|outcome| **outcome == RedriveOutcome::Applied).count();
                }
                // The message may be the cause, so the others go on.
                Err(error @ StoreError::Failed(_)) => outcome = Err(error),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            self.tried.insert(*id);
        }
        if applied > 0 {
            metrics().dead_messages.with_label_values(&["applied"]).inc_by(applied as u64);
            tracing::info!(messages = applied, "messages that an older version set aside were applied");
            // The gap in the numbers makes replicas reload.
            self.events.publish(Event::something_changed(rand::random()));
        }
        outcome
    }
}
