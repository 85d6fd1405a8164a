//! Creates the database itself, for the first start on a fresh server, where the settings allow it.
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::failure::PgFailure;
use crate::store::StoreError;

/// Code: there is no database of that name.
const INVALID_CATALOG_NAME: &str = "3D000";
/// Codes: another program created it in the meantime; which of the two depends on the moment.
const CREATED_BY_ANOTHER: [&str; 2] = ["42P04", "23505"];

/// Creates the database when the server has none of that name and `may_create`; otherwise that is an error. A
/// database that is there is left alone, whatever is in it.
pub async fn ensure(options: &PgConnectOptions, may_create: bool) -> Result<(), PgFailure> {
    match options.connect().await {
        Ok(connection) => return Ok(connection.close().await?),
        Err(error) if has_code(&error, &[INVALID_CATALOG_NAME]) => {}
        Err(error) => return Err(error.into()),
    }
    let name = options.get_database().unwrap_or_default();
    if !may_create {
        let hint = format!(
            "there is no database {name}: correct its name (DATABASE_URL, store.url), or create it (`createdb \
             {name}`, or FOREBAY__STORE__CREATE_DATABASE=true)"
        );
        return Err(StoreError::Unavailable(hint.into()).into());
    }
    let quoted = name.replace('"', "\"\"");
    let mut maintenance = options.clone().database("postgres").connect().await?;
    let created = maintenance.execute(AssertSqlSafe(format!("create database \"{quoted}\""))).await;
    match created {
        Ok(_) => tracing::info!(database = name, "database created"),
        Err(error) if has_code(&error, &CREATED_BY_ANOTHER) => {}
        Err(error) => {
            let hint = format!(
                "database {name} does not exist and cannot be created ({error}): run `createdb {name}`"
            );
            return Err(StoreError::Unavailable(hint.into()).into());
        }
    }
    Ok(maintenance.close().await?)
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&&*code))
}
