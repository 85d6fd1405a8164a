//! Problems of a configuration, in words for the operator.
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is not YAML: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("{} does not consist of lines NAME=value", path.display())]
    NoVariables { path: PathBuf },
    /// All problems that were found, one per line.
    #[error("{}", lines(.0))]
    Problems(Vec<SettingProblem>),
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingProblem {
    #[error("unknown setting {name} ({origin}){}", hint(nearest.as_deref()))]
    Unknown { name: String, origin: String, nearest: Option<String> },
    #[error("unknown profile {name} ({origin}): there are local, dev, preprod and prod")]
    UnknownProfile { name: String, origin: String },
    #[error("{key} ({origin}): {reason}")]
    Invalid { key: String, origin: String, reason: String },
}

fn lines(problems: &[SettingProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |name| format!(": did you mean {name}?"))
}
