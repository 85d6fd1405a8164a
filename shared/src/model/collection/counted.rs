//! A document as the validator sees it: each look into it is reported to [`meter`](super::meter). Numbers
//! are exact. The meaning of keywords is the validator's, but for those in [`numeric`](super::numeric).
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, JsonNumber, Node, NodeIdentity, Object, SerdeJson};
use serde_json::{Number, Value};

use super::meter::{charge, charge_key};
use crate::model::decimal::Decimal;
use crate::model::json_rules::{self, Tree};

/// Representation of documents for the validator.
pub struct CountedDocument;

/// Value of a document.
#[derive(Clone, Copy)]
pub struct Counting<'a>(pub &'a Tree<'a>);

/// Name of a member. The validator reads it once for each pattern.
pub struct Name<'a>(&'a str);

impl Json for CountedDocument {
    type Node<'a> = Counting<'a>;
    type PreparedKey = String;
    type StringBuffer = Tree<'static>;
    const KEYS_PER_LOOKUP: usize = SerdeJson::KEYS_PER_LOOKUP;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(buffer: &mut Tree<'static>, string: &str, f: impl FnOnce(Counting<'_>) -> T) -> T {
        *buffer = Tree::String(Cow::Owned(string.to_owned()));
        f(Counting(buffer))
    }
}

/// Number of a document.
pub struct Exact<'a> {
    text: &'a str,
    value: Decimal,
}

impl Exact<'_> {
    pub fn value(&self) -> &Decimal {
        &self.value
    }
}

impl JsonNumber for Exact<'_> {
    fn as_u64(&self) -> Option<u64> {
        self.value.integer()?.try_into().ok()
    }

    fn as_i64(&self) -> Option<i64> {
        self.value.integer()?.try_into().ok()
    }

    /// Reads a double; `None` where it is another number. So no number is compared as its neighbour.
    fn as_f64(&self) -> Option<f64> {
        json_rules::held(self.text)?.as_f64()
    }

    fn as_str(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.text)
    }

    /// Number for errors, which do not show values.
    fn to_number(&self) -> Cow<'_, Number> {
        Cow::Owned(0.into())
    }

    fn is_integer(&self) -> bool {
        self.value.is_integer()
    }

    fn is_written_as_integer(&self) -> bool {
        !self.text.contains(['.', 'e', 'E'])
    }
}

impl<'a> Node<'a, CountedDocument> for Counting<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = Exact<'a>;

    fn as_object(&self) -> Option<Members<'a>> {
        charge(1);
        if let Tree::Object(members) = self.0 { Some(Members(members)) } else { None }
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        charge(1);
        if let Tree::Array(elements) = self.0 { Some(Elements(elements)) } else { None }
    }

    /// Charges for the whole text: a caller that asks for it reads it.
    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = if let Tree::String(text) = self.0 { Some(&**text) } else { None };
        charge(1 + text.map_or(0, str::len) / 16);
        text.map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<Exact<'a>> {
        let Tree::Number(text) = self.0 else {
            charge(1);
            return None;
        };
        charge(number_steps(text));
        Some(Exact { text, value: Decimal::parse(text)? })
    }

    fn as_boolean(&self) -> Option<bool> {
        charge(1);
        if let Tree::Bool(is) = self.0 { Some(*is) } else { None }
    }

    fn is_null(&self) -> bool {
        charge(1);
        matches!(self.0, Tree::Null)
    }

    fn json_type(&self) -> JsonType {
        charge(1);
        match self.0 {
            Tree::Null => JsonType::Null,
            Tree::Bool(_) => JsonType::Boolean,
            Tree::Number(_) => JsonType::Number,
            Tree::String(_) => JsonType::String,
            Tree::Array(_) => JsonType::Array,
            Tree::Object(_) => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        equals(self.0, expected)
    }

    /// Value for errors, which do not show values: a copy of each would not be counted.
    fn to_value(&self) -> Cow<'a, Value> {
        charge(1);
        Cow::Owned(Value::Null)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        charge(1);
        Some(NodeIdentity::new(std::ptr::from_ref(self.0).addr()))
    }
}

/// Steps of arithmetic with a number, which takes a microsecond, and more with many digits.
fn number_steps(text: &str) -> usize {
    32 + text.len() / 4
}

/// Compares with a value of the schema, by exact numbers.
fn equals(tree: &Tree<'_>, expected: &Value) -> bool {
    charge(8);
    match (tree, expected) {
        (Tree::Null, Value::Null) => true,
        (Tree::Bool(one), Value::Bool(other)) => one == other,
        (Tree::Number(text), Value::Number(number)) => {
            charge(number_steps(text));
            Decimal::parse(text).is_some_and(|one| Decimal::parse(&number.to_string()) == Some(one))
        }
        (Tree::String(one), Value::String(other)) => one == other,
        (Tree::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equals(one, other))
        }
        (Tree::Object(one), Value::Object(other)) => {
            let is_same = |(name, one): (&Cow<'_, str>, &Tree<'_>)| {
                other.get(&**name).is_some_and(|other| equals(one, other))
            };
            one.len() == other.len() && one.iter().all(is_same)
        }
        _ => false,
    }
}

pub struct Members<'a>(&'a BTreeMap<Cow<'a, str>, Tree<'a>>);

impl<'a> Object<'a, CountedDocument> for Members<'a> {
    type Node = Counting<'a>;
    type MemberName = Name<'a>;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Counting<'a>> {
        charge(1 + key.len() / 16);
        self.0.get(key.as_str()).map(Counting)
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter(self.0.iter())
    }
}

pub struct MembersIter<'a>(std::collections::btree_map::Iter<'a, Cow<'a, str>, Tree<'a>>);

impl<'a> Iterator for MembersIter<'a> {
    type Item = (Name<'a>, Counting<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        charge(1);
        self.0.next().map(|(name, value)| (Name(name), Counting(value)))
    }
}

impl AsRef<str> for Name<'_> {
    fn as_ref(&self) -> &str {
        charge_key(self.0);
        self.0
    }
}

impl<'a> From<Name<'a>> for Cow<'a, str> {
    fn from(name: Name<'a>) -> Self {
        Self::Borrowed(name.0)
    }
}

pub struct Elements<'a>(&'a [Tree<'a>]);

impl<'a> Array<'a, CountedDocument> for Elements<'a> {
    type Node = Counting<'a>;
    type ElementsIter = ElementsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ElementsIter<'a> {
        ElementsIter(self.0.iter())
    }

    /// Finds equal elements without the validator's hashes: elements can be chosen such that those are all
    /// the same.
    fn is_unique(&self) -> bool {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().all(|element| {
            let mut canonical = String::new();
            write_canonical(element, &mut canonical);
            seen.insert(canonical)
        })
    }
}

pub struct ElementsIter<'a>(std::slice::Iter<'a, Tree<'a>>);

impl<'a> Iterator for ElementsIter<'a> {
    type Item = Counting<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        charge(1);
        self.0.next().map(Counting)
    }
}

/// Writes the same text for equal values, and only for those: numbers by their normal form.
fn write_canonical(value: &Tree<'_>, text: &mut String) {
    charge(4);
    match value {
        Tree::Null => text.push_str("null"),
        Tree::Bool(is) => text.push_str(if *is { "true" } else { "false" }),
        Tree::Number(number) => {
            charge(number_steps(number));
            match Decimal::parse(number) {
                Some(exact) => text.push_str(&exact.to_string()),
                None => text.push_str(number),
            }
        }
        Tree::String(string) => {
            charge(string.len() / 16);
            text.push_str(&Value::from(&**string).to_string());
        }
        Tree::Array(elements) => {
            text.push('[');
            for element in elements {
                write_canonical(element, text);
                text.push(',');
            }
            text.push(']');
        }
        Tree::Object(members) => {
            text.push('{');
            for (name, member) in members {
                text.extend([&*Value::from(&**name).to_string(), ":"]);
                write_canonical(member, text);
                text.push(',');
            }
            text.push('}');
        }
    }
}
