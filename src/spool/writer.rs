//! The one thread that writes: takes what waits, appends it, syncs once for all of it, answers.
//!
//! Marks (accepted, progress, done) alone do not cause a sync at once; they go with the next message,
//! at the latest after [`MARK_SYNC_MAX`]. They survive a killed process as soon as they are written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::commit::Committer;
use super::index::{Commit, Position};
use super::ledger::Ledger;
use super::record::{self, Kind, Name};
use super::segment::{self, FILE_HEADER_LENGTH, Location};
use super::{Damage, Shared, SpoolError, Whose};
use crate::mail::MessageId;

const BATCH_MAX: usize = 4096;
const BATCH_MAX_BYTES: usize = 8 << 20;
/// Bodies above go to the file without a copy.
const COPY_MAX_BYTES: usize = 64 << 10;
const MARK_SYNC_MAX: Duration = Duration::from_millis(50);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Copied forward at most in one go, so that compaction never holds up mail for long.
const COMPACT_STEP_BYTES: u64 = 1 << 20;
const FULL_RETRY: Duration = Duration::from_secs(1);
/// How long marks that found no room are tried at the end.
const LAST_MARKS_MAX: Duration = Duration::from_secs(10);
const LAST_MARKS_RETRY: Duration = Duration::from_millis(200);
/// After a message could not be read for compaction.
const COMPACT_RETRY: Duration = Duration::from_secs(2);

/// Called once the mark is on disk.
pub(crate) type Then = Box<dyn FnOnce() + Send>;

pub(super) enum Request {
    Store {
        name: Name,
        meta: Vec<u8>,
        body: Bytes,
        reply: oneshot::Sender<Result<(), SpoolError>>,
        permit: OwnedSemaphorePermit,
    },
    Mark {
        name: Name,
        payload: Vec<u8>,
        then: Option<Then>,
    },
    /// At what lives, in its turn.
    Look(Box<dyn FnOnce(&Ledger) + Send>),
    Stop(oneshot::Sender<()>),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: Ledger,
    pub(super) committer: Committer,
    file: File,
    salt: u64,
    segment: u64,
    /// End of the last record of the active segment.
    end: u64,
    buffer: Vec<u8>,
    unsynced_since: Option<Instant>,
    synced_replies: Vec<(oneshot::Sender<Result<(), SpoolError>>, OwnedSemaphorePermit)>,
    synced_calls: Vec<Then>,
    /// Marks that found no room; nothing may overtake them.
    postponed: VecDeque<Request>,
    postponed_until: Instant,
    compact_after: Instant,
    committed_at: Instant,
}

/// What ends the thread.
enum Stop {
    Asked(Option<oneshot::Sender<()>>),
    Disk(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl Writer {
    /// Begins segment `number`. Blocks.
    pub(super) fn new(shared: Arc<Shared>, ledger: Ledger, committer: Committer, number: u64) -> io::Result<Self> {
        let (file, salt) = segment::create(&shared.directory, number)?;
        let now = Instant::now();
        let mut writer = Self {
            shared,
            ledger,
            committer,
            file,
            salt,
            segment: number,
            end: 0,
            buffer: Vec::new(),
            unsynced_since: None,
            synced_replies: Vec::new(),
            synced_calls: Vec::new(),
            postponed: VecDeque::new(),
            postponed_until: now,
            compact_after: now,
            committed_at: now,
        };
        writer.begin_at(FILE_HEADER_LENGTH as u64)?;
        Ok(writer)
    }

    fn begin_at(&mut self, end: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(end))?;
        self.end = end;
        self.ledger.set_size(self.segment, end);
        Ok(())
    }

    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        let stop = loop {
            if let Err(stop) = self.turn(requests) {
                break stop;
            }
        };
        let stop = match stop {
            Stop::Asked(reply) => self.write_last_marks().err().unwrap_or(Stop::Asked(reply)),
            Stop::Disk(_) => stop,
        };
        match stop {
            Stop::Asked(reply) => {
                let last = self.commit();
                self.committer.finish(last);
                if let Some(reply) = reply
                    && reply.send(()).is_err()
                {
                    tracing::debug!("nobody waited for the spool to stop");
                }
            }
            Stop::Disk(error) => self.shared.fail(&format!("the spool stops after a disk error: {error}")),
        }
    }

    /// Marks that found no room get another chance: without them messages go out again after the next start.
    fn write_last_marks(&mut self) -> Result<(), Stop> {
        let until = Instant::now() + LAST_MARKS_MAX;
        while !self.postponed.is_empty() && Instant::now() < until {
            std::thread::sleep(LAST_MARKS_RETRY);
            let batch = std::mem::take(&mut self.postponed);
            self.append(batch)?;
            self.sync()?;
        }
        for request in &self.postponed {
            if let Request::Mark { name: Name { kind, id, .. }, .. } = request {
                tracing::error!(%id, ?kind, "no room to note what became of a message: it may go out again");
            }
        }
        Ok(())
    }

    fn turn(&mut self, requests: &Receiver<Request>) -> Result<(), Stop> {
        let mut batch = std::mem::take(&mut self.postponed);
        let asked = self.collect(requests, &mut batch);
        let has_messages = batch.iter().any(|request| matches!(request, Request::Store { .. }));
        self.append(batch)?;
        self.compact()?;
        let mark_is_due = self.unsynced_since.is_some_and(|since| since.elapsed() >= MARK_SYNC_MAX);
        if has_messages || mark_is_due || asked.is_err() {
            self.sync()?;
        }
        self.delete_dead()?;
        self.commit_if_due();
        asked
    }

    /// Waits for the first request, takes what else is there.
    fn collect(&self, requests: &Receiver<Request>, batch: &mut VecDeque<Request>) -> Result<(), Stop> {
        let mut bytes = 0;
        let first = match requests.recv_timeout(self.patience()) {
            Ok(request) => request,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(Stop::Asked(None)),
        };
        for request in std::iter::once(first).chain(std::iter::from_fn(|| requests.try_recv().ok())) {
            match request {
                Request::Stop(reply) => return Err(Stop::Asked(Some(reply))),
                Request::Store { ref body, .. } => {
                    bytes += body.len();
                    batch.push_back(request);
                }
                Request::Mark { .. } | Request::Look(_) => batch.push_back(request),
            }
            if batch.len() >= BATCH_MAX || bytes >= BATCH_MAX_BYTES {
                break;
            }
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let sync_at = self.unsynced_since.map(|since| since + MARK_SYNC_MAX);
        let retry_at = (!self.postponed.is_empty()).then_some(self.postponed_until);
        let next = sync_at.into_iter().chain(retry_at).chain([now + COMMIT_INTERVAL]).min();
        next.map_or(COMMIT_INTERVAL, |at| at.saturating_duration_since(now))
    }

    /// Writes the batch whole, or not at all if there is no room for it.
    fn append(&mut self, batch: VecDeque<Request>) -> Result<(), Stop> {
        if batch.is_empty() {
            return Ok(());
        }
        let written = self.rotate_if_full().and_then(|()| self.write_batch(&batch));
        match written {
            Ok(places) => self.note(batch, places),
            Err(error) if is_full(&error) => {
                tracing::warn!(path = %self.shared.directory.display(), "no room for the spool");
                self.refuse(batch)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn rotate_if_full(&mut self) -> io::Result<()> {
        if self.end < self.shared.segment_max_bytes {
            return Ok(());
        }
        self.sync()?;
        let (file, salt) = segment::create(&self.shared.directory, self.segment + 1)?;
        (self.file, self.salt, self.segment) = (file, salt, self.segment + 1);
        self.begin_at(FILE_HEADER_LENGTH as u64)
    }

    fn write_batch(&mut self, batch: &VecDeque<Request>) -> io::Result<Vec<Location>> {
        let mut places = Vec::with_capacity(batch.len());
        let mut end = self.end;
        for request in batch {
            let location = match request {
                Request::Store { name, meta, body, .. } => self.write(*name, meta, body, end)?,
                Request::Mark { name, payload, .. } => self.write(*name, payload, &[], end)?,
                // Nothing to write: it keeps its turn with an empty place.
                Request::Stop(_) | Request::Look(_) => {
                    places.push(Location { segment: self.segment, offset: end, meta_length: 0, body_length: 0 });
                    continue;
                }
            };
            end += location.record_length();
            places.push(location);
        }
        self.write_buffer()?;
        Ok(places)
    }

    /// One record at `offset`, through the buffer unless its body is large.
    fn write(&mut self, name: Name, meta: &[u8], body: &[u8], offset: u64) -> io::Result<Location> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a record has more than 4 GiB");
        let (meta_length, body_length) =
            record::write_head(&mut self.buffer, self.salt, name, meta, body).ok_or_else(too_long)?;
        if body.len() <= COPY_MAX_BYTES {
            self.buffer.extend_from_slice(body);
        } else {
            self.write_buffer()?;
            self.file.write_all(body)?;
        }
        Ok(Location { segment: self.segment, offset, meta_length, body_length })
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        self.buffer.shrink_to(BATCH_MAX_BYTES);
        written
    }

    fn note(&mut self, batch: VecDeque<Request>, places: Vec<Location>) {
        for (request, location) in batch.into_iter().zip(places) {
            match request {
                Request::Store { name, meta, reply, permit, .. } => {
                    self.grow_to(&location);
                    if self.ledger.apply(name, location, &meta) {
                        self.shared.place(name.id, Some(location));
                        self.synced_replies.push((reply, permit));
                    } else {
                        answer(reply, Err(SpoolError::OfAnother(name.id)));
                    }
                }
                Request::Mark { name, payload, then } => {
                    self.grow_to(&location);
                    if self.ledger.apply(name, location, &payload) && name.kind == Kind::Done {
                        self.shared.place(name.id, None);
                    }
                    self.synced_calls.extend(then);
                }
                Request::Look(look) => look(&self.ledger),
                Request::Stop(_) => {}
            }
        }
    }

    fn grow_to(&mut self, last: &Location) {
        self.end = last.offset + last.record_length();
        self.ledger.set_size(self.segment, self.end);
        self.unsynced_since.get_or_insert_with(Instant::now);
    }

    /// No room: messages are refused, marks wait. What was half written is cut off.
    fn refuse(&mut self, batch: VecDeque<Request>) -> io::Result<()> {
        self.buffer.clear();
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.shared.has_room.store(false, Ordering::Release);
        self.postponed_until = Instant::now() + FULL_RETRY;
        for request in batch {
            match request {
                Request::Store { reply, .. } => {
                    answer(reply, Err(SpoolError::Full(self.shared.directory.clone())));
                }
                // Whoever looks must see what was asked for before.
                Request::Mark { .. } | Request::Look(_) | Request::Stop(_) => self.postponed.push_back(request),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.unsynced_since.take().is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        // After a failed fdatasync a second one may report success for data that is lost: the caller stops for good, even
        // where the reason is a full disk.
        self.file.sync_data().map_err(|error| io::Error::other(format!("fdatasync: {error}")))?;
        self.shared.sync_seconds.observe(begun.elapsed().as_secs_f64());
        self.synced_replies.drain(..).for_each(|(reply, _permit)| answer(reply, Ok(())));
        self.synced_calls.drain(..).for_each(|call| call());
        Ok(())
    }

    /// One step: copies live messages of the oldest segment forward where waste outweighs what is alive.
    fn compact(&mut self) -> Result<(), Stop> {
        let Some(oldest) = self.ledger.oldest().filter(|&oldest| oldest < self.segment) else { return Ok(()) };
        if Instant::now() < self.compact_after || !self.ledger.is_wasteful(self.shared.segment_max_bytes) {
            return Ok(());
        }
        let mut copied = 0;
        while copied < COMPACT_STEP_BYTES
            && let Some(id) = self.ledger.any_live(oldest)
        {
            copied += self.copy_forward(id)?;
        }
        if copied > 0 {
            self.sync()?;
        }
        Ok(())
    }

    fn copy_forward(&mut self, id: MessageId) -> Result<u64, Stop> {
        let Some(live) = self.ledger.get(id) else { return Ok(0) };
        let (from, accepted, whose, meta) = (live.location, live.accepted, live.whose, live.meta.to_vec());
        let progress = live.progress.as_ref().map(|progress| progress.to_vec());
        let body = match segment::read_body(&self.shared.directory, from, id) {
            Ok(body) => body,
            Err(error) if is_damage(&error) => return self.give_up(id, from.segment, &error),
            Err(error) => {
                tracing::warn!(%id, %error, "a queued message cannot be copied now and is tried again");
                self.compact_after = Instant::now() + COMPACT_RETRY;
                return Ok(COMPACT_STEP_BYTES);
            }
        };
        let kind = if accepted { Kind::Message } else { Kind::Held };
        let name = Name { kind, id, whose };
        let written = self.rotate_if_full().and_then(|()| self.write(name, &meta, &body, self.end));
        let copied = written.and_then(|place| {
            let end = self.end + place.record_length();
            let of_progress = Name { kind: Kind::Progress, ..name };
            let progress_place = progress.as_ref().map(|bytes| self.write(of_progress, bytes, &[], end)).transpose()?;
            self.write_buffer()?;
            Ok((place, end, progress_place))
        });
        match copied {
            Ok((place, end, progress_place)) => {
                self.end = end + progress_place.map_or(0, |place| place.record_length());
                self.ledger.apply(name, place, &meta);
                self.ledger.set_size(self.segment, self.end);
                self.shared.place(id, Some(place));
                self.unsynced_since.get_or_insert_with(Instant::now);
                Ok(place.record_length())
            }
            Err(error) if is_full(&error) => {
                self.refuse(VecDeque::new())?;
                Ok(COMPACT_STEP_BYTES)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A damaged message is let go; its segment is kept aside for somebody who can read more of it.
    fn give_up(&mut self, id: MessageId, segment: u64, error: &io::Error) -> Result<u64, Stop> {
        let aside = segment::keep_aside(&self.shared.directory, segment)?;
        tracing::error!(%id, %error, kept = %aside.display(), "a queued message is damaged and lost here");
        if self.ledger.get(id).is_some_and(|live| live.whose == Whose::Ours) {
            Damage::all().write(&self.shared.directory)?;
            self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        self.ledger.remove(id);
        self.shared.place(id, None);
        Ok(0)
    }

    /// Oldest first, never past a live message: a mark is never deleted before the message that it speaks of,
    /// nor before the index has it.
    fn delete_dead(&mut self) -> io::Result<()> {
        while let Some(oldest) = self.ledger.oldest()
            && oldest < self.segment
            && oldest < self.committer.committed_segment()
            && self.ledger.is_dead(oldest)
        {
            if self.unsynced_since.is_some() {
                self.sync()?;
            }
            std::fs::remove_file(segment::path(&self.shared.directory, oldest))?;
            self.ledger.forget_segment(oldest);
        }
        Ok(())
    }

    fn commit_if_due(&mut self) {
        if self.committed_at.elapsed() < COMMIT_INTERVAL || self.unsynced_since.is_some() || !self.committer.is_idle() {
            return;
        }
        self.committed_at = Instant::now();
        let position = Position { segment: self.segment, offset: self.end };
        if self.ledger.is_dirty() || self.committer.last_position() != Some(position) {
            let commit = self.commit();
            self.committer.submit(commit);
        }
    }

    fn commit(&mut self) -> Commit {
        let mut commit = Commit::new(Position { segment: self.segment, offset: self.end });
        for (id, chunks) in self.ledger.take_changes(|id, live| commit.put(id, live)) {
            commit.remove(id, chunks);
        }
        commit
    }
}

/// What stands there is not what was written; everything else may pass.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn answer(reply: oneshot::Sender<Result<(), SpoolError>>, result: Result<(), SpoolError>) {
    if reply.send(result).is_err() {
        tracing::debug!("nobody waited for the message to be stored");
    }
}
