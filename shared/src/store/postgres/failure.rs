//! What can go wrong in an operation, and what it means for the next attempt.
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// Decided already what the caller is told.
    #[error(transparent)]
    Told(#[from] StoreError),
    /// Merged sums cannot say what is applied: take the exact path.
    #[error("a counter would leave its range")]
    Overflow,
    #[error("no answer within {0} ms")]
    TimedOut(u128),
}

impl Failure {
    /// The same transaction may succeed at once: serialization failure, deadlock, lock time-out.
    pub fn is_conflict(&self) -> bool {
        matches!(self.sqlstate().as_deref(), Some("40001" | "40P01" | "55P03"))
    }

    /// "no partition of relation found for row": one was dropped, or never made.
    pub fn is_missing_partition(&self) -> bool {
        self.sqlstate().as_deref() == Some("23514")
    }

    /// An undefined table or column: the schema is not the one that was verified.
    pub fn is_schema_skew(&self) -> bool {
        matches!(self.sqlstate().as_deref(), Some("42P01" | "42703"))
    }

    /// "numeric value out of range".
    pub fn is_out_of_range(&self) -> bool {
        self.sqlstate().as_deref() == Some("22003")
    }

    fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Sql(error) => Some(error.as_database_error()?.code()?.into_owned()),
            Self::Told(_) | Self::Overflow | Self::TimedOut(_) => None,
        }
    }
}

impl From<Failure> for StoreError {
    /// Everything that was not decided before may pass by itself. No URL and no value of a
    /// parameter is in these texts.
    fn from(failure: Failure) -> Self {
        let text = match failure {
            Failure::Told(told) => return told,
            Failure::Sql(sqlx::Error::Database(error)) => match error.code() {
                Some(code) => format!("{} ({code})", error.message()),
                None => error.message().to_owned(),
            },
            Failure::Sql(sqlx::Error::PoolTimedOut) => "no connection within the time limit".to_owned(),
            Failure::Sql(sqlx::Error::PoolClosed) => "closed".to_owned(),
            other => other.to_string(),
        };
        Self::Unavailable(text.into())
    }
}
