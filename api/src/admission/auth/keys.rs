//! The keys in force: those of the configuration, and those of a file that is read again when it
//! changes. A file that cannot be read changes nothing, and is logged until it can be. A change counts
//! once two looks in a row found the same: half of a list is a list, too, and a file that is rewritten
//! in place must not lock clients out meanwhile.
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use shared::config::Auth;
use shared::model::api_key::{ApiKey, KeyRing, Token, Unfit, list_of};
use shared::runtime::clock;
use shared::runtime::shutdown::Shutdown;

use crate::metrics::metrics;

/// How often the file is looked at. Its content counts: a mounted secret is replaced by a link.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// More than 4 000 keys.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why there are no keys to begin with.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("auth.keys_file {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("auth.keys: {0}")]
    Twice(String),
}

#[derive(Debug)]
pub struct Keys {
    ring: RwLock<KeyRing>,
    configured: Vec<ApiKey>,
    file: Option<PathBuf>,
    /// Ids of keys that had expired when they were read last.
    expired: Mutex<BTreeSet<String>>,
}

impl Keys {
    pub fn read(auth: &Auth) -> Result<Self, KeysError> {
        let file = (!auth.keys_file.is_empty()).then(|| PathBuf::from(&auth.keys_file));
        let configured = auth.keys.clone();
        let ring = match &file {
            Some(path) => {
                let text = text_of(path).map_err(|error| error.to_string());
                let ring = text.and_then(|text| ring_of(&configured, &text));
                ring.map_err(|reason| KeysError::File { path: path.clone(), reason })?
            }
            None => KeyRing::new(configured.clone()).map_err(KeysError::Twice)?,
        };
        let keys = Self { ring: RwLock::default(), configured, file, expired: Mutex::default() };
        keys.put_in_force(ring);
        Ok(keys)
    }

    /// Ids of keys that had expired when they were read last.
    pub fn expired(&self) -> BTreeSet<String> {
        self.expired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the keys before them.
    fn put_in_force(&self, ring: KeyRing) -> KeyRing {
        metrics().api_keys.set(i64::try_from(ring.len()).unwrap_or(i64::MAX));
        let keys = self.newly_expired(&ring).join(", ");
        if !keys.is_empty() {
            tracing::warn!(keys, "api keys have expired and open nothing: take them out, or replace them");
        }
        std::mem::replace(&mut *self.ring.write().unwrap_or_else(PoisonError::into_inner), ring)
    }

    /// Ids of keys that have expired and had not when they were read last. Each is logged once: a program
    /// must start with them years later (`docs/decisions/0030-fine-print.md`).
    fn newly_expired(&self, ring: &KeyRing) -> Vec<String> {
        let expired = ring.expired(clock::now_ms());
        let mut known = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        let newly = expired.difference(&known).cloned().collect();
        *known = expired;
        newly
    }

    pub fn open(&self, token: Token<'_>, now_ms: i64) -> Result<Arc<ApiKey>, Unfit> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).open(token, now_ms).cloned()
    }

    /// Follows the file, if there is one, until the program stops. An earlier end is a failure.
    pub async fn follow(self: Arc<Self>, mut shutdown: Shutdown) {
        let Some(path) = self.file.clone() else { return shutdown.requested().await };
        let mut watched = Watched::default();
        loop {
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || text_of(&file));
            let text = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.take(&mut watched, text.map_err(|error| error.to_string()));
            if shutdown.unless_requested(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Takes what the file holds now.
    fn take(&self, watched: &mut Watched, text: Result<String, String>) {
        let found = text.as_ref().ok();
        if watched.text.is_some() && watched.text.as_ref() == found {
            watched.last = None;
            return;
        }
        if found.is_some() && watched.last.as_ref() != found {
            watched.last = found.cloned();
            return;
        }
        let reloads = &metrics().key_reloads;
        match text.and_then(|text| Ok((ring_of(&self.configured, &text)?, text))) {
            Ok((ring, text)) => {
                let is_first = watched.text.is_none() && watched.trouble.is_none();
                *watched = Watched { text: Some(text), ..Watched::default() };
                let keys = ring.len();
                let before = self.put_in_force(ring);
                if !is_first {
                    reloads.with_label_values(&["loaded"]).inc();
                    tracing::info!(keys, keys.before = before.len(), "api keys were read again");
                }
            }
            Err(reason) => {
                reloads.with_label_values(&["failed"]).inc();
                // Once for each trouble; the metric grows as long as it lasts.
                if watched.trouble.as_ref() != Some(&reason) {
                    tracing::error!(
                        reason,
                        "auth.keys_file cannot be read: the keys before it stay in force"
                    );
                }
                let last = watched.last.take();
                *watched = Watched { text: None, last, trouble: Some(reason) };
            }
        }
    }
}

/// Finding of the last look.
#[derive(Debug, Default)]
struct Watched {
    /// The content that is in force.
    text: Option<String>,
    /// Another content, which the look before found.
    last: Option<String>,
    trouble: Option<String>,
}

fn ring_of(configured: &[ApiKey], text: &str) -> Result<KeyRing, String> {
    KeyRing::new(configured.iter().cloned().chain(list_of(text)?))
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use shared::model::api_key::{KeyId, Principal, Scope, Scopes, generate};

    use super::*;

    fn made(id: &str) -> (String, ApiKey) {
        let principal = Principal::try_from("p".to_owned()).expect("a name");
        let scopes = Scopes::try_from(vec![Scope::Read]).expect("some");
        generate(KeyId::try_from(id.to_owned()).expect("an id"), principal, scopes, None)
    }

    fn list(keys: &[&ApiKey]) -> String {
        serde_json::to_string(keys).expect("plain values")
    }

    #[test]
    fn a_key_that_has_expired_is_told_once_and_closed_while_others_open() {
        let ended = |id: &str| {
            let (text, key) = made(id);
            (text, ApiKey { expires_at: Some(time::OffsetDateTime::UNIX_EPOCH), ..key })
        };
        let ((old, first), (_, second), (good, third)) = (ended("old"), ended("older"), made("good"));
        let auth = Auth { keys: vec![first.clone(), third.clone()], ..Auth::default() };
        let keys = Keys::read(&auth).expect("expired keys are no trouble");
        let open = |text: &str| keys.open(Token::parse(text).expect("a key"), clock::now_ms()).map(drop);
        assert_eq!((open(&old), open(&good)), (Err(Unfit::Expired), Ok(())));
        assert_eq!(keys.expired(), BTreeSet::from(["old".to_owned()]));
        let ring = |keys: &[&ApiKey]| KeyRing::new(keys.iter().copied().cloned()).expect("distinct ids");
        assert_eq!(keys.newly_expired(&ring(&[&first, &third])), [""; 0]);
        assert_eq!(keys.newly_expired(&ring(&[&first, &second])), ["older"]);
        assert_eq!(keys.newly_expired(&ring(&[&third])), [""; 0]);
        assert_eq!(keys.newly_expired(&ring(&[&second])), ["older"]);
    }

    /// Half of a list is a list.
    #[test]
    fn a_file_that_is_cut_while_it_is_rewritten_locks_nobody_out() {
        let ((one, first), (other, second)) = (made("one"), made("other"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        let entry = |key: &ApiKey| format!("- {}\n", serde_json::to_string(key).expect("plain values"));
        let whole = entry(&first) + &entry(&second);
        std::fs::write(file.path(), &whole).expect("is written");
        let keys_file = file.path().to_str().expect("text").to_owned();
        let keys = Keys::read(&Auth { keys_file, ..Auth::default() }).expect("keys");
        let opened = || [&one, &other].map(|text| keys.open(Token::parse(text).expect("a key"), 0).is_ok());
        let mut watched = Watched::default();
        for text in [&whole, &whole, &entry(&first), &String::new(), &entry(&first), &whole, &entry(&first)] {
            keys.take(&mut watched, Ok(text.clone()));
            assert_eq!((opened(), &watched.trouble), ([true, true], &None), "{text}");
        }
        keys.take(&mut watched, Ok(entry(&first)));
        assert_eq!(opened(), [true, false], "it stays so");
    }

    #[test]
    fn a_change_counts_and_what_cannot_be_read_leaves_the_keys_as_they_were() {
        let ((fixed, in_config), (old, first), (new, second)) = (made("fixed"), made("old"), made("new"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), list(&[&first])).expect("is written");
        let keys_file = file.path().to_str().expect("text").to_owned();
        let auth = Auth { keys: vec![in_config.clone()], keys_file, ..Auth::default() };
        let keys = Keys::read(&auth).expect("keys");
        let opened = |keys: &Keys| {
            [&fixed, &old, &new].map(|text| keys.open(Token::parse(text).expect("a key"), 0).is_ok())
        };
        assert_eq!(opened(&keys), [true, true, false]);
        let mut watched = Watched::default();
        let take_twice = |watched: &mut Watched, text: Result<String, String>| {
            keys.take(watched, text.clone());
            keys.take(watched, text);
        };
        take_twice(&mut watched, Ok(list(&[&first])));
        take_twice(&mut watched, Ok(list(&[&second])));
        assert_eq!(opened(&keys), [true, false, true]);
        for broken in [Ok(String::new()), Ok("- {id: x}".into()), Ok(list(&[&in_config])), Err("gone".into())]
        {
            take_twice(&mut watched, broken);
            assert!(watched.trouble.is_some());
            assert_eq!(opened(&keys), [true, false, true]);
        }
        // The same as before the trouble, and then a list of none: the file closes, it never opens.
        take_twice(&mut watched, Ok(list(&[&second])));
        assert_eq!((opened(&keys), &watched.trouble), ([true, false, true], &None));
        take_twice(&mut watched, Ok("[]".into()));
        assert_eq!(opened(&keys), [true, false, false]);
        file.close().expect("is removed");
        assert!(Keys::read(&auth).expect_err("no file").to_string().contains("auth.keys_file"));
    }
}
