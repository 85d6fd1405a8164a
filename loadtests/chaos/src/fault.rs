//! The faults of programs, their links and their servers, how long each is held, and how soon the
//! service must be back after it. Pure: [`crate::inject`] carries them out.
use std::fmt;

use serde::Serialize;

/// The class of a fault, for choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Kill,
    Terminate,
    Freeze,
    Clock,
    Network,
    StoreCrash,
    BrokerCrash,
    MemoryAlarm,
    Poison,
    /// A message that cannot be applied although the store is well.
    Heavy,
    /// Documents whose check costs too much.
    SlowItem,
    /// Minutes without the broker; only on demand.
    BrokerOutage,
    StoreOutage,
    /// Minutes with a clock that is days off, so that all work that depends on a clock runs
    /// meanwhile; only on demand.
    Adrift,
}

impl Class {
    /// Classes that last for `--outage-minutes`, and come only where they are named.
    pub fn is_on_demand(self) -> bool {
        matches!(self, Self::BrokerOutage | Self::StoreOutage | Self::Adrift)
    }
}

/// A server that is away for minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    Broker,
    Store,
}

/// The owner of the clock that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    Member(usize),
    Store,
}

/// The link from a program to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    Broker,
    Store,
}

/// A fault of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkFault {
    Cut,
    /// A cut in the middle of a client's message, after this many more bytes.
    CutAfter(u64),
    HalfOpen,
    Delay,
    Mute,
    BlackHole,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Poison {
    /// Bytes that are no JSON.
    Undecodable,
    /// A version that this build does not know.
    UnknownVersion,
    /// An item that every API accepts and the store refuses, between two good ones.
    Refused,
}

/// The cause why a message cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Its statement takes longer than any limit.
    Slow,
    /// Its statement fails with a code without a known meaning.
    Failing,
    /// The server runs out of memory for it.
    Memory,
    /// The server ends its session.
    Session,
}

impl Weight {
    /// Messages with this cause are dead-lettered. One whose failure points to the server never is,
    /// however often it fails.
    pub fn is_given_up(self) -> bool {
        matches!(self, Self::Slow | Self::Failing)
    }
}

/// A fault. Programs are named by their index in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL and an immediate start.
    Kill {
        member: usize,
    },
    /// SIGTERM, a wait for the end, and a new start.
    Terminate {
        member: usize,
    },
    /// SIGSTOP and SIGCONT.
    Freeze {
        member: usize,
        ms: u64,
    },
    Clock {
        whose: Whose,
        seconds: i64,
        ms: u64,
    },
    Adrift {
        whose: Whose,
        days: i64,
        ms: u64,
    },
    Network {
        member: usize,
        link: Link,
        trouble: LinkFault,
        ms: u64,
    },
    /// `pg_ctl stop -m immediate`, and a start this much later.
    StoreCrash {
        ms: u64,
    },
    /// SIGKILL to the node that leads the queue, and a start this much later.
    BrokerCrash {
        ms: u64,
    },
    MemoryAlarm {
        ms: u64,
    },
    Poison {
        poison: Poison,
    },
    /// A heavy message. It lasts until it is dead-lettered, or this long where it is not.
    Heavy {
        weight: Weight,
        ms: u64,
    },
    SlowItem,
    /// A crash, with the service watched for as long as it lasts.
    Outage {
        server: Server,
        ms: u64,
    },
}

/// Time within which the service must be back after a fault has ended, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The aim; a longer time is reported.
    pub wanted_ms: u128,
    /// The limit above which the run fails. Generous: machines are shared, and programs may be debug builds.
    pub failed_ms: u128,
}

/// Limits after faults of programs and links.
pub const PROGRAM_BOUND: Bound = Bound { wanted_ms: 5_000, failed_ms: 30_000 };
/// Limits after a server is back.
pub const SERVER_BOUND: Bound = Bound { wanted_ms: 10_000, failed_ms: 60_000 };
/// Limits for writes beside a message that cannot be applied, on two consumers.
pub const BESIDE_BOUND: Bound = Bound { wanted_ms: 2_000, failed_ms: 20_000 };
/// The same on one writer, which such a message occupies for up to `store.write_timeout_ms`.
pub const BESIDE_ONE_WRITER_BOUND: Bound = Bound { wanted_ms: 35_000, failed_ms: 75_000 };

impl Fault {
    pub fn class(self) -> Class {
        match self {
            Self::Kill { .. } => Class::Kill,
            Self::Terminate { .. } => Class::Terminate,
            Self::Freeze { .. } => Class::Freeze,
            Self::Clock { .. } => Class::Clock,
            Self::Adrift { .. } => Class::Adrift,
            Self::Network { .. } => Class::Network,
            Self::StoreCrash { .. } => Class::StoreCrash,
            Self::BrokerCrash { .. } => Class::BrokerCrash,
            Self::MemoryAlarm { .. } => Class::MemoryAlarm,
            Self::Poison { .. } => Class::Poison,
            Self::Heavy { .. } => Class::Heavy,
            Self::SlowItem => Class::SlowItem,
            Self::Outage { server: Server::Broker, .. } => Class::BrokerOutage,
            Self::Outage { server: Server::Store, .. } => Class::StoreOutage,
        }
    }

    pub fn bound(self) -> Bound {
        match self.class() {
            Class::StoreCrash
            | Class::BrokerCrash
            | Class::MemoryAlarm
            | Class::BrokerOutage
            | Class::StoreOutage => SERVER_BOUND,
            _ => PROGRAM_BOUND,
        }
    }

    /// Index of the program that it strikes, if it is one.
    pub fn member(self) -> Option<usize> {
        match self {
            Self::Kill { member }
            | Self::Terminate { member }
            | Self::Freeze { member, .. }
            | Self::Clock { whose: Whose::Member(member), .. }
            | Self::Adrift { whose: Whose::Member(member), .. }
            | Self::Network { member, .. } => Some(member),
            _ => None,
        }
    }

    /// Time that it is held, in milliseconds.
    pub fn ms(self) -> u64 {
        match self {
            Self::Kill { .. } | Self::Terminate { .. } | Self::Poison { .. } | Self::SlowItem => 0,
            Self::Freeze { ms, .. }
            | Self::Clock { ms, .. }
            | Self::Adrift { ms, .. }
            | Self::Network { ms, .. }
            | Self::StoreCrash { ms }
            | Self::BrokerCrash { ms }
            | Self::MemoryAlarm { ms }
            | Self::Heavy { ms, .. }
            | Self::Outage { ms, .. } => ms,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { .. } => out.write_str("kill"),
            Self::Terminate { .. } => out.write_str("terminate"),
            Self::Freeze { .. } => out.write_str("freeze"),
            Self::Clock { whose, seconds, .. } => write!(out, "{}clock {seconds:+} s", whose.prefix()),
            Self::Adrift { whose, days, .. } => write!(out, "{}clock {days:+} days", whose.prefix()),
            Self::Network { link, trouble: LinkFault::CutAfter(bytes), .. } => {
                write!(out, "{} cut after {bytes} bytes", link.name())
            }
            Self::Network { link, trouble, .. } => write!(out, "{} {}", link.name(), trouble.name()),
            Self::StoreCrash { .. } => out.write_str("Postgres crash"),
            Self::BrokerCrash { .. } => out.write_str("broker crash"),
            Self::MemoryAlarm { .. } => out.write_str("memory alarm"),
            Self::Poison { poison: Poison::Undecodable } => out.write_str("poison, undecodable"),
            Self::Poison { poison: Poison::UnknownVersion } => out.write_str("poison, version"),
            Self::Poison { poison: Poison::Refused } => out.write_str("poison, refused"),
            Self::Heavy { weight: Weight::Slow, .. } => out.write_str("heavy, slow"),
            Self::Heavy { weight: Weight::Failing, .. } => out.write_str("heavy, failing"),
            Self::Heavy { weight: Weight::Memory, .. } => out.write_str("heavy, out of memory"),
            Self::Heavy { weight: Weight::Session, .. } => out.write_str("heavy, session ended"),
            Self::SlowItem => out.write_str("slow item"),
            Self::Outage { server, .. } => write!(out, "{server} away"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Broker => "broker",
            Self::Store => "Postgres",
        })
    }
}

impl Whose {
    fn prefix(self) -> &'static str {
        match self {
            Self::Member(_) => "",
            Self::Store => "Postgres' ",
        }
    }
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker link",
            Self::Store => "store link",
        }
    }
}

impl LinkFault {
    fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::CutAfter(_) => "cut after bytes",
            Self::HalfOpen => "half open",
            Self::Delay => "delay",
            Self::Mute => "mute",
            Self::BlackHole => "black hole",
            Self::Down => "down",
        }
    }
}
