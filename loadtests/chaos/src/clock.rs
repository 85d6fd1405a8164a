//! A wall clock that can be put forward and back for one program, by libfaketime. The monotonic
//! clock stays as it is: that is what the step of a real clock does.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where Debian has it, for any architecture, and where else to look.
const FOLDERS: [&str; 4] = ["/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/homebrew/lib"];
const NAME: &str = "faketime/libfaketime.so.1";

pub struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

/// The library, if this machine has it; `FOREBAY_CHAOS_FAKETIME` names another place.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FOREBAY_CHAOS_FAKETIME") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let folders = FOLDERS.iter().map(PathBuf::from);
    let within = |folder: PathBuf| {
        let inner = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        [folder].into_iter().chain(inner).collect::<Vec<_>>()
    };
    folders.flat_map(within).map(|folder| folder.join(NAME)).find(|path| path.is_file())
}

impl Clock {
    pub fn create(library: &Path, folder: &Path) -> anyhow::Result<Self> {
        let clock = Self { library: library.to_owned(), offset: folder.join("clock") };
        clock.step(0)?;
        Ok(clock)
    }

    /// Puts the clock so many seconds off the real time, within a second.
    pub fn step(&self, seconds: i64) -> anyhow::Result<()> {
        // Never half a file: the program reads it at any time.
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{seconds:+}s\n"))?;
        fs::rename(&new, &self.offset).context("cannot step the clock")
    }

    /// What the program must be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.offset)),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
        .map(|(name, value)| (name.into(), value))
        .into()
    }
}
