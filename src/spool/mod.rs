//! Durable bytes of messages in segment files: our own, and the copies of other nodes' that this one mirrors.
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
mod damage;
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
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::config::SpoolConfig;
use crate::mail::{Message, MessageId};
pub(crate) use damage::Damage;
use record::{Kind, Name};
use segment::Location;
pub(crate) use writer::Then;
use writer::{Request, Writer};

/// Bytes of messages that may wait for the writer at once, in permits of [`PERMIT_BYTES`].
const WAITING_MAX_BYTES: usize = 128 << 20;
const PERMIT_BYTES: usize = 1024;
const LOCK: &str = "lock";

#[derive(thiserror::Error, Debug)]
pub enum SpoolError {
    #[error("the disk under {0} is full")]
    Full(PathBuf),
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("the spool has stopped after a disk error")]
    Stopped,
    #[error("message {0} is here and belongs to another node")]
    OfAnother(MessageId),
    #[error("no other node keeps a copy of message {0}")]
    NoMirror(MessageId),
}

/// The spool's handle. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
    requests: Sender<Request>,
}

/// Who has to see to a message. Records are about messages of their owner alone: what another node says of one that is
/// ours by now changes nothing.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Whose {
    Ours,
    /// We mirror it for this node.
    Of(u64),
}

/// A message that lives.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) id: MessageId,
    pub(crate) whose: Whose,
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
    /// Messages of before that may be missing.
    damage: Mutex<Option<Damage>>,
    /// Messages that turned out to be lost in this life.
    lost: Mutex<Vec<MessageId>>,
    /// Held as long as any part of the spool lives.
    _lock: File,
}

impl Spool {
    /// Whether there was one before.
    pub(crate) fn is_under(directory: &Path) -> bool {
        directory.join(LOCK).exists()
    }

    /// Reads what is under `directory` (made if absent) and starts the writer; returns what lives and is ours.
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
        let recovery::Recovered { ledger, index, committed, next_segment, damage } = recovery::recover(&directory)?;
        let shared = Arc::new(Shared {
            directory,
            segment_max_bytes: config.segment_max_bytes,
            free_min_bytes: config.free_min_bytes,
            locations: Mutex::new(ledger.messages().map(|(id, live)| (id, live.location)).collect()),
            waiting: Arc::new(Semaphore::new(WAITING_MAX_BYTES / PERMIT_BYTES)),
            has_room: AtomicBool::new(true),
            failure: watch::Sender::new(None),
            damage: Mutex::new(damage),
            lost: Mutex::default(),
            sync_seconds,
            _lock: lock,
        });
        if let Some(damage) = shared.damage.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            damage.write(&shared.directory)?;
        }
        shared.check_room();
        let found = found(&ledger, Whose::Ours);
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
        (id, whose): (MessageId, Whose),
        meta: Vec<u8>,
        body: Bytes,
        accepted: bool,
    ) -> Result<(), SpoolError> {
        let permits = (body.len() / PERMIT_BYTES + 1).min(WAITING_MAX_BYTES / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let waiting = Arc::clone(&self.shared.waiting);
        let permit = waiting.acquire_many_owned(permits).await.map_err(|_| SpoolError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let name = Name { kind: if accepted { Kind::Message } else { Kind::Held }, id, whose };
        let request = Request::Store { name, meta, body, reply, permit };
        self.requests.send(request).map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }

    /// Notes that the decision was yes; `then` is called when the note is on disk.
    pub(crate) fn accept(&self, (id, whose): (MessageId, Whose), then: Option<Then>) {
        self.mark(Name { kind: Kind::Accepted, id, whose }, Vec::new(), then);
    }

    /// Notes the whole state of the recipients.
    pub(crate) fn progress(&self, (id, whose): (MessageId, Whose), state: Vec<u8>, then: Option<Then>) {
        self.mark(Name { kind: Kind::Progress, id, whose }, state, then);
    }

    /// Forgets the message; `then` is called when that is on disk.
    pub(crate) fn done(&self, (id, whose): (MessageId, Whose), then: Option<Then>) {
        self.mark(Name { kind: Kind::Done, id, whose }, Vec::new(), then);
    }

    /// Notes that `node`'s message is ours from now on, and accepted.
    pub(crate) fn adopt(&self, id: MessageId, node: u64, then: Option<Then>) {
        self.mark(Name { kind: Kind::Adopted, id, whose: Whose::Of(node) }, Vec::new(), then);
    }

    /// Notes that the message is `node`'s from now on, and accepted: we are its mirror.
    pub(crate) fn hand_over(&self, (id, whose): (MessageId, Whose), node: u64, then: Option<Then>) {
        self.mark(Name { kind: Kind::HandedOver, id, whose }, node.to_le_bytes().into(), then);
    }

    fn mark(&self, name: Name, payload: Vec<u8>, then: Option<Then>) {
        if self.requests.send(Request::Mark { name, payload, then }).is_err() {
            tracing::error!(id = %name.id, "the spool has stopped: what became of the message is not noted");
        }
    }

    /// What lives, in order of id; behind everything that was asked before.
    pub(crate) async fn list(&self, whose: Whose) -> Result<Vec<Found>, SpoolError> {
        self.look(move |ledger| found(ledger, whose)).await
    }

    pub(crate) async fn get(&self, id: MessageId) -> Result<Option<Found>, SpoolError> {
        self.look(move |ledger| ledger.get(id).map(|live| Found::new(id, live))).await
    }

    /// Whose each of the messages is, and whether it is accepted; `None` = it is not here.
    pub(crate) async fn look_up(
        &self,
        ids: Vec<MessageId>,
    ) -> Result<Vec<(MessageId, Option<(Whose, bool)>)>, SpoolError> {
        let one = |ledger: &ledger::Ledger, id| (id, ledger.get(id).map(|live| (live.whose, live.accepted)));
        self.look(move |ledger| ids.into_iter().map(|id| one(ledger, id)).collect()).await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ledger::Ledger) -> T + Send + 'static,
    ) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |ledger: &ledger::Ledger| {
            if reply.send(look(ledger)).is_err() {
                tracing::debug!("nobody waited for the spool's answer");
            }
        });
        self.requests.send(Request::Look(look)).map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)
    }

    /// Which messages of earlier lives may be missing without a trace.
    pub(crate) fn damage(&self) -> Option<Damage> {
        *self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was here before is missing.
    pub(crate) fn note_emptied(&self) -> io::Result<()> {
        *self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Damage::all());
        Damage::all().write(&self.shared.directory)
    }

    /// What was missing is in other hands. Damage that was found since the start stays noted: the next one has to ask.
    pub(crate) fn forget_damage(&self) {
        let mut damage = self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner);
        if damage.take().is_some()
            && self.lost().is_empty()
            && let Err(error) = Damage::forget(&self.shared.directory)
        {
            tracing::warn!(%error, "the note of damage stays until the next start");
        }
    }

    /// Messages that turned out to be lost since the start.
    pub(crate) fn lost(&self) -> Vec<MessageId> {
        self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.shared.location(id).is_some()
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
    let file = File::create(directory.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "in use by another process")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Found {
    fn new(id: MessageId, live: &ledger::Live) -> Self {
        Self {
            id,
            whose: live.whose,
            accepted: live.accepted,
            meta: live.meta.clone(),
            progress: live.progress.clone(),
            size: u64::from(live.location.body_length),
        }
    }
}

/// In order of id, which is the order of arrival.
fn found(ledger: &ledger::Ledger, whose: Whose) -> Vec<Found> {
    let of = ledger.messages().filter(|(_, live)| live.whose == whose);
    let mut found: Vec<_> = of.map(|(id, live)| Found::new(id, live)).collect();
    found.sort_unstable_by_key(|found| found.id);
    found
}

#[cfg(test)]
mod tests;
