//! JSON texts that parsers are known to read in different ways: each is taken as it stands, or refused.
use reqwest::{Method, Response};

use crate::support::{Installation, embedded, json, problem};

async fn send(installation: &Installation, text: &[u8]) -> Response {
    let request =
        installation.at(0, Method::POST, "/v1/data/texts").header("content-type", "application/json");
    request.header("prefer", "wait=20").body(text.to_owned()).send().await.expect("an answer")
}

/// An object with this value, `levels` deep in all.
fn nested(levels: usize) -> String {
    let inner = levels - 1;
    format!(r#"{{"a":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_json_comes_back_byte_by_byte() {
    embedded(|installation| async {
        let many_digits = format!(r#"{{"a":0.{}}}"#, "1".repeat(999));
        let texts = [
            "{}",
            "{ \t\r\n}",
            r#"{"":0}"#,
            r#"{"a":[],"b":{}}"#,
            r#"{"A":1,"a":2,"á":3,"a\u0301":4}"#,
            r#"{"__proto__":{"constructor":null}}"#,
            r#"{"a":-0,"b":-0.0,"c":0e0,"d":0E+0,"e":0.0e-0}"#,
            r#"{"a":1E2,"b":1e+2,"c":1e-2,"d":1.50,"e":123e-10}"#,
            r#"{"a":9007199254740993,"b":-9223372036854775808,"c":9223372036854775807}"#,
            r#"{"a":1e308,"b":5e-324,"c":1.7976931348623157e308}"#,
            r#"{"a":9223372036854775808,"b":-9223372036854775809,"c":1e309,"d":-1e999,"e":1e-999}"#,
            r#"{"a":"\u0000","\u0000":1}"#,
            &many_digits,
            r#"{"a":"\u0061\u30AF\u30af","\u0061b":"\/\b\f\n\r\t\"\\"}"#,
            r#"{"a":"\uD834\uDD1E","b":"\udbff\udfff","c":"𝄞"}"#,
            "{\"a\":\"\u{7f}\u{80}\u{2028}\u{2029}\u{feff}\u{ffff}\u{10ffff}\"}",
            &nested(64),
        ];
        for text in texts {
            let answer = send(&installation, text.as_bytes()).await;
            assert_eq!(answer.status(), 201, "{text}");
            let location = answer.headers()["location"].to_str().expect("text").to_owned();
            let stored = installation.get(&location).await.text().await.expect("text");
            assert!(stored.ends_with(&format!(r#","data":{text}}}"#)), "{text}: {stored}");
        }
        // White space and marks around the text are no part of the document.
        for text in [&b" \t\r\n{\"a\":1}\r\n\t "[..], b"\xef\xbb\xbf{\"a\":1}"] {
            let around = json(send(&installation, text).await).await;
            assert_eq!(around["data"], serde_json::json!({"a": 1}));
        }
        installation
    })
    .await;
}

/// Not JSON by RFC 8259, whatever some parsers make of it.
const NO_JSON: [&[u8]; 66] = [
    b" \t\n",
    b"\xef\xbb\xbf\xef\xbb\xbf{}",
    b"\xfe\xff\0{\0}",
    b"\xff\xfe{\0}\0",
    b"{\0}\0",
    b"{}x",
    b"{}{}",
    b"{},",
    b"{}}",
    b"{}\0",
    b"{}//",
    b"{}#",
    b"\x0c{}",
    b"\xc2\xa0{}",
    b"{/**/}",
    b"{",
    b"{\"a\"",
    b"{\"a\":",
    b"{\"a\":1",
    b"{\"a\":1,}",
    b"{,}",
    b"{\"a\"}",
    b"{\"a\" 1}",
    b"{\"a\"::1}",
    b"{\"a\":1 \"b\":2}",
    b"{\"a\":1;\"b\":2}",
    b"{a:1}",
    b"{'a':1}",
    b"{1:1}",
    b"{null:1}",
    b"{\"a\":'b'}",
    b"{\"a\":[1,]}",
    b"{\"a\":[,1]}",
    b"{\"a\":[1 2]}",
    b"{\"a\":[1}",
    b"{\"a\":{]}",
    b"{\"a\":01}",
    b"{\"a\":-01}",
    b"{\"a\":+1}",
    b"{\"a\":-}",
    b"{\"a\":--1}",
    b"{\"a\":.5}",
    b"{\"a\":5.}",
    b"{\"a\":1.e1}",
    b"{\"a\":1e}",
    b"{\"a\":1e+}",
    b"{\"a\":1e1.5}",
    b"{\"a\":0x1}",
    b"{\"a\":1_000}",
    b"{\"a\":\xef\xbc\x91}",
    b"{\"a\":NaN}",
    b"{\"a\":-Infinity}",
    b"{\"a\":True}",
    b"{\"a\":nul}",
    b"{\"a\":undefined}",
    b"{\"a\":\"b}",
    b"{\"a\":\"\\x41\"}",
    b"{\"a\":\"\\u12\"}",
    b"{\"a\":\"\\U00000041\"}",
    b"{\"a\":\"\\u00g0\"}",
    b"{\"a\":\"\n\"}",
    b"{\"a\":\"\t\"}",
    b"{\"a\":\"\0\"}",
    b"{\"a\":\"\xc0\xaf\"}",
    b"{\"a\":\"\xed\xa0\x80\"}",
    b"{\"a\":\"\xf4\x90\x80\x80\"}",
];

/// JSON that readers do not agree about.
fn ambiguous() -> Vec<String> {
    let texts = [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"b":[{"a":1,"a":2}]}"#,
        r#"{"":1,"":2}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\ud800a"}"#,
        r#"{"a":"\ud800\n"}"#,
        r#"{"a":"\udc00\ud800"}"#,
        r#"{"\udfff":1}"#,
        r#"{"a":1e10000}"#,
        r#"{"a":-1E-10000}"#,
        "null",
        "true",
        "5",
        r#""{}""#,
        "[]",
        "[5]",
        "[[{}]]",
    ];
    let mut texts = texts.map(str::to_owned).to_vec();
    texts.extend([nested(65), nested(10_000), format!(r#"{{"a":{}}}"#, "1".repeat(1_001))]);
    texts.push(format!(r#"{{"a":0.{}}}"#, "1".repeat(1_000)));
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_or_is_read_in_two_ways_is_refused_and_nothing_of_it_stored() {
    embedded(|installation| async {
        let ambiguous = ambiguous();
        let refused = NO_JSON.iter().map(|text| (400, *text));
        for (status, text) in refused.chain(ambiguous.iter().map(|text| (422, text.as_bytes()))) {
            let shown = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
            let answer = send(&installation, text).await;
            assert_eq!(answer.status().as_u16(), status, "{shown:?}");
            let problem = problem(answer, status).await;
            assert!(problem["detail"].is_string() || problem["errors"].is_array(), "{shown:?}: {problem}");
        }
        let listed = json(installation.get("/v1/data/texts").await).await;
        assert_eq!(listed["items"], serde_json::json!([]));
        installation
    })
    .await;
}
