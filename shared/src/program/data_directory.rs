//! The data directory of the embedded pair: one process at a time, readable by its owner only, with
//! the secret that signs ids when the configuration has none.
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rand::rngs::OsRng;
use rand::{Rng, TryRngCore};

/// Characters of the secret in the data directory: 256 random bits in hexadecimal.
const SECRET_LENGTH: usize = 64;

/// Lock of a data directory that belongs to this process. The kernel releases it when the process ends,
/// however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Creates the directory, for its owner only, when it is missing.
    pub fn take(directory: &Path) -> anyhow::Result<Self> {
        let place = directory.display();
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.with_context(|| format!("cannot create the data directory {place}"))?;
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).mode(0o600).open(directory.join("lock"));
        let file = file.with_context(|| format!("cannot write to the data directory {place}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "the data directory {place} is in use by another process: stop it, or give this one a \
                 directory of its own (FOREBAY__QUEUE__URL=embedded:<directory> and the same for STORE)"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock the data directory {place}"))
            }
        }
    }
}

/// Reads the secret of a data directory, made at its first use. Losing it makes issued ids unknown.
pub fn secret_of(directory: &Path) -> anyhow::Result<String> {
    let path = directory.join("ids.secret");
    let mut secret = String::new();
    match File::open(&path) {
        Ok(mut file) => {
            file.read_to_string(&mut secret).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            secret = write_secret(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let secret = secret.trim();
    let intact = secret.len() == SECRET_LENGTH && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(intact, "{} does not hold {SECRET_LENGTH} hexadecimal digits", path.display());
    Ok(secret.into())
}

/// Writes a new secret, under another name first, so that a crash leaves no half of a secret.
fn write_secret(path: &Path) -> anyhow::Result<String> {
    let (high, low): (u128, u128) = (OsRng.unwrap_err().random(), OsRng.unwrap_err().random());
    let secret = format!("{high:032x}{low:032x}");
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(path.parent().context("a file is in a directory")?)?.sync_all()?;
    Ok(secret)
}
