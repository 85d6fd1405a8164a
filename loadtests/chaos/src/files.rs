//! A check of the two files of the embedded pair after a run: no damage, and an empty queue.
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use testkit::sqlite;

/// Observations after the program had stopped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Files {
    /// Problems that SQLite's `integrity_check` reports in either file.
    pub damage: Vec<String>,
    /// Messages in the queue.
    pub waiting: i64,
    pub dead: i64,
}

pub async fn gather(data: &Path) -> anyhow::Result<Files> {
    let (queue, store) = (data.join("queue.db"), data.join("store.db"));
    let mut damage = Vec::new();
    for file in [&queue, &store] {
        let said = sqlite::integrity(file).await.with_context(|| file.display().to_string())?;
        damage.extend(said.into_iter().map(|said| format!("{}: {said}", file.display())));
    }
    let (waiting, dead) = (sqlite::count(&queue, "message").await?, sqlite::count(&queue, "dead").await?);
    Ok(Files { damage, waiting, dead })
}

/// Findings about the files.
pub fn check(files: &Files) -> Vec<String> {
    let mut findings: Vec<_> = files.damage.iter().map(|damage| format!("DAMAGED: {damage}")).collect();
    for (what, count) in [("messages", files.waiting), ("dead messages", files.dead)] {
        if count > 0 {
            findings.push(format!("LEFT OVER: {count} {what} in the embedded queue"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use shared::config::queue_limits::QueueLimits;
    use shared::queue::Queue;
    use shared::queue::embedded::EmbeddedQueue;
    use shared::store::Store;
    use shared::store::sqlite::SqliteStore;

    use super::*;

    #[tokio::test]
    async fn a_damaged_file_is_found_and_a_sound_one_is_no_finding() {
        let data = std::env::temp_dir().join(testkit::unique("files"));
        std::fs::create_dir_all(&data).expect("a directory");
        let limits = QueueLimits { bytes_max: 1 << 20, confirm_timeout: Duration::from_secs(1) };
        EmbeddedQueue::open(&data, limits).await.expect("opens").close().await;
        let store = SqliteStore::open(&data, &shared::config::StoreSettings::default()).await.expect("opens");
        store.migrate().await.expect("migrates");
        store.close().await;
        assert_eq!(check(&gather(&data).await.expect("is read")), Vec::<String>::new());
        let path = data.join("store.db");
        let bytes = std::fs::metadata(&path).expect("is there").len();
        let file = std::fs::File::options().write(true).open(&path).expect("opens");
        // All pages but the first, which is needed to read the others.
        for page in 1..bytes / 4_096 {
            file.write_all_at(&[0xA5; 64], page * 4_096).expect("is written");
        }
        let found = check(&gather(&data).await.expect("is read"));
        assert!(!found.is_empty() && found[0].starts_with("DAMAGED"), "{found:?}");
        std::fs::remove_dir_all(&data).expect("is removed");
    }

    #[test]
    fn what_is_left_in_the_queue_is_found() {
        let found = check(&Files { waiting: 2, dead: 1, ..Files::default() });
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
