//! Attempts at redelivered messages. Each is noted in the store before it is made, so that a message that
//! brings its consumer down leaves a count behind. Best effort: a store that notes nothing applies
//! nothing.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shared::model::id::MessageId;
use shared::store::{Apply, StoreError};

/// Ended attempts that are kept until they are forgotten together.
const ENDED_KEPT_MAX: usize = 64;

/// Longest time for forgetting at the end of a session.
const END_TIME_MAX: Duration = Duration::from_secs(1);

pub struct Attempts {
    store: Arc<dyn Apply>,
    /// Attempts that this process noted and that are not over. The process lives, so they are not noted
    /// again.
    noted: HashSet<MessageId>,
    /// Attempts that are over and still noted in the store by this process. When such a message comes
    /// again, no other process has noted it.
    ended: HashSet<MessageId>,
}

impl Attempts {
    pub fn new(store: Arc<dyn Apply>) -> Self {
        Self { store, noted: HashSet::new(), ended: HashSet::new() }
    }

    /// Notes these messages, and returns those that another process has noted and not ended.
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

    /// Counts one more attempt at a message that is tried alone; 0 when the count is not known.
    pub async fn again(&mut self, message: MessageId) -> u32 {
        if self.is_own(message) {
            return 0;
        }
        let noted = self.note(&[message], true).await.unwrap_or_default();
        noted.get(&message).copied().unwrap_or(0)
    }

    /// Keeps the notes of messages that failed alone: this process tries them again, and may end by one
    /// of them. An error that names the server may come with any message, so it ends the attempt.
    pub async fn hold_aside(&mut self, messages: Vec<MessageId>, error: &StoreError) {
        if matches!(error, StoreError::Failed(_)) {
            self.begin(messages).await;
        } else {
            self.end(messages).await;
        }
    }

    /// Tests whether this process noted the message: then the attempt goes on, uncounted.
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

    /// Ends attempts at messages that were applied, or failed while the process lived.
    pub async fn end(&mut self, messages: impl IntoIterator<Item = MessageId>) {
        let noted = &mut self.noted;
        self.ended.extend(messages.into_iter().filter(|message| noted.remove(message)));
        if self.ended.len() >= ENDED_KEPT_MAX || (self.noted.is_empty() && !self.ended.is_empty()) {
            self.forget().await;
        }
    }

    /// Removes the notes of messages that go back to the queue: another process may get them, and must
    /// not find them noted.
    pub async fn give_back(&mut self, messages: &[MessageId]) {
        self.end(messages.iter().copied()).await;
        if messages.iter().any(|message| self.ended.contains(message)) {
            self.forget().await;
        }
    }

    /// Ends all attempts; nothing is in hand any more.
    pub async fn end_all(&mut self) {
        self.ended.extend(self.noted.drain());
        if !self.ended.is_empty() {
            // A note that stays costs its message one attempt alone.
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
