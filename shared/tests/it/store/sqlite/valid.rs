//! Items that a consumer may apply: none is refused by SQLite alone. So there is no search for such
//! items, as there is on Postgres.
use std::cell::RefCell;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use shared::model::id::{ItemKey, Kind};
use shared::model::message::{Builder, Message, decode, encode};
use shared::model::outcome::Reason;
use shared::model::write::{Item, NAME_LENGTH_MAX, POINT_AGE_MS_MAX, POINT_AHEAD_MS_MAX, VALUE_MAX};

use super::*;
use crate::store::sent::{checked_document, identity};

const CASES: u32 = 96;

/// An item whose message is not known yet.
#[derive(Clone, Debug)]
struct Sent {
    what: What,
    key: Option<u8>,
}

#[derive(Clone, Debug)]
enum What {
    Increment(String, i64),
    Document(String, Option<i64>, String),
    /// Deletion of a document under a key, or of the item with this index of the first message.
    Delete(String, Result<u8, usize>),
    /// Point whose time is counted from the acceptance.
    Point(String, i64, f64),
}

fn name() -> impl Strategy<Value = String> {
    let longest = "x".repeat(NAME_LENGTH_MAX);
    prop_oneof![
        select(vec!["a".to_owned(), "plain".into(), "indexed".into(), "strict".into(), longest]),
        "[A-Za-z0-9._:-]{1,12}",
    ]
}

/// Makes any JSON value, and values that are hard on readers.
fn json_value() -> impl Strategy<Value = String> {
    let hard = [
        "null",
        "-0.0",
        "5e-324",
        "1e999999",
        "-9223372036854775809",
        r#""\u0000""#,
        r#""a\u0000b""#,
        r#""\ud800""#,
        "\"\u{10ffff}\u{fdd0}\u{202e}\"",
        r#""'; drop table documents; --""#,
        r#"{"f":1,"f":2}"#,
    ];
    let made = vec![
        format!("{}1{}", "[".repeat(120), "]".repeat(120)),
        "9".repeat(4_000),
        format!("\"{}\"", "ä".repeat(100_000)),
        format!("[{}1]", "1,".repeat(20_000)),
    ];
    let hard: Vec<String> = hard.map(str::to_owned).into_iter().chain(made).collect();
    let text = any::<String>().prop_map(|text| serde_json::to_string(&text).expect("text"));
    prop_oneof![
        3 => select(hard),
        1 => text,
        1 => any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:e}")),
        1 => any::<i64>().prop_map(|value| value.to_string()),
    ]
}

fn document_data() -> impl Strategy<Value = String> {
    let member = (select(vec!["f", "g", "", "a\\u0000", "$.f", "f.g"]), json_value());
    let data = vec(member, 0..6).prop_map(|members| {
        let members: Vec<_> =
            members.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    });
    data.prop_filter("is read", |data| shared::model::write::Object::from_json(data).is_some())
}

fn what() -> impl Strategy<Value = What> {
    let by = prop_oneof![select(vec![i64::MIN, i64::MAX, 0, 1, -1]), any::<i64>()];
    let version = option::of(prop_oneof![select(vec![0, 1, i64::MIN, i64::MAX]), any::<i64>()]);
    let value = prop_oneof![
        select(vec![VALUE_MAX, -VALUE_MAX, -0.0, 5e-324, 1e-9]),
        any::<f64>().prop_filter("allowed", |value| value.abs() <= VALUE_MAX),
    ];
    let offset_ms = prop_oneof![
        select(vec![-POINT_AGE_MS_MAX, 0, POINT_AHEAD_MS_MAX]),
        -POINT_AGE_MS_MAX..POINT_AHEAD_MS_MAX
    ];
    let doomed = prop_oneof![(0..8_u8).prop_map(Ok), (0..40_usize).prop_map(Err)];
    prop_oneof![
        (name(), by).prop_map(|(name, by)| What::Increment(name, by)),
        (name(), version, document_data())
            .prop_map(|(name, version, data)| What::Document(name, version, data)),
        (name(), doomed).prop_map(|(name, doomed)| What::Delete(name, doomed)),
        (name(), offset_ms, value).prop_map(|(name, offset_ms, value)| What::Point(name, offset_ms, value)),
    ]
}

/// Makes accept times and items of the messages of a batch.
fn batch() -> impl Strategy<Value = Vec<(i64, Vec<Sent>)>> {
    let sent = (what(), option::weighted(0.4, 0..8_u8)).prop_map(|(what, key)| Sent { what, key });
    let accepted_at_ms = prop_oneof![3 => Just(NOON_MS), 1 => select(vec![i64::MIN, -1, 0, i64::MAX])];
    vec((accepted_at_ms, vec(sent, 1..40)), 1..4)
}

/// Makes the messages through the wire format, as the consumer gets them.
fn messages_of(ids: &mut Messages, batch: &[(i64, Vec<Sent>)]) -> Vec<Message> {
    let mut first = None;
    let of = |(accepted_at_ms, sent): &(i64, Vec<Sent>)| {
        let id = ids.id();
        let first = *first.get_or_insert(id);
        let mut builder = Builder::new(id, *accepted_at_ms);
        for sent in sent {
            let mut encoded = Vec::new();
            encode(&mut encoded, &item_of(sent, *accepted_at_ms, |index| first.item(Kind::Document, index)));
            builder.push(&encoded, 1);
        }
        decode(&builder.finish().body).expect("a message")
    };
    batch.iter().map(of).collect()
}

fn item_of(sent: &Sent, accepted_at_ms: i64, of_first: impl Fn(usize) -> ItemKey) -> Item {
    let item = match &sent.what {
        What::Increment(name, by) => increment(name, *by),
        What::Document(name, version, data) => checked_document(name, *version, data),
        What::Delete(name, Ok(key)) => delete(name, identity(Kind::Document, &key.to_string(), 0)),
        What::Delete(name, Err(index)) => delete(name, of_first(*index)),
        What::Point(name, offset_ms, value) => point(name, accepted_at_ms.saturating_add(*offset_ms), *value),
    };
    match sent.key {
        Some(key) => with_key(&key.to_string(), item),
        None => item,
    }
}

#[test]
fn no_item_that_may_be_applied_is_refused_alone_or_in_company() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let directory = Directory::new("valid");
    let store = runtime.block_on(async {
        let store = directory.store().await;
        let indexed = Definition { indexed: vec!["f".into(), "g".into()], ..Definition::default() };
        store.define("indexed", indexed.clone()).await.expect("is defined");
        let schema = Some(r#"{"properties":{"f":{"type":["number","string"]}}}"#.into());
        store.define("strict", Definition { schema, ..indexed }).await.expect("is defined");
        store
    });
    let ids = RefCell::new(Messages::new());
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&batch(), |batch| {
        let batch = messages_of(&mut ids.borrow_mut(), &batch);
        let items: Vec<ItemKey> = batch
            .iter()
            .flat_map(|message| (0..message.entries.len()).map(|index| message.item_key(index)))
            .collect();
        let (applied, fates) = runtime.block_on(async {
            (store.apply(batch.into()).await, store.item_statuses(items.into()).await.expect("is read"))
        });
        let applied = applied.map_err(|error| TestCaseError::fail(error.to_string()))?;
        // The causes are ours, in words for an operator, and never SQLite's.
        let ours = [Reason::CounterOverflow, Reason::SchemaViolation, Reason::Unreadable];
        let foreign: Vec<_> =
            applied.set_aside.iter().filter(|aside| !ours.contains(&aside.reason)).collect();
        prop_assert!(foreign.is_empty(), "{:?}", foreign);
        prop_assert!(fates.iter().all(Option::is_some), "every item was processed");
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    runtime.block_on(async {
        store.close().await;
        let damage = testkit::sqlite::integrity(&directory.0.join("store.db")).await;
        assert_eq!(damage.expect("is checked"), Vec::<String>::new());
        for table in ["counters", "documents", "document_fields", "rollups", "keyed_writes", "dead_letters"] {
            let rows = testkit::sqlite::count(&directory.0.join("store.db"), table).await;
            assert!(rows.expect("is counted") > 10, "{table}: the items were too tame");
        }
    });
}
