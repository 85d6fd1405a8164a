//! Comparison of a database's schema with the schema of this build. Pure, for both stores.
use sqlx::migrate::{MigrateError, Migrator};

use crate::store::StoreError;

/// A migration that a database reports as run.
#[derive(Clone, Debug)]
pub struct Ran {
    pub version: i64,
    pub checksum: Vec<u8>,
    pub success: bool,
}

/// Compares the migrations that were run, by version, with those of this build: they must be the same.
pub fn compare(known: &Migrator, ran: &[Ran]) -> Result<(), StoreError> {
    let needed = newest(known);
    let found = ran.last().map_or(0, |ran| ran.version);
    let wrong = if ran.is_empty() {
        "the database has no schema: run `api migrate`".to_owned()
    } else if found < needed {
        format!("schema version {found} is older than {needed}, which this build needs: run `api migrate`")
    } else if found > needed {
        newer(found, needed)
    } else if !same(known, ran) {
        format!("schema version {found} is not the one that this build knows: another build made it")
    } else {
        return Ok(());
    };
    Err(StoreError::Unavailable(wrong.into()))
}

/// Returns the error for a database that could not be brought to the schema of this build.
pub fn not_migrated(known: &Migrator, error: &MigrateError) -> StoreError {
    let needed = newest(known);
    StoreError::Unavailable(match error {
        MigrateError::VersionMissing(found) if *found > needed => newer(*found, needed).into(),
        other => format!("cannot migrate: {other}").into(),
    })
}

fn newest(known: &Migrator) -> i64 {
    known.iter().map(|migration| migration.version).max().expect("there are migrations")
}

fn newer(found: i64, needed: i64) -> String {
    format!("schema version {found} is newer than {needed}, which this build knows: it needs a newer build")
}

fn same(known: &Migrator, ran: &[Ran]) -> bool {
    known.iter().count() == ran.len()
        && known.iter().zip(ran).all(|(known, ran)| {
            ran.success && known.version == ran.version && known.checksum[..] == ran.checksum[..]
        })
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr;
    use sqlx::migrate::{Migration, MigrationType};

    use super::*;

    fn known() -> Migrator {
        let migration = |version, sql: &'static str| {
            Migration::new(version, "".into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        Migrator::with_migrations(vec![migration(1, "select 1"), migration(2, "select 2")])
    }

    fn ran() -> Vec<Ran> {
        let ran = |known: &Migration| Ran {
            version: known.version,
            checksum: known.checksum.to_vec(),
            success: true,
        };
        known().iter().map(ran).collect()
    }

    fn refusal(ran: &[Ran]) -> String {
        compare(&known(), ran).expect_err("not the known schema").to_string()
    }

    #[test]
    fn only_exactly_what_is_known_will_do() {
        assert!(compare(&known(), &ran()).is_ok());
        assert!(refusal(&[]).contains("no schema: run `api migrate`"));
        assert!(refusal(&ran()[..1]).contains("version 1 is older than 2"));
        let newer = Ran { version: 3, ..ran()[1].clone() };
        assert!(refusal(&[ran(), vec![newer]].concat()).contains("version 3 is newer than 2"));
        let (mut edited, mut failed) = (ran(), ran());
        edited[0].checksum[0] ^= 1;
        failed[1].success = false;
        for wrong in [&edited[..], &failed[..], &ran()[1..]] {
            assert!(refusal(wrong).contains("not the one that this build knows"), "{wrong:?}");
        }
    }
}
