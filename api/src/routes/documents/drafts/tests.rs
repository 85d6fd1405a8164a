//! What becomes a document.
use shared::model::collection::{Collection, Definition};
use shared::model::idempotency::KEY_LENGTH_MAX;

use super::*;

fn drafted(text: &str) -> Result<Draft, serde_json::Value> {
    let definition = Definition {
        schema: Some(r#"{"properties":{"n":{"type":"integer"}}}"#.into()),
        ..Definition::default()
    };
    let checker = Checker::new(&Collection { definition, version: 7, ..Collection::default() });
    let limits =
        BodyLimits { bytes_max: 2_000, items_max: 1, item_bytes_max: 1_000, timeout: Duration::ZERO };
    let checker = Some(Arc::new(checker.expect("a definition")));
    let reader = Reader { collection: "things".into(), checker, limits, refused: Arc::default() };
    let raw = serde_json::from_str(text).expect("JSON");
    reader
        .draft(raw, &Budget::new(Duration::from_secs(1)))
        .map_err(|problem| serde_json::to_value(problem).expect("serialises"))
}

#[test]
fn a_document_keeps_its_text_and_carries_the_version_that_it_was_checked_with() {
    let text = r#"{ "n" : 1,  "x":1.50 }"#;
    let draft = drafted(text).expect("a document");
    let Write::Document(document) = draft.write else { panic!("a document") };
    assert_eq!((&*document.collection, document.schema_version), ("things", Some(7)));
    assert_eq!(document.data.as_str(), text);
    assert_eq!(draft.own_key, None);
}

#[test]
fn an_own_key_is_a_string_however_it_is_spelled() {
    for text in [r#"{"idempotency_key":"k-1"}"#, r#"{"idempotency\u005fkey":"k\u002d1"}"#] {
        assert_eq!(drafted(text).expect("a document").own_key.as_deref(), Some("k-1"), "{text}");
    }
    let long = format!(r#""{}""#, "k".repeat(KEY_LENGTH_MAX + 1));
    for bad in ["null", "1", "\"\"", "\"ä\"", "[\"k\"]", &long] {
        let problem = drafted(&format!(r#"{{"idempotency_key":{bad}}}"#)).expect_err(bad);
        assert_eq!(problem["errors"][0]["pointer"], "/idempotency_key", "{bad}");
    }
}

#[test]
fn what_is_no_document_is_pointed_at() {
    for (text, status, pointer) in [
        ("[1]", 422, Some("")),
        ("\"x\"", 422, Some("")),
        (r#"{"a":{"b":"\u0000"}}"#, 422, Some("/a/b")),
        (r#"{"a":1,"a":1}"#, 422, Some("")),
        (r#"{"n":"x"}"#, 422, Some("/n")),
        (&format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000)), 413, None),
    ] {
        let problem = drafted(text).expect_err(text);
        assert_eq!(problem["status"], status, "{text}");
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{text}");
    }
}
