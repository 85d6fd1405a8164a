//! Programs and profiles, on which defaults depend.
use std::fmt;
use std::str::FromStr;

/// Program that loads the settings: the defaults of the two differ in places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Api,
    Consumer,
}

/// A section of the file with built-in defaults of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// RabbitMQ and Postgres at their usual loopback addresses.
    Local,
    Dev,
    Preprod,
    Prod,
}

impl Profile {
    pub const ALL: [Self; 4] = [Self::Local, Self::Dev, Self::Preprod, Self::Prod];

    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Dev => "dev",
            Self::Preprod => "preprod",
            Self::Prod => "prod",
        }
    }

    /// True for profiles of installations that others depend on: nothing is guessed there.
    pub(super) fn is_deployed(self) -> bool {
        self != Self::Local
    }
}

impl FromStr for Profile {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or(())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "api",
            Self::Consumer => "consumer",
        })
    }
}
