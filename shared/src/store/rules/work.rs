//! Statements of one operation without the type of their result, for both stores: what a session does around
//! them is compiled once and not for each operation.
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// Statements to run on a connection `C`.
pub type Work<C, E> = Box<dyn for<'c> FnOnce(&'c mut C) -> BoxFuture<'c, Result<(), E>> + Send>;

/// Result of [`Work`], which is there once the work has succeeded.
pub struct WorkResult<T>(oneshot::Receiver<T>);

impl<T> WorkResult<T> {
    pub fn take(mut self) -> T {
        self.0.try_recv().expect("work that has succeeded left its result")
    }
}

/// Separates statements from their result.
pub fn separate<C, T, E, F>(statements: F) -> (Work<C, E>, WorkResult<T>)
where
    C: Send + 'static,
    T: Send + 'static,
    E: 'static,
    F: for<'c> FnOnce(&'c mut C) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let work: Work<C, E> = Box::new(move |connection| {
        let running = statements(connection);
        Box::pin(async move {
            // An error means that the caller has gone.
            let _ = sender.send(running.await?);
            Ok(())
        })
    });
    (work, WorkResult(receiver))
}
