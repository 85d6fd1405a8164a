//! Loading of the configuration: the order of its layers, and the texts of its errors.
mod docs;

use std::collections::BTreeMap;
use std::path::PathBuf;

use shared::config::Config;
use shared::config::load::problem::ConfigError;
use shared::config::load::profile::{Profile, Program};
use shared::config::load::ranges::RANGES;
use shared::config::load::report::check_config_report;
use shared::config::load::{LoadedConfig, Sources, load};
use shared::config::pair::Pair;

/// Sources under construction; without more they are an empty environment.
struct Given {
    sources: Sources,
    file: Option<PathBuf>,
}

fn given(program: Program) -> Given {
    let (env, flags) = (BTreeMap::new(), Vec::new());
    let sources = Sources { program, config_path: None, env_profile: None, env, env_file: None, flags };
    Given { sources, file: None }
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        let path = std::env::temp_dir().join(testkit::unique("config")).with_extension("yaml");
        std::fs::write(&path, text).expect("writes");
        self.sources.config_path = Some(path.clone());
        self.file = Some(path);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.into(), value.into()));
        self
    }

    fn profile(mut self, name: &str) -> Self {
        self.sources.env_profile = Some(name.into());
        self
    }

    fn load(&self) -> Result<LoadedConfig, ConfigError> {
        load(&self.sources)
    }

    #[track_caller]
    fn loaded(&self) -> LoadedConfig {
        self.load().unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    fn refused(&self) -> String {
        self.load().expect_err("refused").to_string()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Sources with two servers that others can reach, and a secret.
fn cluster(program: Program) -> Given {
    given(program)
        .env("AMQP_URL", "amqps://user:hunter2@broker.example:5671/%2f")
        .env("DATABASE_URL", "postgres://app:hunter3@db.example/forebay?sslmode=require&password=hunter4")
        .env("FOREBAY__IDS__SECRETS", "newest-secret-0123456789, older-secret-0123456789")
}

#[test]
fn later_layers_win_and_each_value_knows_its_origin() {
    let file = "default: {server: {port: 1, items_max: 11, host: a}}\nlocal: {server: {port: 2, host: b}}";
    let origin = |loaded: &LoadedConfig, key: &str| loaded.origins[key].clone();

    let plain = given(Program::Api).loaded();
    assert_eq!((plain.config.server.port, origin(&plain, "server.port")), (8080, "default".into()));

    let only_default = given(Program::Api).file(file);
    let loaded = only_default.loaded();
    assert_eq!(loaded.config.server.port, 1);
    assert!(origin(&loaded, "server.port").ends_with(".yaml, default"), "{}", origin(&loaded, "server.port"));

    let with_profile = given(Program::Api).file(file).profile("local");
    let loaded = with_profile.loaded();
    assert_eq!((loaded.config.server.port, loaded.config.server.items_max), (2, 11));
    assert!(origin(&loaded, "server.port").ends_with(".yaml, local"));
    assert!(origin(&loaded, "server.items_max").ends_with(".yaml, default"));
    assert_eq!(origin(&loaded, "queue.url"), "profile local");

    let with_env = given(Program::Api).file(file).profile("local").env("FOREBAY__SERVER__PORT", "3");
    let loaded = with_env.loaded();
    assert_eq!((loaded.config.server.port, loaded.config.server.host.as_str()), (3, "b"));
    assert_eq!(origin(&loaded, "server.port"), "environment FOREBAY__SERVER__PORT");

    let with_flag = given(Program::Api).file(file).env("FOREBAY__SERVER__PORT", "3").flag("server.port", "4");
    let loaded = with_flag.loaded();
    assert_eq!(loaded.config.server.port, 4);
    assert_eq!(origin(&loaded, "server.port"), "flag --set server.port");
}

#[test]
fn a_profile_is_named_by_the_environment_and_a_flag_wins() {
    let by_env = given(Program::Api).env("FOREBAY_ENV", "local");
    assert_eq!(by_env.loaded().profile, Some(Profile::Local));
    let by_flag = cluster(Program::Api).env("FOREBAY_ENV", "local").profile("prod");
    assert_eq!(by_flag.loaded().profile, Some(Profile::Prod));
    let unknown = given(Program::Api).env("FOREBAY_ENV", "production").refused();
    assert!(unknown.contains("production") && unknown.contains("FOREBAY_ENV"), "{unknown}");
}

#[test]
fn with_nothing_set_the_api_is_embedded_and_the_consumer_local() {
    let api = given(Program::Api).loaded();
    assert_eq!(Pair::of(&api.config), Ok(Pair::Embedded("./forebay-data".into())));
    assert_eq!((api.profile, api.config.ops.port), (None, Some(9190)));
    assert!(api.config.ids.secrets.is_empty() && api.config.store.migrate);

    let consumer = given(Program::Consumer).loaded();
    assert_eq!(Pair::of(&consumer.config), Ok(Pair::Cluster));
    assert_eq!((consumer.profile, consumer.config.ops.port), (Some(Profile::Local), Some(9191)));
    assert!(consumer.config.store.migrate && consumer.config.store.create_database);
    assert_eq!(consumer.config.ids.secrets, given(Program::Api).profile("local").loaded().config.ids.secrets);
    assert!(consumer.warnings.is_empty());

    let embedded = given(Program::Consumer).env("FOREBAY__QUEUE__URL", "embedded:./forebay-data").refused();
    assert!(embedded.contains("inside the api") && embedded.contains("AMQP_URL"), "{embedded}");
}

#[test]
fn two_urls_and_a_secret_make_a_cluster_without_a_profile() {
    for program in [Program::Api, Program::Consumer] {
        let loaded = cluster(program).loaded();
        assert_eq!(Pair::of(&loaded.config), Ok(Pair::Cluster));
        assert_eq!(loaded.profile, None);
        assert_eq!(loaded.config.ids.secrets, ["newest-secret-0123456789", "older-secret-0123456789"]);
        assert_eq!(loaded.origins["store.url"], "environment DATABASE_URL");
    }
    let own_name_wins =
        cluster(Program::Api).env("FOREBAY__STORE__URL", "postgres://other.example/x").loaded();
    assert_eq!(own_name_wins.config.store.url, "postgres://other.example/x");
    let half = given(Program::Api).env("DATABASE_URL", "postgres://db.example/forebay").refused();
    assert!(half.contains("AMQP_URL"), "{half}");
    let half = given(Program::Consumer).env("AMQP_URL", "amqp://broker.example").refused();
    assert!(half.contains("DATABASE_URL"), "{half}");
}

#[test]
fn a_broker_that_others_can_reach_demands_a_secret() {
    let without = cluster(Program::Api).env("FOREBAY__IDS__SECRETS", "").refused();
    assert!(without.contains("FOREBAY__IDS__SECRETS"), "{without}");
    let development = given(Program::Api).profile("local").loaded().config.ids.secrets.join(",");
    let with_known = cluster(Program::Api).env("FOREBAY__IDS__SECRETS", &development).refused();
    assert!(with_known.contains("FOREBAY__IDS__SECRETS"), "{with_known}");

    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let loopback = cluster(Program::Api)
            .env("FOREBAY__IDS__SECRETS", "")
            .env("AMQP_URL", &format!("amqp://guest:guest@{host}:5672/%2f"));
        let loaded = loopback.loaded();
        assert_eq!(loaded.config.ids.secrets.join(","), development, "{host}");
        assert!(loaded.warnings.iter().any(|warning| warning.contains("ids.secrets")));
        let in_prod = loopback.profile("prod").refused();
        assert!(in_prod.contains("FOREBAY__IDS__SECRETS"), "{in_prod}");
    }
}

#[test]
fn a_deployed_profile_guesses_no_backend_and_does_not_migrate() {
    for profile in ["dev", "preprod", "prod"] {
        let unset = given(Program::Api).profile(profile).refused();
        assert!(unset.contains("queue.url") && unset.contains("AMQP_URL"), "{unset}");
        let store = cluster(Program::Api).profile(profile).loaded().config.store;
        assert!(!store.migrate && !store.create_database);
        let embedded = given(Program::Api)
            .profile(profile)
            .env("FOREBAY__QUEUE__URL", "embedded:/data")
            .env("FOREBAY__STORE__URL", "embedded:/data");
        assert!(embedded.loaded().config.store.migrate);
        assert!(!embedded.flag("store.migrate", "false").loaded().config.store.migrate);
    }
}

#[test]
fn an_unknown_name_is_refused_with_its_origin_and_the_nearest_known_one() {
    let file = given(Program::Api).file("default: {server: {prot: 1}}").refused();
    assert!(file.contains("server.prot") && file.contains(".yaml, default"), "{file}");
    assert!(file.contains("did you mean server.port?"), "{file}");

    let other_profile = given(Program::Api).file("prod: {qeue: {url: a}}").refused();
    assert!(other_profile.contains("qeue.url") && other_profile.contains("prod"), "{other_profile}");
    let no_profile = given(Program::Api).file("server: {port: 1}").refused();
    assert!(no_profile.contains("server") && no_profile.contains("below default"), "{no_profile}");

    let env = given(Program::Api).env("FOREBAY__SERVER__PROT", "1").refused();
    assert!(env.contains("FOREBAY__SERVER__PROT"), "{env}");
    assert!(env.contains("did you mean FOREBAY__SERVER__PORT?"), "{env}");
    let flag = given(Program::Api).flag("server.prot", "1").refused();
    assert!(flag.contains("--set") && flag.contains("did you mean server.port?"), "{flag}");
    let far = given(Program::Api).env("FOREBAY__XYZ", "1").refused();
    assert!(!far.contains("did you mean"), "{far}");

    let all = given(Program::Api).env("FOREBAY__A", "1").flag("b", "1").refused();
    assert!(all.contains("FOREBAY__A") && all.contains("unknown setting b"), "{all}");
}

#[test]
fn a_variable_with_other_underscores_is_refused_unless_kubernetes_made_it() {
    for (variable, value, setting) in [
        ("FOREBAY_SERVER_PORT", "1", "FOREBAY__SERVER__PORT"),
        ("FOREBAY_SERVER__PORT", "1", "FOREBAY__SERVER__PORT"),
        ("FOREBAY__SERVER_PORT", "1", "FOREBAY__SERVER__PORT"),
        ("FOREBAY_STORE_URL", "postgres://db/x", "FOREBAY__STORE__URL"),
        ("FOREBAY_QUEUE_LINGER_MS_MAX", "1", "FOREBAY__QUEUE__LINGER_MS_MAX"),
    ] {
        let refused = given(Program::Api).env(variable, value).refused();
        assert!(refused.contains(variable) && refused.contains(setting), "{refused}");
    }
    let service = given(Program::Api).env("FOREBAY_SERVER_PORT", "tcp://10.0.0.7:8080").loaded();
    assert_eq!(service.config.server.port, 8080);
    assert!(service.warnings[0].contains("FOREBAY__SERVER__PORT"), "{:?}", service.warnings);
    let foreign = given(Program::Api).env("FOREBAY_SERVER_SERVICE_HOST", "10.0.0.7").loaded();
    assert!(foreign.warnings.is_empty());
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let refused = given(Program::Api)
        .profile("prod")
        .env("FOREBAY__SERVER__PROT", "1")
        .env("FOREBAY__SERVER__PORT", "x")
        .env("FOREBAY__OPS__PORT", "70000")
        .flag("queue.prefetch", "0")
        .flag("store.read_timeout_ms", "18446744073709551615")
        .file("default: {cache: {ttl_ms: soon}}\nprod: {server: {hots: a}}")
        .refused();
    for named in [
        "FOREBAY__SERVER__PROT",
        "server.port (",
        "ops.port (",
        "queue.prefetch (",
        "store.read_timeout_ms (",
        "cache.ttl_ms (",
        "server.hots",
        "queue.url (",
        "store.url (",
        "ids.secrets (",
    ] {
        assert!(refused.contains(named), "{named} in {refused}");
    }
    assert_eq!(refused.lines().count(), 10, "each once: {refused}");
}

#[test]
fn a_value_of_a_wrong_type_that_a_later_layer_replaces_is_no_problem() {
    let given = given(Program::Api).file("default: {server: {port: x}}").flag("server.port", "3");
    assert_eq!(given.loaded().config.server.port, 3);
}

#[test]
fn a_short_secret_is_refused_where_others_depend_on_it() {
    let short = |given: Given| given.env("FOREBAY__IDS__SECRETS", "fifteen-letters, 0123456789abcdef");
    let refused = short(cluster(Program::Api)).refused();
    assert!(
        refused.contains("ids.secrets") && refused.contains("16") && !refused.contains("fifteen"),
        "{refused}"
    );
    let embedded = |given: Given| {
        given.env("FOREBAY__QUEUE__URL", "embedded:/data").env("FOREBAY__STORE__URL", "embedded:/data")
    };
    let refused = short(embedded(given(Program::Api).profile("prod"))).refused();
    assert!(refused.contains("ids.secrets"), "{refused}");
    short(given(Program::Api).profile("local")).loaded();
    short(embedded(given(Program::Api))).loaded();
    cluster(Program::Api).env("FOREBAY__IDS__SECRETS", "0123456789abcdef").loaded();
    // A secret that is rotated out goes on verifying the ids that it has signed.
    cluster(Program::Api).env("FOREBAY__IDS__SECRETS", "0123456789abcdef, fifteen-letters").loaded();
}

#[test]
fn a_file_of_variables_is_read_and_those_of_the_process_win() {
    let path = std::env::temp_dir().join(testkit::unique("variables"));
    let text = "# for development\nFOREBAY__SERVER__PORT=1\nexport FOREBAY__SERVER__HOST='a b'\n\nFOREBAY_ENV=local\nPATH=/x\n";
    std::fs::write(&path, text).expect("writes");
    let mut given = given(Program::Api).env("FOREBAY__SERVER__PORT", "2");
    given.sources.env_file = Some(path.clone());
    let loaded = given.loaded();
    assert_eq!((loaded.config.server.port, loaded.config.server.host.as_str()), (2, "a b"));
    assert_eq!(loaded.profile, Some(Profile::Local));
    assert_eq!(loaded.env_file.as_ref(), Some(&path));
    assert_eq!(loaded.origins["server.host"], format!("{}, FOREBAY__SERVER__HOST", path.display()));
    assert_eq!(loaded.origins["server.port"], "environment FOREBAY__SERVER__PORT");
    assert!(check_config_report(&loaded).contains(&format!("variables: {}", path.display())));

    std::fs::write(&path, "FOREBAY__SERVER__PROT=1").expect("writes");
    assert!(given.refused().contains("FOREBAY__SERVER__PORT"));
    // Lines of other tools may have another form; those of Forebay must be readable.
    std::fs::write(&path, "words of a tool\nFOREBAY__SERVER__HOST=b").expect("writes");
    assert_eq!(given.loaded().config.server.host, "b");
    std::fs::write(&path, "a tool's own words\nFOREBAY__SERVER__HOST=b").expect("writes");
    assert!(given.refused().contains("NAME=value"), "not left out in silence");
    std::fs::write(&path, "FOREBAY__SERVER__HOST hunter2").expect("writes");
    let refused = given.refused();
    assert!(refused.contains("NAME=value") && !refused.contains("hunter2"), "{refused}");
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(given.loaded().env_file, None);
    std::fs::create_dir(&path).expect("makes a directory");
    assert_eq!(given.loaded().env_file, None);
    std::fs::remove_dir(&path).expect("it is there");
}

/// Keys of the numeric settings: those with a default, and the one that has none.
fn numeric() -> impl Iterator<Item = String> {
    let values = serde_json::to_value(Config::default()).expect("plain values");
    let sections = values.as_object().expect("a struct is a map").clone();
    let keys = sections.into_iter().flat_map(|(section, keys)| {
        let keys = keys.as_object().expect("a section is a map").clone();
        keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value))
    });
    keys.filter(|(key, value)| value.is_number() || key == "ops.port").map(|(key, _)| key)
}

#[test]
fn every_number_has_a_range_and_is_refused_by_name_outside_of_it() {
    let ranged: Vec<_> = RANGES.iter().map(|(key, ..)| (*key).to_owned()).collect();
    assert_eq!(numeric().collect::<Vec<_>>(), ranged, "one row for each, in their order");
    for &(key, least, greatest) in RANGES {
        let refused = |value: String| {
            let refused = given(Program::Api).flag(key, &value).refused();
            assert!(refused.contains(&format!("{key} (flag --set {key})")), "{key}={value}: {refused}");
        };
        if let Some(below) = least.checked_sub(1) {
            refused(below.to_string());
        }
        for beyond in [greatest + 1, u64::from(u32::MAX) + 1, i64::MAX as u64, u64::MAX] {
            if beyond > greatest {
                refused(beyond.to_string());
            }
        }
        for no_number in ["-1", "1e300", "NaN", "18446744073709551616", "1.5", ""] {
            refused(no_number.into());
        }
        let default = given(Program::Api).loaded();
        let value = serde_json::to_value(&default.config).expect("plain values");
        let value = value.pointer(&format!("/{}", key.replace('.', "/"))).and_then(serde_json::Value::as_u64);
        assert!((least..=greatest).contains(&value.expect("a number")), "{key}");
    }
}

#[test]
fn a_wrong_type_is_refused_with_name_origin_and_what_was_expected() {
    for value in ["abc", "70000", "-1", "1.5"] {
        let expected = "expected an integer from 0 to 65535";
        let env = given(Program::Api).env("FOREBAY__SERVER__PORT", value).refused();
        assert!(env.contains("server.port (environment FOREBAY__SERVER__PORT)"), "{env}");
        assert!(env.contains(expected) && env.contains(value), "{env}");
    }
    let flag = given(Program::Api).flag("store.migrate", "maybe").refused();
    assert!(
        flag.contains("store.migrate (flag --set store.migrate)") && flag.contains("expected true or false"),
        "{flag}"
    );
    let format = given(Program::Api).env("FOREBAY__TELEMETRY__LOG_FORMAT", "xml").refused();
    assert!(format.contains("telemetry.log_format") && format.contains("json"), "{format}");
    let secret = given(Program::Api).file("default: {ids: {secrets: hunter2}}").refused();
    assert!(secret.contains("ids.secrets") && !secret.contains("hunter2"), "{secret}");
}

#[test]
fn no_wrong_value_of_any_setting_is_told_in_the_words_of_rust() {
    let rust = [
        "u16", "u32", "u64", "usize", "i64", "f64", "bool", "struct", "enum", "sequence", "map", "ApiKey",
        "unsigned",
    ];
    let report = check_config_report(&given(Program::Api).loaded());
    let keys = report.lines().filter_map(|line| line.split_once(": ")?.0.contains('.').then_some(line));
    for key in keys.map(|line| line.split(':').next().expect("a key")) {
        for value in ["maybe", "[1, [2]]", "[{id: 5}]", "-1", "1.5"] {
            // Some settings take some of these values.
            let Err(error) = given(Program::Api).flag(key, value).load() else { continue };
            let reported = error.to_string();
            let words = || reported.split(|c: char| !c.is_alphanumeric());
            let word = rust.iter().find(|word| words().any(|found| found == **word));
            assert_eq!(word, None, "{key}={value}: {reported}");
        }
    }
}

#[test]
fn a_file_that_is_named_must_be_there_and_readable() {
    let mut missing = given(Program::Api);
    missing.sources.config_path = Some("/nowhere/at/all.yaml".into());
    assert!(missing.refused().contains("/nowhere/at/all.yaml"));
    let malformed = given(Program::Api).file("default: {server: [");
    assert!(matches!(malformed.load(), Err(ConfigError::Malformed { .. })));
    for empty in ["", "default:", "default: {server: {port: null}}", "default:\n  server:\n", "# nothing\n"] {
        assert_eq!(given(Program::Api).file(empty).loaded().config.server.port, 8080, "{empty:?}");
    }
}

#[test]
fn values_that_cannot_work_together_are_refused_by_name() {
    for (key, value, named) in [
        ("queue.prefetch", "500", "queue.prefetch_bytes_max"),
        ("queue.prefetch", "0", "queue.prefetch ("),
        ("queue.prefetch", "3000", "queue.prefetch ("),
        ("queue.publishes_in_flight_max", "0", "queue.publishes_in_flight_max"),
        ("queue.message_items_max", "5000", "4096"),
        ("server.items_max", "5000", "4096"),
        ("queue.bytes_max", "1000", "queue.bytes_max"),
        ("queue.prefix", "a b", "queue.prefix"),
        ("queue.url", "http://x", "queue.url"),
        ("store.url", "mysql://x", "store.url"),
        ("store.url", "embedded:elsewhere", "another directory"),
        ("telemetry.log_filter", "info,=", "telemetry.log_filter"),
        ("server.path_prefix", "forebay", "server.path_prefix"),
        ("server.path_prefix", "/forebay/", "server.path_prefix"),
        ("server.path_prefix", "/a/../b", "server.path_prefix"),
        ("server.path_prefix", "/a?b", "server.path_prefix"),
        ("auth.cors_origins", "app.example", "auth.cors_origins"),
        ("auth.cors_origins", "https://app.example/", "auth.cors_origins"),
        ("auth.cors_origins", "https://good.example,*", "auth.cors_origins"),
        ("auth.cors_origins", "https://app.example:443", "auth.cors_origins"),
    ] {
        let refused = given(Program::Api).flag(key, value).refused();
        assert!(refused.contains(named), "{key}={value}: {refused}");
    }
}

#[test]
fn the_report_shows_every_value_and_its_origin_but_no_secret() {
    let report = check_config_report(&cluster(Program::Api).flag("server.port", "4711").loaded());
    for hidden in ["hunter", "newest-secret", "older-secret"] {
        assert!(!report.contains(hidden), "{report}");
    }
    for shown in [
        "server.port: 4711",
        "# flag --set server.port",
        "amqps://user:***@broker.example:5671/%2f",
        "# environment AMQP_URL",
        "sslmode=require",
        r#"ids.secrets: ["***","***"]"#,
        "cache.ttl_ms: 10000",
    ] {
        assert!(report.contains(shown), "{shown} in {report}");
    }
    let embedded = check_config_report(&given(Program::Api).loaded());
    assert!(embedded.contains(r#"queue.url: "embedded:./forebay-data""#), "{embedded}");
}

#[test]
fn zero_workers_are_the_granted_cores_but_one_and_never_none() {
    let cores = std::thread::available_parallelism().expect("known").get();
    let loaded = given(Program::Api).loaded();
    assert_eq!(loaded.config.server.workers(), (cores - 1).max(1));
    assert_eq!(given(Program::Api).flag("server.workers", "7").loaded().config.server.workers(), 7);
}
