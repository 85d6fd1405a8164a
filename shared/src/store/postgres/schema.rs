//! Check that the database has the schema of this build.
//!
//! It runs before the first operation of the process and again when the server says that a table or a column
//! is missing. No operation migrates.
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::failure::PgFailure;
use crate::store::rules::schema::{Ran, compare, not_migrated};

static MIGRATOR: Migrator = sqlx::migrate!("./migrations/postgres");

#[derive(Debug, Default)]
pub struct Schema {
    verified: AtomicBool,
}

impl Schema {
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    pub async fn verify(&self, connection: &mut PgConnection) -> Result<(), PgFailure> {
        let rows =
            sqlx::query_as!(Ran, "select version, checksum, success from _sqlx_migrations order by version");
        let ran = match rows.fetch_all(connection).await.map_err(PgFailure::from) {
            Ok(rows) => rows,
            Err(failure) if failure.is_schema_skew() => Vec::new(),
            Err(failure) => return Err(failure),
        };
        compare(&MIGRATOR, &ran)?;
        self.verified.store(true, Ordering::Release);
        Ok(())
    }

    pub fn forget(&self) {
        self.verified.store(false, Ordering::Release);
    }

    /// Waits for a migration that another process runs, then runs the missing ones.
    pub async fn migrate(&self, connection: &mut PgConnection) -> Result<(), PgFailure> {
        self.forget();
        let migrated = MIGRATOR.run_direct(None, connection, false).await;
        Ok(migrated.map_err(|error| not_migrated(&MIGRATOR, &error))?)
    }
}
