//! How a document is answered.
use super::*;

#[test]
fn the_rendered_document_is_the_documented_shape() {
    let data = r#"{"b" : 1.0,"a":"ä"}"#;
    let rendered = render("i", "t", data);
    let body = DocumentBody::with(&"i", "applied");
    let data = RawValue::from_string(data.into()).expect("JSON");
    let expected = DocumentBody { accepted_at: Some("t".into()), data: Some(data), ..body };
    assert_eq!(rendered, serde_json::to_string(&expected).expect("serialises"));
}
