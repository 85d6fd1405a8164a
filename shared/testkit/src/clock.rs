//! A wall clock that can be put forward and back for one program or server, by libfaketime. The
//! monotonic clock stays as it is, as it does when a real clock is stepped.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Folders that may hold the library, or whose subfolders may (Debian: one for each architecture).
const FOLDERS: [&str; 4] = ["/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/homebrew/lib"];
const SHARED_MEMORY: &str = "/dev/shm";
const NAME: &str = "faketime/libfaketime.so.1";

pub struct Clock {
    library: PathBuf,
    offset: PathBuf,
    /// The process that runs with the clock.
    process: Option<u32>,
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
    /// Creates the clock in `folder`, which the user of its process must be able to read.
    pub fn create(library: &Path, folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let clock = Self { library: library.to_owned(), offset: folder.join("clock"), process: None };
        clock.step(0)?;
        Ok(clock)
    }

    /// Puts the clock this many seconds off the real time, within a second.
    pub fn step(&self, seconds: i64) -> anyhow::Result<()> {
        // Renamed into place: the program reads the file at any time and must not see half of it.
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{seconds:+}s\n"))?;
        fs::rename(&new, &self.offset).context("cannot step the clock")
    }

    /// Gives the clock to another process after the one before has ended.
    pub fn belongs_to(&mut self, process: Option<u32>) {
        self.remove_shared();
        self.process = process;
    }

    /// Removes the shared memory that the library leaves behind of a killed process. Another user's
    /// process with the same number could not start beside it.
    fn remove_shared(&mut self) {
        if let Some(process) = self.process.take() {
            for name in [format!("sem.faketime_sem_{process}"), format!("faketime_shm_{process}")] {
                // A process that ended by itself left nothing.
                let _ = fs::remove_file(Path::new(SHARED_MEMORY).join(name));
            }
        }
    }

    /// Environment variables for the program. Start it as the user that it runs as: the library
    /// makes files of that user.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.offset)),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
        .map(|(name, value)| (name.into(), value))
        .into()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.remove_shared();
    }
}
