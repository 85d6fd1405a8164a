//! Output of `check-config`: every value with its origin, and no secret.
use std::fmt::Write as _;

use serde_json::Value;
use url::Url;

use super::LoadedConfig;
use super::layers::is_secret;
use super::profile::Profile;

const REDACTED: &str = "***";

/// One line per setting, warnings at the end.
pub fn check_config_report(loaded: &LoadedConfig) -> String {
    let values = serde_json::to_value(&loaded.config).expect("settings are plain values");
    let profile = loaded.profile.map_or("none", Profile::name);
    let mut report = format!("profile: {profile}\n");
    if let Some(path) = &loaded.env_file {
        let _ = writeln!(report, "variables: {}", path.display());
    }
    for (key, origin) in &loaded.origins {
        let pointer = format!("/{}", key.replace('.', "/"));
        let value = values.pointer(&pointer).unwrap_or(&Value::Null);
        let shown = if is_secret(key) { redact(value) } else { value.clone() };
        let _ = writeln!(report, "{:<52} # {origin}", format!("{key}: {shown}"));
    }
    for warning in &loaded.warnings {
        let _ = writeln!(report, "warning: {warning}");
    }
    report
}

/// Redacts a value: a URL loses what authenticates, every other secret loses everything.
fn redact(value: &Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() || text.starts_with("embedded:") => value.clone(),
        Value::String(text) => redact_url(text).into(),
        Value::Array(list) => list.iter().map(|_| REDACTED).collect(),
        _ => REDACTED.into(),
    }
}

fn redact_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return REDACTED.into() };
    if url.password().is_some() && url.set_password(Some(REDACTED)).is_err() {
        return REDACTED.into();
    }
    // Parameters have names that the servers choose (`password`, `sslkey`): only harmless ones stay.
    let harmless = ["sslmode", "heartbeat", "application_name"];
    let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    if !parameters.is_empty() {
        let shown = parameters.iter().map(|(name, value)| {
            let value = if harmless.contains(&&**name) { value } else { REDACTED };
            (name, value)
        });
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.into()
}
