//! The layers of the configuration: file, environment and flags as single settings, each with its
//! origin, in the order in which later ones win.
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Yaml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Provider};

use super::problem::{ConfigError, SettingProblem};
use super::profile::{Profile, Program};
use crate::config::Config;

const ENV_PREFIX: &str = "FOREBAY__";

/// Variables that other tools use for the same setting; our own name wins.
const ALIASES: [(&str, &str); 2] = [("DATABASE_URL", "store.url"), ("AMQP_URL", "queue.url")];

/// Environment: variables of the process, and those of a file beside them.
#[derive(Debug)]
pub(super) struct Env {
    variables: BTreeMap<String, String>,
    of_file: BTreeSet<String>,
    /// Path of the file, if it is there.
    pub file: Option<PathBuf>,
}

impl Env {
    /// Reads the file and merges both; the variables of the process win.
    pub(super) fn read(process: &BTreeMap<String, String>, file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut env = Self { variables: process.clone(), of_file: BTreeSet::new(), file: None };
        let Some(path) = file else { return Ok(env) };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // Environments of other tools are directories of this name.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                return Ok(env);
            }
            Err(source) => return Err(ConfigError::Unreadable { path: path.into(), source }),
        };
        env.file = Some(path.into());
        for line in dotenvy::from_read_iter(text.as_bytes()) {
            let (name, value) = match line {
                Ok(variable) => variable,
                Err(dotenvy::Error::LineParse(line, _)) if !is_ours(&line) => continue,
                // The text is not shown: it may be a secret.
                Err(_) => return Err(ConfigError::NoVariables { path: path.into() }),
            };
            if let Entry::Vacant(entry) = env.variables.entry(name) {
                env.of_file.insert(entry.key().clone());
                entry.insert(value);
            }
        }
        Ok(env)
    }

    pub(super) fn get(&self, name: &str) -> Option<&String> {
        self.variables.get(name)
    }

    pub(super) fn origin(&self, name: &str) -> String {
        match &self.file {
            Some(file) if self.of_file.contains(name) => format!("{}, {name}", file.display()),
            _ => format!("environment {name}"),
        }
    }
}

/// True when an unreadable text sets a variable of Forebay's; the rest is for other tools. The text has
/// several lines behind a quote that is never closed.
fn is_ours(text: &str) -> bool {
    let sets_ours = |line: &str| {
        let line = line.trim_start();
        let name = line.strip_prefix("export ").unwrap_or(line).trim_start();
        name.starts_with("FOREBAY") || ALIASES.iter().any(|(alias, _)| name.starts_with(alias))
    };
    text.lines().any(sets_ours)
}

/// Values that must never be shown as they are.
const SECRETS: [&str; 4] = ["auth.keys", "ids.secrets", "queue.url", "store.url"];

pub(super) fn is_secret(key: &str) -> bool {
    let within = |secret: &&str| {
        key.strip_prefix(*secret).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    SECRETS.iter().any(within)
}

/// One value for one setting.
#[derive(Debug)]
pub(super) struct Setting {
    /// Name, `section.key`.
    key: String,
    value: Value,
    origin: String,
}

impl Setting {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn names_backend(&self) -> bool {
        ["queue.url", "store.url"].contains(&&*self.key)
    }
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<figment::Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        let dict = nested.into_dict().expect("a key has two parts");
        Ok(figment::Profile::Default.collect(dict))
    }
}

/// All settings by `section.key`, with their defaults.
pub(super) fn known() -> BTreeMap<String, Value> {
    let defaults = Value::serialize(Config::default()).expect("the defaults are plain values");
    let sections = defaults.into_dict().expect("a struct is a map");
    let keys = |(section, keys): (String, Value)| {
        let keys = keys.into_dict().expect("a section is a map");
        keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value))
    };
    sections.into_iter().flat_map(keys).collect()
}

/// Built-in defaults of the program and its profile.
pub(super) fn built_in(program: Program, profile: Option<Profile>) -> Vec<Setting> {
    let ops_port: u16 = match program {
        Program::Api => 9190,
        Program::Consumer => 9191,
    };
    let origin = format!("default of the {program}");
    let mut settings = vec![Setting { key: "ops.port".into(), value: ops_port.into(), origin }];
    let values: &[(&str, Value)] = &match profile {
        None => vec![],
        Some(Profile::Local) => vec![
            ("queue.url", "amqp://guest:guest@127.0.0.1:5672/%2f".into()),
            ("store.url", "postgres://postgres@127.0.0.1:5432/forebay".into()),
            ("store.create_database", true.into()),
        ],
        // A file on a container's own disk would be a queue that forgets: an operator must choose it.
        Some(Profile::Dev | Profile::Preprod | Profile::Prod) => {
            vec![("queue.url", "".into()), ("store.url", "".into()), ("store.migrate", false.into())]
        }
    };
    let origin = profile.map_or(String::new(), |profile| format!("profile {}", profile.name()));
    settings.extend(values.iter().map(|(key, value)| Setting {
        key: (*key).into(),
        value: value.clone(),
        origin: origin.clone(),
    }));
    settings
}

/// Configuration file: profiles, their sections, their keys.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    profiles: Dict,
}

impl ConfigFile {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // A file without any value is a file in which everything is commented out.
        let profiles = Yaml::from_str::<Option<Dict>>(text);
        let profiles = profiles
            .map_err(|error| ConfigError::Malformed { path: path.into(), reason: error.to_string() })?;
        Ok(Self { path: path.into(), profiles: profiles.unwrap_or_default() })
    }

    fn origin(&self, profile: &str) -> String {
        format!("{}, {profile}", self.path.display())
    }
}

/// Settings of one section of the file. `None` is the section `default`; with it all of the file is checked
/// for unknown names.
pub(super) fn of_file(
    file: Option<&ConfigFile>,
    profile: Option<Profile>,
    problems: &mut Vec<SettingProblem>,
) -> Vec<Setting> {
    let Some(file) = file else { return Vec::new() };
    let wanted = profile.map_or("default", Profile::name);
    let mut settings = Vec::new();
    for (name, sections) in &file.profiles {
        if name != "default" && name.parse::<Profile>().is_err() {
            let origin = file.path.display().to_string();
            let reason = "is no profile: settings stand below default, local, dev, preprod or prod";
            problems.push(SettingProblem::Invalid { key: name.clone(), origin, reason: reason.into() });
            continue;
        }
        match of_sections(sections, &file.origin(name), problems) {
            Ok(found) if name == wanted => settings = found,
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
    }
    settings
}

fn of_sections(
    sections: &Value,
    origin: &str,
    problems: &mut Vec<SettingProblem>,
) -> Result<Vec<Setting>, SettingProblem> {
    let known = known();
    let mut settings = Vec::new();
    for (section, keys) in map(sections, origin, origin)? {
        match map(keys, section, origin) {
            Err(problem) => problems.push(problem),
            Ok(keys) => {
                for (key, value) in keys {
                    let name = format!("{section}.{key}");
                    if !known.contains_key(&name) {
                        problems.push(unknown(&known, name, origin));
                    } else if !matches!(value, Value::Empty(..)) {
                        let (value, origin) = (value.clone(), origin.into());
                        settings.push(Setting { key: name, value, origin });
                    }
                }
            }
        }
    }
    Ok(settings)
}

/// Reads `value` as a map; null is an empty one.
fn map<'a>(
    value: &'a Value,
    name: &str,
    origin: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>, SettingProblem> {
    match value {
        Value::Dict(_, dict) => Ok(Some(dict).into_iter().flatten()),
        Value::Empty(..) => Ok(None.into_iter().flatten()),
        _ => {
            let reason = "expected a map".into();
            Err(SettingProblem::Invalid { key: name.into(), origin: origin.into(), reason })
        }
    }
}

pub(super) fn of_env(env: &Env, problems: &mut Vec<SettingProblem>) -> Vec<Setting> {
    let known = known();
    let alias = |(variable, key): (&str, &str)| {
        let text = env.get(variable).filter(|text| !text.is_empty())?;
        let origin = env.origin(variable);
        Some(Setting { key: key.into(), value: typed(&known[key], text), origin })
    };
    let mut settings: Vec<_> = ALIASES.into_iter().filter_map(alias).collect();
    for (variable, text) in &env.variables {
        let Some(name) = variable.strip_prefix(ENV_PREFIX) else { continue };
        let key = name.to_ascii_lowercase().replacen("__", ".", 1);
        match known.get(&key) {
            Some(default) if variable_of(&key) == *variable => {
                settings.push(Setting { value: typed(default, text), key, origin: env.origin(variable) });
            }
            _ => {
                let nearest = nearest(&known, &key).map(variable_of);
                let origin = env.origin(variable).trim_end_matches(&format!(" {variable}")).into();
                problems.push(SettingProblem::Unknown { name: variable.clone(), origin, nearest });
            }
        }
    }
    settings
}

pub(super) fn of_flags(flags: &[(String, String)], problems: &mut Vec<SettingProblem>) -> Vec<Setting> {
    let known = known();
    let mut settings = Vec::new();
    for (key, text) in flags {
        let origin = format!("flag --set {key}");
        match known.get(key) {
            Some(default) => settings.push(Setting { key: key.clone(), value: typed(default, text), origin }),
            None => problems.push(unknown(&known, key.clone(), "flag --set")),
        }
    }
    settings
}

/// Refuses by name the variables that are settings but for their underscores, which would be ignored
/// otherwise. Addresses that Kubernetes makes for services under such names are warnings.
pub(super) fn misspelt_variables(env: &Env, problems: &mut Vec<SettingProblem>, warnings: &mut Vec<String>) {
    let flat = |name: &str| name.to_ascii_uppercase().replace(['.', '_'], "");
    let keys: BTreeMap<String, String> = known().into_keys().map(|key| (flat(&key), key)).collect();
    for (variable, value) in &env.variables {
        // Variables with the prefix are read, and refused where they are unknown.
        let rest =
            variable.strip_prefix("FOREBAY").filter(|rest| rest.starts_with('_') && !rest.starts_with("__"));
        let Some(key) = rest.and_then(|rest| keys.get(&flat(rest))) else { continue };
        if key.split_once('.').is_some_and(|(_, name)| name == "port")
            && (value.starts_with("tcp://") || value.starts_with("udp://"))
        {
            warnings.push(format!("{variable} is not read: the setting is {}", variable_of(key)));
        } else {
            let origin = env.origin(variable).trim_end_matches(&format!(" {variable}")).into();
            problems.push(SettingProblem::Unknown {
                name: variable.clone(),
                origin,
                nearest: Some(variable_of(key)),
            });
        }
    }
}

/// Environment variable of a setting.
pub(super) fn variable_of(key: impl AsRef<str>) -> String {
    format!("{ENV_PREFIX}{}", key.as_ref().replace('.', "__").to_ascii_uppercase())
}

/// Parses text as the type of the default. Text that does not fit is left as it is, so that the error names
/// what was found.
fn typed(default: &Value, text: &str) -> Value {
    match default {
        Value::String(..) | Value::Char(..) => text.into(),
        // A list of more than words is written as in the file.
        Value::Array(..) if text.trim_start().starts_with('[') => {
            Yaml::from_str(text).unwrap_or_else(|_| Value::from(text))
        }
        Value::Array(..) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(Value::from).collect::<Vec<_>>().into()
        }
        _ => match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(number), ..) => number.into(),
            (_, Ok(number), ..) => number.into(),
            (_, _, Ok(number), _) => number.into(),
            (_, _, _, Ok(flag)) => flag.into(),
            _ => text.into(),
        },
    }
}

fn unknown(known: &BTreeMap<String, Value>, name: String, origin: &str) -> SettingProblem {
    let nearest = nearest(known, &name).map(ToOwned::to_owned);
    SettingProblem::Unknown { name, origin: origin.into(), nearest }
}

/// Known name that is closest, if it is close at all.
fn nearest<'a>(known: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    let distance = |key: &&String| strsim::damerau_levenshtein(key, name);
    let closest = known.keys().min_by_key(distance)?;
    (distance(&closest) <= name.len() / 3).then_some(closest)
}
