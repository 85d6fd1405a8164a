//! Collections of documents: the definition that their owner gave, and its meaning for one document.
//!
//! The API checks a document against the definition that it knows and writes that version into
//! the item; the consumer checks again only when the stored version is another one. Both use
//! [`Checker`]. Nothing here reads a store.
mod bad_definition;
mod counted;
mod index;
mod meter;
mod numeric;
mod pattern;
mod schema;
mod wanted;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::bad_definition::{bad, cut};
use self::counted::Counting;
use self::schema::CompiledSchema;
use crate::model::json_rules::{self, Tree};

pub use self::bad_definition::BadDefinition;
pub use self::index::{index_text, index_value};
pub use self::meter::{Budget, Overrun};
pub use self::schema::SCHEMA_BYTES_MAX;
pub use self::wanted::{Wanted, has_all};

/// Indexed fields of a collection at most: each costs a row per document.
pub const INDEXED_MAX: usize = 8;

/// Definition that an owner gives to a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// JSON Schema as text; `None` takes any object.
    pub schema: Option<String>,
    /// Top-level members by whose value documents can be filtered.
    pub indexed: Vec<String>,
    /// Days that documents are kept; `None` for ever.
    pub retention_days: Option<u32>,
}

/// Definition as stored. The default one, version 0, is that of a collection without a definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    pub definition: Definition,
    /// Version, which grows with every change, also over a removal.
    pub version: i64,
    /// False once the definition was removed, or before there was any.
    pub is_defined: bool,
    /// False while documents from before the definition are still to be indexed.
    pub is_indexed: bool,
}

/// Longest name of an indexed field in bytes.
const FIELD_LENGTH_MAX: usize = 64;

/// Parameters of a list, which a field would shadow.
const RESERVED_FIELDS: [&str; 2] = ["limit", "after"];

/// Longest retention in days: a hundred years.
const RETENTION_DAYS_MAX: u32 = 36_500;

/// Weight of a definition beside its schema, in bytes.
const ENTRY_BYTES: usize = 1_000;

/// Definition that documents can be checked against.
#[derive(Debug)]
pub struct Checker {
    pub version: i64,
    indexed: Vec<String>,
    /// Compiled schema; `None` takes any object.
    schema: Option<CompiledSchema>,
    unusable: Option<BadDefinition>,
}

/// Reason for which a document does not belong into its collection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {detail}")]
pub struct Violation {
    /// JSON pointer into the document.
    pub pointer: String,
    pub detail: String,
    /// Set when the check was ended before it had a result.
    pub overrun: Option<Overrun>,
}

impl Checker {
    /// Checks and compiles a definition: some milliseconds when it has a schema.
    pub fn new(collection: &Collection) -> Result<Self, BadDefinition> {
        let Definition { schema, indexed, retention_days } = &collection.definition;
        check_indexed(indexed)?;
        if retention_days.is_some_and(|days| !(1..=RETENTION_DAYS_MAX).contains(&days)) {
            return Err(bad("/retention_days", format!("must be from 1 to {RETENTION_DAYS_MAX}")));
        }
        let schema = schema.as_deref().map(schema::compile).transpose()?;
        Ok(Self { version: collection.version, indexed: indexed.clone(), schema, unusable: None })
    }

    /// Checker of a definition that is stored already. One that another build took and this one cannot use
    /// must not stop unrelated work: see [`unusable`](Self::unusable).
    pub fn of_stored(name: &str, collection: &Collection) -> Self {
        Self::new(collection).unwrap_or_else(|unusable| {
            let version = collection.version;
            tracing::error!(collection = name, version, error = %unusable, "definition cannot be used");
            let indexed = collection.definition.indexed.clone();
            Self { version, indexed, schema: None, unusable: Some(unusable) }
        })
    }

    /// Same as [`of_stored`](Self::of_stored), but compiles a schema on a blocking thread.
    pub async fn compiled(name: &str, collection: Collection) -> Arc<Self> {
        if collection.definition.schema.is_none() {
            return Arc::new(Self::of_stored(name, &collection));
        }
        let (name, version) = (name.to_owned(), collection.version);
        let indexed = collection.definition.indexed.clone();
        let compiling = tokio::task::spawn_blocking(move || Self::of_stored(&name, &collection));
        match compiling.await {
            Ok(checker) => Arc::new(checker),
            Err(error) if error.is_panic() => {
                let unusable = Some(bad("/schema", "the validator failed on it"));
                Arc::new(Self { version, indexed, schema: None, unusable })
            }
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Memory in bytes, as far as it is known.
    pub fn weight(&self) -> usize {
        ENTRY_BYTES + self.schema.as_ref().map_or(0, |schema| schema.bytes)
    }

    /// True when every object is taken.
    pub fn takes_all(&self) -> bool {
        self.schema.is_none()
    }

    /// True when a check ends within microseconds of its budget. Where keys are matched it ends within some
    /// tens of milliseconds.
    pub fn ends_at_once(&self) -> bool {
        self.schema.as_ref().is_none_or(|schema| !schema.matches_keys)
    }

    /// Reason for which no document can be checked; the indexed members are known all the same.
    pub fn unusable(&self) -> Option<&BadDefinition> {
        self.unusable.as_ref()
    }

    /// Checks that a document, the text of a JSON object, satisfies the schema. Ends when `budget` does, so
    /// it belongs on a thread that no other task waits for, unless the budget is small.
    pub fn check(&self, data: &str, budget: &Budget) -> Result<(), Violation> {
        let Some(schema) = &self.schema else { return Ok(()) };
        let violation = |error: jsonschema::ValidationError<'_>| Violation {
            pointer: cut(error.instance_path().as_str()),
            // The value itself may be large, and is the client's business.
            detail: cut(&error.masked_with("the value").to_string()),
            overrun: None,
        };
        let check = || {
            let document = Tree::read(data).ok_or_else(|| unreadable(data))?;
            schema.validator.validate(Counting(&document)).map_err(violation)
        };
        budget.run(schema.matches_keys, check).unwrap_or_else(|overrun| {
            let detail = overrun.to_string();
            Err(Violation { pointer: String::new(), detail, overrun: Some(overrun) })
        })
    }

    /// Index values of the document's indexed members, by name.
    pub fn index_values(&self, data: &str) -> Result<Vec<(&str, String)>, Violation> {
        if self.indexed.is_empty() {
            return Ok(Vec::new());
        }
        let Some(Tree::Object(members)) = Tree::read(data) else { return Err(unreadable(data)) };
        let mut values = Vec::with_capacity(self.indexed.len());
        for field in &self.indexed {
            let value = members.get(field.as_str()).and_then(index_value);
            values.extend(value.map(|value| (&**field, value)));
        }
        Ok(values)
    }
}

/// Violation of a document that another producer sent and that could not be read.
fn unreadable(data: &str) -> Violation {
    let (pointer, detail) = match json_rules::check(data) {
        Err(flawed) => (flawed.pointer, flawed.flaw.to_string()),
        Ok(()) => (String::new(), "not a JSON object".into()),
    };
    Violation { pointer, detail, overrun: None }
}

fn check_indexed(indexed: &[String]) -> Result<(), BadDefinition> {
    if indexed.len() > INDEXED_MAX {
        return Err(bad("/indexed", format!("{INDEXED_MAX} fields at most")));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    for (index, field) in indexed.iter().enumerate() {
        let detail = if !(1..=FIELD_LENGTH_MAX).contains(&field.len()) || !field.bytes().all(allowed) {
            format!("a field has 1 to {FIELD_LENGTH_MAX} characters out of A-Z a-z 0-9 . _ : -")
        } else if RESERVED_FIELDS.contains(&&**field) {
            "a parameter of lists has this name".into()
        } else if indexed[..index].contains(field) {
            "stands there twice".into()
        } else {
            continue;
        };
        return Err(bad(format!("/indexed/{index}"), detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
