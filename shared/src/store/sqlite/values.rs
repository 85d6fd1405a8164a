//! Rows as parameters of one insert, for much text, for bytes and for fractions. This is cheaper than a JSON
//! array of them, and exact: a number that SQLite reads from text is not always the number that was written
//! (`raw_points_are_stored_to_the_last_bit`).
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use super::files::SqliteFailure;
use crate::model::idempotency::Fingerprint;

/// Maximum of rows in one statement. More gain nothing, and a long statement costs time to compile.
const ROWS_PER_STATEMENT: usize = 250;

/// Inserts rows. `insert` is the statement up to its `values`, `conflict` the clause after them. `bind` binds
/// the `columns` parameters of a row.
pub async fn insert<'q, T: Sync>(
    connection: &mut SqliteConnection,
    (insert, conflict): (&str, &str),
    columns: usize,
    rows: &'q [T],
    bind: impl Fn(Bound<'q>, &'q T) -> Bound<'q>,
) -> Result<(), SqliteFailure> {
    let row = format!("({})", vec!["?"; columns].join(","));
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        let statement = format!("{insert} values {} {conflict}", vec![&*row; rows.len()].join(","));
        // A statement of another size would hardly come again.
        let is_full = rows.len() == ROWS_PER_STATEMENT;
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(is_full);
        rows.iter().fold(query, &bind).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A statement with the parameters that were bound so far.
pub type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Encodes many rows as one JSON parameter of a statement.
pub fn json<T: serde::Serialize + ?Sized>(rows: &T) -> String {
    serde_json::to_string(rows).expect("text and integers have a JSON form")
}

pub fn fingerprint_of(bytes: Vec<u8>) -> Result<Fingerprint, sqlx::Error> {
    let wrong = |bytes: Vec<u8>| format!("a fingerprint of {} bytes", bytes.len());
    bytes.try_into().map(Fingerprint).map_err(|bytes| sqlx::Error::Decode(wrong(bytes).into()))
}
