//! Forms of keys that are accepted, lists of them, and the rule that none is ever shown.
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

const NOW_MS: i64 = NOW.unix_timestamp() * 1_000;

fn made(id: &str, expires_at: Option<OffsetDateTime>) -> (String, ApiKey) {
    let id = KeyId::try_from(id.to_owned()).expect("an id");
    let principal = Principal::try_from("shop".to_owned()).expect("a name");
    generate(id, principal, Scopes(vec![Scope::Read]), expires_at)
}

fn token(text: &str) -> Token<'_> {
    Token::parse(text).expect("a key")
}

#[test]
fn a_key_opens_by_its_whole_text_only() {
    let ((one, first), (two, second)) = (made("one", None), made("two", None));
    let ring = KeyRing::new([first.clone(), second]).expect("distinct ids");
    assert_eq!(ring.open(token(&one), NOW_MS).map(|key| &**key), Ok(&first));
    // The secret of the other under this id, and one digit changed.
    let swapped = format!("fb_one_{}", &two["fb_two_".len()..]);
    let last = if one.ends_with('0') { "1" } else { "0" };
    let changed = format!("{}{last}", &one[..one.len() - 1]);
    let unknown = one.replace("fb_one", "fb_three");
    for wrong in [swapped, changed, unknown] {
        assert_eq!(ring.open(token(&wrong), NOW_MS), Err(Unfit::Unknown), "{wrong}");
    }
    assert!(KeyRing::new([first.clone(), first]).expect_err("twice").contains("one"));
}

#[test]
fn a_key_ends_at_its_end_and_only_its_holder_learns_it() {
    let (text, key) = made("a", Some(NOW));
    let ring = KeyRing::new([key]).expect("one key");
    assert!(ring.open(token(&text), NOW_MS - 1).is_ok());
    assert_eq!(ring.open(token(&text), NOW_MS), Err(Unfit::Expired));
    let (other, _) = made("a", None);
    assert_eq!(ring.open(token(&other), NOW_MS), Err(Unfit::Unknown));
}

#[test]
fn what_has_not_the_shape_of_a_key_is_none() {
    let secret = "0".repeat(64);
    for good in [format!("fb_a_{secret}"), format!("fb_A-9_{secret}")] {
        assert!(Token::parse(&good).is_some(), "{good}");
    }
    for bad in [
        String::new(),
        "fb__".into(),
        format!("fb__{secret}"),
        format!("fb_a_b_{secret}"),
        format!("xx_a_{secret}"),
        format!("fb_a_{secret}0"),
        format!("fb_a_{}", &secret[1..]),
        format!("fb_a_{}", "A".repeat(64)),
        format!("fb_{}_{secret}", "a".repeat(65)),
        format!("fb_a_{secret} "),
    ] {
        assert!(Token::parse(&bad).is_none(), "{bad}");
    }
}

#[test]
fn admin_includes_the_others_and_nothing_else_includes_any() {
    let allowed = |scopes: &[Scope]| {
        let scopes = Scopes::try_from(scopes.to_vec()).expect("some");
        [Scope::Read, Scope::Write, Scope::Admin].map(|needed| scopes.allow(needed))
    };
    assert_eq!(allowed(&[Scope::Read]), [true, false, false]);
    assert_eq!(allowed(&[Scope::Write]), [false, true, false]);
    assert_eq!(allowed(&[Scope::Read, Scope::Write]), [true, true, false]);
    assert_eq!(allowed(&[Scope::Admin]), [true, true, true]);
    assert!(Scopes::try_from(Vec::new()).is_err());
}

#[test]
fn hashes_differ_wherever_one_digit_does() {
    let base = KeyHash::try_from("ab".repeat(32)).expect("digits");
    assert_eq!(base, KeyHash::try_from("AB".repeat(32)).expect("digits"));
    for place in 0..64 {
        let mut text = "ab".repeat(32);
        text.replace_range(place..=place, "0");
        assert_ne!(base, KeyHash::try_from(text).expect("digits"), "{place}");
    }
}

#[test]
fn a_list_is_read_back_as_it_was_written() {
    let keys = vec![made("a", Some(NOW)).1, made("b", None).1];
    let json = serde_json::to_string(&keys).expect("plain values");
    assert_eq!(list_of(&json).as_ref(), Ok(&keys));
    let lines: Vec<_> = json[1..json.len() - 1].split_inclusive("},").collect();
    let yaml =
        lines.iter().map(|line| ["- ", line.trim_end_matches(',')].concat()).collect::<Vec<_>>().join("\n");
    assert_eq!(list_of(&format!("# comment\n{yaml}")), Ok(keys));
    assert_eq!(list_of("[]"), Ok(Vec::new()));
}

#[test]
fn a_broken_list_names_the_place_and_quotes_nothing() {
    let (text, key) = made("a", None);
    let good = serde_json::to_value(&key).expect("plain values");
    let with = |member: &str, value: serde_json::Value| {
        let mut bad = good.clone();
        bad[member] = value;
        serde_json::json!([good, bad]).to_string()
    };
    for (list, detail) in [
        (with("sha256", (*text).into()), "key 2, sha256: expected 64 hexadecimal digits"),
        (with("sha256", 7.into()), "key 2, sha256"),
        (with("id", (*text).into()), "key 2, id: expected 1 to 64 characters"),
        (with("principal", (*text).into()), "key 2, principal: expected"),
        (with("scopes", serde_json::json!([text])), "read"),
        (with("scopes", serde_json::json!([])), "key 2, scopes: expected at least one"),
        (with("expires_at", (*text).into()), "key 2, expires_at"),
        (with("rate_limit", "x".into()), "key 2"),
        (with(&text, "x".into()), "key 2"),
        (String::new(), "expected a list"),
        (format!("{{{text}"), "expected a list"),
        (text.clone(), "expected a list"),
        (format!("key: {text}"), "expected a list"),
    ] {
        let error = list_of(&list).expect_err(detail);
        assert!(error.contains(detail), "{error}");
        assert!(!error.contains(&text[10..]), "{error}");
    }
}

#[test]
fn nothing_shows_a_secret_or_a_hash() {
    let (text, key) = made("shown", None);
    let shown = format!("{key:?} {:?}", token(&text));
    assert!(shown.contains("shown"), "{shown}");
    assert!(!shown.contains(&text[10..]) && !shown.contains(&String::from(key.sha256)), "{shown}");
}
