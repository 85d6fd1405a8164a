//! `keys new`: makes a key and shows it this once.
use std::io::Write;

use anyhow::{Context, anyhow, ensure};
use clap::{Args, Subcommand};
use rand::TryRngCore;
use rand::rngs::OsRng;
use shared::model::api_key::{ApiKey, KeyId, Principal, Scope, Scopes, generate};
use shared::runtime::clock;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Make a key: prints it, and below it its entry for the configuration
    New(NewKey),
}

#[derive(Args)]
pub struct NewKey {
    /// Names the key in logs and in the configuration; random by default
    #[arg(long)]
    id: Option<String>,
    /// Client that the key belongs to, the same for all its keys; the id by default
    #[arg(long)]
    principal: Option<String>,
    /// Rights of the key; admin includes the others
    #[arg(long, value_delimiter = ',', default_values_t = [Scope::Read, Scope::Write])]
    scopes: Vec<Scope>,
    /// Time from which it is refused, for example 2027-01-01T00:00:00Z; never by default
    #[arg(long)]
    expires: Option<String>,
}

impl NewKey {
    /// Prints the key on the first line and its entry on the second; advice for both goes to standard error.
    pub fn print(&self) -> anyhow::Result<()> {
        let (text, key) = self.make()?;
        eprintln!(
            "The key, for the client, is not shown again. The entry below it is no secret: it goes into"
        );
        eprintln!("`auth.keys` of the configuration or into the file that `auth.keys_file` names.");
        let entry = serde_json::to_string(&key)?;
        writeln!(std::io::stdout(), "{text}\n- {entry}").context("cannot write to standard output")
    }

    fn make(&self) -> anyhow::Result<(String, ApiKey)> {
        let id = self.id.clone().map_or_else(random_id, Ok)?;
        let principal = self.principal.clone().unwrap_or_else(|| id.clone());
        let expires_at =
            self.expires.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose();
        let expires_at =
            expires_at.context("--expires is no RFC 3339 timestamp such as 2027-01-01T00:00:00Z")?;
        ensure!(
            expires_at.is_none_or(|end| end.unix_timestamp_nanos() / 1_000_000 > i128::from(clock::now_ms())),
            "--expires is in the past"
        );
        Ok(generate(
            KeyId::try_from(id).map_err(|reason| anyhow!("--id: {reason}"))?,
            Principal::try_from(principal).map_err(|reason| anyhow!("--principal: {reason}"))?,
            Scopes::try_from(self.scopes.clone()).map_err(|reason| anyhow!("--scopes: {reason}"))?,
            expires_at,
        ))
    }
}

fn random_id() -> anyhow::Result<String> {
    let number = OsRng.try_next_u32().context("the system has no randomness")?;
    Ok(format!("{number:08x}"))
}
