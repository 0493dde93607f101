//! The state machine as openraft sees it, and the replica that everybody reads.
//!
//! Two locks. The *gate* is held while one log entry is applied and while a checkpoint notes its index, so that a
//! checkpoint holds whole entries only. The *inner* lock guards the state; a batch gives it up every few commands, so that
//! a reader waits microseconds and not for the whole batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, Snapshot};

use crate::command::{Command, Outcome};
use crate::name::Timestamp;
use crate::raft::{Entry, LogId, Membership, SnapshotMeta, StorageError, StorageIOError, TypeConfig};
use crate::state::{Key, State};
use crate::store::Failure;
use crate::store::entry::{Reply, Stamped};
use crate::store::keeper::Keeper;
use crate::store::log::Purges;
use crate::store::snapshot::{SnapshotFile, Snapshots};
use crate::store::state_hash::{Handover, SetAside};

/// Commands of a batch that are applied under one hold of the state's lock.
const SLICE_COMMANDS: usize = 32;
/// Records that are copied for a checkpoint under one hold of the state's lock.
const SLICE_RECORDS: usize = 256;
/// How often a checkpoint goes after what changed while it copied, before it takes the rest under the gate.
const CAPTURE_ROUNDS_MAX: usize = 4;

/// The state in memory. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Mutex<()>,
    handover: Handover,
    inner: RwLock<Inner>,
}

struct Inner {
    state: State,
    applied: Option<LogId>,
    membership: Membership,
}

/// How a command is applied: somebody hears the answer, or nobody.
type Apply = fn(&mut State, Timestamp, Command) -> Outcome;

/// Changed records, `None` = removed.
pub type Change = (Key, Option<Vec<u8>>);

impl Inner {
    fn set_aside(&mut self) -> SetAside {
        let keys = self.state.take_dirty();
        let changes = keys.into_iter().map(|key| (key.clone(), self.state.record(&key))).collect();
        SetAside { changes, applied: self.applied, membership: self.membership.clone() }
    }
}

impl Replica {
    pub fn new(state: State, applied: Option<LogId>, membership: Membership) -> Self {
        let inner = RwLock::new(Inner { state, applied, membership });
        Self { shared: Arc::new(Shared { gate: Mutex::new(()), handover: Handover::default(), inner }) }
    }

    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.inner().state)
    }

    pub fn applied(&self) -> Option<LogId> {
        self.inner().applied
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.shared.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.shared.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, entry: Entry) -> Result<Reply, AnyError> {
        let _gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hashes_state = false;
        let outcome = match &entry.payload {
            EntryPayload::Blank => Outcome::Done,
            EntryPayload::Normal(stamped) => self.apply_command(stamped, &mut hashes_state)?,
            EntryPayload::Membership(membership) => {
                self.inner_mut().membership = Membership::new(Some(entry.log_id), membership.clone());
                Outcome::Done
            }
        };
        let mut inner = self.inner_mut();
        inner.applied = Some(entry.log_id);
        if hashes_state {
            self.shared.handover.put(|| inner.set_aside());
        }
        Ok(Reply { at: inner.state.now(), outcome })
    }

    fn apply_command(&self, stamped: &Stamped, hashes_state: &mut bool) -> Result<Outcome, AnyError> {
        let apply = if stamped.is_own() { State::apply } else { State::apply_unheard };
        let command = stamped.command().map_err(|error| AnyError::new(&error))?;
        *hashes_state = command == Command::StateHash;
        if let Command::Batch(commands) = command {
            *hashes_state = commands.contains(&Command::StateHash);
            return Ok(Outcome::Batch(self.apply_batch(apply, stamped.at(), commands)));
        }
        Ok(apply(&mut self.inner_mut().state, stamped.at(), command))
    }

    fn apply_batch(&self, apply: Apply, at: Timestamp, commands: Vec<Command>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        while commands.len() > 0 {
            let mut inner = self.inner_mut();
            let state = &mut inner.state;
            outcomes.extend(commands.by_ref().take(SLICE_COMMANDS).map(|command| apply(state, at, command)));
        }
        outcomes
    }

    /// A checkpoint begins: what was set aside for a [`StateHash`](super::state_hash::StateHash) is written first, and
    /// nothing is set aside until [`Replica::end_checkpoint`].
    pub fn begin_checkpoint(&self) -> Option<SetAside> {
        self.shared.handover.begin()
    }

    pub fn end_checkpoint(&self) {
        self.shared.handover.end();
    }

    /// Gives every changed record (or every record) to `take`, a few at a time, a later one replacing an earlier one of the
    /// same key, and returns the point in the log at which what was given is exactly the state.
    pub fn capture<E>(
        &self,
        all: bool,
        mut take: impl FnMut(Change) -> Result<(), E>,
    ) -> Result<(Option<LogId>, Membership), E> {
        let mut keys = if all { self.inner().state.keys().collect() } else { self.inner_mut().state.take_dirty() };
        for _ in 0..CAPTURE_ROUNDS_MAX {
            if keys.len() <= SLICE_RECORDS {
                break;
            }
            for slice in keys.chunks(SLICE_RECORDS) {
                let changes: Vec<Change> = {
                    let inner = self.inner();
                    slice.iter().map(|key| (key.clone(), inner.state.record(key))).collect()
                };
                changes.into_iter().try_for_each(&mut take)?;
            }
            keys = self.inner_mut().state.take_dirty();
        }
        let (changes, applied, membership) = {
            let _gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
            let mut inner = self.inner_mut();
            keys.extend(inner.state.take_dirty());
            let changes: Vec<Change> = keys.into_iter().map(|key| (key.clone(), inner.state.record(&key))).collect();
            (changes, inner.applied, inner.membership.clone())
        };
        changes.into_iter().try_for_each(take)?;
        Ok((applied, membership))
    }

    pub(crate) fn replace(&self, state: State, meta: &SnapshotMeta) {
        let _gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
        *self.inner_mut() = Inner { state, applied: meta.last_log_id, membership: meta.last_membership.clone() };
    }
}

/// openraft's view: applies entries, builds and installs snapshots.
#[derive(Clone)]
pub struct Machine {
    replica: Replica,
    keeper: Keeper,
    snapshots: Snapshots,
    purges: Purges,
    failure: Failure,
}

impl Machine {
    pub fn new(replica: Replica, keeper: Keeper, snapshots: Snapshots, purges: Purges, failure: Failure) -> Self {
        Self { replica, keeper, snapshots, purges, failure }
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// A state that panics is a state that this node must not show to anybody any more.
    fn apply(&self, entry: Entry) -> Result<Reply, Box<StorageError>> {
        let id = entry.log_id;
        let result = catch_unwind(AssertUnwindSafe(|| self.replica.apply(entry)))
            .unwrap_or_else(|_| Err(AnyError::error("it panicked")));
        result.map_err(|error| {
            self.failure.set(format!("applying log entry {} failed: {error}", id.index));
            Box::new(StorageIOError::apply(id, error).into())
        })
    }
}

fn snapshot_error(verb: ErrorVerb, error: &std::io::Error) -> StorageError {
    StorageError::from_io_error(
        ErrorSubject::Snapshot(None),
        verb,
        std::io::Error::new(error.kind(), error.to_string()),
    )
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let inner = self.replica.inner();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let replies: Result<Vec<Reply>, Box<StorageError>> =
            entries.into_iter().map(|entry| Self::apply(self, entry)).collect();
        replies.map_err(|error| *error)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Box::new(self.snapshots.receiving()))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        let installed = self.keeper.install(meta.clone(), *snapshot).await;
        installed.map_err(|error| snapshot_error(ErrorVerb::Write, &error))?;
        // The snapshot holds what openraft has had purged in the meantime.
        self.purges.allow();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let current = self.snapshots.current().map_err(|error| snapshot_error(ErrorVerb::Read, &error))?;
        Ok(current.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(file) }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let built = self.keeper.snapshot().await.map_err(|error| snapshot_error(ErrorVerb::Write, &error))?;
        Ok(Snapshot { meta: built.0, snapshot: Box::new(built.1) })
    }
}
