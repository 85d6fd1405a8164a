//! A document as the validator sees it: each look into it is reported to [`meter`](super::meter).
//! What a look returns is what `serde_json` holds; the meaning of keywords is the validator's.
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, SerdeJson};
use serde_json::{Map, Number, Value};

use super::meter::{charge, charge_key};

/// The representation.
pub struct Counted;

/// A value of a document.
#[derive(Clone, Copy)]
pub struct Counting<'a>(pub &'a Value);

/// The name of a member. The validator reads it once for each pattern.
pub struct Name<'a>(&'a str);

impl Json for Counted {
    type Node<'a> = Counting<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;
    const KEYS_PER_LOOKUP: usize = SerdeJson::KEYS_PER_LOOKUP;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(buffer: &mut Value, string: &str, f: impl FnOnce(Counting<'_>) -> T) -> T {
        *buffer = Value::String(string.to_owned());
        f(Counting(buffer))
    }
}

impl<'a> Node<'a, Counted> for Counting<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        charge(1);
        self.0.as_object().map(Members)
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        charge(1);
        self.0.as_array().map(|elements| Elements(elements))
    }

    /// Who asks for a text reads it.
    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = self.0.as_str();
        charge(1 + text.map_or(0, str::len) / 16);
        text.map(Cow::Borrowed)
    }

    /// Arithmetic with large exponents takes microseconds.
    fn as_number(&self) -> Option<&'a Number> {
        let number = self.0.as_number();
        charge(if number.is_some() { 32 } else { 1 });
        number
    }

    fn as_boolean(&self) -> Option<bool> {
        charge(1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        charge(1);
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        charge(1);
        JsonType::from(self.0)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        charge(8);
        self.0.equals_value(expected)
    }

    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Borrowed(self.0)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        charge(1);
        self.0.identity()
    }
}

pub struct Members<'a>(&'a Map<String, Value>);

impl<'a> Object<'a, Counted> for Members<'a> {
    type Node = Counting<'a>;
    type MemberName = Name<'a>;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Counting<'a>> {
        charge(1 + key.len() / 16);
        self.0.get(key).map(Counting)
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter(self.0.iter())
    }
}

pub struct MembersIter<'a>(serde_json::map::Iter<'a>);

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

pub struct Elements<'a>(&'a [Value]);

impl<'a> Array<'a, Counted> for Elements<'a> {
    type Node = Counting<'a>;
    type ElementsIter = ElementsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ElementsIter<'a> {
        ElementsIter(self.0.iter())
    }

    /// Not the validator's way: elements can be chosen such that its hashes are all the same.
    fn is_unique(&self) -> bool {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().all(|element| {
            let mut canonical = String::new();
            write_canonical(element, &mut canonical);
            seen.insert(canonical)
        })
    }
}

pub struct ElementsIter<'a>(std::slice::Iter<'a, Value>);

impl<'a> Iterator for ElementsIter<'a> {
    type Item = Counting<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        charge(1);
        self.0.next().map(Counting)
    }
}

/// The same text for equal values, and only for those: members sorted, whole numbers as such.
fn write_canonical(value: &Value, text: &mut String) {
    charge(4);
    match value {
        Value::Object(members) => {
            text.push('{');
            for (name, member) in members.iter().collect::<BTreeMap<_, _>>() {
                text.extend([&*Value::from(&**name).to_string(), ":"]);
                write_canonical(member, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(elements) => {
            text.push('[');
            for element in elements {
                write_canonical(element, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Number(number) => text.push_str(&canonical_number(number)),
        leaf => {
            charge(leaf.as_str().map_or(0, str::len) / 16);
            text.push_str(&leaf.to_string());
        }
    }
}

fn canonical_number(number: &Number) -> String {
    match number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
        // Adding zero takes the sign of minus zero away. All digits: each value has one spelling.
        Some(whole) => format!("{:.0}", whole + 0.0),
        None => number.to_string(),
    }
}
