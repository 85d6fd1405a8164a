//! Keys of clients: `fb_<id>_<secret>`, of which an installation knows only the SHA-256.
//!
//! A secret has 256 random bits, so that one round of SHA-256 hides it: nothing can try them all. A client
//! that writes a key where its hash, its id or another name belongs gets an error that does not repeat it.
//! Nothing here reads a clock or a file.
use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use clap::ValueEnum;
use figment::providers::{Format, Yaml};
use figment::value::Value;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use crate::model::read_error::reason_without_value;

/// Prefix of every key, so that scanners for leaked secrets find it.
const PREFIX: &str = "fb_";

const ID_LENGTH_MAX: usize = 64;

const MEMBERS: [&str; 5] = ["id", "sha256", "principal", "scopes", "expires_at"];

/// Characters of a secret: 256 bits in hexadecimal digits.
const SECRET_LENGTH: usize = 64;

/// A key as the configuration lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    pub id: KeyId,
    /// SHA-256 of the whole key, as the client sends it.
    pub sha256: KeyHash,
    /// Owner of the key. The same for all keys of one client: Idempotency-Keys belong to the principal.
    pub principal: Principal,
    pub scopes: Scopes,
    /// Time from which the key is refused.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

impl ApiKey {
    fn has_expired(&self, now_ms: i64) -> bool {
        let ends_at_ms = self.expires_at.map(|end| end.unix_timestamp_nanos() / 1_000_000);
        ends_at_ms.is_some_and(|end| end <= now_ms.into())
    }
}

/// Right that a key grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Read,
    Write,
    /// Includes both others: redriving dead letters shows what clients wrote, and writes it again.
    Admin,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Scopes of a key, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    pub fn allow(&self, needed: Scope) -> bool {
        self.0.iter().any(|scope| [needed, Scope::Admin].contains(scope))
    }
}

impl TryFrom<Vec<Scope>> for Scopes {
    type Error = &'static str;

    fn try_from(scopes: Vec<Scope>) -> Result<Self, &'static str> {
        if scopes.is_empty() { Err("expected at least one of read, write, admin") } else { Ok(Self(scopes)) }
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.0
    }
}

/// Name of a key in logs and in the configuration; no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl TryFrom<String> for KeyId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if is_id(&text) { Ok(Self(text)) } else { Err("expected 1 to 64 characters out of A-Z a-z 0-9 -") }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the form of an id: it has no `_`, which ends it within a key.
fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=ID_LENGTH_MAX).contains(&text.len()) && text.bytes().all(plain)
}

/// Identity of a client, whichever of its keys it uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Principal(Arc<str>);

impl Principal {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Principal {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let is_key = Token::parse(&text).is_some();
        if !is_key && crate::model::write::check_name(&text).is_ok() {
            Ok(Self(text.into()))
        } else {
            Err("expected 1 to 128 characters out of A-Z a-z 0-9 . _ : -, and no key")
        }
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> Self {
        principal.0.as_ref().into()
    }
}

/// SHA-256 of a key. Not shown: readers of logs need not distinguish keys.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

/// Compares in constant time.
impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl TryFrom<String> for KeyHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected 64 hexadecimal digits, the SHA-256 of the key";
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(EXPECTED);
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| EXPECTED)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| EXPECTED)?;
        }
        Ok(Self(hash))
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hex(&hash.0)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a text takes everything");
    }
    text
}

/// Text from a client that has the shape of a key.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    text: &'a str,
    id: &'a str,
}

impl<'a> Token<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_secret = secret.len() == SECRET_LENGTH && secret.bytes().all(digit);
        (is_id(id) && is_secret).then_some(Self { text, id })
    }

    fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.text).into())
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({PREFIX}{}_…)", self.id)
    }
}

/// Makes a key. The text is the only thing that opens anything, and is not kept.
pub fn generate(
    id: KeyId,
    principal: Principal,
    scopes: Scopes,
    expires_at: Option<OffsetDateTime>,
) -> (String, ApiKey) {
    let mut secret = [0; SECRET_LENGTH / 2];
    OsRng.try_fill_bytes(&mut secret).expect("the system has randomness");
    let text = format!("{PREFIX}{id}_{}", hex(&secret));
    let sha256 = KeyHash(Sha256::digest(&text).into());
    (text, ApiKey { id, sha256, principal, scopes, expires_at })
}

/// Reasons for which a key does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    Unknown,
    Expired,
}

/// Keys by their ids.
#[derive(Clone, Debug, Default)]
pub struct KeyRing(HashMap<String, Arc<ApiKey>>);

impl KeyRing {
    /// Collects keys. An id that is there twice is an error: it would leave open which of the two counts.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Result<Self, String> {
        let mut ring = HashMap::new();
        for key in keys {
            let id = key.id.0.clone();
            if ring.insert(id.clone(), Arc::new(key)).is_some() {
                return Err(format!("the id {id} is there twice"));
            }
        }
        Ok(Self(ring))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ids of keys that open nothing any more, in their order.
    pub fn expired(&self, now_ms: i64) -> BTreeSet<String> {
        let expired = self.0.iter().filter(|(_, key)| key.has_expired(now_ms));
        expired.map(|(id, _)| id.clone()).collect()
    }

    /// Finds the key of a token. Only a client that has the secret learns that it has expired.
    pub fn open(&self, token: Token<'_>, now_ms: i64) -> Result<&Arc<ApiKey>, Unfit> {
        let key = self.0.get(token.id).filter(|key| key.sha256 == token.hash()).ok_or(Unfit::Unknown)?;
        if key.has_expired(now_ms) { Err(Unfit::Expired) } else { Ok(key) }
    }
}

/// Reads a YAML or JSON list of keys. An error names the place and the value that belongs there.
pub fn list_of(text: &str) -> Result<Vec<ApiKey>, String> {
    let expected = "expected a list of keys";
    let content = Yaml::from_str::<Value>(text).map_err(|error| {
        error.location().map_or(expected.to_owned(), |at| format!("{expected} (line {})", at.line()))
    })?;
    // A file without any content was cut off: it is not the list of none.
    let Value::Array(_, entries) = content else { return Err(expected.into()) };
    let read = |(index, entry): (usize, Value)| {
        entry.deserialize::<ApiKey>().map_err(|error| {
            // The name of a member may be a secret by mistake, too.
            let member = error.path.iter().find(|name| MEMBERS.contains(&&***name));
            let at = format!("key {}{}", index + 1, member.map_or(String::new(), |name| format!(", {name}")));
            format!("{at}: {}", reason_without_value(&error.kind))
        })
    };
    entries.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests;
