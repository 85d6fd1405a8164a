//! Collections of documents: what their owner defined, and what that means for one document.
//!
//! The API checks a document against the definition that it knows and writes that version into
//! the item; the consumer checks again only when the stored version is another one. Both use
//! [`Checker`]. Nothing here reads a store.
mod index;
mod work;

use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json;

pub use self::index::{index_text, index_text_of_number, index_value};

/// Indexed fields of a collection at most: each costs a row per document.
pub const INDEXED_MAX: usize = 8;

/// Bytes of a JSON Schema at most.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// What an owner says about a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// JSON Schema as text; `None` takes any object.
    pub schema: Option<String>,
    /// Top-level members by whose value documents can be filtered.
    pub indexed: Vec<String>,
    /// Days that documents are kept; `None` for ever.
    pub retention_days: Option<u32>,
}

/// A definition as stored. The default one, version 0, is that of a collection which nobody defined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    pub definition: Definition,
    /// Grows with every change, also over a removal.
    pub version: i64,
    /// False once it was removed, or before it was ever defined.
    pub is_defined: bool,
    /// False while documents from before the definition are still to be indexed.
    pub is_indexed: bool,
}

/// Longest name of an indexed field in bytes.
const FIELD_LENGTH_MAX: usize = 64;

/// Parameters of a list, which a field would shadow.
const RESERVED_FIELDS: [&str; 2] = ["limit", "after"];

/// A hundred years.
const RETENTION_DAYS_MAX: u32 = 36_500;

/// Memory of one compiled pattern in bytes, and of all of a schema.
const PATTERN_BYTES_MAX: usize = 1 << 20;
const PATTERNS_BYTES_MAX: usize = 8 << 20;

/// What a definition weighs beside its schema, and how many times its text a compiled schema does.
const ENTRY_BYTES: usize = 1_000;
const COMPILED_FACTOR: usize = 16;

/// Units of work that one document may take: those of the schema for each of its values.
const UNITS_PER_DOCUMENT_MAX: u64 = 20_000_000;

/// Longest explanation of an error in characters: it may quote a schema.
const DETAIL_LENGTH_MAX: usize = 200;

/// A definition that documents can be checked against.
#[derive(Debug)]
pub struct Checker {
    pub version: i64,
    indexed: Vec<String>,
    /// `None` takes any object.
    validator: Option<Validator>,
    schema_bytes: usize,
    /// What it may cost at each value of a document.
    units: u64,
    unusable: Option<BadDefinition>,
}

/// Why a definition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadDefinition {
    /// JSON pointer into the definition.
    pub pointer: String,
    pub detail: String,
}

/// Why a document does not belong into its collection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {detail}")]
pub struct Violation {
    /// JSON pointer into the document.
    pub pointer: String,
    pub detail: String,
}

impl Checker {
    /// Checks and compiles a definition: some milliseconds when it has a schema.
    pub fn new(collection: &Collection) -> Result<Self, BadDefinition> {
        let Definition { schema, indexed, retention_days } = &collection.definition;
        check_indexed(indexed)?;
        if retention_days.is_some_and(|days| !(1..=RETENTION_DAYS_MAX).contains(&days)) {
            return Err(bad("/retention_days", format!("must be from 1 to {RETENTION_DAYS_MAX}")));
        }
        let compiled = schema.as_deref().map(compile).transpose()?;
        let (validator, units) = compiled.map_or((None, 0), |(validator, units)| (Some(validator), units));
        let schema_bytes = schema.as_ref().map_or(0, String::len);
        Ok(Self {
            schema_bytes,
            version: collection.version,
            indexed: indexed.clone(),
            validator,
            units,
            unusable: None,
        })
    }

    /// For a definition that is stored already. One that another build took and this one cannot use
    /// must not stop what has nothing to do with it: see [`unusable`](Self::unusable).
    pub fn of_stored(name: &str, collection: &Collection) -> Self {
        Self::new(collection).unwrap_or_else(|unusable| {
            let version = collection.version;
            tracing::error!(collection = name, version, error = %unusable, "definition cannot be used");
            let indexed = collection.definition.indexed.clone();
            Self { version, indexed, validator: None, schema_bytes: 0, units: 0, unusable: Some(unusable) }
        })
    }

    /// Memory as far as it can be told, in bytes: what a compiled schema takes grows with its text.
    pub fn weight(&self) -> usize {
        ENTRY_BYTES + COMPILED_FACTOR * self.schema_bytes
    }

    /// Why no document can be checked; its indexed members are known all the same.
    pub fn unusable(&self) -> Option<&BadDefinition> {
        self.unusable.as_ref()
    }

    /// Whether a document, the text of a JSON object, holds the schema.
    pub fn check(&self, data: &str) -> Result<(), Violation> {
        let Some(validator) = &self.validator else { return Ok(()) };
        let unreadable =
            |error: serde_json::Error| Violation { pointer: String::new(), detail: error.to_string() };
        let document: Value = serde_json::from_str(data).map_err(unreadable)?;
        if self.units.saturating_mul(work::values(&document)) > UNITS_PER_DOCUMENT_MAX {
            let detail = "too many values to be checked by a schema that costs so much at each".into();
            return Err(Violation { pointer: String::new(), detail });
        }
        validator.validate(&document).map_err(|error| Violation {
            pointer: cut(error.instance_path().as_str()),
            // The value itself may be large, and is the client's business.
            detail: cut(&error.masked_with("the value").to_string()),
        })
    }

    /// The indexed members of a document with their index values, by name.
    pub fn index_values(&self, data: &str) -> Result<Vec<(&str, String)>, Violation> {
        if self.indexed.is_empty() {
            return Ok(Vec::new());
        }
        let unreadable =
            |error: serde_json::Error| Violation { pointer: String::new(), detail: error.to_string() };
        let members: serde_json::Map<String, Value> = serde_json::from_str(data).map_err(unreadable)?;
        let mut values = Vec::with_capacity(self.indexed.len());
        for field in &self.indexed {
            let value = members.get(field).and_then(index_value);
            values.extend(value.map(|value| (&**field, value)));
        }
        Ok(values)
    }
}

fn bad(pointer: impl Into<String>, detail: impl Into<String>) -> BadDefinition {
    BadDefinition { pointer: pointer.into(), detail: detail.into() }
}

fn cut(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).collect()
}

fn check_indexed(indexed: &[String]) -> Result<(), BadDefinition> {
    if indexed.len() > INDEXED_MAX {
        return Err(bad("/indexed", format!("{INDEXED_MAX} fields at most")));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    for (index, field) in indexed.iter().enumerate() {
        let detail = if !(1..=FIELD_LENGTH_MAX).contains(&field.len()) || !field.bytes().all(allowed) {
            format!("a field has 1 to {FIELD_LENGTH_MAX} characters out of A-Z a-z 0-9 . _ : -")
        } else if RESERVED_FIELDS.contains(&&**field) {
            "a parameter of lists has this name".into()
        } else if indexed[..index].contains(field) {
            "stands there twice".into()
        } else {
            continue;
        };
        return Err(bad(format!("/indexed/{index}"), detail));
    }
    Ok(())
}

/// Draft 2020-12 unless `$schema` names another. Formats are annotations; patterns run in linear
/// time; nothing outside of the schema is ever fetched. With what it costs at each value.
fn compile(schema: &str) -> Result<(Validator, u64), BadDefinition> {
    let within = |pointer: &str| format!("/schema{pointer}");
    if schema.len() > SCHEMA_BYTES_MAX {
        return Err(bad(within(""), format!("a schema has {SCHEMA_BYTES_MAX} bytes at most")));
    }
    // Read first, because the scan takes JSON only.
    let schema_value: Value =
        serde_json::from_str(schema).map_err(|error| bad(within(""), cut(&error.to_string())))?;
    json::check(schema).map_err(|flawed| bad(within(&flawed.pointer), flawed.flaw.to_string()))?;
    if !schema_value.is_object() && !schema_value.is_boolean() {
        return Err(bad(within(""), "a schema is an object, true or false"));
    }
    let bounded = work::check(&schema_value).map_err(|unbounded| bad(within(""), unbounded.to_string()))?;
    let pattern_bytes_max = (PATTERNS_BYTES_MAX / bounded.patterns.max(1)).min(PATTERN_BYTES_MAX);
    let built = jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(pattern_bytes_max))
        .should_validate_formats(false)
        .offline()
        .build(&schema_value);
    let validator =
        built.map_err(|error| bad(within(&cut(error.instance_path().as_str())), cut(&error.to_string())))?;
    Ok((validator, bounded.units))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checker(definition: Definition) -> Result<Checker, BadDefinition> {
        Checker::new(&Collection { definition, ..Collection::default() })
    }

    fn with_text(schema: &str) -> Result<Checker, BadDefinition> {
        checker(Definition { schema: Some(schema.into()), ..Definition::default() })
    }

    fn with_schema(schema: &Value) -> Result<Checker, BadDefinition> {
        with_text(&schema.to_string())
    }

    fn with_fields(fields: &[&str]) -> Result<Checker, BadDefinition> {
        let indexed = fields.iter().map(|field| (*field).to_owned()).collect();
        checker(Definition { indexed, ..Definition::default() })
    }

    #[test]
    fn a_violation_points_at_its_place_and_does_not_quote_the_value() {
        let schema = json!({"properties": {"a/b": {"items": {"type": "integer"}}}, "required": ["a/b"]});
        let checker = with_schema(&schema).expect("a schema");
        assert_eq!(checker.check(r#"{"a/b":[1,2]}"#), Ok(()));
        let violation = checker.check(r#"{"a/b":[1,"secret"]}"#).expect_err("a string");
        assert_eq!(violation.pointer, "/a~1b/1");
        assert!(!violation.detail.contains("secret"), "{violation}");
        assert_eq!(checker.check("{}").expect_err("missing").pointer, "");
    }

    #[test]
    fn formats_are_annotations_and_the_boolean_schemas_are_schemas() {
        let schema = json!({"properties": {"a": {"format": "email"}}});
        assert_eq!(with_schema(&schema).expect("a schema").check(r#"{"a":"x"}"#), Ok(()));
        let older =
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "properties": schema["properties"]});
        assert_eq!(with_schema(&older).expect("a schema").check(r#"{"a":"x"}"#), Ok(()));
        assert_eq!(with_schema(&json!(true)).expect("a schema").check("{}"), Ok(()));
        assert!(with_schema(&json!(false)).expect("a schema").check("{}").is_err());
    }

    #[test]
    fn a_bad_schema_is_pointed_at() {
        for (schema, pointer) in [
            (json!({"properties": {"a": {"type": "strin"}}}), "/schema/properties/a/type"),
            (json!({"properties": {"a": {"pattern": "(?=a)"}}}), "/schema/properties/a/pattern"),
            (json!({"pattern": "((a{1000}){1000}){1000}"}), "/schema/pattern"),
            (json!({"const": "x".repeat(SCHEMA_BYTES_MAX)}), "/schema"),
            (json!([]), "/schema"),
            (json!("x"), "/schema"),
        ] {
            assert_eq!(with_schema(&schema).expect_err("bad").pointer, pointer, "{schema:.80}");
        }
        assert_eq!(with_text(r#"{"a":{"b":1,"b":2}}"#).expect_err("twice").pointer, "/schema/a");
        assert_eq!(with_text("{").expect_err("no JSON").pointer, "/schema");
    }

    #[test]
    fn nothing_outside_of_the_schema_is_read() {
        for target in ["http://127.0.0.1:1/x", "file:///etc/passwd", "other.json", "#/$defs/none"] {
            with_schema(&json!({"$ref": target})).expect_err(target);
        }
        with_schema(&json!({"$schema": "http://127.0.0.1:1/x"})).expect_err("not known");
        with_schema(&json!({"$ref": "https://json-schema.org/draft/2020-12/schema"})).expect_err("outside");
    }

    #[test]
    fn references_may_go_down_but_not_double_without_end() {
        let tree = json!({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "type": "object"});
        let checker = with_schema(&tree).expect("a tree");
        assert_eq!(checker.check(r#"{"left":{"right":{}}}"#), Ok(()));
        assert_eq!(checker.check(r#"{"left":{"right":1}}"#).expect_err("a number").pointer, "/left/right");
        let doubling = json!({"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}});
        assert_eq!(with_schema(&doubling).expect_err("doubles").pointer, "/schema");
    }

    #[test]
    fn the_deepest_schema_and_document_fit_on_the_stack_of_a_thread() {
        // One inside the other at each of 64 levels: nearly as many as are allowed.
        let member = |inner: Value| json!({"properties": {"a": inner}, "unevaluatedProperties": false});
        let data = format!("{}{{}}{}", r#"{"a":"#.repeat(63), "}".repeat(63));
        json::check(&data).expect("deep enough");
        for schema in [
            json!({"$defs": {"x": {"$ref": "#"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}),
            json!({"properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": false}),
            json!({"anyOf": [{"properties": {"a": {"$ref": "#"}}}]}),
            json!({"if": {"properties": {"a": {"$ref": "#"}}}}),
            json!({"not": {"required": ["b"], "properties": {"a": {"$ref": "#"}}}}),
            json!({"allOf": [{"oneOf": [{"additionalProperties": {"$ref": "#"}}]}]}),
        ] {
            // Whatever it says of the document: it says it.
            if let Ok(checker) = with_schema(&schema) {
                let _ = checker.check(&data);
            }
        }
        // As deep at one value, and by as many definitions as a schema can have.
        let deepest = (0..60).fold(json!({"type": "object"}), |inner, _| json!({"allOf": [inner]}));
        let mut defs: serde_json::Map<_, _> = (0..200)
            .map(|step| (format!("d{step}"), member(json!({"$ref": format!("#/$defs/d{}", step + 1)}))))
            .collect();
        defs.insert("d200".into(), deepest);
        let checker = with_schema(&json!({"$defs": defs, "$ref": "#/$defs/d0"}));
        let _ = checker.map(|checker| checker.check(&data));
    }

    #[test]
    fn the_dearest_schema_and_document_are_bounded_by_counted_work() {
        // As many units as are allowed at each value.
        let numbers: Vec<u32> = (0..1_000).collect();
        let each = json!({"not": {"enum": numbers}});
        let dear = |count: usize| json!({"items": {"allOf": vec![each.clone(); count]}});
        let (cheap, dear) = (with_schema(&dear(1)).expect("good"), with_schema(&dear(10)).expect("good"));
        assert!(cheap.units * 9 < dear.units && dear.units <= work::UNITS_MAX, "{}", dear.units);
        let array = |count: u64| format!("[{}1]", "-1,".repeat(usize::try_from(count - 1).expect("fits")));
        let most = UNITS_PER_DOCUMENT_MAX / dear.units - 1;
        assert_eq!(
            dear.check(&array(most - 1)).expect_err("1 is in the enum").pointer,
            format!("/{}", most - 2)
        );
        let refused = dear.check(&array(most + 1)).expect_err("too many");
        assert!(refused.detail.contains("too many values"), "{refused}");
        assert!(cheap.check(&array(most + 1)).expect_err("1 is in the enum").pointer.len() > 1);
    }

    #[test]
    fn indexed_fields_and_retention_are_bounded() {
        with_fields(&["a", "A", "x.y_z:0-", &"f".repeat(64)]).expect("fields");
        for bad in ["", "a b", "ä", "limit", "after", &"f".repeat(65)] {
            assert_eq!(with_fields(&["ok", bad]).expect_err(bad).pointer, "/indexed/1");
        }
        assert_eq!(with_fields(&["a", "b", "a"]).expect_err("twice").pointer, "/indexed/2");
        assert_eq!(with_fields(&["a"; 9]).expect_err("nine").pointer, "/indexed");
        for (days, is_good) in [(0, false), (1, true), (36_500, true), (36_501, false)] {
            let definition = Definition { retention_days: Some(days), ..Definition::default() };
            assert_eq!(checker(definition).is_ok(), is_good, "{days}");
        }
    }

    #[test]
    fn indexed_values_have_one_spelling() {
        let checker = with_fields(&["s", "i", "f", "n", "b", "o", "none"]).expect("fields");
        let data = r#"{"s":"1.0","i":-0.0,"f":1e3,"n":null,"b":true,"o":{},"s2":1}"#;
        let values = checker.index_values(data).expect("an object");
        let expected = [("s", "1.0"), ("i", "0"), ("f", "1000"), ("n", "null"), ("b", "true")];
        assert_eq!(values, expected.map(|(field, value)| (field, value.to_owned())));
        assert!(index_text(&"x".repeat(201)).starts_with("sha256:"));
    }
}
