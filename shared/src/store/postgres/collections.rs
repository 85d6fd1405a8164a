//! Definitions of collections: stored, replaced, and compiled once per version.
//!
//! A transaction that writes documents or their fields locks the definitions until it commits. One that
//! replaces a definition waits for all of them and then makes the next ones wait. So a document is checked
//! and indexed by the definition that is there when it is committed
//! (`a_definition_waits_for_documents_that_are_on_their_way`).
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use sqlx::PgConnection;
use uuid::Uuid;

use super::failure::PgFailure;
use super::session::begin;
use crate::model::collection::{Checker, Collection, Definition};
use crate::store::rules::documents::KNOWN_BYTES_MAX;
use crate::store::rules::page::Bounds;

/// Any numbers that no other lock uses; the same in every build.
const DEFINITIONS_LOCK: i64 = 0x666f_7265_6261_7902;
const DELETES_LOCK: i64 = 0x666f_7265_6261_7903;

/// Maximum of compiled definitions remembered. A collection beyond that is compiled again for its batch.
const CHECKERS_MAX: usize = 1_000;

/// Compiled definitions by collection.
pub type CheckersByName = HashMap<String, Arc<Checker>>;

/// Definitions that a transaction loaded for its collections.
#[derive(Debug, Default)]
pub struct LoadedDefinitions {
    pub checkers: CheckersByName,
    /// Collections that index a member.
    pub indexed: HashSet<String>,
}

/// Definitions that were compiled by this process. A version never gets another meaning.
#[derive(Debug, Default)]
pub struct CompiledDefinitions {
    checkers: Mutex<CheckersByName>,
}

/// A row of `collections`.
struct CollectionRow {
    name: String,
    version: i64,
    is_defined: bool,
    schema: Option<String>,
    indexed: Vec<String>,
    retention_days: Option<i32>,
    index_before: Option<Uuid>,
}

impl From<CollectionRow> for Collection {
    fn from(row: CollectionRow) -> Self {
        let retention_days = row.retention_days.and_then(|days| u32::try_from(days).ok());
        let CollectionRow { version, is_defined, schema, indexed, .. } = row;
        let definition = Definition { schema, indexed, retention_days };
        Self { definition, version, is_defined, is_indexed: row.index_before.is_none() }
    }
}

/// Locks all definitions until the transaction ends. They must be read by a later statement: this one may
/// have waited.
pub async fn hold(connection: &mut PgConnection) -> Result<(), PgFailure> {
    sqlx::query!("select pg_advisory_xact_lock_shared($1)", DEFINITIONS_LOCK).execute(connection).await?;
    Ok(())
}

/// Locks the definitions as [`hold`] does, for a transaction that changes existing documents. One at a time:
/// two that each delete a document that the other one inserts would wait in a circle
/// (`two_that_delete_what_the_other_one_inserts_wait_in_no_circle`).
pub async fn hold_for_deletes(connection: &mut PgConnection) -> Result<(), PgFailure> {
    let locks = sqlx::query!(
        "select pg_advisory_xact_lock_shared($1), pg_advisory_xact_lock($2)",
        DEFINITIONS_LOCK,
        DELETES_LOCK
    );
    locks.execute(connection).await?;
    Ok(())
}

impl CompiledDefinitions {
    /// Loads the definitions of these collections, sorted by name. The caller [holds](hold) the definitions.
    pub async fn load(
        &self,
        connection: &mut PgConnection,
        names: &[&str],
    ) -> Result<LoadedDefinitions, PgFailure> {
        let rows = sqlx::query!(
            r#"select name, version, cardinality(indexed) > 0 as "is_indexing!"
               from collections where name = any($1)"#,
            names as &[&str]
        );
        let rows = rows.fetch_all(&mut *connection).await?;
        let versions: HashMap<&str, i64> = rows.iter().map(|row| (&*row.name, row.version)).collect();
        let mut found = LoadedDefinitions::default();
        let mut changed = Vec::new();
        for name in names {
            let version = versions.get(name).copied().unwrap_or_default();
            let known = self.known().get(*name).filter(|checker| checker.version == version).cloned();
            match known {
                Some(checker) => drop(found.checkers.insert((*name).to_owned(), checker)),
                None => changed.push(*name),
            }
        }
        found.indexed.extend(rows.into_iter().filter(|row| row.is_indexing).map(|row| row.name));
        if !changed.is_empty() {
            found.checkers.extend(self.compile(connection, &changed).await?);
        }
        Ok(found)
    }

    async fn compile(
        &self,
        connection: &mut PgConnection,
        names: &[&str],
    ) -> Result<CheckersByName, PgFailure> {
        let rows = sqlx::query_as!(
            CollectionRow,
            "select name, version, is_defined, schema, indexed, retention_days, index_before
             from collections where name = any($1)",
            names as &[&str]
        );
        let rows = rows.fetch_all(connection).await?;
        let mut stored: HashMap<String, Collection> =
            rows.into_iter().map(|row| (row.name.clone(), row.into())).collect();
        let mut compiled = CheckersByName::new();
        for name in names {
            let collection = stored.remove(*name).unwrap_or_default();
            compiled.insert((*name).to_owned(), Checker::compiled(name, collection).await);
        }
        let mut known = self.known();
        let bytes: usize = known.values().chain(compiled.values()).map(|checker| checker.weight()).sum();
        if known.len() + compiled.len() > CHECKERS_MAX || bytes > KNOWN_BYTES_MAX {
            known.clear();
        }
        let mut bytes_left = KNOWN_BYTES_MAX;
        let mut fits = |bytes: usize| {
            let left = bytes_left.checked_sub(bytes);
            bytes_left = left.unwrap_or(bytes_left);
            left.is_some()
        };
        known.extend(
            compiled
                .iter()
                .take(CHECKERS_MAX)
                .filter(|(_, checker)| fits(checker.weight()))
                .map(|(name, checker)| (name.clone(), Arc::clone(checker))),
        );
        Ok(compiled)
    }

    fn known(&self) -> MutexGuard<'_, CheckersByName> {
        self.checkers.lock().expect("no code panics while it holds this lock")
    }
}

/// Reads a definition; the default one where none was ever stored.
pub async fn collection(connection: &mut PgConnection, name: String) -> Result<Collection, PgFailure> {
    let row = row(connection, &name).await?;
    Ok(row.map_or_else(Collection::default, Collection::from))
}

/// Reads the defined collections of a page, by name.
pub async fn page(
    connection: &mut PgConnection,
    bounds: Bounds,
) -> Result<Vec<(String, Collection)>, PgFailure> {
    let rows = sqlx::query_as!(
        CollectionRow,
        "select name, version, is_defined, schema, indexed, retention_days, index_before
         from collections
         where name <> $1 and name >= $2 and name < $3 and is_defined
         order by name
         limit $4",
        bounds.after,
        bounds.from,
        bounds.below,
        bounds.limit
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.name.clone(), row.into())).collect())
}

async fn row(connection: &mut PgConnection, name: &str) -> Result<Option<CollectionRow>, PgFailure> {
    let row = sqlx::query_as!(
        CollectionRow,
        "select name, version, is_defined, schema, indexed, retention_days, index_before
         from collections where name = $1",
        name
    );
    Ok(row.fetch_optional(connection).await?)
}

/// Replaces a definition, in a transaction of its own. The default one removes what was defined.
pub async fn define(
    connection: &mut PgConnection,
    name: String,
    definition: Definition,
) -> Result<Collection, PgFailure> {
    let mut transaction = begin(connection).await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", DEFINITIONS_LOCK).execute(&mut *transaction).await?;
    let before = row(&mut transaction, &name).await?;
    let index_before = index_before(&mut transaction, &name, before.as_ref(), &definition).await?;
    let is_defined = definition != Definition::default();
    let retention_days = definition.retention_days.map(|days| i32::try_from(days).unwrap_or(i32::MAX));
    let version = sqlx::query_scalar!(
        "insert into collections as collection
             (name, version, is_defined, schema, indexed, retention_days, index_before)
         values ($1, 1, $2, $3, $4, $5, $6)
         on conflict (name) do update
         set version = collection.version + 1, is_defined = excluded.is_defined, schema = excluded.schema,
             indexed = excluded.indexed, retention_days = excluded.retention_days,
             index_before = excluded.index_before
         returning version",
        name,
        is_defined,
        definition.schema,
        &definition.indexed,
        retention_days,
        index_before
    );
    let version = version.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Collection { definition, version, is_defined, is_indexed: index_before.is_none() })
}

/// Returns the place before which documents are to be indexed again: just after the last one when a field
/// came, the place reached before when none did.
async fn index_before(
    connection: &mut PgConnection,
    name: &str,
    before: Option<&CollectionRow>,
    definition: &Definition,
) -> Result<Option<Uuid>, PgFailure> {
    if definition.indexed.is_empty() {
        return Ok(None);
    }
    let was_indexed = |field| before.is_some_and(|before| before.indexed.contains(field));
    if definition.indexed.iter().all(was_indexed) {
        return Ok(before.and_then(|before| before.index_before));
    }
    let last = sqlx::query_scalar!(
        "select place from documents where collection = $1 order by place desc limit 1",
        name
    );
    let last = last.fetch_optional(connection).await?;
    Ok(last.map(|last| Uuid::from_u128(last.as_u128().saturating_add(1))))
}

/// The collections that keep documents for a number of days, with that number.
pub async fn retentions(connection: &mut PgConnection) -> Result<Vec<(String, i32)>, PgFailure> {
    let rows = sqlx::query!(
        r#"select name, retention_days as "days!" from collections
           where retention_days is not null order by name"#
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.name, row.days)).collect())
}
