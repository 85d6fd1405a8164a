//! Request to stop a program: one trigger, many listeners, passed in to each task that is started. Signals
//! and the limit of a stop are in [`crate::runtime::signals`].
use futures_util::future::{BoxFuture, select_all};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Listening side. All clones get the same request.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Requesting side. Dropping it requests the stop, too: no task is left running without an owner.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Resolves once a stop was requested, also before this call. Safe to cancel.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which requests the stop as well.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Runs `work`, which must be safe to cancel; `None` when a stop is requested before its end, or was
    /// before this call.
    pub async fn unless_requested<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.requested() => None,
            done = work => Some(done),
        }
    }
}

/// Resolves once the first of these signals does; `signals` must not be empty.
pub async fn first_of(signals: Vec<Shutdown>) {
    select_all(signals.into_iter().map(|mut signal| Box::pin(async move { signal.requested().await }))).await;
}

/// Spawns a task that must not end by itself. The listener resolves at its end, however it ends.
pub fn watched<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> (JoinHandle<T>, Shutdown) {
    let (alive, over) = channel();
    // Boxed, so that the machinery around it is compiled once.
    let task: BoxFuture<'static, T> = Box::pin(task);
    let handle = tokio::spawn(async move {
        let _alive = alive;
        task.await
    });
    (handle, over)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_stop_ends_work_and_lets_no_other_begin() {
        let (trigger, mut shutdown) = channel();
        assert_eq!(shutdown.unless_requested(ready(1)).await, Some(1));
        let stopped = async { trigger.request() };
        let (ended, ()) = tokio::join!(shutdown.unless_requested(pending::<()>()), stopped);
        assert_eq!(ended, None);
        assert_eq!(shutdown.unless_requested(ready(1)).await, None);
    }

    #[tokio::test]
    async fn the_first_of_several_signals_is_enough() {
        let ((_open, waiting), (trigger, requested)) = (channel(), channel());
        trigger.request();
        first_of(vec![waiting, requested]).await;
    }

    #[tokio::test]
    async fn a_watched_task_is_heard_to_end_also_by_a_panic() {
        let (ended, mut over) = watched(async {});
        over.requested().await;
        ended.await.expect("it ended well");
        let (panicked, mut over) = watched(async { panic!("on purpose") });
        over.requested().await;
        assert!(panicked.await.expect_err("it panicked").is_panic());
        let (running, over) = watched(pending::<()>());
        tokio::task::yield_now().await;
        assert!(!over.is_requested());
        running.abort();
    }
}
