//! The Raft log in segment files of our own.
//!
//! Openraft hands over entries; they are readable at once from memory, and called durable after the writer thread has
//! synced them (`writer`). A segment file holds `record`s one behind the other and zeros behind the last. Truncation
//! and purging are records too, so that no file is ever rewritten: a segment whose entries are all purged is removed.
//!
//! Invariants:
//! * Records are numbered (lsn) without a gap across all segments; a start-up stops at the first that is missing.
//! * A callback fires after the fdatasync of its record, in the order of the appends.
//! * Segments are removed from the oldest on and never the one being written, whose head says what was purged.

mod index;
mod purges;
mod record;
mod scan;
mod segment;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, Vote};
use tokio::sync::oneshot;

use crate::raft::{Entry, LogId, StorageError, StorageIOError, TypeConfig};
use crate::store::log::index::{Found, Index};
use crate::store::log::writer::{Done, Job, Writer};
use crate::store::vote::VoteFile;
use crate::store::{Failure, OpenError, durable};

pub use purges::Purges;

/// The log's handle: store and reader in one. Cheap to clone; the thread ends when the last one is gone.
#[derive(Clone)]
pub struct Log {
    index: Arc<Mutex<Index>>,
    jobs: Sender<Job>,
    vote: VoteFile,
    purges: Purges,
}

/// How much log there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// `None` where nothing was ever written.
    pub last: Option<LogId>,
    pub purged: Option<LogId>,
    pub entries: usize,
    pub bytes: u64,
}

impl Log {
    /// Opens `<home>/log`, reads it back and starts the writer thread.
    pub fn open(home: &Path, failure: Failure) -> Result<(Self, JoinHandle<()>), OpenError> {
        let directory = home.join("log");
        durable::create_directory(&directory).map_err(OpenError::io(&directory))?;
        let vote = VoteFile::new(home);
        let purges = Purges::default();
        let (writer, index) = Writer::new(&directory, scan::scan(&directory)?, vote.clone(), purges.clone(), failure);
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(OpenError::io(&directory))?;
        Ok((Self { index, jobs, vote, purges }, thread))
    }

    pub fn purges(&self) -> Purges {
        self.purges.clone()
    }

    pub fn extent(&self) -> Extent {
        let index = self.lock();
        Extent { last: index.last(), purged: index.purged, entries: index.len(), bytes: index.bytes() }
    }

    pub fn vote(&self) -> Result<Option<Vote<u64>>, OpenError> {
        self.vote.read()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        let stopped = || io::Error::other("the log has stopped");
        self.jobs.send(job(done)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn write_error(error: &io::Error) -> StorageError {
    StorageIOError::write_logs(error).into()
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let found = self.lock().find(range);
        let read = move || found.into_iter().map(Found::into_entry).collect::<io::Result<Vec<_>>>();
        read().map_err(|error| StorageIOError::read_logs(&error).into())
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let extent = self.extent();
        Ok(LogState { last_purged_log_id: extent.purged, last_log_id: extent.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        let vote = *vote;
        let saved = self.ask(move |done| Job::Vote(vote, done)).await;
        saved.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    /// A leader of an earlier life has to be elected anew. openraft would let it go on where it was, and until something
    /// new is committed its read index would be what was applied at its last checkpoint: reads would miss what had been
    /// acknowledged since. The first entry of a new term commits all of that.
    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        let vote = self.vote.read().map_err(|error| StorageIOError::read_vote(&error))?;
        Ok(vote.map(|vote| Vote { committed: false, ..vote }))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut index = self.lock();
            if !entries.iter().all(|entry| index.push(entry.clone(), None)) {
                let gap = io::Error::other("an entry does not follow its predecessor");
                return Err(StorageError::from_io_error(ErrorSubject::Logs, ErrorVerb::Write, gap));
            }
        }
        let job = Job::Append(entries, callback);
        self.jobs.send(job).map_err(|_| write_error(&io::Error::other("the log has stopped")))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.lock().truncate(log_id.index);
        self.ask(move |done| Job::Truncate(log_id.index, done)).await.map_err(|error| write_error(&error))
    }

    /// Does not wait for the disk: that may take until a snapshot is installed, and openraft must not stand still for it.
    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.lock().purge(log_id);
        self.jobs.send(Job::Purge(log_id)).map_err(|_| write_error(&io::Error::other("the log has stopped")))
    }
}

impl Found {
    fn into_entry(self) -> io::Result<Entry> {
        match self {
            Self::Here(entry) => Ok(entry),
            Self::There(place) => place.read(),
        }
    }
}

#[cfg(test)]
mod tests;
