//! `forebay-consumer dead-letters`: an operator's commands for writes that could not be applied.
//!
//! Works on the store of the configured pair, without queue and API. A redrive here publishes no event:
//! API replicas show it once their cached reads have expired (`cache.ttl_ms`). A redrive by HTTP
//! publishes one.
use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::config::Config;
use shared::config::load::profile::Program;
use shared::config::pair::Pair;
use shared::model::dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, PAGE_BYTES_MAX, Redrive, RedriveOutcome, Redriven,
};
use shared::model::id::{IdKeys, ItemId};
use shared::program::backend::{self, OpenStore};
use shared::program::cli::Options;
use shared::store::DeadLetters;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Details are cut in tables; `show` and `--json` have all of them.
const DETAIL_SHOWN_MAX: usize = 80;

/// A dead letter as `--json` prints it.
#[derive(Serialize)]
struct Shown<'l> {
    id: String,
    kind: &'l str,
    reason: &'l str,
    detail: &'l str,
    /// Item as it travelled; text when it is not JSON, `base64:` and its bytes when it is not text
    /// either.
    item: Box<RawValue>,
    accepted_at: String,
    set_aside_at: String,
    discarded_at: Option<String>,
}

#[derive(Serialize)]
struct RedrivenShown<'l> {
    dry_run: bool,
    redriven: usize,
    failed_again: usize,
    items: Vec<ItemShown<'l>>,
    /// Value for `--after`; null when no more follow.
    next: Option<String>,
}

#[derive(Serialize)]
struct ItemShown<'l> {
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'l str>,
}

#[derive(Subcommand)]
pub enum DeadLettersCommand {
    /// List them by id
    List {
        #[command(flatten)]
        filter: Filter,
        /// Those that were discarded instead of the others
        #[arg(long)]
        discarded: bool,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Print one with its item
    Show {
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply them once more; what fails again stays
    Redrive {
        #[command(flatten)]
        filter: Filter,
        /// Only this one
        #[arg(long)]
        id: Option<String>,
        /// Print what would come of it, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Apply also what is too old to know whether it was applied before
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Mark one as never to be applied
    Discard { id: String },
}

#[derive(Args)]
pub struct Filter {
    /// increment, document, delete, point, or message for a whole one
    #[arg(long)]
    kind: Option<String>,
    /// For example schema_violation
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args)]
pub struct PageArgs {
    /// How many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    /// Go on behind this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(options: &Options, command: &DeadLettersCommand) -> anyhow::Result<()> {
    let opened = backend::open_store(&config(options)?).await?;
    let text = execute(&opened, command).await;
    opened.store.close().await;
    // The reader of the pipe may be gone already.
    let _ = std::io::stdout().write_all(text?.as_bytes());
    Ok(())
}

/// Loads the configuration. The consumer does not run on the embedded pair, but this command may use its
/// store.
fn config(options: &Options) -> anyhow::Result<Config> {
    let error = match options.load(Program::Consumer) {
        Ok(loaded) => return Ok(loaded.config),
        Err(error) => error,
    };
    match options.load(Program::Api) {
        Ok(loaded) if matches!(Pair::of(&loaded.config), Ok(Pair::Embedded(_))) => Ok(loaded.config),
        _ => Err(error.into()),
    }
}

async fn execute(opened: &OpenStore, command: &DeadLettersCommand) -> anyhow::Result<String> {
    let OpenStore { store, ids, .. } = opened;
    match command {
        DeadLettersCommand::List { filter, discarded, page } => {
            list(store.as_ref(), ids, filter.asked(None), *discarded, page).await
        }
        DeadLettersCommand::Show { id, json } => {
            let letter = store.dead_letter(key_of(ids, id)?).await?;
            let letter = letter.with_context(|| format!("there is no dead letter {id}"))?;
            if *json { pretty(&shown(ids, &letter)?) } else { Ok(as_text(ids, &letter)) }
        }
        DeadLettersCommand::Redrive { filter, id, dry_run, force, page } => {
            let id = id.as_deref().map(|id| key_of(ids, id)).transpose()?;
            let (filter, after) = (filter.asked(id), page.after(ids)?);
            let asked = Redrive { filter, after, limit: page.limit, dry_run: *dry_run, force: *force };
            redrive(store.as_ref(), ids, asked, page.json).await
        }
        DeadLettersCommand::Discard { id } => {
            if !store.discard(key_of(ids, id)?).await? {
                bail!("there is no dead letter {id}");
            }
            Ok(format!("{id} is discarded\n"))
        }
    }
}

impl Filter {
    fn asked(&self, id: Option<Uuid>) -> DeadLetterFilter {
        DeadLetterFilter { kind: self.kind.clone(), reason: self.reason.clone(), id }
    }
}

impl PageArgs {
    fn after(&self, ids: &IdKeys) -> anyhow::Result<Option<Uuid>> {
        self.after.as_deref().map(|after| key_of(ids, after)).transpose()
    }
}

async fn list(
    store: &dyn DeadLetters,
    ids: &IdKeys,
    filter: DeadLetterFilter,
    discarded: bool,
    page: &PageArgs,
) -> anyhow::Result<String> {
    let asked = DeadLetterPage { filter, discarded, after: page.after(ids)?, limit: page.limit };
    let letters = store.dead_letters(asked).await?;
    if page.json {
        let shown = letters.iter().map(|letter| shown(ids, letter));
        return pretty(&shown.collect::<Result<Vec<_>, _>>()?);
    }
    let mut text = format!("{:36}  {:9}  {:16}  {:24}  detail\n", "id", "kind", "reason", "set aside");
    for letter in &letters {
        let (id, set_aside) = (ids.shown(letter.id), rfc3339(letter.set_aside_at_ms));
        let detail = shorten(&letter.detail);
        writeln!(text, "{id:36}  {:9}  {:16}  {set_aside:24}  {detail}", letter.kind, letter.reason)?;
    }
    let bytes: usize = letters.iter().map(|letter| letter.item.len()).sum();
    let is_large = i64::try_from(bytes).is_ok_and(|bytes| bytes >= PAGE_BYTES_MAX);
    if letters.len() == page.limit as usize || is_large {
        writeln!(text, "more may follow: --after {}", ids.shown(letters[letters.len() - 1].id))?;
    }
    Ok(text)
}

async fn redrive(
    store: &dyn DeadLetters,
    ids: &IdKeys,
    asked: Redrive,
    json: bool,
) -> anyhow::Result<String> {
    let dry_run = asked.dry_run;
    let done = store.redrive(asked).await?;
    let redriven = done.items;
    let is_applied = |redriven: &&Redriven| redriven.outcome == RedriveOutcome::Applied;
    let applied = redriven.iter().filter(is_applied).count();
    let failed_again = redriven.len() - applied;
    if json {
        let items = redriven.iter().map(|redriven| item_shown(ids, redriven)).collect();
        let next = done.next.map(|next| ids.shown(next));
        return pretty(&RedrivenShown { dry_run, redriven: applied, failed_again, items, next });
    }
    let mut text = String::new();
    for Redriven { id, outcome } in &redriven {
        let id = ids.shown(*id);
        match outcome.failure() {
            None => writeln!(text, "{id}  applied")?,
            Some((reason, detail)) => writeln!(text, "{id}  failed   {reason}: {}", shorten(detail))?,
        }
    }
    let would = if dry_run { "would be " } else { "" };
    writeln!(text, "{applied} {would}applied, {failed_again} {would}failed again")?;
    if let Some(next) = done.next {
        writeln!(text, "more may follow: --after {}", ids.shown(next))?;
    }
    Ok(text)
}

fn as_text(ids: &IdKeys, letter: &DeadLetter) -> String {
    let discarded = letter.discarded_at_ms.map_or_else(|| "no".into(), rfc3339);
    format!(
        "id         {}\nkind       {}\nreason     {}\ndetail     {}\naccepted   {}\nset aside  {}\n\
         discarded  {discarded}\nitem       {}\n",
        ids.shown(letter.id),
        letter.kind,
        letter.reason,
        visible(&letter.detail),
        rfc3339(letter.accepted_at_ms),
        rfc3339(letter.set_aside_at_ms),
        visible(&letter.item)
    )
}

fn shown<'l>(ids: &IdKeys, letter: &'l DeadLetter) -> anyhow::Result<Shown<'l>> {
    let item = serde_json::from_str::<Box<RawValue>>(&letter.item);
    Ok(Shown {
        id: ids.shown(letter.id),
        kind: &letter.kind,
        reason: &letter.reason,
        detail: &letter.detail,
        item: item.or_else(|_| to_raw_value(&letter.item))?,
        accepted_at: rfc3339(letter.accepted_at_ms),
        set_aside_at: rfc3339(letter.set_aside_at_ms),
        discarded_at: letter.discarded_at_ms.map(rfc3339),
    })
}

fn item_shown<'l>(ids: &IdKeys, redriven: &'l Redriven) -> ItemShown<'l> {
    let id = ids.shown(redriven.id);
    match redriven.outcome.failure() {
        None => ItemShown { id, status: "applied", reason: None, detail: None },
        Some((reason, detail)) => {
            ItemShown { id, status: "failed", reason: Some(reason), detail: Some(detail) }
        }
    }
}

fn pretty<T: Serialize>(shown: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(shown)? + "\n")
}

fn key_of(ids: &IdKeys, text: &str) -> anyhow::Result<Uuid> {
    let is_of_item = text.parse::<ItemId>().is_ok();
    ids.meant(text).with_context(|| {
        let why = if is_of_item { "was not issued by this installation (ids.secrets)" } else { "is no id" };
        format!("{text} {why}")
    })
}

fn rfc3339(at_ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{at_ms} ms"))
}

/// Escapes control characters: a client's text must not move the cursor of a terminal.
fn visible(text: &str) -> String {
    let escape = |character: char| {
        let escaped = character.is_control().then(|| character.escape_default().to_string());
        escaped.unwrap_or_else(|| character.to_string())
    };
    text.chars().map(escape).collect()
}

fn shorten(text: &str) -> String {
    let shown: String = text.chars().take(DETAIL_SHOWN_MAX).collect();
    visible(&shown) + if text.chars().count() > DETAIL_SHOWN_MAX { "…" } else { "" }
}
