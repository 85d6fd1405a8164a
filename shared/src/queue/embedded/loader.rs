//! Reads ahead of the subscribers: from the file into the ready buffer, in chunks, when the buffer runs
//! low. It never writes, and its reads are short, so that a checkpoint waits for one chunk at most.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::file::QueueReader;
use super::ready_buffer::ReadyBuffer;
use crate::queue::Lane;
use crate::runtime::backoff::Backoff;

/// Connection that reads, shared with the writer, which takes it to keep readers away.
pub(super) type SharedReader = Arc<Mutex<Option<QueueReader>>>;

/// Runs until the buffer is closed.
pub(super) async fn run(lane: Lane, buffer: Arc<ReadyBuffer>, reader: SharedReader, directory: PathBuf) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    while !buffer.is_closed() {
        let Some(range) = buffer.missing() else {
            buffer.wanted().await;
            continue;
        };
        let mut reader = reader.lock().await;
        if buffer.is_closed() {
            // The writer has closed the files: they must not be opened again.
            return;
        }
        let read = async {
            if reader.is_none() {
                *reader = Some(QueueReader::open(&directory).await?);
            }
            reader.as_mut().expect("it was just opened").read(lane, range).await
        };
        match read.await {
            Ok((messages, whole)) => {
                buffer.load(range, messages, whole);
                backoff.reset();
            }
            Err(error) => {
                tracing::warn!(error = %error, "embedded queue could not be read");
                // A connection that failed is not used again.
                *reader = None;
                drop(reader);
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}
