//! Failures of an operation, and their meaning for the next attempt.
use crate::store::StoreError;
use crate::store::rules::checks::Unchecked;

#[derive(Debug, thiserror::Error)]
pub enum PgFailure {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// An error that the caller gets as it is.
    #[error(transparent)]
    Decided(#[from] StoreError),
    /// Merged sums cannot say what is applied: take the exact path.
    #[error("a counter would leave its range")]
    Overflow,
    /// A row that was there is gone: pruned between two statements.
    #[error("{0} vanished while it was read")]
    Vanished(&'static str),
    #[error("no answer within {0} ms")]
    TimedOut(u128),
    /// Other operations use all connections.
    #[error("no free connection within {0} ms")]
    NoFreeConnection(u128),
    /// The server refused a statement of a batch because of the content of an item.
    #[error("{message} ({code})")]
    Refused { code: String, message: String },
    /// The server refused too much of a batch for its items to be the reason: no item is set aside.
    #[error("{0}")]
    GaveUp(String),
    /// Documents have to be checked first, outside of any transaction.
    #[error("definitions change faster than documents can be checked")]
    Unchecked(Vec<Unchecked>),
    /// The message may have been applied before, and no person has decided.
    #[error("a message is older than what the ledger remembers")]
    TooOld,
    /// Failures of several steps, each of which is tried even when others fail.
    #[error("{text}")]
    Steps { text: String, is_schema_skew: bool },
}

/// Codes that speak of a value and not of the state of the server. Other errors may pass by themselves: a
/// missing partition is 23514, a read-only server 25006, another schema 42xxx, a full disk 53100. For those
/// no item is set aside.
const ABOUT_VALUES: [&str; 8] = [
    // Too long; out of range (of counters, see `counters`); not readable as its type; not in the server's
    // encoding; not in any.
    "22001", "22003", "22P02", "22P05", "22021",
    // Null where none may be; there already; for example too large for an index.
    "23502", "23505", "54000",
];

impl PgFailure {
    /// Returns true when the same transaction may succeed at once: serialization failure, deadlock, lock
    /// time-out, or a row that housekeeping deleted meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Vanished(_))
            || matches!(self.sqlstate().as_deref(), Some("40001" | "40P01" | "55P03"))
    }

    /// Returns true for "no partition of relation found for row": one was dropped, or never made.
    pub fn is_missing_partition(&self) -> bool {
        self.sqlstate().as_deref() == Some("23514")
    }

    /// Returns true for an undefined table or column: the schema is not the one that was verified.
    pub fn is_schema_skew(&self) -> bool {
        matches!(self, Self::Steps { is_schema_skew: true, .. })
            || matches!(self.sqlstate().as_deref(), Some("42P01" | "42703"))
    }

    /// Returns true when the partition being retired is in use: others used it, or did not release it in
    /// time.
    pub fn is_about_partition(&self) -> bool {
        matches!(self.sqlstate().as_deref(), Some("55000" | "42P01" | "57014"))
    }

    /// Returns true for "numeric value out of range".
    pub fn is_out_of_range(&self) -> bool {
        self.sqlstate().as_deref() == Some("22003")
    }

    /// Returns true when the server works and this operation was too much for it: no free connection, or a
    /// statement that was ended at its time limit.
    fn is_busy(&self) -> bool {
        matches!(self, Self::NoFreeConnection(_)) || self.sqlstate().as_deref() == Some("57014")
    }

    /// Returns true when a transaction that wrote may have failed because of its content: the server answers.
    /// It is no lost connection, no full, slow, stopping or read-only server, no conflict, no other schema.
    fn may_be_the_message(&self) -> bool {
        let of_the_server = ["08", "25", "40", "42", "53", "55", "57", "58"];
        match self {
            Self::TimedOut(_) | Self::GaveUp(_) | Self::Refused { .. } => true,
            Self::Sql(sqlx::Error::Database(_)) => self.sqlstate().is_some_and(|code| {
                code == "57014" || !(code == "23514" || of_the_server.contains(&&code[..2.min(code.len())]))
            }),
            _ => false,
        }
    }

    /// Returns code and text of a failed statement that wrote items, where the items may be the reason.
    pub fn about_item(&self) -> Option<(String, String)> {
        match self {
            Self::Sql(sqlx::Error::Database(error)) if self.may_be_the_message() => {
                Some((self.sqlstate()?, error.message().to_owned()))
            }
            _ => None,
        }
    }

    /// Turns the failure of a batch into [`StoreError::Failed`] when the batch itself may be the reason.
    pub fn of_transaction(self) -> Self {
        if !self.may_be_the_message() {
            return self;
        }
        match StoreError::from(self) {
            StoreError::Unavailable(why) | StoreError::Busy(why) => StoreError::Failed(why).into(),
            other => other.into(),
        }
    }

    /// Turns the failure of a statement that wrote a batch into `Refused` when the content of an item is the
    /// reason.
    pub fn of_batch(self) -> Self {
        let code = self.sqlstate().filter(|code| ABOUT_VALUES.contains(&&**code));
        match (self, code) {
            (Self::Sql(sqlx::Error::Database(error)), Some(code)) => {
                Self::Refused { code, message: error.message().to_owned() }
            }
            (failure, _) => failure,
        }
    }

    fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Sql(error) => Some(error.as_database_error()?.code()?.into_owned()),
            Self::Decided(_)
            | Self::Overflow
            | Self::Vanished(_)
            | Self::TimedOut(_)
            | Self::NoFreeConnection(_)
            | Self::Refused { .. }
            | Self::GaveUp(_)
            | Self::Unchecked(_)
            | Self::TooOld
            | Self::Steps { .. } => None,
        }
    }
}

impl From<PgFailure> for StoreError {
    /// Errors that were not decided before may pass by themselves. These texts hold no URL and no value of a
    /// parameter.
    fn from(failure: PgFailure) -> Self {
        let variant = match failure {
            _ if failure.is_busy() => Self::Busy,
            PgFailure::TimedOut(_) => Self::Failed,
            _ => Self::Unavailable,
        };
        let text = match failure {
            PgFailure::Decided(error) => return error,
            PgFailure::Sql(sqlx::Error::Database(error)) => match error.code() {
                Some(code) => format!("{} ({code}){}", error.message(), hint(&code, error.message())),
                None => error.message().to_owned(),
            },
            PgFailure::Sql(sqlx::Error::PoolTimedOut) => "no connection within the time limit".to_owned(),
            PgFailure::Sql(sqlx::Error::PoolClosed) => "closed".to_owned(),
            other => other.to_string(),
        };
        variant(text.into())
    }
}

/// Advice beside an error that only a pooler causes.
fn hint(code: &str, message: &str) -> &'static str {
    let is_of_pooler = match code {
        "08P01" => message.starts_with("unsupported startup parameter"),
        "42P05" | "26000" => message.starts_with("prepared statement"),
        _ => false,
    };
    if is_of_pooler { "; a pooler stands before the server: set store.pooler to true" } else { "" }
}

/// Returns the error for stored data that this build cannot read: it is left as it is, and writers pause.
pub fn corrupt(text: &str) -> PgFailure {
    StoreError::Unavailable(text.into()).into()
}
