//! The mail log: one record for every end of DATA and for every step after it.

pub mod record;

use std::path::Path;

pub use record::{Event, Query, Record, Status};

/// The log's handle. Cheap to clone.
#[derive(Clone)]
pub struct Maillog {}

impl Maillog {
    pub fn open(_directory: &Path, _keep_days: u64) -> std::io::Result<Self> {
        todo!()
    }

    /// Queues the record for the writer, which has it on disk within a second.
    pub fn record(&self, _record: Record) {
        todo!()
    }

    /// Newest first, or oldest first where the query follows one id. Sees everything recorded before the call.
    pub async fn search(&self, _query: Query) -> std::io::Result<Vec<Record>> {
        todo!()
    }

    /// Writes what is waiting and stops.
    pub async fn shutdown(&self) {
        todo!()
    }
}
