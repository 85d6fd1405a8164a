//! How much work a schema can make of one document, found before it is used.
//!
//! A reference is followed wherever it stands, so a schema of a few lines can double its work with
//! each level of a document, or need more stack than a thread has: one document would stop the API
//! and every consumer. This counts what lies on one way down the deepest document. It only bounds;
//! what a schema means is the validator's.
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::json::DEPTH_MAX;

/// Units of work at the values on one way from the top of a document to its deepest value: one for
/// each subschema that is evaluated, and what its keywords weigh.
pub const UNITS_MAX: u64 = 10_000;

/// Subschemas that may be inside one another meanwhile: each takes stack.
pub const NESTED_MAX: usize = 300;

/// Values of one `enum`.
pub const ENUM_MAX: usize = 1_000;

/// Patterns of a schema, and their bytes together.
pub const PATTERNS_MAX: usize = 100;
pub const PATTERN_BYTES_MAX: usize = 16 << 10;

/// Values of an `enum` that are compared in about a unit.
const ENUM_PER_UNIT: u64 = 16;

/// A pattern reads all of a text.
const PATTERN_UNITS: u64 = 100;

/// Bytes of text that count as a value.
const TEXT_BYTES_PER_VALUE: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbounded {
    #[error("checking a document could take more than {UNITS_MAX} units of work on one way down")]
    Units,
    #[error("more than {NESTED_MAX} subschemas could be inside one another")]
    Nested,
    #[error("a reference leads back to itself at the same value")]
    Circle,
    #[error("a reference is # or #/…, to a place in this schema, without percent-encoding")]
    Reference,
    #[error("anchors are not taken: refer to places, as in #/$defs/name")]
    Anchor,
    #[error("only the whole schema can have an $id")]
    Id,
    #[error("an enum has {ENUM_MAX} values at most")]
    Enum,
    #[error("a schema has {PATTERNS_MAX} patterns of {PATTERN_BYTES_MAX} bytes together at most")]
    Patterns,
}

/// What a bounded schema costs at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// Of [`UNITS_MAX`]. At each value of a document no more than these.
    pub units: u64,
    /// Of [`PATTERNS_MAX`].
    pub patterns: usize,
}

/// Refuses what is not bounded.
pub fn check(schema: &Value) -> Result<Bounded, Unbounded> {
    let mut work =
        Work { root: schema, known: HashMap::new(), patterns: 0, pattern_bytes: 0, seen: HashSet::new() };
    work.look_through(schema)?;
    work.bounded(0)?;
    let Cost { units, .. } = work.of(schema, DEPTH_MAX, 0)?;
    if units > UNITS_MAX {
        return Err(Unbounded::Units);
    }
    work.bounded(units)
}

/// Values of a document, long texts and keys for more.
pub fn values(document: &Value) -> u64 {
    let text = |text: &str| 1 + text.len() as u64 / TEXT_BYTES_PER_VALUE;
    match document {
        Value::String(long) => text(long),
        Value::Array(items) => items.iter().map(values).sum::<u64>() + 1,
        Value::Object(members) => {
            members.iter().map(|(key, value)| text(key) + values(value)).sum::<u64>() + 1
        }
        _ => 1,
    }
}

/// Of a subschema with everything that it evaluates.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    units: u64,
    /// Subschemas inside one another.
    height: usize,
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        let units = self.units.saturating_add(other.units);
        Self { units, height: self.height.max(other.height) }
    }

    fn or(self, other: Self) -> Self {
        Self { units: self.units.max(other.units), height: self.height.max(other.height) }
    }
}

struct Work<'a> {
    root: &'a Value,
    /// By target and how many levels of the document lie below; `None` while it is being counted.
    known: HashMap<(&'a str, usize), Option<Cost>>,
    patterns: usize,
    pattern_bytes: usize,
    /// Targets that were looked through by themselves.
    seen: HashSet<&'a str>,
}

/// What no subschema stands in.
fn is_data(keyword: &str) -> bool {
    matches!(keyword, "const" | "enum" | "default" | "examples")
}

impl<'a> Work<'a> {
    /// Counts patterns, and refuses what would give a reference another meaning than the plain one.
    fn look_through(&mut self, node: &'a Value) -> Result<(), Unbounded> {
        match node {
            Value::Object(members) => {
                for (keyword, value) in members {
                    match (&**keyword, value) {
                        ("$anchor" | "$dynamicAnchor", Value::String(_)) => return Err(Unbounded::Anchor),
                        ("$id" | "id", Value::String(_)) if !std::ptr::eq(node, self.root) => {
                            return Err(Unbounded::Id);
                        }
                        ("enum", Value::Array(values)) if values.len() > ENUM_MAX => {
                            return Err(Unbounded::Enum);
                        }
                        ("pattern", Value::String(pattern)) => self.count_pattern(pattern),
                        ("patternProperties", Value::Object(each)) => {
                            each.keys().for_each(|pattern| self.count_pattern(pattern));
                        }
                        _ => {}
                    }
                    if !is_data(keyword) {
                        self.look_through(value)?;
                    }
                }
                Ok(())
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.look_through(item)),
            _ => Ok(()),
        }
    }

    /// What is referred to may stand in data, where nobody has looked. Its patterns count again.
    fn look_through_once(&mut self, target: &'a str, found: &'a Value) -> Result<(), Unbounded> {
        let is_in_data = target.split('/').any(is_data);
        if is_in_data && self.seen.insert(target) { self.look_through(found) } else { Ok(()) }
    }

    fn bounded(&self, units: u64) -> Result<Bounded, Unbounded> {
        if self.patterns > PATTERNS_MAX || self.pattern_bytes > PATTERN_BYTES_MAX {
            return Err(Unbounded::Patterns);
        }
        Ok(Bounded { units, patterns: self.patterns })
    }

    fn count_pattern(&mut self, pattern: &str) {
        self.patterns += 1;
        self.pattern_bytes += pattern.len();
    }

    /// What a subschema costs on a value with `below` levels under it.
    fn of(&mut self, node: &'a Value, below: usize, nested: usize) -> Result<Cost, Unbounded> {
        if nested > NESTED_MAX {
            return Err(Unbounded::Nested);
        }
        match node {
            Value::Object(members) => {
                let (mut here, mut children) = (Cost::default(), Cost::default());
                for (keyword, value) in members.iter().filter(|(keyword, _)| !is_data(keyword)) {
                    let (in_place, child) = self.of_keyword(keyword, value, below, nested + 1)?;
                    here = here.plus(in_place);
                    children = children.plus(child);
                }
                here.units = here.units.saturating_add(weight(members));
                // What was evaluated is found by evaluating what stands in place again.
                if members.keys().any(|keyword| keyword.starts_with("unevaluated")) {
                    here.units = here.units.saturating_mul(2);
                }
                let all = here.plus(children);
                Ok(Cost { units: all.units.saturating_add(1), height: all.height + 1 })
            }
            Value::Array(items) => self.sum(items, below, nested),
            _ => Ok(Cost::default()),
        }
    }

    /// The cost at the same value, and that at the values under it.
    fn of_keyword(
        &mut self,
        keyword: &str,
        value: &'a Value,
        below: usize,
        nested: usize,
    ) -> Result<(Cost, Cost), Unbounded> {
        let (child, none) = (below.checked_sub(1), Cost::default());
        Ok(match (keyword, value) {
            ("$defs" | "definitions", _) => (none, none),
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) => {
                (self.referred(target, below, nested)?, none)
            }
            ("dependentSchemas" | "dependencies", Value::Object(each)) => {
                (self.sum(each.values(), below, nested)?, none)
            }
            (
                "properties"
                | "prefixItems"
                | "patternProperties"
                | "items"
                | "additionalItems"
                | "additionalProperties"
                | "contains"
                | "propertyNames"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                _,
            ) => match (child, keyword, value) {
                (None, ..) => (none, none),
                // Only one of them is for the member or element that the way goes through.
                (Some(below), "properties", Value::Object(each)) => {
                    (none, self.greatest(each.values(), below, nested)?)
                }
                (Some(below), _, Value::Array(each)) => (none, self.greatest(each, below, nested)?),
                (Some(below), "patternProperties", Value::Object(each)) => {
                    (none, self.sum(each.values(), below, nested)?)
                }
                (Some(below), ..) => (none, self.of(value, below, nested)?),
            },
            _ => (self.of(value, below, nested)?, none),
        })
    }

    fn referred(&mut self, target: &'a str, below: usize, nested: usize) -> Result<Cost, Unbounded> {
        if let Some(known) = self.known.get(&(target, below)) {
            let cost = known.ok_or(Unbounded::Circle)?;
            // It was counted from another height.
            return if nested + cost.height > NESTED_MAX { Err(Unbounded::Nested) } else { Ok(cost) };
        }
        let pointer = target.strip_prefix('#').filter(|pointer| !pointer.contains('%'));
        let found = pointer.and_then(|pointer| self.root.pointer(pointer)).ok_or(Unbounded::Reference)?;
        self.look_through_once(target, found)?;
        self.known.insert((target, below), None);
        let cost = self.of(found, below, nested)?;
        self.known.insert((target, below), Some(cost));
        Ok(cost)
    }

    fn sum(
        &mut self,
        nodes: impl IntoIterator<Item = &'a Value>,
        below: usize,
        nested: usize,
    ) -> Result<Cost, Unbounded> {
        nodes.into_iter().try_fold(Cost::default(), |sum, node| Ok(sum.plus(self.of(node, below, nested)?)))
    }

    fn greatest(
        &mut self,
        nodes: impl IntoIterator<Item = &'a Value>,
        below: usize,
        nested: usize,
    ) -> Result<Cost, Unbounded> {
        nodes.into_iter().try_fold(Cost::default(), |most, node| Ok(most.or(self.of(node, below, nested)?)))
    }
}

/// What the keywords of one subschema cost beside those inside them.
fn weight(members: &serde_json::Map<String, Value>) -> u64 {
    let of_keyword = |(keyword, value): (&String, &Value)| match (&**keyword, value) {
        ("enum" | "required", Value::Array(values)) => values.len() as u64 / ENUM_PER_UNIT,
        ("pattern", _) => PATTERN_UNITS,
        ("patternProperties", Value::Object(each)) => each.len() as u64 * PATTERN_UNITS,
        _ => 0,
    };
    members.iter().map(of_keyword).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each of `length` steps refers `width` times to the next one.
    fn chain(width: usize, length: usize) -> Value {
        let step = |step: usize| {
            let next = json!({"$ref": format!("#/$defs/d{}", step + 1)});
            (format!("d{step}"), json!({ "allOf": vec![next; width] }))
        };
        let mut defs: serde_json::Map<_, _> = (0..length).map(step).collect();
        defs.insert(format!("d{length}"), json!({"type": "object"}));
        json!({"$defs": defs, "$ref": "#/$defs/d0"})
    }

    #[test]
    fn what_goes_down_with_the_document_is_bounded() {
        for good in [
            json!(true),
            json!({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}),
            json!({"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]}),
            json!({"properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": false}),
            json!({"properties": {"id": {"type": "string"}, "$id": {}}, "const": {"$id": "x"}, "$id": "urn:x"}),
            json!({"properties": {"$anchor": {"type": "string"}, "pattern": {"pattern": "^a$"}}}),
            chain(1, 140),
        ] {
            check(&good).unwrap_or_else(|unbounded| panic!("{unbounded}: {good:.200}"));
        }
    }

    #[test]
    fn what_doubles_with_the_document_or_by_itself_is_refused() {
        let twice = json!([{"$ref": "#"}, {"$ref": "#"}]);
        for bad in [
            json!({"properties": {"a": {"allOf": twice}}}),
            json!({"items": {"anyOf": twice}}),
            json!({"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}, "minItems": 1}]}),
            json!({"properties": {"a": {"$ref": "#"}}, "patternProperties": {"^a": {"$ref": "#"}}}),
            json!({"anyOf": [{"items": {"$ref": "#"}}], "unevaluatedItems": false}),
            chain(2, 60),
        ] {
            assert_eq!(check(&bad), Err(Unbounded::Units), "{bad:.200}");
        }
        let mut deep = chain(1, 90);
        deep["$defs"]["d90"] = json!({"items": {"$ref": "#/$defs/d0"}});
        assert_eq!(check(&deep), Err(Unbounded::Nested));
        assert_eq!(check(&json!({"allOf": [{"$ref": "#"}]})), Err(Unbounded::Circle));
        let (to_a, to_b) = (json!({"not": {"$ref": "#/$defs/a"}}), json!({"$ref": "#/$defs/b"}));
        assert_eq!(check(&json!({"$defs": {"a": to_b, "b": to_a}, "anyOf": [to_b]})), Err(Unbounded::Circle));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for target in [
            "http://127.0.0.1:1/x",
            "file:///etc/passwd",
            "other.json",
            "#/$defs/none",
            "#none",
            "#/%24defs/a",
            "https://json-schema.org/draft/2020-12/schema",
            "http://json-schema.org/draft-07/schema#",
        ] {
            let schema = json!({"$ref": target, "$defs": {"a": true}, "%24defs": {"a": true}});
            assert_eq!(check(&schema), Err(Unbounded::Reference), "{target}");
        }
        for anchor in ["$anchor", "$dynamicAnchor"] {
            assert_eq!(check(&json!({"$defs": {"a": {anchor: "x"}}})), Err(Unbounded::Anchor));
            assert_eq!(check(&json!({"unknown": [{anchor: "x"}]})), Err(Unbounded::Anchor));
        }
        // What stands in data is looked through as soon as it is referred to.
        let hidden = json!({"const": {"a": {"$id": "urn:a"}}, "$ref": "#/const/a"});
        assert_eq!(check(&hidden), Err(Unbounded::Id));
        assert_eq!(check(&json!({"$defs": {"a": {"$id": "urn:a"}}})), Err(Unbounded::Id));
    }

    #[test]
    fn a_reference_that_was_counted_before_still_needs_its_stack() {
        let mut schema = chain(1, 130);
        check(&schema).expect("bounded");
        // First from the top, and then from below what is nested itself.
        let mut outer = json!({"$ref": "#/$defs/d0"});
        for _ in 0..60 {
            outer = json!({ "allOf": [outer] });
        }
        schema["allOf"] = json!([{"$ref": "#/$defs/d0"}, outer]);
        assert_eq!(check(&schema), Err(Unbounded::Nested));
    }

    #[test]
    fn enums_and_patterns_are_counted() {
        let numbers = |count: usize| Value::from((0..count).collect::<Vec<_>>());
        assert_eq!(check(&json!({"enum": numbers(ENUM_MAX)})).expect("good").units, 63);
        assert_eq!(check(&json!({"enum": numbers(ENUM_MAX + 1)})), Err(Unbounded::Enum));
        let patterns = |count: usize, length: usize| -> Value {
            let schema = |number: usize| json!({"pattern": format!("{number:0length$}")});
            json!({ "prefixItems": (0..count).map(schema).collect::<Vec<_>>() })
        };
        assert_eq!(check(&patterns(PATTERNS_MAX, 1)).expect("good").patterns, PATTERNS_MAX);
        assert_eq!(check(&patterns(PATTERNS_MAX + 1, 1)), Err(Unbounded::Patterns));
        assert_eq!(check(&patterns(2, PATTERN_BYTES_MAX / 2 + 1)), Err(Unbounded::Patterns));
        // At the same value, and at each of 64 levels.
        let many = json!({"allOf": (0..100).map(|n| json!({"pattern": n.to_string()})).collect::<Vec<_>>()});
        assert_eq!(check(&many), Err(Unbounded::Units));
        let two = json!({"pattern": "a", "patternProperties": {"^b": {}}, "items": {"$ref": "#"}});
        assert_eq!(check(&two), Err(Unbounded::Units));
    }

    #[test]
    fn values_are_counted_wherever_they_stand() {
        assert_eq!(values(&json!(1)), 1);
        assert_eq!(values(&json!({"a": [1, "x", null], "b": {}})), 1 + 2 + 4 + 1);
        assert_eq!(values(&json!("x".repeat(640))), 11);
    }
}
