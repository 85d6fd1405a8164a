//! Definitions and checks, as both programs use them.
use serde_json::{Value, json};

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

impl Checker {
    fn holds(&self, data: &str) -> Result<(), Violation> {
        self.check(data, &Budget::of_ms(10_000))
    }
}

#[test]
fn a_violation_points_at_its_place_and_does_not_quote_the_value() {
    let schema = json!({"properties": {"a/b": {"items": {"type": "integer"}}}, "required": ["a/b"]});
    let checker = with_schema(&schema).expect("a schema");
    assert_eq!(checker.holds(r#"{"a/b":[1,2]}"#), Ok(()));
    let violation = checker.holds(r#"{"a/b":[1,"secret"]}"#).expect_err("a string");
    assert_eq!(violation.pointer, "/a~1b/1");
    assert!(!violation.detail.contains("secret"), "{violation}");
    assert_eq!(checker.holds("{}").expect_err("missing").pointer, "");
}

#[test]
fn formats_are_annotations_and_the_boolean_schemas_are_schemas() {
    let schema = json!({"properties": {"a": {"format": "email"}}});
    assert_eq!(with_schema(&schema).expect("a schema").holds(r#"{"a":"x"}"#), Ok(()));
    let older =
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "properties": schema["properties"]});
    assert_eq!(with_schema(&older).expect("a schema").holds(r#"{"a":"x"}"#), Ok(()));
    assert_eq!(with_schema(&json!(true)).expect("a schema").holds("{}"), Ok(()));
    assert!(with_schema(&json!(false)).expect("a schema").holds("{}").is_err());
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
    assert_eq!(checker.holds(r#"{"left":{"right":{}}}"#), Ok(()));
    assert_eq!(checker.holds(r#"{"left":{"right":1}}"#).expect_err("a number").pointer, "/left/right");
    let doubling = json!({"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}});
    assert_eq!(with_schema(&doubling).expect_err("doubles").pointer, "/schema");
}

#[test]
fn the_deepest_schema_and_document_fit_on_the_stack_of_a_thread() {
    // One inside the other at each of 64 levels: nearly as many as are allowed.
    let member = |inner: Value| json!({"properties": {"a": inner}, "unevaluatedProperties": false});
    let data = format!("{}{{}}{}", r#"{"a":"#.repeat(63), "}".repeat(63));
    json_rules::check(&data).expect("deep enough");
    for schema in [
        json!({"$defs": {"x": {"$ref": "#"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}),
        json!({"properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": false}),
        json!({"anyOf": [{"properties": {"a": {"$ref": "#"}}}]}),
        json!({"if": {"properties": {"a": {"$ref": "#"}}}}),
        json!({"not": {"required": ["b"], "properties": {"a": {"$ref": "#"}}}}),
        json!({"allOf": [{"oneOf": [{"additionalProperties": {"$ref": "#"}}]}]}),
    ] {
        // The verdict about the document does not matter: there is one.
        if let Ok(checker) = with_schema(&schema) {
            let _ = checker.holds(&data);
        }
    }
    // As deep at one value, and by as many definitions as a schema can have.
    let deepest = (0..60).fold(json!({"type": "object"}), |inner, _| json!({"allOf": [inner]}));
    let mut defs: serde_json::Map<_, _> = (0..200)
        .map(|step| (format!("d{step}"), member(json!({"$ref": format!("#/$defs/d{}", step + 1)}))))
        .collect();
    defs.insert("d200".into(), deepest);
    let checker = with_schema(&json!({"$defs": defs, "$ref": "#/$defs/d0"}));
    let _ = checker.map(|checker| checker.holds(&data));
}

/// Letters without an order.
fn letters(count: u32) -> String {
    let letter = |at: u32| if at.wrapping_mul(2_654_435_761) >> 31 == 0 { 'a' } else { 'b' };
    (0..count).map(letter).collect()
}

/// Each takes seconds to hours where nothing stops it.
#[test]
fn a_check_ends_with_its_budget_whatever_makes_it_dear() {
    let text = json!({ "a": letters(100_000) }).to_string();
    let of = |schema: Value| json!({"properties": {"a": schema}});
    let items = |schema: Value| json!({"properties": {"a": {"items": schema}}});
    let many = |each: &str| format!(r#"{{"a":[{}{each}]}}"#, format!("{each},").repeat(30_000));
    let thirty: Vec<_> = (2_000..2_030).map(|n| json!({"pattern": format!("a[ab]{{{n}}}c")})).collect();
    let multiples: Vec<_> = (1..900).map(|n| json!({"multipleOf": 1e300 / f64::from(n)})).collect();
    let number = |n: u32| (format!("d{n}"), json!({"multipleOf": 0.7}));
    let refer = |n: u32| json!({"not": {"$ref": format!("#/$defs/d{n}")}});
    let references = json!({
        "$defs": (0..1_000).map(number).collect::<serde_json::Map<_, _>>(),
        "properties": {"a": {"items": {"allOf": (0..1_000).map(refer).collect::<Vec<_>>()}}},
    });
    let numbers: Vec<u32> = (0..9_000).collect();
    let keys: serde_json::Map<_, _> =
        (0..3_000).map(|n| (format!("{n}{}", letters(400)), json!(1))).collect();
    for (name, schema, data) in [
        ("a long way back", of(json!({"pattern": "a[ab]{9000}c"})), &text),
        ("many ways", of(json!({"pattern": "^(a|b)*a(a|b){1000}c"})), &text),
        ("thirty patterns", of(json!({ "anyOf": thirty })), &text),
        ("multiples", items(json!({"not": { "anyOf": multiples }})), &many("0.1")),
        ("references", references, &many("0.1")),
        ("an enum", items(json!({"not": {"enum": numbers}})), &many("-1.5")),
        ("keys", json!({"patternProperties": {"a[ab]{200}c": false}}), &Value::from(keys).to_string()),
    ] {
        let checker = with_schema(&schema).expect(name);
        let begin = std::time::Instant::now();
        let violation = checker.check(data, &Budget::of_ms(20)).expect_err(name);
        assert_eq!(violation.overrun, Some(Overrun::Time), "{name}: {violation}");
        assert!(begin.elapsed().as_secs() < 3, "{name}: {:?}", begin.elapsed());
    }
}

/// A hash that takes an array for the sequence of its leaves is the same for all of these.
#[test]
fn many_nests_of_the_same_leaves_are_told_apart_in_time() {
    let nest = |n: u32| {
        let wrap = |nest: String, bit: u32| {
            if n >> bit & 1 == 0 { format!("[{nest},1]") } else { format!("[1,{nest}]") }
        };
        (0..12).fold("[1]".to_owned(), wrap)
    };
    let data = format!(r#"{{"a":[{}]}}"#, (0..4_096).map(nest).collect::<Vec<_>>().join(","));
    let checker = with_schema(&json!({"properties": {"a": {"uniqueItems": true}}})).expect("good");
    assert_eq!(checker.check(&data, &Budget::of_ms(2_000)), Ok(()));
}

#[test]
fn a_check_beyond_its_budget_says_so_and_the_next_one_is_not_affected() {
    let checker = with_schema(&json!({"properties": {"a": {"pattern": "a[ab]{9000}c"}}})).expect("good");
    let data = json!({"a": letters(100_000)}).to_string();
    let violation = checker.check(&data, &Budget::of_ms(5)).expect_err("too dear");
    assert_eq!(violation.overrun, Some(Overrun::Time));
    assert!(violation.detail.contains("collections.check_ms_max"), "{violation}");
    assert_eq!(checker.holds(r#"{"b":"short"}"#), Ok(()));
    assert_eq!(checker.holds(r#"{"a":"b"}"#).expect_err("no match").overrun, None);
    // All documents of a request share one.
    let budget = Budget::of_ms(20);
    let dear = (0..10)
        .map(|_| checker.check(&data, &budget))
        .filter(|checked| matches!(checked, Err(violation) if violation.overrun.is_some()));
    assert_eq!(dear.count(), 10);
    assert!(budget.left().is_zero());
}

#[test]
fn long_keys_are_not_matched_where_a_match_cannot_be_stopped() {
    let checker = with_schema(&json!({"patternProperties": {"^(a|b)*a(a|b){100}c": false}})).expect("good");
    assert_eq!(checker.holds(&json!({"a".repeat(512): 1}).to_string()), Ok(()));
    let long = checker.holds(&json!({"a".repeat(513): 1}).to_string()).expect_err("too long");
    assert_eq!(long.overrun, Some(Overrun::Key));
    let other = with_schema(&json!({"properties": {"a": true}, "additionalProperties": {"type": "integer"}}));
    assert_eq!(other.expect("good").holds(&json!({"a".repeat(5_000): 1}).to_string()), Ok(()));
}

#[test]
fn uniqueness_is_that_of_values() {
    let checker = with_schema(&json!({"properties": {"a": {"uniqueItems": true}}})).expect("good");
    for (elements, is_unique) in [
        ("[1,2,\"1\",true,null,[1],{\"a\":1}]", true),
        ("[1,1.0]", false),
        ("[0,-0.0]", false),
        ("[1e2,100]", false),
        ("[1.5,15e-1]", false),
        ("[9007199254740993,9007199254740992.0]", true),
        ("[9007199254740993,9007199254740993.0]", false),
        ("[0.1,0.1000000000000000055]", true),
        ("[36893488147419103232,36893488147419103233,1e400,1e401]", true),
        ("[36893488147419103232,36893488147419103232.0]", false),
        ("[1e400,10e399]", false),
        ("[9007199254740992,9007199254740992.0]", false),
        ("[{\"a\":1,\"b\":2},{\"b\":2,\"a\":1.0}]", false),
        ("[[1,2],[2,1]]", true),
        ("[[1,[2]],[[1],2]]", true),
        ("[\"a\",\"\\u0061\"]", false),
    ] {
        let data = format!("{{\"a\":{elements}}}");
        assert_eq!(checker.holds(&data).is_ok(), is_unique, "{elements}");
    }
}

#[test]
fn patterns_of_people_are_taken_and_others_refused_by_the_name_of_their_limit() {
    let many: serde_json::Map<_, _> = (0..60)
        .map(|n| (format!("f{n}"), json!({"pattern": format!("^.{{1,{}}}$", 1_024 + n)})))
        .chain((0..60).map(|n| (format!("n{n}"), json!({"pattern": r"^[\p{L} .'-]{1,50}$"}))))
        .collect();
    let checker = with_schema(&json!({"properties": many})).expect("patterns of people");
    assert_eq!(checker.holds(r#"{"f1":"x","n1":"Zoë"}"#), Ok(()));
    assert_eq!(checker.holds(r#"{"f1":"x","n1":"4"}"#).expect_err("a digit").pointer, "/n1");
    for (schema, pointer, words) in [
        (json!({"pattern": "((a{1000}){1000}){1000}"}), "/schema/pattern", "states at most"),
        (json!({"pattern": "^(?!x)"}), "/schema/pattern", "look-around"),
        (json!({"pattern": r"(a)\1"}), "/schema/pattern", "back-references"),
        (
            json!({"patternProperties": {"((a{1000}){1000}){1000}": true}}),
            "/schema/patternProperties/((a{1000}){1000}){1000}",
            "bytes of memory",
        ),
        (json!({"patternProperties": {"^(?!x)": true}}), "/schema/patternProperties/^(?!x)", "look-around"),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(?!x)"}),
            "/schema/pattern",
            "look-around",
        ),
    ] {
        let refused = with_schema(&schema).expect_err("refused");
        assert_eq!(refused.pointer, pointer, "{refused}");
        assert!(refused.detail.contains(words) && !refused.detail.contains("is not a"), "{refused}");
    }
    for draft in [
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
    ] {
        with_schema(&json!({"$schema": draft, "properties": {"a": {"pattern": r"^[\p{L}]{1,2000}$"}}}))
            .expect(draft);
    }
}

/// A definition is compiled in milliseconds, whatever refers to what.
#[test]
fn compiling_is_bounded_by_the_text() {
    let chain = |width: usize, length: usize| {
        let mut defs: serde_json::Map<_, _> = (0..length)
            .map(|step| (format!("{step}"), json!({"items": {"anyOf": vec![json!({"$ref": format!("#/$defs/{}", step + 1)}); width]}})))
            .collect();
        defs.insert(length.to_string(), json!(true));
        json!({"$defs": defs, "$ref": "#/$defs/0"})
    };
    let circle: serde_json::Map<_, _> = (0..150)
        .map(|step| (step.to_string(), json!({"properties": (0..10).map(|other| (other.to_string(), json!({"$ref": format!("#/$defs/{}", (step * 7 + other) % 150)}))).collect::<serde_json::Map<_, _>>()})))
        .collect();
    for (name, schema) in [
        ("chain", chain(1, 1_000)),
        ("wide", chain(10, 180)),
        ("circle", json!({"$defs": circle, "$ref": "#/$defs/0"})),
    ] {
        assert!(schema.to_string().len() < SCHEMA_BYTES_MAX, "{name} {}", schema.to_string().len());
        let begin = std::time::Instant::now();
        let compiled = with_schema(&schema);
        assert!(begin.elapsed().as_secs() < 5, "{name}: {:?}", begin.elapsed());
        if let Ok(checker) = compiled {
            let _ = checker.holds(r#"{"0":{"1":{"2":[[[[]]]]}}}"#);
        }
    }
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
