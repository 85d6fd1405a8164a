//! Attempts at redelivered messages, noted in the store before they are made: so a message that brings
//! its consumer down leaves a count behind. Best effort: a store that notes nothing applies nothing.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shared::model::id::MessageId;
use shared::store::{Store, StoreError};

/// How many ended attempts are kept until they are forgotten together.
const ENDED_KEPT_MAX: usize = 64;

/// How long forgetting may take when a session ends.
const END_TIME_MAX: Duration = Duration::from_secs(1);

pub struct Attempts {
    store: Arc<dyn Store>,
    /// Noted by this process, and not over: it lives, so they are not noted again.
    noted: HashSet<MessageId>,
    /// Over, and still noted in the store: by this process, so it is no other's when it comes again.
    ended: HashSet<MessageId>,
}

impl Attempts {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, noted: HashSet::new(), ended: HashSet::new() }
    }

    /// Notes these, and returns those that another process has noted and not ended.
    pub async fn begin(&mut self, messages: Vec<MessageId>) -> HashSet<MessageId> {
        let messages: Vec<_> = messages.into_iter().filter(|id| !self.is_own(*id)).collect();
        if messages.is_empty() {
            return HashSet::new();
        }
        match self.note(&messages, false).await {
            Ok(noted) => messages.into_iter().filter(|id| !noted.contains_key(id)).collect(),
            Err(_) => HashSet::new(),
        }
    }

    /// Counts one more attempt at a message that is tried alone; 0 when that is not known.
    pub async fn again(&mut self, message: MessageId) -> u32 {
        if self.is_own(message) {
            return 0;
        }
        let noted = self.note(&[message], true).await.unwrap_or_default();
        noted.get(&message).copied().unwrap_or(0)
    }

    /// Messages failed alone, and will be tried again by this process, which may end of it. What names
    /// the server may be said of any message: that attempt is over.
    pub async fn hold_aside(&mut self, messages: Vec<MessageId>, error: &StoreError) {
        if matches!(error, StoreError::Failed(_)) {
            self.begin(messages).await;
        } else {
            self.end(messages).await;
        }
    }

    /// Noted by this process: the attempt goes on, uncounted.
    fn is_own(&mut self, message: MessageId) -> bool {
        if self.ended.remove(&message) {
            self.noted.insert(message);
        }
        self.noted.contains(&message)
    }

    async fn note(
        &mut self,
        messages: &[MessageId],
        again: bool,
    ) -> Result<HashMap<MessageId, u32>, StoreError> {
        let noted = self.store.begin_attempts(messages.into(), again).await;
        match &noted {
            Ok(noted) => self.noted.extend(noted.keys()),
            Err(error) => tracing::debug!(%error, "attempts are not noted"),
        }
        noted
    }

    /// These were applied, or failed while the process lived.
    pub async fn end(&mut self, messages: impl IntoIterator<Item = MessageId>) {
        let noted = &mut self.noted;
        self.ended.extend(messages.into_iter().filter(|message| noted.remove(message)));
        if self.ended.len() >= ENDED_KEPT_MAX || (self.noted.is_empty() && !self.ended.is_empty()) {
            self.forget().await;
        }
    }

    /// These go back to the queue, where another process may get them: it must not find them noted.
    pub async fn give_back(&mut self, messages: &[MessageId]) {
        self.end(messages.iter().copied()).await;
        if messages.iter().any(|message| self.ended.contains(message)) {
            self.forget().await;
        }
    }

    /// Nothing is in hand any more.
    pub async fn end_all(&mut self) {
        self.ended.extend(self.noted.drain());
        if !self.ended.is_empty() {
            // What stays costs its message an attempt alone.
            let _ = tokio::time::timeout(END_TIME_MAX, self.forget()).await;
        }
    }

    async fn forget(&mut self) {
        match self.store.end_attempts(self.ended.iter().copied().collect()).await {
            Ok(()) => self.ended.clear(),
            Err(error) => tracing::debug!(%error, "ended attempts stay noted"),
        }
    }
}
