//! The statements for `collections`: definitions, their versions, and their effect on documents that were
//! there before them.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::files::SqliteFailure;
use super::values::json;
use crate::config;
use crate::model::collection::{Checker, Collection, Definition};
use crate::store::rules::checks::Checks;
use crate::store::rules::documents::KNOWN_BYTES_MAX;
use crate::store::rules::page::Bounds;

pub const ONE: &str = "select version, is_defined, schema, indexed, retention_days, index_before \
    from collections where name = ?1";

/// Reads a page. The columns are those of [`ONE`], with the name behind them.
pub const PAGE: &str = "select version, is_defined, schema, indexed, retention_days, index_before, name \
    from collections where name <> ?1 and name >= ?2 and name < ?3 and is_defined order by name limit ?4";

pub const VERSIONS: &str = "select name, version from collections \
    where name in (select value from json_each(?1))";

pub const PUT: &str = "insert into collections \
    (name, version, is_defined, schema, indexed, retention_days, index_before) \
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7) on conflict (name) do update set \
    version = excluded.version, is_defined = excluded.is_defined, schema = excluded.schema, \
    indexed = excluded.indexed, retention_days = excluded.retention_days, \
    index_before = excluded.index_before";

pub const HAS_DOCUMENTS: &str = "select exists (select 1 from documents where collection = ?1)";

pub const DROP_FIELD: &str = "delete from document_fields where collection = ?1 and field = ?2";

/// Maximum of definitions that are kept compiled; beyond, all are forgotten.
const KNOWN_MAX: usize = 1_000;

/// Maximum of attempts of a transaction; a redrive finds unchecked documents step by step.
const ATTEMPTS_MAX: usize = 50;

/// A definition, ready for use.
#[derive(Debug)]
pub struct CompiledDefinition {
    pub checker: Arc<Checker>,
    pub has_indexes: bool,
}

/// Compiled definitions by name, each used only while its version is the stored one; and the verdicts that
/// checks by them gave.
#[derive(Debug)]
pub struct DefinitionCache {
    known: Mutex<HashMap<String, Arc<CompiledDefinition>>>,
    pub checks: Arc<Checks>,
}

impl CompiledDefinition {
    async fn new(name: &str, collection: Collection) -> Self {
        let has_indexes = !collection.definition.indexed.is_empty();
        Self { checker: Checker::compiled(name, collection).await, has_indexes }
    }
}

impl DefinitionCache {
    pub fn new(config: &config::Collections) -> Self {
        Self { known: Mutex::default(), checks: Checks::new(config) }
    }

    /// Tries a transaction again for as long as it finds documents without a verdict.
    pub async fn checked<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, SqliteFailure>
    where
        F: Future<Output = Result<T, SqliteFailure>>,
    {
        for _ in 1..ATTEMPTS_MAX {
            match attempt().await {
                Err(SqliteFailure::Unchecked(documents)) => self.checks.check(documents).await,
                outcome => return outcome,
            }
        }
        attempt().await
    }

    fn get(&self, name: &str, version: i64) -> Option<Arc<CompiledDefinition>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|known| known.checker.version == version).map(Arc::clone)
    }

    fn put(&self, name: &str, compiled: &Arc<CompiledDefinition>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = known.values().map(|known| known.checker.weight()).sum();
        if known.len() >= KNOWN_MAX || bytes + compiled.checker.weight() > KNOWN_BYTES_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), Arc::clone(compiled));
    }

    /// Loads the definitions of these collections as this transaction sees them.
    pub async fn load(
        &self,
        connection: &mut SqliteConnection,
        names: &[&str],
    ) -> Result<HashMap<String, Arc<CompiledDefinition>>, SqliteFailure> {
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query_as::<_, (String, i64)>(VERSIONS).bind(json(names));
        let versions: HashMap<String, i64> = rows.fetch_all(&mut *connection).await?.into_iter().collect();
        let undefined = Arc::new(CompiledDefinition::new("", Collection::default()).await);
        let mut loaded = HashMap::with_capacity(names.len());
        for name in names {
            let known = match versions.get(*name) {
                None => Arc::clone(&undefined),
                Some(version) => match self.get(name, *version) {
                    Some(known) => known,
                    None => self.compile(connection, name).await?,
                },
            };
            loaded.insert((*name).to_owned(), known);
        }
        Ok(loaded)
    }

    async fn compile(
        &self,
        connection: &mut SqliteConnection,
        name: &str,
    ) -> Result<Arc<CompiledDefinition>, SqliteFailure> {
        let known = Arc::new(CompiledDefinition::new(name, read(connection, name).await?.collection).await);
        self.put(name, &known);
        Ok(known)
    }
}

/// A stored definition; the default when the collection was never defined.
#[derive(Debug, Default)]
pub struct StoredDefinition {
    pub collection: Collection,
    pub index_before: Option<Uuid>,
}

pub async fn read(connection: &mut SqliteConnection, name: &str) -> Result<StoredDefinition, SqliteFailure> {
    let row = sqlx::query(ONE).bind(name).fetch_optional(connection).await?;
    Ok(row.as_ref().map(found_of).transpose()?.unwrap_or_default())
}

/// Reads the defined collections of a page, by name.
pub async fn page(
    connection: &mut SqliteConnection,
    bounds: Bounds,
) -> Result<Vec<(String, Collection)>, SqliteFailure> {
    let Bounds { after, from, below, limit } = bounds;
    let rows = sqlx::query(PAGE).bind(after).bind(from).bind(below).bind(limit);
    let rows = rows.fetch_all(connection).await?;
    let named = |row: &SqliteRow| Ok((row.try_get(6)?, found_of(row)?.collection));
    Ok(rows.iter().map(named).collect::<Result<_, sqlx::Error>>()?)
}

fn found_of(row: &SqliteRow) -> Result<StoredDefinition, sqlx::Error> {
    let indexed: String = row.try_get(3)?;
    let decoded = serde_json::from_str(&indexed);
    let definition = Definition {
        schema: row.try_get(2)?,
        indexed: decoded.map_err(|error| sqlx::Error::Decode(error.into()))?,
        retention_days: row.try_get(4)?,
    };
    let index_before: Option<Uuid> = row.try_get(5)?;
    let (version, is_defined) = (row.try_get(0)?, row.try_get(1)?);
    let collection = Collection { definition, version, is_defined, is_indexed: index_before.is_none() };
    Ok(StoredDefinition { collection, index_before })
}

/// Replaces a definition. Index entries of fields that it does not index any more are deleted at once; fields
/// that it indexes newly wait for [`index_page`](super::fields::index_page). Rows of a field that stays are
/// right as they are: they depend on the document only.
pub async fn define(
    connection: &mut SqliteConnection,
    name: String,
    definition: Definition,
) -> Result<Collection, SqliteFailure> {
    let StoredDefinition { collection: before, mut index_before } = read(connection, &name).await?;
    for field in before.definition.indexed.iter().filter(|field| !definition.indexed.contains(field)) {
        sqlx::query(DROP_FIELD).bind(&name).bind(field).execute(&mut *connection).await?;
    }
    if definition.indexed.is_empty() {
        index_before = None;
    } else if definition.indexed.iter().any(|field| !before.definition.indexed.contains(field)) {
        let has_documents: bool =
            sqlx::query_scalar(HAS_DOCUMENTS).bind(&name).fetch_one(&mut *connection).await?;
        index_before = has_documents.then(Uuid::max);
    }
    let collection = Collection {
        is_defined: definition != Definition::default(),
        version: before.version + 1,
        is_indexed: index_before.is_none(),
        definition,
    };
    let put = sqlx::query(PUT)
        .bind(name)
        .bind(collection.version)
        .bind(collection.is_defined)
        .bind(collection.definition.schema.as_deref())
        .bind(json(&collection.definition.indexed))
        .bind(collection.definition.retention_days)
        .bind(index_before);
    put.execute(connection).await?;
    Ok(collection)
}
