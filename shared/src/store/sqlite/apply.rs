//! The transaction that applies a batch: ledger, keys, documents, points, counters, set-aside items, in this
//! order. The statements for the ledger, counters and set-aside items are here. Many rows travel as one JSON
//! array per statement, or as `values`, because a statement costs more than a row.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::collections::DefinitionCache;
use super::files::SqliteFailure;
use super::values::json;
use super::{documents, keys, points};
use crate::model::id::{ItemKey, MessageId};
use crate::model::message::Message;
use crate::model::outcome::{Applied, Counter, Reason, SetAside};
use crate::model::write::Increment;
use crate::runtime::clock;
use crate::store::rules::ledger;
use crate::store::rules::ledger::TooOld;
use crate::store::rules::plan::{Plan, PlannedWrite};
use crate::store::rules::sums::{self, CounterState, Folded};

/// Inserts ledger rows. `where true` tells the parser that `on` begins no join.
pub const ENTER: &str = "insert into applied_message (id, digest, applied_at_ms) \
    select unhex(value ->> 0), unhex(value ->> 1), ?2 from json_each(?1) where true \
    on conflict do nothing \
    returning id, id <= (select floor.id from ledger_floor as floor where floor.one = 1)";

pub const SEEN: &str = "select id, digest from applied_message \
    where id in (select unhex(value) from json_each(?1))";

pub const CURRENT: &str = "select name, value, version from counters \
    where name in (select value from json_each(?1))";

pub const PUT: &str = "insert into counters (name, value, version, updated_at_ms) \
    select value ->> 0, value ->> 1, value ->> 2, ?2 from json_each(?1) where true \
    on conflict (name) do update set \
    value = excluded.value, version = excluded.version, updated_at_ms = excluded.updated_at_ms";

pub const BURY: &str = "insert into dead_letters \
    (id, kind, reason, detail, item, accepted_at_ms, set_aside_at_ms) \
    select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, ?2 \
    from json_each(?1) where true on conflict do nothing";

/// Applies a batch inside a transaction that holds the write lock.
pub async fn apply(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    batch: &[Message],
    too_old: TooOld,
) -> Result<Applied, SqliteFailure> {
    let batch = ledger::distinct(batch)?;
    let now_ms = clock::now_ms();
    let (fresh, old) = enter(connection, &batch, now_ms).await?;
    let old = too_old.set_aside(old).ok_or(SqliteFailure::TooOld)?;
    let earlier = keys::enter(connection, &fresh, now_ms).await?;
    let mut plan = Plan::of(&fresh, &old, &earlier);
    let mut applied = Applied { set_aside: std::mem::take(&mut plan.aside), ..Applied::default() };
    take_effect(connection, cache, &plan, now_ms, &mut applied).await?;
    insert_dead_letters(connection, &applied.set_aside, now_ms).await?;
    applied.fresh = fresh.iter().map(|message| message.id).collect();
    applied.keyed = plan.keyed_outcomes(&applied.set_aside);
    applied.committed_at_ms = now_ms;
    Ok(applied)
}

/// Ends a message without applying any of its items: those that would take effect are set aside.
pub async fn give_up_on(
    connection: &mut SqliteConnection,
    message: Message,
    why: Arc<str>,
) -> Result<Applied, SqliteFailure> {
    let now_ms = clock::now_ms();
    let (fresh, old) = enter(connection, &[&message], now_ms).await?;
    let earlier = keys::enter(connection, &fresh, now_ms).await?;
    let mut plan = Plan::of(&fresh, &old, &earlier);
    let mut set_aside = std::mem::take(&mut plan.aside);
    let places = plan.places(&fresh).into_iter();
    set_aside.extend(places.map(|place| place.set_aside(Reason::NotApplied, &why)));
    insert_dead_letters(connection, &set_aside, now_ms).await?;
    Ok(Applied {
        fresh: fresh.iter().map(|message| message.id).collect(),
        keyed: plan.keyed_outcomes(&set_aside),
        set_aside,
        committed_at_ms: now_ms,
        ..Applied::default()
    })
}

/// Writes the ledger rows. Returns the messages that had none, in the order of the batch, and the messages
/// among them at or below the floor.
async fn enter<'a>(
    connection: &mut SqliteConnection,
    batch: &[&'a Message],
    now_ms: i64,
) -> Result<(Vec<&'a Message>, HashSet<MessageId>), SqliteFailure> {
    let mut rows: Vec<_> = batch
        .iter()
        .map(|message| (message.id.as_uuid().simple(), Uuid::from_bytes(message.digest).simple()))
        .collect();
    rows.sort_unstable();
    let inserted = sqlx::query(ENTER).bind(json(&rows)).bind(now_ms).fetch_all(&mut *connection).await?;
    let (mut ids, mut too_old) = (HashSet::new(), HashSet::new());
    for row in &inserted {
        let id: Uuid = row.try_get(0)?;
        ids.insert(id);
        if row.try_get(1)? {
            too_old.extend(MessageId::from_uuid(id));
        }
    }
    let (fresh, seen) = ledger::part(batch, &ids);
    if !seen.is_empty() {
        let ids: Vec<_> = seen.iter().map(|message| message.id.as_uuid().simple()).collect();
        let stored = sqlx::query_as(SEEN).bind(json(&ids)).fetch_all(connection).await?;
        ledger::compare(&seen, &stored.into_iter().collect())?;
    }
    Ok((fresh, too_old))
}

/// Writes all effects of a plan, without ledger, keys and dead letters. Items that cannot be applied are added
/// to the items that are set aside.
pub async fn take_effect(
    connection: &mut SqliteConnection,
    cache: &DefinitionCache,
    plan: &Plan<'_>,
    now_ms: i64,
    applied: &mut Applied,
) -> Result<(), SqliteFailure> {
    // Named one by one, so that a new kind of write is not forgotten here.
    let Plan { increments, documents: _, deletes, points, aside: _, keyed: _, own: _ } = plan;
    applied.set_aside.extend(documents::apply(connection, cache, plan).await?);
    let deleted: BTreeSet<ItemKey> = deletes.iter().map(|task| task.write.document).collect();
    applied.deleted = deleted.into_iter().collect();
    applied.types = points::apply(connection, points, now_ms).await?;
    count(connection, increments, now_ms, applied).await
}

/// Folds the increments into the counters.
async fn count(
    connection: &mut SqliteConnection,
    increments: &[PlannedWrite<'_, Increment>],
    now_ms: i64,
    applied: &mut Applied,
) -> Result<(), SqliteFailure> {
    if increments.is_empty() {
        return Ok(());
    }
    let current = current(connection, &sums::names(increments)).await?;
    let Folded { counters, standings, set_aside } = sums::fold_increments(&current, increments);
    applied.standings = standings;
    applied.set_aside.extend(set_aside);
    if counters.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = counters.iter().map(|(name, to)| (name, to.value, to.version)).collect();
    sqlx::query(PUT).bind(json(&rows)).bind(now_ms).execute(connection).await?;
    let counter = |(name, to): (&str, CounterState)| Counter {
        name: name.into(),
        value: to.value,
        version: to.version,
        updated_at_ms: now_ms,
    };
    applied.counters = counters.into_iter().map(counter).collect();
    Ok(())
}

async fn current(
    connection: &mut SqliteConnection,
    names: &[&str],
) -> Result<HashMap<String, CounterState>, SqliteFailure> {
    let rows =
        sqlx::query_as::<_, (String, i64, i64)>(CURRENT).bind(json(names)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(name, value, version)| (name, CounterState { value, version })).collect())
}

/// Writes dead letters. A dead letter that is there already, from a message that outlived its ledger row,
/// stays as it is.
async fn insert_dead_letters(
    connection: &mut SqliteConnection,
    set_aside: &[SetAside],
    now_ms: i64,
) -> Result<(), SqliteFailure> {
    if set_aside.is_empty() {
        return Ok(());
    }
    let row = |aside: &SetAside| {
        let id = aside.item.as_uuid().simple().to_string();
        let (kind, reason) = (aside.item.kind_name(), aside.reason.name());
        serde_json::json!([id, kind, reason, aside.detail, aside.json, aside.accepted_at_ms])
    };
    let rows: Vec<_> = set_aside.iter().map(row).collect();
    sqlx::query(BURY).bind(json(&rows)).bind(now_ms).execute(connection).await?;
    Ok(())
}
