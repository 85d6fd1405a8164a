//! The keyword `pattern`: an engine whose states are small and whose every step is reported.
//!
//! A pattern is compiled to a machine over characters, as many states as its repetitions spell
//! out, and all states that a text can be in are followed at once: the work grows with the text
//! times the states that are reached, never exponentially. Classes of characters are shared. The
//! validator's own engine spells classes out in bytes, once for each repetition, and cannot be
//! stopped; it still matches the keys of `patternProperties`.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::json::Node;
use jsonschema::{Keyword, ValidationError};
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::counted::{CountedDocument, Counting};
use super::meter::charge;

/// States of all patterns of a schema together, each 24 bytes; a range of a class counts as one.
pub const PATTERN_STATES_MAX: usize = 250_000;

/// States whose marks are laid out, for each text, in the time of a step.
const STATES_PER_STEP: usize = 64;

/// Reasons for which a pattern is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("look-around is not supported: patterns run in linear time")]
    LookAround,
    #[error("back-references are not supported: patterns run in linear time")]
    BackReference,
    #[error("not a pattern: {0}")]
    Syntax(String),
    #[error("the patterns of a schema have {PATTERN_STATES_MAX} states at most together")]
    States,
}

/// Compiled pattern.
#[derive(Debug)]
pub struct Pattern {
    states: Vec<MachineState>,
    start: u32,
    /// True when it can match at the beginning of a text only.
    is_anchored: bool,
}

#[derive(Clone, Debug)]
enum MachineState {
    Match,
    Chars(Arc<[(char, char)]>, u32),
    Look(Look, u32),
    Either(u32, u32),
}

impl Pattern {
    /// Compiles a pattern of ECMA 262 as JSON Schema has it; takes its states from `states_left`.
    pub fn new(pattern: &str, states_left: &mut usize) -> Result<Self, BadPattern> {
        let hir = parse(pattern)?;
        let mut compiler =
            Compiler { states: vec![MachineState::Match], classes: HashMap::new(), left: *states_left };
        let start = compiler.add(&hir, 0)?;
        *states_left = compiler.left;
        let is_anchored = hir.properties().look_set_prefix().contains(Look::Start);
        Ok(Self { states: compiler.states, start, is_anchored })
    }

    /// True when the pattern matches anywhere in the text.
    pub fn is_match(&self, text: &str) -> bool {
        charge(self.states.len() / STATES_PER_STEP);
        let mut matching = Matching { pattern: self, marks: vec![0; self.states.len()], open: Vec::new() };
        let (mut here, mut next) = (vec![self.start], Vec::new());
        let (mut before, mut rest, mut round) = (None, text.chars(), 1);
        loop {
            let after = rest.next();
            if matching.follow(&mut here, round, (before, after)) {
                return true;
            }
            let Some(letter) = after else { return false };
            charge(here.len());
            next.extend(here.drain(..).filter_map(|state| self.step(state, letter)));
            if !self.is_anchored {
                next.push(self.start);
            } else if next.is_empty() {
                return false;
            }
            std::mem::swap(&mut here, &mut next);
            (before, round) = (after, round + 1);
        }
    }

    fn step(&self, state: u32, letter: char) -> Option<u32> {
        let MachineState::Chars(class, to) = &self.states[state as usize] else { return None };
        let behind = class.partition_point(|range| range.1 < letter);
        class.get(behind).filter(|range| range.0 <= letter).map(|_| *to)
    }
}

/// States that a text can be in.
struct Matching<'p> {
    pattern: &'p Pattern,
    /// Round in which each state was reached last.
    marks: Vec<u32>,
    /// States that were reached and not followed yet.
    open: Vec<u32>,
}

impl Matching<'_> {
    /// Follows the states that need no character, and leaves those that need one. True at a match.
    fn follow(&mut self, here: &mut Vec<u32>, round: u32, around: (Option<char>, Option<char>)) -> bool {
        std::mem::swap(here, &mut self.open);
        here.clear();
        let mut steps = 0;
        while let Some(state) = self.open.pop() {
            steps += 1;
            if std::mem::replace(&mut self.marks[state as usize], round) == round {
                continue;
            }
            match &self.pattern.states[state as usize] {
                MachineState::Match => return true,
                MachineState::Chars(..) => here.push(state),
                MachineState::Look(look, to) if holds(*look, around) => self.open.push(*to),
                MachineState::Look(..) => {}
                MachineState::Either(one, other) => self.open.extend([*one, *other]),
            }
        }
        charge(steps);
        false
    }
}

/// True when an assertion holds between two characters; `None` is an end of the text.
fn holds(look: Look, (before, after): (Option<char>, Option<char>)) -> bool {
    let ascii =
        |letter: Option<char>| letter.is_some_and(|letter| letter == '_' || letter.is_ascii_alphanumeric());
    let unicode = |letter: Option<char>| letter.is_some_and(regex_syntax::is_word_character);
    let (word_before, word_after) = match look {
        Look::WordAscii
        | Look::WordAsciiNegate
        | Look::WordStartAscii
        | Look::WordEndAscii
        | Look::WordStartHalfAscii
        | Look::WordEndHalfAscii => (ascii(before), ascii(after)),
        _ => (unicode(before), unicode(after)),
    };
    match look {
        Look::Start => before.is_none(),
        Look::End => after.is_none(),
        Look::StartLF => matches!(before, None | Some('\n')),
        Look::EndLF => matches!(after, None | Some('\n')),
        Look::StartCRLF => {
            matches!(before, None | Some('\n')) || (before == Some('\r') && after != Some('\n'))
        }
        Look::EndCRLF => matches!(after, None | Some('\r')) || (after == Some('\n') && before != Some('\r')),
        Look::WordAscii | Look::WordUnicode => word_before != word_after,
        Look::WordAsciiNegate | Look::WordUnicodeNegate => word_before == word_after,
        Look::WordStartAscii | Look::WordStartUnicode => !word_before && word_after,
        Look::WordEndAscii | Look::WordEndUnicode => word_before && !word_after,
        Look::WordStartHalfAscii | Look::WordStartHalfUnicode => !word_before,
        Look::WordEndHalfAscii | Look::WordEndHalfUnicode => !word_after,
    }
}

fn parse(pattern: &str) -> Result<Hir, BadPattern> {
    use regex_syntax::ast::ErrorKind;
    let syntax = |error: regex_syntax::Error| match &error {
        regex_syntax::Error::Parse(error) => match error.kind() {
            ErrorKind::UnsupportedLookAround => BadPattern::LookAround,
            ErrorKind::UnsupportedBackreference => BadPattern::BackReference,
            kind => BadPattern::Syntax(kind.to_string()),
        },
        regex_syntax::Error::Translate(error) => BadPattern::Syntax(error.kind().to_string()),
        other => BadPattern::Syntax(other.to_string()),
    };
    // A pattern that cannot be translated is read as it is, for its error.
    let translated = jsonschema_regex::to_rust_regex(pattern);
    let parsed = regex_syntax::parse(translated.as_deref().unwrap_or(pattern)).map_err(syntax)?;
    translated.map(|_| parsed).map_err(|()| BadPattern::Syntax("ECMA 262 has no such pattern".into()))
}

/// Builds states from the end to the beginning.
struct Compiler {
    states: Vec<MachineState>,
    classes: HashMap<*const Hir, Arc<[(char, char)]>>,
    left: usize,
}

impl Compiler {
    fn push(&mut self, state: MachineState) -> Result<u32, BadPattern> {
        self.spend(1)?;
        self.states.push(state);
        Ok(u32::try_from(self.states.len() - 1).expect("states are bounded"))
    }

    /// Takes from the states that are left, also for parts that add no state: their repetition would cost
    /// time all the same.
    fn spend(&mut self, states: usize) -> Result<(), BadPattern> {
        self.left = self.left.checked_sub(states).ok_or(BadPattern::States)?;
        Ok(())
    }

    /// Adds states that match `hir` and then go on to `to`; returns the first of them.
    fn add(&mut self, hir: &Hir, to: u32) -> Result<u32, BadPattern> {
        match hir.kind() {
            HirKind::Empty => self.spend(1).map(|()| to),
            HirKind::Literal(literal) => {
                let text = String::from_utf8_lossy(&literal.0);
                text.chars()
                    .rev()
                    .try_fold(to, |to, letter| self.push(MachineState::Chars([(letter, letter)].into(), to)))
            }
            HirKind::Class(class) => {
                let known = self.classes.get(&std::ptr::from_ref(hir)).cloned();
                let class = if let Some(known) = known {
                    known
                } else {
                    let new = ranges(class);
                    self.spend(new.len())?;
                    self.classes.insert(hir, Arc::clone(&new));
                    new
                };
                self.push(MachineState::Chars(class, to))
            }
            HirKind::Look(look) => self.push(MachineState::Look(*look, to)),
            HirKind::Capture(capture) => self.add(&capture.sub, to),
            HirKind::Concat(parts) => parts.iter().rev().try_fold(to, |to, part| self.add(part, to)),
            HirKind::Alternation(parts) => {
                let mut parts = parts.iter().rev();
                let mut start = parts.next().map_or(Ok(to), |last| self.add(last, to))?;
                for part in parts {
                    let one = self.add(part, to)?;
                    start = self.push(MachineState::Either(one, start))?;
                }
                Ok(start)
            }
            HirKind::Repetition(repetition) => {
                let (min, sub) = (repetition.min, &repetition.sub);
                let optional = match repetition.max {
                    None => {
                        let again = self.push(MachineState::Match)?;
                        let body = self.add(sub, again)?;
                        self.states[again as usize] = MachineState::Either(body, to);
                        again
                    }
                    Some(max) => (min..max).try_fold(to, |at, _| {
                        let body = self.add(sub, at)?;
                        self.push(MachineState::Either(body, to))
                    })?,
                };
                (0..min).try_fold(optional, |at, _| self.add(sub, at))
            }
        }
    }
}

fn ranges(class: &Class) -> Arc<[(char, char)]> {
    match class {
        Class::Unicode(class) => class.ranges().iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => {
            class.ranges().iter().map(|range| (range.start().into(), range.end().into())).collect()
        }
    }
}

/// Patterns of one schema: equal ones are compiled once.
#[derive(Debug)]
pub struct Patterns {
    compiled: Mutex<CompiledPatterns>,
}

#[derive(Debug)]
struct CompiledPatterns {
    known: HashMap<Box<str>, Arc<Pattern>>,
    states_left: usize,
}

impl Patterns {
    pub fn new() -> Self {
        let compiled = CompiledPatterns { known: HashMap::new(), states_left: PATTERN_STATES_MAX };
        Self { compiled: Mutex::new(compiled) }
    }

    pub fn keyword(&self, pattern: &str) -> Result<PatternKeyword, BadPattern> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = compiled.known.get(pattern) {
            return Ok(PatternKeyword(Arc::clone(known)));
        }
        let new = Arc::new(Pattern::new(pattern, &mut compiled.states_left)?);
        compiled.known.insert(pattern.into(), Arc::clone(&new));
        Ok(PatternKeyword(new))
    }

    /// Memory in bytes.
    pub fn weight(&self) -> usize {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        (PATTERN_STATES_MAX - compiled.states_left) * size_of::<MachineState>()
    }
}

/// Keyword `pattern` at one place of a schema.
pub struct PatternKeyword(Arc<Pattern>);

impl<'i> Keyword<'i, CountedDocument> for PatternKeyword {
    fn validate(&self, instance: Counting<'i>) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) {
            Ok(())
        } else {
            Err(ValidationError::custom("the value does not match the pattern"))
        }
    }

    fn is_valid(&self, instance: Counting<'i>) -> bool {
        instance.as_string().is_none_or(|text| self.0.is_match(&text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new(pattern: &str) -> Result<Pattern, BadPattern> {
        Pattern::new(pattern, &mut { PATTERN_STATES_MAX })
    }

    #[test]
    fn common_patterns_are_small_whatever_their_length() {
        for (pattern, good, bad) in [
            ("^.{1,1024}$", "x".repeat(1_024), "x".repeat(1_025)),
            (r"^[\p{L} .'-]{1,50}$", "Zoë O'Neill-Łukasz".into(), "a1".into()),
            (r"^\S{1,2000}$", "é".repeat(2_000), "a b".into()),
            (r"^\p{L}{1,500}$", "ж".repeat(500), "ж".repeat(501)),
        ] {
            let pattern = new(pattern).expect("a common pattern");
            assert!(pattern.states.len() < 5_000, "{}", pattern.states.len());
            assert!(pattern.is_match(&good) && !pattern.is_match(&bad));
        }
    }

    #[test]
    fn a_pattern_that_is_refused_says_why() {
        for (pattern, why) in [
            ("^(?!x)", BadPattern::LookAround),
            ("(?<=a)b", BadPattern::LookAround),
            (r"(a)\1", BadPattern::BackReference),
            ("((a{1000}){1000}){1000}", BadPattern::States),
        ] {
            assert_eq!(new(pattern).expect_err(pattern), why, "{pattern}");
        }
        assert!(matches!(new("a("), Err(BadPattern::Syntax(_))));
    }

    proptest! {
        /// Compares with the engine in common use, which is the measure.
        #[test]
        fn it_matches_as_the_engine_that_everybody_uses(
            pattern in r"(\^|\\b|\\B)?(([abé.]|[ab]|[^a]|\\w|\\s|\(a\|b?\)|\(a\*\)\*)([*+?]|\{0,3\}|\{2\}|\{1,\})?(\$|\\b|\|)?){1,5}\$?",
            text in "[abé _\n]{0,12}",
        ) {
            let translated = jsonschema_regex::to_rust_regex(&pattern);
            let other = translated.ok().and_then(|pattern| regex::Regex::new(&pattern).ok());
            let own = new(&pattern).ok();
            prop_assert_eq!(own.is_some(), other.is_some(), "{}", pattern);
            if let (Some(own), Some(other)) = (own, other) {
                prop_assert_eq!(own.is_match(&text), other.is_match(&text), "{} {:?}", pattern, text);
            }
        }
    }
}
