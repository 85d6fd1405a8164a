//! Calls of the store behind its breaker.
use std::time::Instant;

use shared::runtime::breaker::Breaker;
use shared::store::StoreError;

/// Runs a read of the store behind its breaker.
pub async fn guarded<T>(
    breaker: &Breaker,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let Ok(permit) = breaker.permit(Instant::now()) else {
        return Err(StoreError::Unavailable("its breaker is open".into()));
    };
    let result = read.await;
    match &result {
        Err(error @ (StoreError::Unavailable(_) | StoreError::Failed(_))) => {
            tracing::debug!(%error, "read failed");
            permit.failure(Instant::now(), error);
        }
        // The store is there: one read that takes too long, or a burst of them, must not end all others.
        Err(StoreError::Busy(_)) => drop(permit),
        Ok(_) | Err(_) => permit.success(),
    }
    result
}

/// Runs an administrative write behind the breaker. Its failures do not open the breaker: the store may have
/// reasons against this one write, and reads notice by themselves when it is away.
pub async fn attempted<T>(
    breaker: &Breaker,
    change: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let Ok(permit) = breaker.permit(Instant::now()) else {
        return Err(StoreError::Unavailable("its breaker is open".into()));
    };
    let result = change.await;
    if result.is_ok() {
        permit.success();
    }
    result
}
