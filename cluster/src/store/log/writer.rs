//! The one thread that writes the log.
//!
//! It takes every append that waits, writes them with one call, syncs once, and then calls back in order. A vote, a
//! truncation and a purge go through the same queue, so that no two writes ever overtake each other. After the first
//! error it answers everything with an error: what the disk holds is unknown from then on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use openraft::Vote;
use openraft::storage::LogFlushed;
use tokio::sync::oneshot;

use crate::raft::{Entry, LogId, TypeConfig};
use crate::store::Failure;
use crate::store::durable;
use crate::store::log::index::{Index, Place};
use crate::store::log::purges::Purges;
use crate::store::log::record::{self, Body};
use crate::store::log::scan::Scanned;
use crate::store::log::segment::{SEGMENT_BYTES, Segment, make_spare};
use crate::store::vote::VoteFile;

/// Appends that are written and synced together hold at most about this many bytes.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

pub(crate) enum Job {
    Append(Vec<Entry>, LogFlushed<TypeConfig>),
    Vote(Vote<u64>, Done),
    Truncate(u64, Done),
    Purge(LogId),
}

/// The same result once more, for the next callback.
fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Entries whose bytes are in the buffer and not yet on disk.
struct Placed {
    index: u64,
    offset: u64,
    length: u32,
}

pub(crate) struct Writer {
    directory: PathBuf,
    index: Arc<Mutex<Index>>,
    vote: VoteFile,
    purges: Purges,
    failure: Failure,
    /// Oldest first; the last one is being written.
    segments: Vec<Arc<Segment>>,
    offset: u64,
    next_lsn: u64,
    synced: u64,
    spare: Option<JoinHandle<io::Result<()>>>,
    buffer: Vec<u8>,
    placed: Vec<Placed>,
    callbacks: Vec<LogFlushed<TypeConfig>>,
}

impl Writer {
    pub(crate) fn new(
        directory: &Path,
        scanned: Scanned,
        vote: VoteFile,
        purges: Purges,
        failure: Failure,
    ) -> (Self, Arc<Mutex<Index>>) {
        let index = Arc::new(Mutex::new(scanned.index));
        let writer = Self {
            directory: directory.to_owned(),
            index: Arc::clone(&index),
            vote,
            purges,
            failure,
            segments: scanned.segments,
            offset: scanned.offset,
            next_lsn: scanned.next_lsn,
            synced: scanned.next_lsn - 1,
            spare: None,
            buffer: Vec::new(),
            placed: Vec::new(),
            callbacks: Vec::new(),
        };
        (writer, index)
    }

    /// Works until every sender is gone.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let mut next = Some(job);
            while let Some(job) = next.take() {
                next = match job {
                    Job::Append(entries, callback) => self.append_group(entries, callback, jobs),
                    Job::Vote(vote, done) => {
                        self.answer(done, |writer| writer.vote.write(&vote));
                        None
                    }
                    Job::Truncate(since, done) => {
                        self.answer(done, |writer| writer.truncate(since));
                        None
                    }
                    Job::Purge(upto) => {
                        self.purges.wait(&self.failure);
                        // An error has stopped the store; nobody waits for more.
                        drop(self.guarded(|writer| writer.purge(upto)));
                        None
                    }
                };
            }
        }
        if let Some(spare) = self.spare.take() {
            drop(spare.join());
        }
    }

    fn answer(&mut self, done: Done, work: impl FnOnce(&mut Self) -> io::Result<()>) {
        let result = self.guarded(work);
        // The one who asked may have been cancelled: the work is done all the same.
        drop(done.send(result));
    }

    /// Runs `work` unless the store has stopped; its first error stops the store.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if let Some(sentence) = self.failure.get() {
            return Err(io::Error::other(sentence));
        }
        work(self).inspect_err(|error| {
            self.failure.set(format!("writing the log in {} failed: {error}", self.directory.display()))
        })
    }

    /// Writes this append and all others that wait; returns a job of another kind that was met behind them.
    fn append_group(
        &mut self,
        entries: Vec<Entry>,
        callback: LogFlushed<TypeConfig>,
        jobs: &Receiver<Job>,
    ) -> Option<Job> {
        let mut result = self.guarded(|writer| writer.stage(entries));
        self.callbacks.push(callback);
        let mut other = None;
        while result.is_ok() && self.buffer.len() < GROUP_BYTES_MAX {
            match jobs.try_recv() {
                Ok(Job::Append(entries, callback)) => {
                    result = self.guarded(|writer| writer.stage(entries));
                    self.callbacks.push(callback);
                }
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let result = result.and_then(|()| self.guarded(Self::flush));
        for callback in self.callbacks.drain(..) {
            callback.log_io_completed(copy(&result));
        }
        other
    }

    fn stage(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        for entry in entries {
            let index = entry.log_id.index;
            let (offset, length) = self.stage_record(&Body::Entry(entry))?;
            self.placed.push(Placed { index, offset, length });
        }
        Ok(())
    }

    /// Puts a record into the buffer, in the next segment where this one is full, and says where it will be.
    fn stage_record(&mut self, body: &Body) -> io::Result<(u64, u32)> {
        let start = self.buffer.len();
        let length = record::write(&mut self.buffer, self.next_lsn, self.synced, body);
        let room = self.segments.last().map_or(0, |segment| segment.bytes - self.offset);
        if self.buffer.len() as u64 > room {
            self.buffer.truncate(start);
            self.flush()?;
            self.roll(u64::from(length))?;
            return self.stage_record(body);
        }
        self.next_lsn += 1;
        Ok((self.offset + start as u64, length))
    }

    /// Writes and syncs the buffer and tells the index where the entries are.
    fn flush(&mut self) -> io::Result<()> {
        let Some(segment) = self.segments.last().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        segment.write(self.offset, &self.buffer)?;
        segment.sync()?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        self.synced = self.next_lsn - 1;
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        for Placed { index: entry, offset, length } in self.placed.drain(..) {
            index.set_place(entry, Place { segment: Arc::clone(segment), offset, length });
        }
        Ok(())
    }

    /// Begins the next segment, which must hold a record of `needed` bytes beside its head.
    fn roll(&mut self, needed: u64) -> io::Result<()> {
        let path = self.directory.join("spare");
        if let Some(spare) = self.spare.take() {
            spare.join().map_err(|_| io::Error::other("making a spare segment panicked"))??;
        }
        let needed = needed + 1024;
        if !path.metadata().is_ok_and(|spare| spare.len() >= needed.max(SEGMENT_BYTES)) {
            make_spare(&path, needed)?;
        }
        let segment = Segment::take(&path, &self.directory, self.next_lsn)?;
        self.segments.push(Arc::new(segment));
        self.offset = 0;
        let purged = self.index.lock().unwrap_or_else(PoisonError::into_inner).purged;
        self.stage_record(&Body::Head(purged))?;
        self.flush()?;
        self.spare = Some(
            std::thread::Builder::new().name("log-spare".to_owned()).spawn(move || make_spare(&path, SEGMENT_BYTES))?,
        );
        Ok(())
    }

    fn truncate(&mut self, since: u64) -> io::Result<()> {
        self.stage_record(&Body::Truncate(since))?;
        self.flush()
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.stage_record(&Body::Purge(upto))?;
        self.flush()?;
        let needed = {
            let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.oldest_segment()
        };
        let last = self.segments.last().map_or(0, |segment| segment.first_lsn);
        let needed = needed.unwrap_or(last).min(last);
        let keep = self.segments.partition_point(|segment| segment.first_lsn < needed);
        for segment in self.segments.drain(..keep) {
            std::fs::remove_file(&segment.path)?;
            // The order of the names that remain must be without a hole whatever a power cut leaves.
            durable::sync_directory(&self.directory)?;
        }
        Ok(())
    }
}
