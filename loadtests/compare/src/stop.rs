//! The request to end early. Everything that takes long checks it, so that an interrupted run
//! cleans up on the same path as a finished one.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Calls `condition` every `pause` until it gives a value; `None` when `patience` is over.
    pub fn poll<T>(
        &self,
        patience: Duration,
        pause: Duration,
        mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<Option<T>> {
        let deadline = Instant::now() + patience;
        loop {
            self.check()?;
            if let Some(value) = condition()? {
                return Ok(Some(value));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            #[expect(clippy::disallowed_methods, reason = "a blocking thread, on which no task runs")]
            std::thread::sleep(pause);
        }
    }
}
