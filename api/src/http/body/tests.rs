//! What bodies are read as, and what is said of those that cannot be.
use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    x: i64,
}

fn limits(items_max: usize) -> BodyLimits {
    BodyLimits { bytes_max: 9_000, items_max, item_bytes_max: 9_000, timeout: Duration::from_secs(1) }
}

fn shown(problem: &Problem) -> serde_json::Value {
    serde_json::to_value(problem).expect("serialises")
}

#[test]
fn an_error_points_at_its_field() {
    let problem = shown(&one::<Point>(br#"{"x":"one"}"#, 9_000).expect_err("a string"));
    assert_eq!(problem["status"], 422);
    assert_eq!(problem["errors"][0]["pointer"], "/x");
    let problem = shown(&one::<Point>(br#"{"x":1"#, 9_000).expect_err("cut off"));
    assert_eq!(problem["status"], 400);
}

#[test]
fn an_array_of_the_members_is_no_item() {
    let problem = shown(&one::<Point>(b"[1]", 9_000).expect_err("an array"));
    assert_eq!(problem["status"], 422);
    for items in [array::<Point>(b"[[1]]", &limits(1)), lines::<Point>(b"[1]", &limits(1))] {
        assert_eq!(items.expect("well-formed").rejected.len(), 1);
    }
}

#[test]
fn a_bad_item_of_an_array_is_told_by_its_index_and_the_rest_is_taken() {
    let items = array::<Point>(br#"[{"x":1},{"y":1},{"x":1e3},{"x":4}]"#, &limits(4)).expect("an array");
    assert_eq!(items.valid, [(0, Point { x: 1 }), (3, Point { x: 4 })]);
    assert_eq!(items.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_syntax_error_spoils_a_whole_array_but_one_line_only() {
    let problem = array::<Point>(br#"[{"x":1},{"x":]"#, &limits(9)).expect_err("broken");
    assert_eq!(problem.status().as_u16(), 400);
    let items = lines::<Point>(b"{\"x\":1}\n\n{\"x\":\r\n{\"x\":3}\n", &limits(9)).expect("lines");
    assert_eq!(items.valid, [(0, Point { x: 1 }), (2, Point { x: 3 })]);
    assert_eq!(shown(&items.rejected[0].problem)["status"], json!(400));
}

#[test]
fn raw_items_are_taken_as_they_were_written_and_told_by_index() {
    let take = |item: &RawValue| match item.get() {
        "5" => Err(Problem::malformed("five")),
        item => Ok(item.to_owned()),
    };
    let items = array_raw(b" [ {\"a\" : 1.0}, 5,\"\\ud800\" ]", 3, take).expect("an array");
    assert_eq!(items.valid, [(0, r#"{"a" : 1.0}"#.to_owned()), (2, r#""\ud800""#.to_owned())]);
    assert_eq!(items.rejected[0].index, 1);
    assert_eq!(array_raw(b"[1,", 3, take).expect_err("broken").status().as_u16(), 400);
    let items = lines_raw(b" 1 \n\n[\n5\n2\r\n", 4, take).expect("lines");
    assert_eq!(items.valid, [(0, "1".to_owned()), (3, "2".to_owned())]);
    assert_eq!(items.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(one_raw(b" {\"a\":1}\n", take).expect("one"), r#"{"a":1}"#);
    assert_eq!(one_raw(b"1 2", take).expect_err("two").status().as_u16(), 400);
    assert_eq!(array_raw(b"[1,2]", 1, take).expect_err("two").status().as_u16(), 413);
    assert_eq!(lines_raw(b"\n", 1, take).expect_err("none").status().as_u16(), 422);
}

#[test]
fn the_number_of_items_is_limited_on_both_sides() {
    for (text, status) in [("[]", 422), ("[{\"x\":1},{\"x\":2},{\"x\":3}]", 413)] {
        let problem = array::<Point>(text.as_bytes(), &limits(2)).expect_err("out of bounds");
        assert_eq!(problem.status().as_u16(), status, "{text}");
    }
    let problem = lines::<Point>(b"1\n2\n3\n", &limits(2)).expect_err("too many");
    assert_eq!(problem.status().as_u16(), 413);
}

#[test]
fn quoted_input_is_cut() {
    let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(5_000));
    let problem = shown(&one::<Point>(long.as_bytes(), 9_000).expect_err("a string"));
    assert!(problem.to_string().len() < 1_000);
}

#[test]
fn broken_json_is_malformed_whatever_comes_before_the_break() {
    for broken in [
        r#"{"x":"one"#,
        r#"{"x":"one""#,
        r#"{"x":"one"} {}"#,
        r#"{"y":1,"x"}"#,
        r#"{"x":"\ud800",}"#,
        "[1",
        "null x",
    ] {
        let problem = one::<Point>(broken.as_bytes(), 9_000).expect_err(broken);
        assert_eq!(problem.status().as_u16(), 400, "{broken}");
    }
    let items = lines::<Point>(b"{\"x\":\"one\"\n{\"x\":\"one\"}\n", &limits(9)).expect("lines");
    let statuses: Vec<_> = items.rejected.iter().map(|rejected| rejected.problem.status().as_u16()).collect();
    assert_eq!(statuses, [400, 422]);
}

#[test]
fn half_a_surrogate_pair_is_invalid_and_pointed_at_as_in_documents() {
    for (json, pointer) in [
        (r#"{"x":"\ud800"}"#, "/x"),
        (r#"{"\udc00":1}"#, ""),
        (r#"{"y":["\ud800x"]}"#, "/y/0"),
        (r#"{"x":1,"x":1}"#, ""),
    ] {
        let problem = shown(&one::<Point>(json.as_bytes(), 9_000).expect_err(json));
        assert_eq!(problem["status"], 422, "{json}");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{json}");
    }
}

#[test]
fn an_item_that_is_too_large_is_told_by_its_index_among_the_other_bad_ones() {
    let good = r#"{"x":1}"#;
    let large = format!(r#"{{"x":{}1}}"#, " ".repeat(9));
    let limits = BodyLimits { item_bytes_max: good.len(), ..limits(9) };
    let text = format!("{good}\n{{\n{large}\n[]\n  {good}  ");
    let items = lines::<Point>(text.as_bytes(), &limits).expect("lines");
    assert_eq!(items.valid.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 4]);
    let statuses: Vec<_> =
        items.rejected.iter().map(|rejected| (rejected.index, rejected.problem.status().as_u16())).collect();
    assert_eq!(statuses, [(1, 400), (2, 413), (3, 422)]);
    let items = array::<Point>(format!("[{good}, {large}]").as_bytes(), &limits).expect("an array");
    assert_eq!((items.valid.len(), items.rejected[0].problem.status().as_u16()), (1, 413));
    let refused = one::<Point>(large.as_bytes(), good.len()).expect_err("too large");
    assert_eq!(refused.status().as_u16(), 413);
}

#[test]
fn the_only_charset_is_utf_8() {
    let read = |content_type: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        MediaType::of(&headers, Taken::All).map_err(|problem| problem.status().as_u16())
    };
    for good in [
        "application/json",
        "application/json;",
        "application/json;charset=UTF-8;x=y",
        "application/json; Charset=\"utf-8\"",
        "application/json; x=latin1",
        r#"application/json; x="a;charset=latin1""#,
        r#"application/json; x="\";charset=latin1""#,
    ] {
        assert!(read(good).is_ok(), "{good}");
    }
    for bad in [
        "application/json; charset=latin1",
        "application/json; x=y; charset=utf-16",
        "application/x-ndjson;CHARSET=\"iso-8859-1\"",
        "application/json; charset=",
        "application/json; charset",
        r#"application/json; x="a"; charset=latin1"#,
        r#"application/json; x="a"#,
    ] {
        assert_eq!(read(bad).expect_err(bad), 415, "{bad}");
    }
}
