//! The seeded plan: the order of the faults and how long each lasts. Pure: the same seed makes the
//! same plan; [`crate::inject`] carries it out.
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::Pair;
use crate::fault::{Class, Fault, Link, LinkFault, Poison, Server, Weight, Whose};

const PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=500;
const FREEZE_MS: std::ops::RangeInclusive<u64> = 200..=3_000;
const LINK_MS: std::ops::RangeInclusive<u64> = 500..=4_000;
const OUTAGE_MS: std::ops::RangeInclusive<u64> = 500..=5_000;
/// Duration longer than two heartbeats, so that both sides give a silent connection up.
const LONG_MS: u64 = 25_000;
const OUTAGE_LONG_MS: u64 = 60_000;
const CLOCK_SECONDS: [i64; 6] = [-3_600, -120, -20, 20, 120, 3_600];
const ADRIFT_DAYS: [i64; 4] = [-40, -3, 3, 40];

/// Duration of a heavy message that is not dead-lettered.
const HEAVY_MS: u64 = 10_000;
const WEIGHTS: [Weight; 4] = [Weight::Slow, Weight::Failing, Weight::Memory, Weight::Session];
const POISON: [Poison; 3] = [Poison::Undecodable, Poison::UnknownVersion, Poison::Refused];

/// One step: writes are accepted for a while, then the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub pause_ms: u64,
    pub fault: Fault,
    /// Index of a program that is killed and started again while the fault lasts.
    pub killed_meanwhile: Option<usize>,
}

/// An endless iterator of steps.
#[derive(Debug)]
pub struct Plan {
    random: StdRng,
    members: usize,
    /// Owners of the clocks that can be put off.
    clocks: Vec<Whose>,
    /// Programs that are still to be killed before any is killed again.
    next_killed: Vec<usize>,
    next_adrift: Vec<usize>,
    next_weight: Vec<usize>,
    /// Causes that a heavy message may have.
    heavy: &'static [Weight],
    classes: Vec<Class>,
    outage_ms: u64,
}

impl Plan {
    /// Makes a plan of the classes that the pair can suffer, only the `wanted` ones if any are named.
    pub fn new(pair: Pair, seed: u64, wanted: &[Class], has_clock: bool) -> Self {
        let is_wanted =
            |class: &Class| wanted.contains(class) || (wanted.is_empty() && !class.is_on_demand());
        let can = |class: &Class| has_clock || ![Class::Clock, Class::Adrift].contains(class);
        let classes = weights(pair).iter().flat_map(|(class, weight)| std::iter::repeat_n(*class, *weight));
        let classes = classes.filter(is_wanted).filter(can).collect();
        let (random, members) = (StdRng::seed_from_u64(seed), pair.members());
        let store = (pair == Pair::Cluster).then_some(Whose::Store);
        // SQLite has neither sessions nor the memory of a server.
        let heavy = if pair == Pair::Cluster { &WEIGHTS[..] } else { &WEIGHTS[..2] };
        let clocks = (0..members).map(Whose::Member).chain(store).collect();
        Self {
            random,
            members,
            clocks,
            next_killed: Vec::new(),
            next_adrift: Vec::new(),
            next_weight: Vec::new(),
            heavy,
            classes,
            outage_ms: OUTAGE_LONG_MS,
        }
    }

    /// Sets how long a server is away in the classes that are about this.
    pub fn with_outages(mut self, ms: u64) -> Self {
        self.outage_ms = ms;
        self
    }

    /// The plan has no fault to choose from, so it makes no steps.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Makes a plan of about a minute with each class of fault at least once, every program killed
    /// and asked to stop, and both servers crashed once, in an order that the seed decides.
    pub fn short(mut self) -> Vec<Step> {
        let (mut steps, members) = (Vec::new(), self.members);
        let kills = if members == 1 { 12 } else { members + 2 };
        let terminates = if members == 1 { 3 } else { members };
        let has = |plan: &Self, class| plan.classes.contains(&class);
        if has(&self, Class::Kill) {
            steps.extend((0..kills).map(|number| Fault::Kill { member: number % members }));
        }
        if has(&self, Class::Terminate) {
            steps.extend((0..terminates).map(|number| Fault::Terminate { member: number % members }));
        }
        let once = [Class::StoreCrash, Class::BrokerCrash, Class::MemoryAlarm];
        let several = [(Class::Freeze, 2), (Class::Clock, 2)];
        for (class, count) in once.map(|class| (class, 1)).into_iter().chain(several) {
            if has(&self, class) {
                steps.extend((0..count).map(|_| self.draw(class)));
            }
        }
        if has(&self, Class::Poison) {
            steps.extend(POISON.map(|poison| Fault::Poison { poison }));
        }
        if has(&self, Class::Heavy) {
            // The last one takes least time.
            let weight = *self.heavy.last().expect("there are some");
            steps.push(Fault::Heavy { weight, ms: HEAVY_MS });
        }
        if has(&self, Class::SlowItem) {
            steps.push(Fault::SlowItem);
        }
        if has(&self, Class::Network) {
            let troubles = [
                LinkFault::Cut,
                LinkFault::CutAfter(700),
                LinkFault::HalfOpen,
                LinkFault::Mute,
                LinkFault::Down,
            ];
            for trouble in troubles {
                let (member, link) = (self.random.random_range(0..members), self.link());
                steps.push(Fault::Network { member, link, trouble, ms: 1_000 });
            }
        }
        steps.shuffle(&mut self.random);
        let step = |fault| Step { pause_ms: 200, fault, killed_meanwhile: None };
        steps.into_iter().map(step).collect()
    }

    fn draw(&mut self, class: Class) -> Fault {
        let member = self.random.random_range(0..self.members);
        match class {
            Class::Kill => {
                Fault::Kill { member: next(&mut self.next_killed, self.members, &mut self.random) }
            }
            Class::Terminate => Fault::Terminate { member },
            Class::Freeze => Fault::Freeze { member, ms: self.random.random_range(FREEZE_MS) },
            Class::Clock => {
                let seconds = CLOCK_SECONDS[self.random.random_range(0..CLOCK_SECONDS.len())];
                let whose = self.clocks[self.random.random_range(0..self.clocks.len())];
                Fault::Clock { whose, seconds, ms: self.random.random_range(1_500..=5_000) }
            }
            Class::Adrift => {
                let whose = self.clocks[next(&mut self.next_adrift, self.clocks.len(), &mut self.random)];
                let days = ADRIFT_DAYS[self.random.random_range(0..ADRIFT_DAYS.len())];
                Fault::Adrift { whose, days, ms: self.outage_ms }
            }
            Class::Network => {
                let (link, trouble) = (self.link(), self.trouble());
                let is_long = self.random.random_bool(0.1);
                let ms = self.random.random_range(LINK_MS);
                Fault::Network { member, link, trouble, ms: if is_long { LONG_MS } else { ms } }
            }
            Class::StoreCrash => Fault::StoreCrash { ms: self.random.random_range(OUTAGE_MS) },
            Class::BrokerCrash => Fault::BrokerCrash { ms: self.random.random_range(OUTAGE_MS) },
            Class::MemoryAlarm => Fault::MemoryAlarm { ms: self.random.random_range(OUTAGE_MS) },
            Class::Poison => Fault::Poison { poison: POISON[self.random.random_range(0..POISON.len())] },
            Class::Heavy => {
                let weight = self.heavy[next(&mut self.next_weight, self.heavy.len(), &mut self.random)];
                Fault::Heavy { weight, ms: HEAVY_MS }
            }
            Class::SlowItem => Fault::SlowItem,
            Class::BrokerOutage => Fault::Outage { server: Server::Broker, ms: self.outage_ms },
            Class::StoreOutage => Fault::Outage { server: Server::Store, ms: self.outage_ms },
        }
    }

    fn link(&mut self) -> Link {
        if self.random.random_bool(0.5) { Link::Broker } else { Link::Store }
    }

    fn trouble(&mut self) -> LinkFault {
        match self.random.random_range(0..7) {
            0 => LinkFault::Cut,
            1 => LinkFault::CutAfter(self.random.random_range(1..20_000)),
            2 => LinkFault::HalfOpen,
            3 => LinkFault::Delay,
            4 => LinkFault::Mute,
            5 => LinkFault::BlackHole,
            _ => LinkFault::Down,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.is_empty() {
            return None;
        }
        let pause_ms = self.random.random_range(PAUSE_MS);
        let class = self.classes[self.random.random_range(0..self.classes.len())];
        let fault = self.draw(class);
        let other = self.random.random_range(0..self.members);
        let is_double = self.random.random_bool(0.25);
        // A program that stops cannot be killed and come back meanwhile; one that is killed already
        // need not.
        let may = fault.ms() > 0 || fault.member() != Some(other);
        let may = may && !fault.class().is_on_demand();
        let killed_meanwhile = (is_double && may && self.classes.contains(&Class::Kill)).then_some(other);
        Some(Step { pause_ms, fault, killed_meanwhile })
    }
}

/// Draws each of `count` indexes once, then again in a new order, so that a run of many faults
/// strikes all alike.
fn next(left: &mut Vec<usize>, count: usize, random: &mut StdRng) -> usize {
    if left.is_empty() {
        left.extend(0..count);
        left.shuffle(random);
    }
    left.pop().unwrap_or_default()
}

/// Frequency of each class, relative to the others.
fn weights(pair: Pair) -> &'static [(Class, usize)] {
    match pair {
        Pair::Embedded => &[
            (Class::Kill, 6),
            (Class::Terminate, 2),
            (Class::Freeze, 1),
            (Class::Clock, 1),
            (Class::Heavy, 1),
            (Class::SlowItem, 1),
            (Class::Adrift, 1),
        ],
        Pair::Cluster => &[
            (Class::Kill, 12),
            (Class::Terminate, 5),
            (Class::Freeze, 4),
            (Class::Clock, 2),
            (Class::Network, 12),
            (Class::StoreCrash, 3),
            (Class::BrokerCrash, 2),
            (Class::MemoryAlarm, 1),
            (Class::Poison, 2),
            (Class::Heavy, 1),
            (Class::SlowItem, 1),
            (Class::BrokerOutage, 1),
            (Class::StoreOutage, 1),
            (Class::Adrift, 1),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pair: Pair, seed: u64) -> Plan {
        Plan::new(pair, seed, &[], true)
    }

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        let steps = |seed| plan(Pair::Cluster, seed).take(200).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        assert_eq!(plan(Pair::Cluster, 7).short(), plan(Pair::Cluster, 7).short());
    }

    #[test]
    fn a_short_plan_has_every_class_and_every_program() {
        for (pair, members) in [(Pair::Embedded, 1), (Pair::Cluster, 4)] {
            let steps = plan(pair, 3).short();
            for (class, _) in weights(pair) {
                if class.is_on_demand() {
                    continue;
                }
                assert!(steps.iter().any(|step| step.fault.class() == *class), "{pair:?} without {class:?}");
            }
            for member in 0..members {
                for fault in [Fault::Kill { member }, Fault::Terminate { member }] {
                    assert!(steps.iter().any(|step| step.fault == fault), "{pair:?} without {fault:?}");
                }
            }
        }
    }

    #[test]
    fn only_what_is_wanted_and_can_be_done_is_planned() {
        let wanted = [Class::Freeze, Class::Clock];
        let mut steps = Plan::new(Pair::Cluster, 1, &wanted, false).take(50);
        assert!(steps.all(|step| step.fault.class() == Class::Freeze && step.killed_meanwhile.is_none()));
        assert!(Plan::new(Pair::Embedded, 1, &[Class::Network], true).is_empty());
    }

    #[test]
    fn nobody_is_killed_while_it_is_being_killed_or_stopped() {
        for step in plan(Pair::Cluster, 5).take(2_000).filter(|step| step.fault.ms() == 0) {
            let meanwhile = step.killed_meanwhile;
            assert!(meanwhile.is_none() || meanwhile != step.fault.member(), "{step:?}");
        }
    }

    #[test]
    fn many_kills_strike_every_program_equally_often() {
        let steps = Plan::new(Pair::Cluster, 9, &[Class::Kill], true).take(40);
        let mut kills = [0; 4];
        steps.filter_map(|step| step.fault.member()).for_each(|member| kills[member] += 1);
        assert_eq!(kills, [10; 4]);
    }

    #[test]
    fn a_server_is_away_for_long_only_where_it_is_asked_for() {
        let is_long =
            |step: &Step| matches!(step.fault, Fault::Outage { ms: 7, .. } | Fault::Adrift { ms: 7, .. });
        assert!(!plan(Pair::Cluster, 1).with_outages(7).take(500).any(|step| is_long(&step)));
        let wanted = [Class::BrokerOutage, Class::StoreOutage, Class::Adrift];
        let plan = Plan::new(Pair::Cluster, 1, &wanted, true).with_outages(7);
        assert!(plan.take(20).all(|step| is_long(&step)));
    }

    #[test]
    fn each_heavy_message_comes_once_before_one_comes_again() {
        for (pair, wanted) in [(Pair::Cluster, &WEIGHTS[..]), (Pair::Embedded, &WEIGHTS[..2])] {
            let steps = Plan::new(pair, 3, &[Class::Heavy], true).take(wanted.len());
            let weights = steps.map(|step| match step.fault {
                Fault::Heavy { weight, .. } => weight,
                other => panic!("{other:?}"),
            });
            let weights: Vec<_> = weights.collect();
            assert!(wanted.iter().all(|weight| weights.contains(weight)), "{weights:?}");
        }
    }

    #[test]
    fn every_clock_drifts_once_before_one_drifts_again() {
        let steps = Plan::new(Pair::Cluster, 3, &[Class::Adrift], true).take(5);
        let whose = steps.map(|step| match step.fault {
            Fault::Adrift { whose, .. } => whose,
            other => panic!("{other:?}"),
        });
        let whose: Vec<_> = whose.collect();
        for clock in (0..4).map(Whose::Member).chain([Whose::Store]) {
            assert!(whose.contains(&clock), "{clock:?} in {whose:?}");
        }
    }
}
