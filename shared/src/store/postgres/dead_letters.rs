//! The statements for `dead_letters`; `redrive` holds their redrive.
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::to_ms;
use super::failure::PgFailure;
use super::{keys, session};
use crate::model::dead_letter::{DeadLetter, DeadLetterPage, PAGE_BYTES_MAX, RedriveOutcome, Redriven};
use crate::model::id::MessageId;

/// A row of `dead_letters`.
struct DeadLetterRow {
    id: Uuid,
    kind: String,
    reason: String,
    detail: String,
    item: String,
    accepted_at: OffsetDateTime,
    set_aside_at: OffsetDateTime,
    discarded_at: Option<OffsetDateTime>,
}

impl From<DeadLetterRow> for DeadLetter {
    fn from(row: DeadLetterRow) -> Self {
        let DeadLetterRow { id, kind, reason, detail, item, accepted_at, set_aside_at, discarded_at } = row;
        Self {
            id,
            kind,
            reason,
            detail,
            item,
            accepted_at_ms: to_ms(accepted_at),
            set_aside_at_ms: to_ms(set_aside_at),
            discarded_at_ms: discarded_at.map(to_ms),
        }
    }
}

pub async fn page(
    connection: &mut PgConnection,
    page: &DeadLetterPage,
) -> Result<Vec<DeadLetter>, PgFailure> {
    let (after, last) = page.filter.bounds(page.after);
    // The length of a text is known without reading it.
    let rows = sqlx::query_as!(
        DeadLetterRow,
        "select id, kind, reason, detail, item, accepted_at, set_aside_at, discarded_at
         from (select *, sum(octet_length(item)) over (order by id) - octet_length(item) as before
             from (select * from dead_letters
                 where id > $1 and id <= $2 and (discarded_at is not null) = $3
                     and ($4::text is null or kind = $4) and ($5::text is null or reason = $5)
                 order by id
                 limit $6) as page) as sized
         where before < $7
         order by id",
        after,
        last,
        page.discarded,
        page.filter.kind.as_deref(),
        page.filter.reason.as_deref(),
        i64::from(page.limit),
        PAGE_BYTES_MAX as _
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(DeadLetter::from).collect())
}

pub async fn one(connection: &mut PgConnection, id: Uuid) -> Result<Option<DeadLetter>, PgFailure> {
    let row = sqlx::query_as!(
        DeadLetterRow,
        "select id, kind, reason, detail, item, accepted_at, set_aside_at, discarded_at
         from dead_letters where id = $1",
        id
    );
    Ok(row.fetch_optional(connection).await?.map(DeadLetter::from))
}

pub async fn discard(connection: &mut PgConnection, id: Uuid) -> Result<bool, PgFailure> {
    let mut transaction = session::begin(connection).await?;
    let discarded = sqlx::query!(
        "update dead_letters set discarded_at = coalesce(discarded_at, clock_timestamp()) where id = $1",
        id
    );
    let discarded = discarded.execute(&mut *transaction).await?.rows_affected() > 0;
    transaction.commit().await?;
    Ok(discarded)
}

/// Deletes the rows of items that took effect.
pub async fn take(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), PgFailure> {
    sqlx::query!("delete from dead_letters where id = any($1)", ids).execute(connection).await?;
    Ok(())
}

/// Runs [`keep`] in a transaction of its own.
pub async fn keep_one(connection: &mut PgConnection, redriven: &Redriven) -> Result<(), PgFailure> {
    let mut transaction = session::begin(connection).await?;
    keep(&mut transaction, std::slice::from_ref(redriven)).await?;
    Ok(transaction.commit().await?)
}

/// Locks the rows that no other transaction has, and reads them again.
pub async fn lock(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<DeadLetter>, PgFailure> {
    let rows = sqlx::query_as!(
        DeadLetterRow,
        "select id, kind, reason, detail, item, accepted_at, set_aside_at, discarded_at
         from dead_letters
         where id = any($1) and discarded_at is null
         order by id
         for update skip locked",
        ids
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(DeadLetter::from).collect())
}

/// Deletes dead letters that were discarded before `before`, once their message is forgotten, too: without
/// its row the item would look applied. A key goes with its dead letter, and is as young as the discard.
pub async fn prune_discarded(
    connection: &mut PgConnection,
    before: OffsetDateTime,
    floor: MessageId,
    keys_before: OffsetDateTime,
    rows_max: i64,
) -> Result<u64, PgFailure> {
    let pruned = sqlx::query_scalar!(
        r#"delete from dead_letters where ctid = any(array(
               select ctid from dead_letters
               where discarded_at is not null and discarded_at < $1
                   and case when get_byte(uuid_send(id), 12) & 128 = 0 then id <= $2
                       else greatest(accepted_at, discarded_at) < $3 end
               order by discarded_at limit $4 for update skip locked))
           returning id"#,
        before,
        floor.last_item(),
        keys_before,
        rows_max
    );
    let pruned = pruned.fetch_all(&mut *connection).await?;
    keys::forget(connection, &pruned).await?;
    Ok(pruned.len() as u64)
}

/// Notes the reasons of items that failed again.
pub async fn keep(connection: &mut PgConnection, redriven: &[Redriven]) -> Result<(), PgFailure> {
    let (mut ids, mut reasons, mut details) = (Vec::new(), Vec::new(), Vec::new());
    for Redriven { id, outcome } in redriven {
        if let RedriveOutcome::FailedAgain { reason, detail } = outcome {
            ids.push(*id);
            reasons.push(&**reason);
            details.push(&**detail);
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "update dead_letters as letter
         set reason = again.reason, detail = again.detail, set_aside_at = clock_timestamp()
         from unnest($1::uuid[], $2::text[], $3::text[]) as again (id, reason, detail)
         where letter.id = again.id and letter.discarded_at is null",
        &ids,
        &reasons as &[&str],
        &details as &[&str]
    )
    .execute(connection)
    .await?;
    Ok(())
}
