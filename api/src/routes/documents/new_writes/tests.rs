//! What becomes a document.
use shared::model::collection::{Collection, Definition};
use shared::model::idempotency::KEY_LENGTH_MAX;

use super::*;

fn drafted(text: &str) -> Result<NewWrite, serde_json::Value> {
    drafted_as(ItemForm::Document, text)
}

fn drafted_as(form: ItemForm, text: &str) -> Result<NewWrite, serde_json::Value> {
    let definition = Definition {
        schema: Some(r#"{"properties":{"n":{"type":"integer"}}}"#.into()),
        ..Definition::default()
    };
    let checker = Checker::new(&Collection { definition, version: 7, ..Collection::default() });
    let limits =
        BodyLimits { bytes_max: 2_000, items_max: 1, item_bytes_max: 1_000, timeout: Duration::ZERO };
    let checker = Some(Arc::new(checker.expect("a definition")));
    let reader = Reader {
        form,
        is_keyed: false,
        collection: "things".into(),
        checker,
        limits,
        refused: Arc::default(),
    };
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
fn a_member_of_a_document_is_never_a_key() {
    let long = format!(r#"{{"idempotency_key":"{}"}}"#, "k".repeat(KEY_LENGTH_MAX + 1));
    for text in [
        r#"{"idempotency_key":"k-1"}"#,
        r#"{"idempotency\u005fkey":"k"}"#,
        r#"{"idempotency_key":1}"#,
        r#"{"idempotency_key":null}"#,
        r#"{"idempotency_key":{"document":[]}}"#,
        &long,
    ] {
        let draft = drafted(text).expect(text);
        assert_eq!(draft.own_key, None, "{text}");
        let Write::Document(document) = draft.write else { panic!("a document") };
        assert_eq!(document.data.as_str(), text);
    }
}

#[test]
fn a_keyed_item_has_a_document_and_may_have_a_key() {
    for (text, key) in [
        (r#"{"idempotency_key":"k-1","document":{"idempotency_key":2}}"#, Some("k-1")),
        (r#" {"document" : {"idempotency_key":2} , "idempotency\u005fkey":"k\u002d1"} "#, Some("k-1")),
        (r#"{"document":{"idempotency_key":2}}"#, None),
    ] {
        let draft = drafted_as(ItemForm::Keyed, text.trim()).expect(text);
        assert_eq!(draft.own_key.as_deref(), key, "{text}");
        // Made with the document, away from the worker, and only where there is a key.
        assert_eq!(draft.fingerprint, key.map(|_| idempotency::fingerprint(&draft.write)), "{text}");
        let Write::Document(document) = draft.write else { panic!("a document") };
        assert_eq!(document.data.as_str(), r#"{"idempotency_key":2}"#);
    }
}

#[test]
fn what_is_no_keyed_item_is_pointed_at() {
    let with_key = |key: &str| format!(r#"{{"idempotency_key":{key},"document":{{}}}}"#);
    let long = with_key(&format!(r#""{}""#, "k".repeat(KEY_LENGTH_MAX + 1)));
    for (text, pointer) in [
        (r#"[{"document":{}}]"#, Some("")),
        ("5", Some("")),
        ("{}", Some("")),
        (r#"{"idempotency_key":"k"}"#, Some("")),
        (r#"{"document":{},"n":1}"#, Some("/n")),
        (r#"{"document":{},"document":{}}"#, Some("")),
        (r#"{"document":[]}"#, Some("/document")),
        (r#"{"document":null}"#, Some("/document")),
        (r#"{"document":{"n":"x"}}"#, Some("/document/n")),
        (r#"{"document":{"a":[{"b":1,"b":2}]}}"#, Some("/document/a/0")),
        (&with_key("null"), Some("/idempotency_key")),
        (&with_key("1"), Some("/idempotency_key")),
        (&with_key("\"\""), Some("/idempotency_key")),
        (&with_key("\"ä\""), Some("/idempotency_key")),
        (&with_key("[\"k\"]"), Some("/idempotency_key")),
        (&long, Some("/idempotency_key")),
        (&format!(r#"{{"document":{{"a":"{}"}}}}"#, "x".repeat(1_000)), None),
    ] {
        let problem = drafted_as(ItemForm::Keyed, text).expect_err(text);
        assert_eq!(problem["status"], if pointer.is_some() { 422 } else { 413 }, "{text}");
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{text} {problem}");
    }
}

#[test]
fn the_form_of_the_items_is_asked_for_by_the_query() {
    for (query, form) in
        [("", ItemForm::Document), ("&", ItemForm::Document), ("items=keyed", ItemForm::Keyed)]
    {
        assert_eq!(ItemForm::of(query).expect(query), form);
    }
    for (query, parameter) in [
        ("items=", "items"),
        ("items=plain", "items"),
        ("items=keyed&items=keyed", "items"),
        ("items=keyed&x=1", "x"),
    ] {
        let problem = serde_json::to_value(ItemForm::of(query).expect_err(query)).expect("serialises");
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}");
    }
}

#[test]
fn what_is_no_document_is_pointed_at() {
    for (text, status, pointer) in [
        ("[1]", 422, Some("")),
        ("\"x\"", 422, Some("")),
        (r#"{"a":{"b":"\ud800"}}"#, 422, Some("/a/b")),
        (r#"{"a":1,"a":1}"#, 422, Some("")),
        (r#"{"n":"x"}"#, 422, Some("/n")),
        (&format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000)), 413, None),
    ] {
        let problem = drafted(text).expect_err(text);
        assert_eq!(problem["status"], status, "{text}");
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{text}");
    }
}
