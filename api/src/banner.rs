//! Banner for a person that started the API by hand: commands that work as they stand, with the configured
//! values. Pure: facts in, text out.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use shared::config::Config;

/// Files that exist in a container.
const CONTAINER_MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// Facts that are known once the program listens.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub address: SocketAddr,
    pub ops: SocketAddr,
    /// The program's loopback is not that of the machine.
    pub is_in_container: bool,
}

/// Returns true when this process runs in a container, as far as that shows.
pub fn is_in_container() -> bool {
    CONTAINER_MARKS.iter().any(|mark| Path::new(mark).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// Text of the banner, with an empty line before and after it.
pub fn text(config: &Config, facts: Facts) -> String {
    let Facts { address, ops, is_in_container } = facts;
    let base = format!("http://{}{}", reachable(address), config.server.path_prefix);
    let data = config.store.url.strip_prefix("embedded:").map(|directory| format!(", data in {directory}"));
    let key = if config.auth.is_open() { "" } else { " -H \"Authorization: Bearer $KEY\"" };
    let mut text = format!(
        "\nForebay listens on http://{address}{}\n\n  \
         curl{key} -X POST {base}/v1/counters/hello/increments\n  \
         curl{key} -X POST {base}/v1/counters/hello/increments -H 'Content-Type: application/json' -d '{{\"by\":41}}'\n  \
         curl{key} {base}/v1/counters/hello\n\n\
         Docs: {base}/docs   Metrics: http://{}/metrics\n",
        data.unwrap_or_default(),
        reachable(ops)
    );
    if !key.is_empty() {
        text.push_str("$KEY is a key of auth.keys or auth.keys_file; `forebay-api keys new` makes one.\n");
    }
    if is_in_container {
        text.push_str(if address.ip().is_loopback() {
            "In a container this is reached from within only: FOREBAY__SERVER__HOST=0.0.0.0 opens it.\n"
        } else {
            "In a container: from outside use the port that it is published under.\n"
        });
        if config.auth.is_open() && !address.ip().is_loopback() && config.server.allowed_hosts.is_empty() {
            text.push_str("Other names than localhost need FOREBAY__SERVER__ALLOWED_HOSTS, or API keys.\n");
        }
        if config.store.url.starts_with("embedded:") {
            text.push_str("The data goes with the container unless its directory is a volume.\n");
        }
    }
    text.push('\n');
    text
}

/// Address that a client on this machine can call: no client can call `0.0.0.0`.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(change: impl Fn(&mut Config), address: &str, is_in_container: bool) -> String {
        let mut config = Config::default();
        change(&mut config);
        let (address, ops) = (address.parse().expect("an address"), "0.0.0.0:9190".parse().expect("one"));
        text(&config, Facts { address, ops, is_in_container })
    }

    #[test]
    fn without_keys_the_commands_work_as_they_stand() {
        let text = greeting(|_| {}, "127.0.0.1:8080", false);
        assert!(text.contains("curl http://127.0.0.1:8080/v1/counters/hello\n"), "{text}");
        assert!(text.contains("Metrics: http://127.0.0.1:9190/metrics\n"), "{text}");
        assert!(text.contains(", data in "), "{text}");
        for absent in ["$KEY", "container"] {
            assert!(!text.contains(absent), "{text}");
        }
    }

    #[test]
    fn with_keys_each_command_brings_one() {
        let text = greeting(|config| config.auth.keys_file = "keys.yaml".into(), "127.0.0.1:8080", false);
        let commands = text.lines().filter(|line| line.trim_start().starts_with("curl"));
        assert_eq!(commands.filter(|line| line.contains("Authorization: Bearer $KEY")).count(), 3, "{text}");
        assert!(text.contains("keys new"), "{text}");
    }

    #[test]
    fn addresses_and_paths_are_those_that_a_client_can_call() {
        let prefixed = |config: &mut Config| config.server.path_prefix = "/forebay".into();
        let text = greeting(prefixed, "0.0.0.0:80", false);
        assert!(text.contains("listens on http://0.0.0.0:80,"), "{text}");
        assert!(text.contains("curl http://127.0.0.1:80/forebay/v1/counters/hello\n"), "{text}");
        assert!(text.contains("Docs: http://127.0.0.1:80/forebay/docs"), "{text}");
    }

    #[test]
    fn in_a_container_it_says_what_keeps_others_out() {
        let text = greeting(|_| {}, "127.0.0.1:8080", true);
        assert!(text.contains("FOREBAY__SERVER__HOST=0.0.0.0"), "{text}");
        let open = greeting(|_| {}, "0.0.0.0:8080", true);
        assert!(open.contains("FOREBAY__SERVER__ALLOWED_HOSTS") && open.contains("volume"), "{open}");
        let cluster = |config: &mut Config| {
            config.store.url = "postgres://db/forebay".into();
            config.auth.keys_file = "keys.yaml".into();
        };
        let text = greeting(cluster, "0.0.0.0:8080", true);
        assert!(!text.contains("ALLOWED_HOSTS") && !text.contains("volume"), "{text}");
    }
}
