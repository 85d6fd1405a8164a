//! Which names an open service answers to.
//!
//! A web page can make the name of its own server point to this machine, and would then be taken
//! for a page of ours: its browser sends that name as `Host`. It can also send plain requests to
//! our own name, and then says where it comes from in `Origin`. Both are refused; what is no
//! browser sends whatever it likes, and is kept out by where the port listens.
use std::net::IpAddr;

use actix_web::dev::RequestHead;
use actix_web::http::Version;
use actix_web::http::header::{HOST, HeaderValue, ORIGIN};
use shared::config;

use crate::admission::auth::error::AuthError;

#[derive(Debug)]
pub struct Hosts {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    /// It listens on every address. No name can be made to look like one.
    any_address: bool,
    /// Pages of these may call, `auth.cors_origins`.
    origins: Vec<String>,
}

impl Hosts {
    pub fn of(server: &config::ServerSettings) -> Self {
        let mut hosts = Self {
            names: vec!["localhost".into()],
            addresses: Vec::new(),
            any_address: false,
            origins: Vec::new(),
        };
        for host in std::iter::once(&server.host).chain(&server.allowed_hosts) {
            match host.parse::<IpAddr>() {
                Ok(address) if address.is_unspecified() => hosts.any_address = true,
                Ok(address) => hosts.addresses.push(address),
                Err(_) => hosts.names.push(host.trim_end_matches('.').to_owned()),
            }
        }
        hosts
    }

    /// Lets pages of these origins call, too.
    pub fn with_origins(self, origins: &[String]) -> Self {
        Self { origins: origins.to_vec(), ..self }
    }

    /// Checks whether the client means this service.
    pub fn check(&self, head: &RequestHead) -> Result<(), AuthError> {
        let host = match head.uri.authority() {
            // A target with a host of its own counts (RFC 9112, 3.2.2).
            Some(authority) => Some(authority.as_str()),
            None => host_of(head)?,
        };
        let host = host.map(|host| name_of(host).ok_or(AuthError::NoHost)).transpose()?;
        match host {
            Some(host) if !(self.knows(host) || self.any_address && address_of(host).is_some()) => {
                Err(AuthError::OtherHost)
            }
            // Every browser sends one.
            None if head.version > Version::HTTP_10 => Err(AuthError::NoHost),
            _ => self.check_origin(head.headers().get(ORIGIN), host),
        }
    }

    /// A page may be served from any address: one is known by being listed, or as that of this service.
    fn check_origin(&self, origin: Option<&HeaderValue>, own: Option<&str>) -> Result<(), AuthError> {
        let Some(origin) = origin else { return Ok(()) };
        let text = origin.to_str().ok();
        if text.is_some_and(|text| self.origins.iter().any(|known| known.eq_ignore_ascii_case(text))) {
            return Ok(());
        }
        let host = text.and_then(|text| name_of(text.split_once("://")?.1));
        let is_own = |host: &str| own.is_some_and(|own| own.eq_ignore_ascii_case(host));
        if host.is_some_and(|host| is_own(host) || self.knows(host)) {
            Ok(())
        } else {
            Err(AuthError::OtherOrigin)
        }
    }

    fn knows(&self, host: &str) -> bool {
        if let Some(address) = address_of(host) {
            return address.is_loopback() || self.addresses.contains(&address);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    Some(bare.parse::<IpAddr>().ok()?.to_canonical())
}

/// The header, which may be there once.
fn host_of(head: &RequestHead) -> Result<Option<&str>, AuthError> {
    let mut given = head.headers().get_all(HOST);
    let Some(host) = given.next() else { return Ok(None) };
    match (host.to_str(), given.next()) {
        (Ok(host), None) => Ok(Some(host)),
        _ => Err(AuthError::NoHost),
    }
}

/// Without its port; `None` of what is no host.
fn name_of(host: &str) -> Option<&str> {
    let end = match host.strip_prefix('[') {
        Some(address) => address.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(end);
    let port = rest.strip_prefix(':').unwrap_or(rest);
    (!name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn hosts(host: &str, allowed: &[&str]) -> Hosts {
        let allowed_hosts = allowed.iter().map(|name| (*name).to_owned()).collect();
        Hosts::of(&config::ServerSettings {
            host: host.into(),
            allowed_hosts,
            ..config::ServerSettings::default()
        })
    }

    fn checked(hosts: &Hosts, version: Version, headers: &[(&str, &str)]) -> Result<(), AuthError> {
        let request =
            headers.iter().fold(TestRequest::get(), |request, header| request.append_header(*header));
        hosts.check(request.version(version).to_http_request().head())
    }

    fn named(hosts: &Hosts, host: &str) -> Result<(), AuthError> {
        checked(hosts, Version::HTTP_11, &[("host", host)])
    }

    #[test]
    fn loopback_the_own_host_and_allowed_ones_are_known_however_they_are_written() {
        let hosts = hosts("10.0.0.1", &["Forebay.example", "2001:db8::1"]);
        for good in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:80",
            "10.0.0.1:8080",
            "forebay.EXAMPLE",
            "forebay.example:443",
            "[2001:db8::1]:1",
            "localhost:",
        ] {
            assert_eq!(named(&hosts, good), Ok(()), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.2",
            "[2001:db8::2]",
            "0.0.0.0",
            "evil@localhost",
            "localhost/x",
            "notlocalhost",
        ] {
            assert_eq!(named(&hosts, bad), Err(AuthError::OtherHost), "{bad}");
        }
        for none in ["", ":80", "localhost:80x", "[::1", "localhost:1:2", "user:x@localhost"] {
            assert_eq!(named(&hosts, none), Err(AuthError::NoHost), "{none}");
        }
    }

    #[test]
    fn who_listens_on_every_address_knows_addresses_but_no_more_names() {
        for every in ["0.0.0.0", "::"] {
            let hosts = hosts(every, &[]);
            for good in ["192.168.1.5:8080", "[2001:db8::1]", "0.0.0.0:8080", "localhost"] {
                assert_eq!(named(&hosts, good), Ok(()), "{every} {good}");
            }
            assert_eq!(named(&hosts, "evil.example"), Err(AuthError::OtherHost));
            let from = |origin| {
                checked(&hosts, Version::HTTP_11, &[("host", "192.168.1.5:8080"), ("origin", origin)])
            };
            assert_eq!(from("http://192.168.1.5:8080"), Ok(()));
            assert_eq!(from("http://203.0.113.5"), Err(AuthError::OtherOrigin));
        }
    }

    #[test]
    fn a_host_may_be_missing_in_http_1_0_only_and_never_be_there_twice() {
        let hosts = hosts("127.0.0.1", &[]);
        assert_eq!(checked(&hosts, Version::HTTP_10, &[]), Ok(()));
        assert_eq!(checked(&hosts, Version::HTTP_11, &[]), Err(AuthError::NoHost));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(checked(&hosts, Version::HTTP_11, &twice), Err(AuthError::NoHost));
        let target = TestRequest::get().uri("http://evil.example/").insert_header(("host", "localhost"));
        assert_eq!(hosts.check(target.to_http_request().head()), Err(AuthError::OtherHost));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_and_one_of_this_machine_is_not() {
        let hosts = hosts("127.0.0.1", &[]);
        let from = |origin| checked(&hosts, Version::HTTP_11, &[("host", "localhost"), ("origin", origin)]);
        for good in ["http://localhost", "http://127.0.0.1:3000", "https://[::1]:8080"] {
            assert_eq!(from(good), Ok(()), "{good}");
        }
        for bad in ["null", "", "https://evil.example", "http://localhost.evil.example:8080", "file://"] {
            assert_eq!(from(bad), Err(AuthError::OtherOrigin), "{bad}");
        }
    }
}
