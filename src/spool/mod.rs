//! Durable bytes of messages in segment files.
//!
//! One thread appends checksummed records to the newest segment and syncs once for all who wait. A message is a
//! record; what becomes of it are marks behind it: accepted, progress, done. The invariants:
//!
//! - What `Spool::store` answered with `Ok` is found again by every later `Spool::open` until it is done.
//! - Marks stand behind their message. Segments are deleted oldest first and only when no message in them lives,
//!   so a mark never goes before its message. A stuck message is copied forward with its state, synced, and
//!   only then does its old segment go.
//! - The index (sled) is a copy up to a position, never the truth: without it a start reads all segments.
//! - A failed fdatasync is final. A full disk is not: messages are refused, marks wait, and it goes on by itself.

mod commit;
mod index;
mod ledger;
mod record;
mod recovery;
mod segment;
mod writer;

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::config::SpoolConfig;
use crate::mail::{Message, MessageId};
use record::Kind;
use segment::Location;
pub(crate) use writer::Then;
use writer::{Request, Writer};

/// Bytes of messages that may wait for the writer at once, in permits of [`PERMIT_BYTES`].
const WAITING_MAX_BYTES: usize = 128 << 20;
const PERMIT_BYTES: usize = 1024;

#[derive(thiserror::Error, Debug)]
pub enum SpoolError {
    #[error("the disk under {0} is full")]
    Full(PathBuf),
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("the spool has stopped after a disk error")]
    Stopped,
}

/// The spool's handle. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
    requests: Sender<Request>,
}

/// A message that an earlier life left.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: MessageId,
    /// Its decision is noted; otherwise it waits for one.
    pub(crate) accepted: bool,
    pub(crate) meta: Box<[u8]>,
    /// As the last [`Spool::progress`] had it.
    pub(crate) progress: Option<Box<[u8]>>,
    pub(crate) size: u64,
}

struct Shared {
    directory: PathBuf,
    segment_max_bytes: u64,
    free_min_bytes: u64,
    locations: Mutex<HashMap<MessageId, Location>>,
    waiting: Arc<Semaphore>,
    has_room: AtomicBool,
    /// Why nothing can be noted any more.
    failure: watch::Sender<Option<String>>,
    sync_seconds: Histogram,
    /// Held as long as any part of the spool lives.
    _lock: File,
}

impl Spool {
    /// Reads what is under `directory` (made if absent) and starts the writer.
    pub(crate) async fn open(
        directory: &Path,
        config: &SpoolConfig,
        sync_seconds: Histogram,
    ) -> Result<(Self, Vec<Found>), SpoolError> {
        let (path, config) = (directory.to_owned(), config.clone());
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(path, &config, sync_seconds)).await;
        let failed = |error| SpoolError::Io(directory.to_owned(), error);
        opened.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    fn open_blocking(
        directory: PathBuf,
        config: &SpoolConfig,
        sync_seconds: Histogram,
    ) -> io::Result<(Self, Vec<Found>)> {
        crate::durable::create_directory(&directory)?;
        let lock = lock(&directory)?;
        let recovery::Recovered { ledger, index, committed, next_segment } = recovery::recover(&directory)?;
        let shared = Arc::new(Shared {
            directory,
            segment_max_bytes: config.segment_max_bytes,
            free_min_bytes: config.free_min_bytes,
            locations: Mutex::new(ledger.messages().map(|(id, live)| (id, live.location)).collect()),
            waiting: Arc::new(Semaphore::new(WAITING_MAX_BYTES / PERMIT_BYTES)),
            has_room: AtomicBool::new(true),
            failure: watch::Sender::new(None),
            sync_seconds,
            _lock: lock,
        });
        shared.check_room();
        let found = found(&ledger);
        let committer = commit::Committer::start(index, committed, Arc::clone(&shared))?;
        let writer = Writer::new(Arc::clone(&shared), ledger, committer, next_segment)?;
        let (requests, waiting) = channel();
        let of_thread = Arc::clone(&shared);
        let run = move || {
            if catch_unwind(AssertUnwindSafe(|| writer.run(&waiting))).is_err() {
                of_thread.fail("the spool's writer has panicked");
            }
        };
        std::thread::Builder::new().name("spool-writer".to_owned()).spawn(run)?;
        Ok((Self { shared, requests }, found))
    }

    /// Returns when the message is on disk. One that is not `accepted` waits for [`Spool::accept`] or [`Spool::done`].
    pub(crate) async fn store(
        &self,
        id: MessageId,
        meta: Vec<u8>,
        body: Bytes,
        accepted: bool,
    ) -> Result<(), SpoolError> {
        let permits = (body.len() / PERMIT_BYTES + 1).min(WAITING_MAX_BYTES / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let waiting = Arc::clone(&self.shared.waiting);
        let permit = waiting.acquire_many_owned(permits).await.map_err(|_| SpoolError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let kind = if accepted { Kind::Message } else { Kind::Held };
        let request = Request::Store { kind, id, meta, body, reply, permit };
        self.requests.send(request).map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }

    /// Notes that the decision was yes; `then` is called when the note is on disk.
    pub(crate) fn accept(&self, id: MessageId, then: Option<Then>) {
        self.mark(Kind::Accepted, id, Vec::new(), then);
    }

    /// Notes the whole state of the recipients.
    pub(crate) fn progress(&self, id: MessageId, state: Vec<u8>) {
        self.mark(Kind::Progress, id, state, None);
    }

    /// Forgets the message; `then` is called when that is on disk.
    pub(crate) fn done(&self, id: MessageId, then: Option<Then>) {
        self.mark(Kind::Done, id, Vec::new(), then);
    }

    fn mark(&self, kind: Kind, id: MessageId, payload: Vec<u8>, then: Option<Then>) {
        if self.requests.send(Request::Mark { kind, id, payload, then }).is_err() {
            tracing::error!(%id, "the spool has stopped: what became of the message is not noted");
        }
    }

    /// The bytes of a message; `None` if it is not in the spool.
    pub(crate) async fn read(&self, id: MessageId) -> Result<Option<Message>, SpoolError> {
        let shared = Arc::clone(&self.shared);
        let failed = |error| SpoolError::Io(self.shared.directory.clone(), error);
        let read = tokio::task::spawn_blocking(move || shared.read(id)).await;
        read.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    /// False while less than the configured minimum is free, or after a failure.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.has_room.load(Ordering::Acquire) && !self.has_failed()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.shared.failure.borrow().is_some()
    }

    /// Takes no more messages; [`Spool::failed`] tells why. The first reason stays.
    pub(crate) fn fail(&self, reason: &str) {
        self.shared.fail(reason);
    }

    /// Resolves with the reason when the spool can keep nothing more; never after a [`Spool::shutdown`] in order.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            if failure.changed().await.is_err() {
                // Only without a sender, and we hold one.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Syncs, commits the index and ends the threads.
    pub(crate) async fn shutdown(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.requests.send(Request::Stop(reply)).is_err() || stopped.await.is_err() {
            tracing::error!("the spool had stopped before");
        }
    }
}

impl Shared {
    fn place(&self, id: MessageId, location: Option<Location>) {
        let mut locations = self.locations.lock().unwrap_or_else(PoisonError::into_inner);
        match location {
            Some(location) => locations.insert(id, location),
            None => locations.remove(&id),
        };
    }

    fn location(&self, id: MessageId) -> Option<Location> {
        self.locations.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Looks again if the message was copied forward meanwhile and its old segment is gone.
    fn read(&self, id: MessageId) -> io::Result<Option<Message>> {
        let mut tried = None;
        loop {
            let Some(location) = self.location(id) else { return Ok(None) };
            match segment::read_body(&self.directory, location, id) {
                Ok(body) => return Ok(Some(Message::new(body))),
                Err(error) if tried == Some(location) => return Err(error),
                Err(_) => tried = Some(location),
            }
        }
    }

    fn fail(&self, reason: &str) {
        let first = self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            is_first
        });
        if first {
            tracing::error!(reason, "the queue has failed");
        }
    }

    fn check_room(&self) {
        match commit::free_bytes(&self.directory) {
            Ok(free) => {
                let has_room = free >= self.free_min_bytes;
                if self.has_room.swap(has_room, Ordering::AcqRel) != has_room {
                    let (free_min, path) = (self.free_min_bytes, self.directory.display());
                    tracing::warn!(has_room, free, free_min, %path, "the room on the disk changed");
                }
            }
            Err(error) => tracing::error!(%error, "cannot tell the free room of the spool"),
        }
    }
}

fn lock(directory: &Path) -> io::Result<File> {
    let file = File::create(directory.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "in use by another process")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// In order of id, which is the order of arrival.
fn found(ledger: &ledger::Ledger) -> Vec<Found> {
    let mut found: Vec<_> = ledger
        .messages()
        .map(|(id, live)| Found {
            id,
            accepted: live.accepted,
            meta: live.meta.clone(),
            progress: live.progress.clone(),
            size: u64::from(live.location.body_length),
        })
        .collect();
    found.sort_unstable_by_key(|found| found.id);
    found
}

#[cfg(test)]
mod tests;
