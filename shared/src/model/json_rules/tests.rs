//! Rules for JSON texts, by examples and by chance.
use std::fmt::Write;

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;

fn flaw(text: &str) -> Option<(String, Flaw)> {
    serde_json::from_str::<&RawValue>(text).expect("JSON as far as a reader of bodies can tell");
    check(text).err().map(|flawed| (flawed.pointer, flawed.flaw))
}

fn at(pointer: &str, flaw: Flaw) -> (String, Flaw) {
    (pointer.into(), flaw)
}

#[test]
fn plain_values_are_taken() {
    for good in [
        r#"{"a":[1,-0,1.5,1e3,true,false,null,"x"],"b":{"a":{}},"":"","e\u00e9":"\"\\\ud83d\ude00"}"#,
        "[9223372036854775807, -9223372036854775808, 5e-324, 1.7976931348623157e308, 0e999, 1E+2]",
        "[1e30, 0.0000000000000000000000000000000000001, 1e9999, -1E-9999, 0e0009999]",
        "[9223372036854775808, -9223372036854775809, 18446744073709551616, 1e999, 1e-999]",
        r#"{"\u0000":"a\u0000"}"#,
        r#"[{"a":1},{"a":1},{"b":{"a":1},"a":2}]"#,
        "\"x\"",
        " null ",
    ] {
        assert_eq!(flaw(good), None, "{good}");
    }
}

#[test]
fn a_key_stands_once_in_an_object_however_it_is_spelled() {
    assert_eq!(flaw(r#"{"a":1,"b":{"c":1,"c":2}}"#), Some(at("/b", Flaw::DuplicateKey)));
    assert_eq!(flaw(r#"{"a":1,"\u0061":2}"#), Some(at("", Flaw::DuplicateKey)));
    assert_eq!(flaw(r#"[{"a":{}},{"b":1,"c":[],"b":1}]"#), Some(at("/1", Flaw::DuplicateKey)));
}

#[test]
fn halves_of_surrogate_pairs_are_refused_anywhere() {
    for half in [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\n", r"\ud800\ud800", r"\uD83D\uFFFF"] {
        assert_eq!(
            flaw(&format!(r#"{{"a/~":"{half}"}}"#)),
            Some(at("/a~1~0", Flaw::LoneSurrogate)),
            "{half}"
        );
        assert_eq!(flaw(&format!(r#"{{"{half}":1}}"#)), Some(at("", Flaw::LoneSurrogate)), "{half}");
    }
    assert_eq!(flaw(r#""\\u0000 \\ud800""#), None);
}

#[test]
fn numbers_are_bounded_by_their_digits_and_their_exponent() {
    let most = "1".repeat(DIGITS_MAX);
    for good in [&most, &format!("-0.{}", &most[1..]), &format!("{}e9999", &most[4..])] {
        assert_eq!(flaw(&format!(r#"{{"n":[{good}]}}"#)), None, "{good}");
    }
    for (number, why) in [
        ("1e10000", Flaw::Exponent),
        ("-1e-10000", Flaw::Exponent),
        ("0E+10000", Flaw::Exponent),
        ("1e99999999999999999999", Flaw::Exponent),
        (&format!("{most}1"), Flaw::Digits),
        (&format!("0.{most}"), Flaw::Digits),
        (&format!("{most}e1"), Flaw::Digits),
    ] {
        assert_eq!(flaw(&format!(r#"{{"n":[{number}]}}"#)), Some(at("/n/0", why)), "{number}");
        assert_eq!(flaw(number), Some(at("", why)), "{number}");
    }
}

#[test]
fn a_schema_has_the_numbers_that_64_bits_hold() {
    for good in
        ["9223372036854775807", "18446744073709551615", "-9223372036854775808", "0.1", "1e20", "-0", "1e300"]
    {
        assert_eq!(check_schema(&format!(r#"{{"maximum":{good}}}"#)), Ok(()), "{good}");
    }
    for bad in ["18446744073709551616", "9007199254740993.0", "0.1000000000000000055", "1e400", "1e-400"] {
        let flawed = check_schema(&format!(r#"{{"maximum":{bad}}}"#)).expect_err(bad);
        assert_eq!(flawed, Flawed { pointer: "/maximum".into(), flaw: Flaw::Rounded }, "{bad}");
    }
}

#[test]
fn depth_is_limited_and_members_are_not() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(flaw(&nested(DEPTH_MAX)), None);
    assert_eq!(flaw(&nested(DEPTH_MAX + 1)).map(|found| found.1), Some(Flaw::Depth));
    assert_eq!(flaw(&nested(100_000)).map(|found| found.1), Some(Flaw::Depth));
    let members = |count: usize| {
        let mut text = String::from("[{\"a\":1}");
        for key in 1..count {
            write!(text, ",{{\"k{key}\":0}}").expect("a string takes all");
        }
        text + "]"
    };
    assert_eq!(flaw(&members(50_000)), None);
}

#[test]
fn the_documented_limits_are_those_of_the_program() {
    let documents = include_str!("../../../../docs/documents.md");
    let contract = include_str!("../../../../docs/openapi.json");
    for (row, words) in [
        (format!("| {DEPTH_MAX} (`DEPTH_MAX`) |"), format!("nested {DEPTH_MAX} deep at most")),
        (format!("| {DIGITS_MAX} (`DIGITS_MAX`) |"), format!("a number has {DIGITS_MAX} digits at most")),
        (
            format!("| -{EXPONENT_MAX} to {EXPONENT_MAX} (`EXPONENT_MAX`) |"),
            format!("an exponent from -{EXPONENT_MAX} to {EXPONENT_MAX}"),
        ),
    ] {
        assert!(documents.contains(&row), "{row}");
        assert!(contract.contains(&words), "{words}");
    }
}

#[test]
fn a_pointer_is_cut() {
    let key = "ä".repeat(5_000);
    let (pointer, _) = flaw(&format!(r#"{{"{key}":1e99999}}"#)).expect("flawed");
    assert!(pointer.len() <= POINTER_BYTES_MAX);
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter("no JSON", |float| float.is_finite()).prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let array = proptest::collection::vec(inner.clone(), 0..8).prop_map(Into::into);
        let members = proptest::collection::vec((".{0,3}", inner), 0..8);
        let object = members.prop_map(|members| serde_json::Value::Object(members.into_iter().collect()));
        prop_oneof![array, object]
    })
}

proptest! {
    #[test]
    fn what_a_serializer_writes_is_taken(value in any_value()) {
        prop_assert_eq!(check(&value.to_string()), Ok(()));
        prop_assert_eq!(check(&serde_json::to_string_pretty(&value).expect("JSON")), Ok(()));
    }

    #[test]
    fn what_is_taken_is_read(text in r#"[\[\]{}:,"\\ue0-9a-d.+ -]{0,40}"#) {
        if let Ok(raw) = serde_json::from_str::<&RawValue>(&text) && check(&text).is_ok() {
            prop_assert!(Tree::read(raw.get()).is_some(), "{}", text);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in r#"[\[\]{}:,"\\udD8cC0-9eé.+-]{0,40}"#) {
        let _ = check(&text);
    }
}
