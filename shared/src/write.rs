//! What a client may ask for: the items of a message, and what makes one valid.
//!
//! The API checks items with these functions before it accepts them, and the consumer checks them
//! again, because a message may come from another producer. Nothing here knows HTTP or SQL.
use serde::{Deserialize, Serialize};

use crate::id::Kind;

/// Longest name of a counter in bytes.
pub const NAME_LENGTH_MAX: usize = 128;

/// One item of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    Increment(Increment),
}

/// Adds `by` to a counter, which begins at 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Increment {
    pub counter: Box<str>,
    pub by: i64,
}

impl Item {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Increment(_) => Kind::Increment,
        }
    }

    /// What no consumer may apply, however it came into a message.
    pub fn check(&self) -> Result<(), InvalidName> {
        match self {
            Self::Increment(increment) => check_name(&increment.counter),
        }
    }
}

/// Names of counters: `[A-Za-z0-9._:-]{1,128}`, case-sensitive.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(InvalidName)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {NAME_LENGTH_MAX} characters out of A-Z a-z 0-9 . _ : -")]
pub struct InvalidName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "A-Z.a_z:0", &"x".repeat(128)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\0", "a\n", &"x".repeat(129)] {
            assert_eq!(check_name(bad), Err(InvalidName), "{bad}");
        }
    }
}
