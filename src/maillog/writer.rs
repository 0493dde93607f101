//! The waiting room of the mail log and the one thread that empties it into segment files.
//!
//! A record is in the file, and so survives the death of the process, as soon as the thread comes to it: the first record
//! after the thread took its batch wakes it, those behind it wait for the next batch and cost no wake-up. A disk that
//! takes no writes is tried again at an interval, whatever comes in. Nobody ever waits to hand a record over.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::segment::{Directory, SEGMENT_LENGTH_MAX, SegmentName, encode};
use super::{DAY_MS, Record};
use crate::clock::now_ms;

/// Records that wait for the disk; a few hundred MiB where it takes no writes for minutes.
pub(super) const WAITING_MAX: usize = 262_144;
/// Between attempts on a disk that fails, and between looks at the sync's time.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);
const SYNC_INTERVAL: Duration = Duration::from_millis(700);
const EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a search waits for its flush before the disk counts as broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Capacity of the line buffer that is kept between batches.
const LINES_KEPT_MAX: usize = 1 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    waiting_max: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    room: Mutex<Room>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes whoever waits for a flush.
    written: Condvar,
}

#[derive(Default)]
struct Room {
    waiting: VecDeque<Record>,
    /// Records ever handed over, and of these ever written (or given up).
    pushed: u64,
    done: u64,
    dropped: u64,
    /// There is something new.
    wake: bool,
    /// Somebody waits: even a disk that failed is tried at once.
    urgent: bool,
    stop: bool,
    stopped: bool,
}

impl Writer {
    pub(super) fn start(directory: Directory, keep_days: u64, waiting_max: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { room: Mutex::default(), work: Condvar::new(), written: Condvar::new() });
        let disk = Disk::new(directory, keep_days)?;
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("maillog".to_owned()).spawn(move || run(&shared, disk))?
        };
        Ok(Self { shared, waiting_max, thread: Mutex::new(Some(thread)) })
    }

    /// Never waits: without room the record is lost, loudly.
    pub(super) fn push(&self, record: Record) {
        let mut room = self.shared.lock();
        if room.stopped || room.waiting.len() >= self.waiting_max {
            room.dropped += 1;
            // A flood of lost records must not become a flood of lines.
            if room.dropped.is_power_of_two() {
                tracing::error!(id = %record.id, dropped = room.dropped, "mail log records lost: the disk takes no writes");
            }
            return;
        }
        room.waiting.push_back(record);
        room.pushed += 1;
        if !room.wake {
            self.shared.wake(&mut room);
        }
    }

    /// Returns once everything that was pushed before is in its file.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut room = self.shared.lock();
        let target = room.pushed;
        room.urgent = true;
        self.shared.wake(&mut room);
        let waits = |room: &mut Room| room.done < target && !room.stopped;
        let waited = self.shared.written.wait_timeout_while(room, PATIENCE, waits);
        let (room, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if room.done < target { Err(io::Error::other("the mail log cannot be written")) } else { Ok(()) }
    }

    /// Writes and syncs what waits, and ends the thread. Later records are lost, loudly.
    pub(super) fn stop(&self) {
        {
            let mut room = self.shared.lock();
            room.stop = true;
            self.shared.wake(&mut room);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the mail log's writer panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// A poisoned lock is taken over: every change under it is one that cannot stop half-way.
    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, room: &mut Room) {
        room.wake = true;
        self.work.notify_one();
    }
}

fn run(shared: &Shared, mut disk: Disk) {
    let mut failed = false;
    loop {
        let (batch, stop) = next_batch(shared, failed);
        let result = disk.append(&batch);
        let mut room = shared.lock();
        failed = result.is_err();
        match result {
            Ok(()) => room.done += batch.len() as u64,
            Err(error) => {
                tracing::error!(%error, records = batch.len(), "cannot write the mail log, will try again");
                batch.into_iter().rev().for_each(|record| room.waiting.push_front(record));
            }
        }
        let finished = stop && (failed || room.waiting.is_empty());
        room.stopped = finished;
        drop(room);
        shared.written.notify_all();
        if finished {
            disk.sync();
            return;
        }
    }
}

/// Everything that waits, after a wake-up or the interval; and whether this is the last call.
fn next_batch(shared: &Shared, failed: bool) -> (Vec<Record>, bool) {
    let idle = |room: &mut Room| !(room.urgent || room.stop || room.wake && !failed);
    let waited = shared.work.wait_timeout_while(shared.lock(), WRITE_INTERVAL, idle);
    let (mut room, _) = waited.unwrap_or_else(PoisonError::into_inner);
    (room.wake, room.urgent) = (false, false);
    (room.waiting.drain(..).collect(), room.stop)
}

/// The open segment.
struct Disk {
    directory: Directory,
    keep_ms: u64,
    file: Option<File>,
    length: u64,
    newest_name: u64,
    lines: Vec<u8>,
    dirty: bool,
    synced_at: Instant,
    expired_at: Instant,
}

impl Disk {
    fn new(directory: Directory, keep_days: u64) -> io::Result<Self> {
        let newest_name = directory.segments()?.last().map_or(0, |name| name.0);
        let now = Instant::now();
        let disk = Self {
            directory,
            keep_ms: keep_days.saturating_mul(DAY_MS),
            file: None,
            length: 0,
            newest_name,
            lines: Vec::new(),
            dirty: false,
            synced_at: now,
            expired_at: now,
        };
        disk.directory.expire(now_ms().saturating_sub(disk.keep_ms))?;
        Ok(disk)
    }

    /// All of the batch or none; syncs and expires when it is time.
    fn append(&mut self, batch: &[Record]) -> io::Result<()> {
        if !batch.is_empty() {
            self.write(batch)?;
        }
        if self.dirty && self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.sync();
        }
        if self.expired_at.elapsed() >= EXPIRE_INTERVAL {
            self.expire();
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Record]) -> io::Result<()> {
        self.lines.clear();
        for record in batch {
            encode(record, &mut self.lines)?;
        }
        if self.length >= SEGMENT_LENGTH_MAX {
            self.sync();
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.newest_name = now_ms().max(self.newest_name + 1);
                self.length = 0;
                self.file.insert(self.directory.create(SegmentName(self.newest_name))?)
            }
        };
        if let Err(error) = file.write_all(&self.lines) {
            // What was written of the batch goes again, or the next attempt would write it twice.
            if file.set_len(self.length).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        self.length += self.lines.len() as u64;
        self.dirty = true;
        self.lines.shrink_to(LINES_KEPT_MAX);
        Ok(())
    }

    fn expire(&mut self) {
        self.expired_at = Instant::now();
        if let Err(error) = self.directory.expire(now_ms().saturating_sub(self.keep_ms)) {
            tracing::warn!(%error, "cannot remove expired mail log segments");
        }
    }

    /// A failed sync is said aloud and not fatal: the log is evidence, no promise of delivery hangs on it.
    fn sync(&mut self) {
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::error!(%error, "cannot sync the mail log");
            self.file = None;
        }
        self.dirty = false;
        self.synced_at = Instant::now();
    }
}
