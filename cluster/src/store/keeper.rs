//! The one thread that writes checkpoints and snapshots, away from the path of decisions.
//!
//! About once a second it takes over what changed ([`Replica::capture`]) into sled. A snapshot file is written from sled
//! right after such a checkpoint: nobody else writes there, so that the copy stands still without any lock on the state,
//! however large it is. Its count and sum are checked on the way, so that a snapshot never inherits a loss.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::raft::SnapshotMeta;
use crate::store::Failure;
use crate::store::checkpoint::{Checkpoint, CheckpointError};
use crate::store::machine::Replica;
use crate::store::room::Room;
use crate::store::snapshot::{SnapshotFile, SnapshotWriter, Snapshots};
use crate::store::state_hash::{SetAside, StateHash, StateHashes};

pub type Built = (SnapshotMeta, SnapshotFile);

enum Request {
    Checkpoint(oneshot::Sender<io::Result<()>>),
    Snapshot(oneshot::Sender<io::Result<Built>>),
    Install(Box<Built>, oneshot::Sender<io::Result<()>>),
    Backup(oneshot::Sender<io::Result<File>>),
}

/// Asks the thread for work; it ends when the last handle is gone. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    requests: Sender<Request>,
    snapshot_bytes: Arc<AtomicU64>,
    state_hashes: StateHashes,
}

struct Work {
    replica: Replica,
    checkpoint: Checkpoint,
    snapshots: Snapshots,
    failure: Failure,
    room: Room,
    snapshot_bytes: Arc<AtomicU64>,
    state_hashes: StateHashes,
}

impl Keeper {
    /// With `fresh` the checkpoint is empty, and the thread begins with writing the whole state into it.
    pub fn start(
        replica: Replica,
        checkpoint: Checkpoint,
        snapshots: Snapshots,
        failure: Failure,
        room: Room,
        interval: Duration,
        fresh: bool,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let bytes = snapshots.current()?.map_or(Ok(0), |(_, file)| file.path.metadata().map(|data| data.len()))?;
        let snapshot_bytes = Arc::new(AtomicU64::new(bytes));
        let (requests, waiting) = channel();
        let state_hashes = StateHashes::default();
        let work = Work {
            replica,
            checkpoint,
            snapshots,
            failure,
            room,
            snapshot_bytes: Arc::clone(&snapshot_bytes),
            state_hashes: state_hashes.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || work.run(&waiting, interval, fresh))?;
        Ok((Self { requests, snapshot_bytes, state_hashes }, thread))
    }

    /// The size of the newest snapshot, 0 before the first.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes.load(Ordering::Relaxed)
    }

    /// Hashes of this node's state behind the last entries that asked for it.
    pub fn state_hashes(&self) -> StateHashes {
        self.state_hashes.clone()
    }

    /// Brings the checkpoint up to what is applied.
    pub async fn checkpoint(&self) -> io::Result<()> {
        self.ask(Request::Checkpoint).await
    }

    /// Writes a snapshot of at least what is applied now.
    pub async fn snapshot(&self) -> io::Result<Built> {
        self.ask(Request::Snapshot).await
    }

    /// Writes what is applied now into a file without a name.
    pub async fn backup(&self) -> io::Result<File> {
        self.ask(Request::Backup).await
    }

    /// Makes the content of a snapshot, which must be whole, this node's snapshot, state and checkpoint.
    pub async fn install(&self, meta: SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        self.ask(|answer| Request::Install(Box::new((meta, file)), answer)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Request) -> io::Result<T> {
        let (sender, answer) = oneshot::channel();
        let stopped = || io::Error::other("checkpoints have stopped");
        self.requests.send(request(sender)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Work {
    fn run(mut self, requests: &Receiver<Request>, interval: Duration, fresh: bool) {
        if fresh {
            drop(self.guarded(Self::rebuild));
        }
        loop {
            let request = match requests.recv_timeout(interval) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // The one who asked may be gone: the work is done all the same.
            match request {
                None => drop(self.checkpoint_with_room()),
                Some(Request::Checkpoint(answer)) => drop(answer.send(self.checkpoint_with_room())),
                Some(Request::Snapshot(answer)) => drop(answer.send(self.guarded(Self::snapshot))),
                Some(Request::Install(built, answer)) => {
                    drop(answer.send(self.guarded(|work| work.install(&built))));
                }
                Some(Request::Backup(answer)) => drop(answer.send(self.backup())),
            }
        }
    }

    /// On a full disk the log alone holds what is new, until there is room for both.
    fn checkpoint_with_room(&mut self) -> io::Result<()> {
        if !self.room.look() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.guarded(Self::checkpoint)
    }

    /// Runs `work` unless the store has stopped; its first error or panic stops the store.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, CheckpointError>) -> io::Result<T> {
        if let Some(sentence) = self.failure.get() {
            return Err(io::Error::other(sentence));
        }
        let result = catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or(Err(CheckpointError::Panicked));
        result.map_err(|error| {
            self.failure.set(format!("writing the checkpoint failed: {error}"));
            io::Error::other(error)
        })
    }

    fn checkpoint(&mut self) -> Result<(), CheckpointError> {
        if let Some(SetAside { changes, applied, membership }) = self.replica.begin_checkpoint() {
            self.checkpoint.write(changes, applied, membership)?;
            let meta = self.checkpoint.meta();
            let index = applied.map_or(0, |id| id.index);
            self.state_hashes.note(StateHash { index, records: meta.records, sum: meta.sum });
        }
        self.take_changes()?;
        self.replica.end_checkpoint();
        Ok(())
    }

    fn take_changes(&mut self) -> Result<(), CheckpointError> {
        if self.replica.applied() == self.checkpoint.meta().applied {
            return Ok(());
        }
        self.capture(false)
    }

    /// What changed, or all, in as many batches as it takes.
    fn capture(&mut self, all: bool) -> Result<(), CheckpointError> {
        let Self { replica, checkpoint, .. } = self;
        let mut waiting = BTreeMap::new();
        let (applied, membership) = replica.capture(all, |(key, record)| {
            waiting.insert(key, record);
            checkpoint.write_ahead(&mut waiting)
        })?;
        checkpoint.write(waiting, applied, membership)
    }

    fn snapshot(&mut self) -> Result<Built, CheckpointError> {
        self.checkpoint()?;
        let (meta, writer) = self.write_all()?;
        let (file, bytes) = writer.finish()?;
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        Ok((meta, file))
    }

    /// One that cannot be written is its asker's trouble only.
    fn backup(&mut self) -> io::Result<File> {
        self.guarded(Self::checkpoint)?;
        let written = self.write_all().and_then(|(_, writer)| Ok(writer.nameless()?));
        match written {
            Err(CheckpointError::Io(error)) => {
                self.snapshots.give_up();
                Err(error)
            }
            written => self.guarded(|_| written),
        }
    }

    fn install(&mut self, (meta, file): &Built) -> Result<(), CheckpointError> {
        let (_, state) = file.load()?;
        self.snapshots.adopt(meta, file)?;
        self.replica.replace(state, meta);
        self.rebuild()
    }

    fn write_all(&mut self) -> Result<(SnapshotMeta, SnapshotWriter), CheckpointError> {
        let meta = self.checkpoint.meta();
        let meta = SnapshotMeta {
            last_log_id: meta.applied,
            last_membership: meta.membership.clone(),
            snapshot_id: meta.applied.map_or_else(|| "empty".to_owned(), |id| format!("{}-{}", id.leader_id, id.index)),
        };
        let mut writer = self.snapshots.write(&meta)?;
        self.checkpoint.for_each(|key, record| writer.record(&key, &record).map_err(CheckpointError::from))?;
        Ok((meta, writer))
    }

    fn rebuild(&mut self) -> Result<(), CheckpointError> {
        // What was set aside is part of the whole.
        drop(self.replica.begin_checkpoint());
        self.checkpoint.clear()?;
        self.capture(true)?;
        self.replica.end_checkpoint();
        Ok(())
    }
}
