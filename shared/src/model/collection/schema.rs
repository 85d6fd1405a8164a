//! Compiles a schema, after checks of the things that no budget of a check could bound: where references
//! lead, and how much of a schema is evaluated at one value.
//!
//! A reference is followed wherever it stands, so a schema of a few lines can double its work with each
//! level of a document. Such a schema would refuse most documents for their cost; it is refused itself.
//! This walks positions of subschemas only, and counts subschemas on one way down the deepest document.
//! Everything else that a check costs is measured while it runs.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jsonschema::{Keyword, PatternOptions, ValidationError, ValidationOptions, Validator};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::bad_definition::{BadDefinition, bad, cut};
use super::counted::CountedDocument;
use super::numeric::{self, NumericKeyword};
use super::pattern::{BadPattern, PATTERN_STATES_MAX, Pattern, Patterns};
use crate::model::json_rules::{self, DEPTH_MAX};
use crate::model::read_error::plain;

/// Bytes of a JSON Schema at most.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// Subschemas that are evaluated at the values on one way from the top of a document to its deepest value.
pub const EVALUATED_MAX: u64 = 10_000;

/// Subschemas that may be inside one another meanwhile: each takes stack.
pub const NESTED_MAX: usize = 300;

/// Memory of one compiled key of `patternProperties` in bytes, and of all of a schema.
const KEY_PATTERN_BYTES_MAX: usize = 1 << 20;
const KEY_PATTERNS_BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbounded {
    #[error("checking a document could evaluate more than {EVALUATED_MAX} subschemas on one way down")]
    Evaluated,
    #[error("more than {NESTED_MAX} subschemas could be inside one another")]
    Nested,
    #[error("a reference leads back to itself at the same value")]
    Circle,
    #[error("a reference is # or #/…, to a place in this schema, without percent-encoding")]
    Reference,
    #[error("$recursiveRef is # only: it leads to the root whatever stands behind it")]
    RecursiveReference,
    #[error("anchors are not taken: refer to places, as in #/$defs/name")]
    Anchor,
    #[error("only the whole schema can have an $id")]
    Id,
}

/// Compiled schema, with which documents are checked.
#[derive(Debug)]
pub struct CompiledSchema {
    pub validator: Validator<CountedDocument>,
    /// True when the validator's own engine matches keys.
    pub matches_keys: bool,
    /// Memory in bytes, as far as it is known.
    pub bytes: usize,
}

/// Weight of a compiled schema as a multiple of its text.
const COMPILED_FACTOR: usize = 16;

/// Compiles a schema. Draft 2020-12 unless `$schema` names another. Formats are annotations; patterns run
/// in linear time; nothing outside of the schema is ever fetched.
pub fn compile(schema: &str) -> Result<CompiledSchema, BadDefinition> {
    let within = |pointer: &str| format!("/schema{pointer}");
    if schema.len() > SCHEMA_BYTES_MAX {
        return Err(bad(within(""), format!("a schema has {SCHEMA_BYTES_MAX} bytes at most")));
    }
    let unreadable = |error: serde_json::Error| bad(within(""), cut(&plain(&error.to_string())));
    // The scan takes JSON only, and knows the place of a number that a value cannot hold.
    serde_json::from_str::<&RawValue>(schema).map_err(unreadable)?;
    json_rules::check_schema(schema)
        .map_err(|flawed| bad(within(&flawed.pointer), flawed.flaw.to_string()))?;
    let root: Value = serde_json::from_str(schema).map_err(unreadable)?;
    if !root.is_object() && !root.is_boolean() {
        return Err(bad(within(""), "a schema is an object, true or false"));
    }
    let mut walk = Walk { root: &root, known: HashMap::new(), seen: HashSet::new(), key_patterns: 0 };
    let bounded = walk.look_through(&root).and_then(|()| walk.cost(&root, DEPTH_MAX, 0));
    let cost = bounded.map_err(|unbounded| bad(within(""), unbounded.to_string()))?;
    if cost.evaluated > EVALUATED_MAX {
        return Err(bad(within(""), Unbounded::Evaluated.to_string()));
    }
    let key_pattern_bytes_max =
        (KEY_PATTERNS_BYTES_MAX / walk.key_patterns.max(1)).min(KEY_PATTERN_BYTES_MAX);
    let patterns = Arc::new(Patterns::new());
    let built = options(&patterns, key_pattern_bytes_max).build(&root);
    let validator = built.map_err(|error| {
        let pointer = cut(error.instance_path().as_str());
        let detail = why(&root, error.instance_path().as_str(), key_pattern_bytes_max);
        bad(within(&pointer), detail.unwrap_or_else(|| cut(&error.to_string())))
    })?;
    let bytes = COMPILED_FACTOR * schema.len() + patterns.weight();
    Ok(CompiledSchema { validator, matches_keys: walk.key_patterns > 0, bytes })
}

type CountedOptions = ValidationOptions<'static, Arc<dyn jsonschema::Retrieve>, CountedDocument>;

fn options(patterns: &Arc<Patterns>, key_pattern_bytes_max: usize) -> CountedOptions {
    let patterns = Arc::clone(patterns);
    let options = jsonschema::options_for::<CountedDocument>()
        .with_pattern_options(PatternOptions::regex().size_limit(key_pattern_bytes_max))
        .with_keyword("pattern", move |_, pattern: &Value, _| {
            let text = pattern.as_str().ok_or_else(|| ValidationError::custom("a pattern is a string"))?;
            let keyword = patterns.keyword(text).map_err(|bad| ValidationError::custom(bad.to_string()))?;
            Ok(Box::new(keyword) as Box<dyn for<'i> Keyword<'i, CountedDocument>>)
        })
        .should_validate_formats(false)
        .offline();
    numeric::KEYWORDS.into_iter().fold(options, |options, keyword| {
        options.with_keyword(keyword, move |parent: &Map<String, Value>, value: &Value, _| {
            let numeric = NumericKeyword::of(keyword, parent, value).map_err(ValidationError::custom)?;
            Ok(Box::new(numeric) as Box<dyn for<'i> Keyword<'i, CountedDocument>>)
        })
    })
}

/// Reason for which a key of `patternProperties` was not taken: the validator says that it is no pattern,
/// also of one that is too large.
fn why(root: &Value, pointer: &str, bytes_max: usize) -> Option<String> {
    let key = root.pointer(pointer).and_then(|_| pointer.rsplit_once("/patternProperties/"))?.1;
    let key = key.replace("~1", "/").replace("~0", "~");
    match Pattern::new(&key, &mut { PATTERN_STATES_MAX }) {
        Err(BadPattern::States) | Ok(_) => Some(format!(
            "a key of patternProperties has {bytes_max} bytes of memory at most once it is compiled"
        )),
        Err(refused) => Some(refused.to_string()),
    }
}

/// Cost of a subschema with everything that it evaluates.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    evaluated: u64,
    /// Depth of subschemas inside one another.
    height: usize,
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        let evaluated = self.evaluated.saturating_add(other.evaluated);
        Self { evaluated, height: self.height.max(other.height) }
    }

    fn or(self, other: Self) -> Self {
        Self { evaluated: self.evaluated.max(other.evaluated), height: self.height.max(other.height) }
    }
}

/// Places where the subschemas of a keyword are applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the same value.
    Value,
    /// At the values under it.
    Children,
    /// Nowhere, unless they are referred to.
    Nowhere,
}

/// Subschemas of a keyword; `None` for a keyword that has none.
fn subschemas<'a>(keyword: &str, value: &'a Value) -> Option<(At, Vec<&'a Value>)> {
    let each = || match value {
        Value::Object(members) => members.values().collect(),
        Value::Array(elements) => elements.iter().collect(),
        _ => Vec::new(),
    };
    Some(match keyword {
        "$defs" | "definitions" => (At::Nowhere, each()),
        "allOf" | "anyOf" | "oneOf" | "dependentSchemas" | "dependencies" => (At::Value, each()),
        "not" | "if" | "then" | "else" => (At::Value, vec![value]),
        "properties" | "patternProperties" | "prefixItems" => (At::Children, each()),
        "items" if value.is_array() => (At::Children, each()),
        "items"
        | "additionalItems"
        | "unevaluatedItems"
        | "contains"
        | "additionalProperties"
        | "unevaluatedProperties"
        | "propertyNames" => (At::Children, vec![value]),
        _ => return None,
    })
}

struct Walk<'a> {
    root: &'a Value,
    /// Costs by subschema and levels of the document below; `None` while it is being counted.
    known: HashMap<(*const Value, usize), Option<Cost>>,
    /// Subschemas that were looked through.
    seen: HashSet<*const Value>,
    key_patterns: usize,
}

impl<'a> Walk<'a> {
    /// Counts patterns of keys, and refuses what would give a reference another meaning than the plain one.
    fn look_through(&mut self, node: &'a Value) -> Result<(), Unbounded> {
        let Value::Object(members) = node else { return Ok(()) };
        if !self.seen.insert(node) {
            return Ok(());
        }
        for (keyword, value) in members {
            match (&**keyword, value) {
                ("$anchor" | "$dynamicAnchor", Value::String(_)) => return Err(Unbounded::Anchor),
                ("$id" | "id", Value::String(_)) if !std::ptr::eq(node, self.root) => {
                    return Err(Unbounded::Id);
                }
                ("$recursiveRef", Value::String(target)) if target != "#" => {
                    return Err(Unbounded::RecursiveReference);
                }
                ("patternProperties", Value::Object(each)) => self.key_patterns += each.len(),
                _ => {}
            }
            let inside = subschemas(keyword, value).map_or(Vec::new(), |(_, inside)| inside);
            inside.into_iter().try_for_each(|inside| self.look_through(inside))?;
        }
        Ok(())
    }

    /// Cost of a subschema on a value with `below` levels under it.
    fn cost(&mut self, node: &'a Value, below: usize, nested: usize) -> Result<Cost, Unbounded> {
        let Value::Object(members) = node else { return Ok(Cost::default()) };
        let key = (std::ptr::from_ref(node), below);
        let cost = match self.known.get(&key) {
            Some(known) => known.ok_or(Unbounded::Circle)?,
            None if nested > NESTED_MAX => return Err(Unbounded::Nested),
            None => {
                self.known.insert(key, None);
                let cost = self.count(members, below, nested)?;
                self.known.insert(key, Some(cost));
                cost
            }
        };
        // It may have been counted from another height.
        if nested + cost.height > NESTED_MAX { Err(Unbounded::Nested) } else { Ok(cost) }
    }

    fn count(
        &mut self,
        members: &'a Map<String, Value>,
        below: usize,
        nested: usize,
    ) -> Result<Cost, Unbounded> {
        let (mut here, mut children) = (Cost::default(), Cost::default());
        for (keyword, value) in members {
            if let ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) = (&**keyword, value) {
                here = here.plus(self.referred(target, below, nested + 1)?);
                continue;
            }
            let Some((at, inside)) = subschemas(keyword, value) else { continue };
            // Only one of them is for the member or element that the way goes through.
            let join = match &**keyword {
                "properties" | "prefixItems" | "items" => Cost::or,
                _ => Cost::plus,
            };
            let (sum, below) = match (at, below.checked_sub(1)) {
                (At::Value, _) => (&mut here, below),
                (At::Children, Some(below)) => (&mut children, below),
                (At::Children, None) | (At::Nowhere, _) => continue,
            };
            let mut all = Cost::default();
            for inside in inside {
                all = join(all, self.cost(inside, below, nested + 1)?);
            }
            *sum = sum.plus(all);
        }
        // The evaluated members are found by evaluating again the subschemas in place.
        if is_unevaluated(members) {
            here.evaluated = here.evaluated.saturating_mul(2);
        }
        let all = here.plus(children);
        Ok(Cost { evaluated: all.evaluated.saturating_add(1), height: all.height + 1 })
    }

    fn referred(&mut self, target: &str, below: usize, nested: usize) -> Result<Cost, Unbounded> {
        let pointer = target.strip_prefix('#').filter(|pointer| !pointer.contains('%'));
        let root = self.root;
        let found = pointer.and_then(|pointer| root.pointer(pointer)).ok_or(Unbounded::Reference)?;
        // It may stand where no subschema does, and so has not been looked through.
        self.look_through(found)?;
        self.cost(found, below, nested)
    }
}

fn is_unevaluated(members: &Map<String, Value>) -> bool {
    members.keys().any(|keyword| keyword.starts_with("unevaluated"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: &Value) -> Result<(), Unbounded> {
        let mut walk = Walk { root: schema, known: HashMap::new(), seen: HashSet::new(), key_patterns: 0 };
        walk.look_through(schema)?;
        let cost = walk.cost(schema, DEPTH_MAX, 0)?;
        if cost.evaluated > EVALUATED_MAX { Err(Unbounded::Evaluated) } else { Ok(()) }
    }

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
            assert_eq!(check(&bad), Err(Unbounded::Evaluated), "{bad:.200}");
        }
        for target in ["#", "#/$defs/cheap"] {
            let twice = json!([{"$recursiveRef": target}, {"$recursiveRef": target}]);
            let schema = json!({"$defs": {"cheap": true}, "properties": {"a": {"allOf": twice}}});
            assert!(check(&schema).is_err(), "{target}");
        }
        let once = json!({"$defs": {"a": true}, "properties": {"a": {"$recursiveRef": "#/$defs/a"}}});
        assert_eq!(check(&once), Err(Unbounded::RecursiveReference));
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
            // Where no subschema stands it is data.
            assert_eq!(check(&json!({"unknown": [{anchor: "x"}], "enum": [{anchor: "x"}]})), Ok(()));
            assert_eq!(check(&json!({"properties": {"const": {anchor: "x"}}})), Err(Unbounded::Anchor));
        }
        // Data is looked through as soon as it is referred to.
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
}
