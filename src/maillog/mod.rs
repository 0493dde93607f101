//! The mail log: one record for every end of DATA and for every step after it.
//!
//! Callers hand a [`Record`] over and go on: they pay for one push under a lock. One thread turns
//! records into lines, appends them to segment files at once and syncs these about once a second. Readers
//! scan the files from the newest end and stop early.
//!
//! * [`record`]: what is kept and what can be asked.
//! * `writer`: the waiting room and the thread that empties it.
//! * `segment`: file names, the line format with its checksum, what a torn line means.
//! * `copies`: what is kept of other nodes' logs.
//! * `search`: filters and the order of answers.
//!
//! Invariants:
//! * A record is dropped only if the disk refuses writes for so long that the waiting room is full; that is counted and
//!   said aloud. Nobody waits for room.
//! * A process that is killed loses at most what the writer was about to write; a machine that dies, about a second.
//! * A search sees every record that was handed over before it began.
//! * A segment is never appended to by a later life of the process, so a torn line can only be a segment's last.
//!
//! Never here: who may read the log, and what a record means.

mod copies;
pub mod record;
mod search;
mod segment;
mod writer;

use std::path::Path;
use std::sync::Arc;

pub use record::{Event, Origin, Query, Record, Status};

use self::segment::Directory;
use self::writer::Writer;
use crate::clock::now_ms;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The log's handle. Cheap to clone; the writer ends with its last clone.
#[derive(Clone)]
pub struct Maillog {
    writer: Arc<Writer>,
    directory: Directory,
    keep_days: u64,
}

impl Maillog {
    /// Uses (and makes) `directory`; segments older than `keep_days` are removed now and once an hour.
    pub fn open(directory: &Path, keep_days: u64) -> std::io::Result<Self> {
        let directory = Directory::open(directory)?;
        let writer = Arc::new(Writer::start(directory.clone(), keep_days, writer::WAITING_MAX)?);
        Ok(Self { writer, directory, keep_days })
    }

    /// Queues the record for the writer, which has it in the file at once and on disk within a second. Never blocks.
    pub fn record(&self, record: Record) {
        self.writer.push(record);
    }

    /// Newest first, or oldest first where the query follows one id. Sees everything recorded before the call.
    pub async fn search(&self, query: Query) -> std::io::Result<Vec<Record>> {
        let (writer, directory) = (Arc::clone(&self.writer), self.directory.clone());
        let scan = move || {
            writer.flush()?;
            search::run(&directory, &query)
        };
        tokio::task::spawn_blocking(scan).await.map_err(std::io::Error::other)?
    }

    fn kept_since_ms(&self) -> u64 {
        now_ms().saturating_sub(self.keep_days.saturating_mul(DAY_MS))
    }

    /// Writes what is waiting and stops.
    pub async fn shutdown(&self) {
        let writer = Arc::clone(&self.writer);
        if let Err(error) = tokio::task::spawn_blocking(move || writer.stop()).await {
            tracing::error!(%error, "the mail log did not stop in order");
        }
    }
}

#[cfg(test)]
mod tests;
