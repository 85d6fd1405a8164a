//! `docs/configuration.md` is made from the comments and defaults in `src/config.rs`. The commented
//! settings of `config.yaml` must have the same defaults.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use shared::config::Config;
use shared::config::load::ranges::range_of;

const SOURCE: &str = include_str!("../../../src/config.rs");

const HEAD: &str = "# Configuration

<!-- Made from shared/src/config.rs: UPDATE_DOCS=1 cargo test -p shared --test it docs -->

Every setting has a default. Later ones win: defaults < built-in defaults of the profile < `config.yaml`
(its section `default`, then the profile's) < environment < flags. Unknown names are errors.
`forebay-api check-config` and `forebay-consumer check-config` print every value with its origin, secrets redacted.

* **File**: `config.yaml` in the working directory if it exists, or the one named by `--config`.
* **Profile**: `FOREBAY_ENV` or `--env`: `local`, `dev`, `preprod` or `prod`.
* **Environment**: `FOREBAY__<SECTION>__<KEY>`; lists are comma-separated, lists of more than
  words are written as in the file: `[{id: a, …}]`. `AMQP_URL` and `DATABASE_URL` stand for
  `queue.url` and `store.url`; the own names win.
* **File of variables**: `.env` in the working directory, if it exists: lines `NAME=value`; variables of the
  environment win. A start says that it was read.
* **Flags**: `--set section.key=value`.

| profile | what it assumes |
| --- | --- |
| none | `api`: queue and store embedded in `./forebay-data`. `consumer` with neither URL set: the profile `local` |
| `local` | RabbitMQ `amqp://guest:guest@127.0.0.1:5672/%2f`, Postgres `postgres://postgres@127.0.0.1:5432/forebay` (no password; the database is `forebay`, so that nothing is made in `postgres`), `store.migrate` and `store.create_database` true, a fixed development secret for ids |
| `dev`, `preprod`, `prod` | no URLs: both must be set; `store.migrate` false unless the store is embedded; `ids.secrets` must be set unless the queue is embedded |

Without a profile, a broker on loopback and no `ids.secrets` means the development secret, with a warning.
Any other broker, or profile but `local`, without a secret, with the development secret or one of less than 16
bytes is refused. Numbers outside of their range are refused, and all that is wrong is told at once.
`ops.port` is 9190 for `api` and 9191 for `consumer`.
";

/// A section: its name, its comment, its settings with theirs.
struct Section {
    name: String,
    about: String,
    settings: Vec<(String, String)>,
}

/// Name, type and comment.
type Field = (String, String, String);

/// The sections in the order of the struct `Config`.
fn sections() -> Vec<Section> {
    let mut structs: BTreeMap<String, (String, Vec<Field>)> = BTreeMap::new();
    let (mut comment, mut current) = (String::new(), String::new());
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            let space = if comment.is_empty() { "" } else { " " };
            let _ = write!(comment, "{space}{}", text.trim());
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.split(' ').next()) {
            name.clone_into(&mut current);
            structs.insert(current.clone(), (std::mem::take(&mut comment), Vec::new()));
        } else if line == "}" {
            current.clear();
        } else if let Some((field, kind)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": "))
            && let Some((_, fields)) = structs.get_mut(&current)
        {
            let kind = kind.trim_end_matches(',').to_owned();
            fields.push((field.to_owned(), kind, std::mem::take(&mut comment)));
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    let section = |(name, kind, _): &Field| {
        let (about, fields) = &structs[kind];
        let settings = fields.iter().map(|(key, _, comment)| (key.clone(), comment.clone())).collect();
        Section { name: name.clone(), about: about.clone(), settings }
    };
    structs["Config"].1.iter().map(section).collect()
}

fn default_of(section: &str, key: &str) -> serde_json::Value {
    let defaults = serde_json::to_value(Config::default()).expect("plain values");
    defaults[section].get(key).expect("every commented field is a setting").clone()
}

fn root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

#[test]
fn the_documented_settings_are_those_of_the_program() {
    let mut page = HEAD.to_owned();
    for Section { name, about, settings } in sections() {
        let _ = write!(page, "\n## {name}\n\n{about}\n\n");
        page.push_str(
            "| key | default | range | meaning | environment variable |\n| --- | --- | --- | --- | --- |\n",
        );
        for (key, comment) in settings {
            assert!(!comment.is_empty(), "{name}.{key} has no comment");
            let default = match default_of(&name, &key) {
                serde_json::Value::Null => "unset".to_owned(),
                value => format!("`{value}`"),
            };
            let range = range_of(&format!("{name}.{key}"));
            let range = range.map_or(String::new(), |(least, greatest)| format!("{least} … {greatest}"));
            let variable = format!("FOREBAY__{}__{}", name.to_uppercase(), key.to_uppercase());
            let _ = writeln!(page, "| `{name}.{key}` | {default} | {range} | {comment} | `{variable}` |");
        }
    }
    let path = root("docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("writes");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/configuration.md is out of date: run with UPDATE_DOCS=1");
}

#[test]
fn the_commented_settings_of_the_file_are_all_settings_with_their_defaults() {
    let text = std::fs::read_to_string(root("config.yaml")).expect("there is one");
    let (mut found, mut section) = (BTreeMap::new(), String::new());
    let of_default = text.lines().skip_while(|line| *line != "default:").skip(1);
    for line in of_default.take_while(|line| line.is_empty() || line.starts_with(' ')) {
        if let Some(name) = line.trim().strip_suffix(':').filter(|name| !name.starts_with('#')) {
            name.clone_into(&mut section);
        } else if let Some((key, rest)) = line.strip_prefix("    # ").and_then(|rest| rest.split_once(": ")) {
            let value = rest.split("  #").next().unwrap_or_default().trim();
            found.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    let expected = sections().into_iter().flat_map(|Section { name, settings, .. }| {
        settings.into_iter().map(move |(key, _)| {
            let value = default_of(&name, &key).to_string();
            (format!("{name}.{key}"), value)
        })
    });
    assert_eq!(found, expected.collect::<BTreeMap<_, _>>());
}

#[test]
fn the_file_of_the_repository_loads_with_every_profile() {
    use shared::config::load::profile::Program;
    for profile in ["local", "dev", "preprod", "prod"] {
        let mut given = super::cluster(Program::Api).profile(profile);
        given.sources.config_path = Some(root("config.yaml"));
        given.loaded();
    }
}
