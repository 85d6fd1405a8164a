//! Sources of the values of [`Config`], and the check that they make sense together.
//!
//! Defaults < built-in defaults of the profile < `config.yaml` (its `default:`, then the profile's section)
//! < environment < flags. Nothing here opens anything but the file. All problems that keep a program from
//! running are reported at once, each with the setting's name and origin.
pub mod check;
mod layers;
pub mod problem;
pub mod profile;
pub mod ranges;
pub mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;

use self::layers::{Env, Setting, is_secret};
use self::problem::{ConfigError, SettingProblem};
use self::profile::{Profile, Program};
use super::Config;
use super::pair::{NoPair, Pair};
use crate::model::read_error::{plain, reason_without_value};

/// File that is read when none is named, if it exists.
pub const DEFAULT_PATH: &str = "config.yaml";

/// File of variables that is read beside the environment, if it exists.
pub const ENV_PATH: &str = ".env";

/// Secret of installations that only this machine can reach. All others need their own.
const DEVELOPMENT_SECRET: &str = "forebay-development-secret";

/// Everything that settings may come from.
#[derive(Clone, Debug)]
pub struct Sources {
    pub program: Program,
    /// File named by `--config`; it must exist then.
    pub config_path: Option<PathBuf>,
    /// Profile named by `--env`.
    pub env_profile: Option<String>,
    /// Environment, passed in so that tests need not change the process.
    pub env: BTreeMap<String, String>,
    /// File with more variables, read if it exists; those of `env` win.
    pub env_file: Option<PathBuf>,
    /// Values of `--set section.key=value`, in their order.
    pub flags: Vec<(String, String)>,
}

/// Configuration that passed all checks.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    pub config: Config,
    pub profile: Option<Profile>,
    /// Origin of each value, by `section.key`.
    pub origins: BTreeMap<String, String>,
    /// Warnings that do not keep the programs from starting; to be logged.
    pub warnings: Vec<String>,
    /// File of variables that was read.
    pub env_file: Option<PathBuf>,
}

impl Sources {
    /// Sources with the environment of this process. Variables that are not UTF-8 set nothing.
    pub fn of_process(program: Program) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let env = std::env::vars_os().filter_map(text).collect();
        let env_file = Some(ENV_PATH.into());
        Self { program, config_path: None, env_profile: None, env, env_file, flags: Vec::new() }
    }

    fn profile(&self, env: &Env) -> Result<Option<Profile>, SettingProblem> {
        let of_env = || env.get("FOREBAY_ENV").filter(|name| !name.is_empty());
        let (name, origin) = match (&self.env_profile, of_env()) {
            (Some(name), _) => (name, "flag --env".to_owned()),
            (None, Some(name)) => (name, env.origin("FOREBAY_ENV")),
            (None, None) => return Ok(None),
        };
        let unknown = |()| SettingProblem::UnknownProfile { name: name.clone(), origin: origin.clone() };
        name.parse().map(Some).map_err(unknown)
    }
}

/// Reads all sources and checks the result; all problems are reported at once.
pub fn load(sources: &Sources) -> Result<LoadedConfig, ConfigError> {
    let env = Env::read(&sources.env, sources.env_file.as_deref())?;
    let named = sources.profile(&env).map_err(|problem| ConfigError::Problems(vec![problem]))?;
    let file = read_file(sources.config_path.as_deref())?;
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    layers::misspelt_variables(&env, &mut problems, &mut warnings);
    let of_file = layers::of_file(file.as_ref(), None, &mut problems);
    let mut explicit = layers::of_env(&env, &mut problems);
    explicit.extend(layers::of_flags(&sources.flags, &mut problems));
    let nothing_set = !of_file.iter().chain(&explicit).any(Setting::names_backend);
    let profile = match (named, sources.program) {
        (None, Program::Consumer) if nothing_set => Some(Profile::Local),
        _ => named,
    };
    let of_profile = match profile {
        // All of the file was checked together with its section `default`.
        Some(_) => layers::of_file(file.as_ref(), profile, &mut Vec::new()),
        None => Vec::new(),
    };
    let built_in = layers::built_in(sources.program, profile);
    let settings = built_in.into_iter().chain(of_file).chain(of_profile).chain(explicit);
    let figment = merge(settings, &mut problems);
    finish(sources.program, profile, &figment, Loading { problems, warnings, env_file: env.file })
}

/// Merges the last value of each setting. One of a wrong type is a problem, and its default stands in for
/// it.
fn merge(settings: impl Iterator<Item = Setting>, problems: &mut Vec<SettingProblem>) -> Figment {
    let last: BTreeMap<_, _> = settings.map(|setting| (setting.key().to_owned(), setting)).collect();
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    for setting in last.into_values() {
        let with = figment.clone().merge(setting);
        match with.extract::<Config>() {
            Ok(_) => figment = with,
            Err(errors) => problems.extend(errors.into_iter().map(wrong_type)),
        }
    }
    figment
}

/// Findings of the sources before the check.
struct Loading {
    problems: Vec<SettingProblem>,
    warnings: Vec<String>,
    env_file: Option<PathBuf>,
}

/// Turns the merged layers into values, fills in what depends on several of them, and checks.
fn finish(
    program: Program,
    profile: Option<Profile>,
    figment: &Figment,
    Loading { mut problems, mut warnings, env_file }: Loading,
) -> Result<LoadedConfig, ConfigError> {
    let mut config: Config = figment
        .extract()
        .map_err(|error| ConfigError::Problems(error.into_iter().map(wrong_type).collect()))?;
    let mut origins = origins(figment);
    let mut found = check::values(&config);
    let pair = Pair::of(&config);
    match &pair {
        Ok(Pair::Embedded(_)) => {
            if program == Program::Consumer {
                found.push(("queue.url", check::CONSUMER_NEEDS_SERVERS.into()));
            }
            if profile.is_some_and(Profile::is_deployed) && origins["store.migrate"].starts_with("profile") {
                // No other program writes these files.
                config.store.migrate = true;
                origins.insert("store.migrate".into(), "default of the embedded store".into());
            }
        }
        Ok(Pair::Cluster) => {}
        Err(error) => {
            found.push((error.setting(), error.to_string()));
            if *error == NoPair::QueueUnset && config.store.url.is_empty() {
                found.push(("store.url", NoPair::StoreUnset.to_string()));
            }
        }
    }
    let is_embedded = matches!(pair, Ok(Pair::Embedded(_)));
    if let Err(reason) = check_secrets(&mut config, profile, is_embedded, &mut origins, &mut warnings) {
        found.push(("ids.secrets", reason));
    }
    problems.extend(found.into_iter().map(|(key, reason)| SettingProblem::Invalid {
        key: key.into(),
        origin: origins[key].clone(),
        reason,
    }));
    if problems.is_empty() {
        return Ok(LoadedConfig { config, profile, origins, warnings, env_file });
    }
    Err(ConfigError::Problems(problems))
}

/// Fills in the fixed secret if only this machine can reach the broker. Elsewhere, ids that anybody can
/// sign, or guess the secret of, would look like our own.
fn check_secrets(
    config: &mut Config,
    profile: Option<Profile>,
    is_embedded: bool,
    origins: &mut BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let given = &config.ids.secrets;
    let deployed = profile.is_some_and(Profile::is_deployed);
    let reachable = deployed || !(is_embedded || check::is_loopback(&config.queue.url));
    let weak = match given {
        _ if !reachable => None,
        given if given.is_empty() => (!is_embedded).then(|| "no secret".to_owned()),
        given if given.iter().any(|secret| secret == DEVELOPMENT_SECRET) => {
            Some("the development secret".into())
        }
        _ if check::signs_with_short_secret(config) => {
            Some(format!("a secret of less than {} bytes", check::SECRET_BYTES_MIN))
        }
        _ => None,
    };
    if let Some(weak) = weak {
        return Err(format!(
            "{weak} where others depend on it: set FOREBAY__IDS__SECRETS to a long random \
             value, the same for all replicas (for example of `openssl rand -hex 32`)"
        ));
    }
    if given.is_empty() && !is_embedded {
        config.ids.secrets = vec![DEVELOPMENT_SECRET.into()];
        origins.insert("ids.secrets".into(), "development default for a loopback broker".into());
        if profile.is_none() {
            warnings.push("ids.secrets is not set: the development secret is used".into());
        }
    }
    Ok(())
}

fn read_file(named: Option<&Path>) -> Result<Option<layers::ConfigFile>, ConfigError> {
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    match std::fs::read_to_string(path) {
        Ok(text) => layers::ConfigFile::parse(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path: path.into(), source }),
    }
}

fn origins(figment: &Figment) -> BTreeMap<String, String> {
    let origin = |key: &String| {
        let metadata = figment.find_metadata(key).filter(|metadata| metadata.source.is_none());
        metadata.map_or("default".into(), |metadata| metadata.name.to_string())
    };
    layers::known().keys().map(|key| (key.clone(), origin(key))).collect()
}

fn wrong_type(error: figment::Error) -> SettingProblem {
    let key = error.path.join(".");
    let origin = error.metadata.map_or("default".into(), |metadata| metadata.name.to_string());
    // Within a secret not even names are shown: the setting and the place in its list are enough.
    let is_hidden = is_secret(&key);
    let key = if is_hidden { error.path[..error.path.len().min(3)].join(".") } else { key };
    let reason = if is_hidden { reason_without_value(&error.kind) } else { plain(&error.kind.to_string()) };
    SettingProblem::Invalid { key, origin, reason }
}
