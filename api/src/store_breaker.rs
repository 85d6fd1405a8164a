//! Calls of the store behind its breaker.
use std::time::Instant;

use shared::runtime::breaker::Breaker;
use shared::store::StoreError;

/// A read of the store behind its breaker.
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
        // It is there: one read that takes too long, or a burst of them, must not end all others.
        Err(StoreError::Busy(_)) => drop(permit),
        Ok(_) | Err(_) => permit.success(),
    }
    result
}

/// A change that a person asks of the store. What it has against that one says nothing of reads, which
/// find out by themselves when it is away.
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
