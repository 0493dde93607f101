//! Opens the three layers and makes them agree: which copy of the state is taken, and what is rebuilt.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::raft::{LogId, Membership, SnapshotMeta};
use crate::state::State;
use crate::store::checkpoint::{self, Checkpoint, CheckpointError};
use crate::store::identity::Home;
use crate::store::keeper::Keeper;
use crate::store::log::{Extent, Log};
use crate::store::machine::{Machine, Replica};
use crate::store::room::{FREE_BYTES_MIN, Room};
use crate::store::snapshot::{SnapshotFile, Snapshots};
use crate::store::vote::VoteFile;
use crate::store::{Failure, OpenError, owner};

/// When checkpoints and snapshots are written.
#[derive(Clone, Debug)]
pub struct Limits {
    pub checkpoint_interval: Duration,
    /// A snapshot is due when the log has this many bytes, and at least as many as the last snapshot.
    pub snapshot_log_bytes_min: u64,
    /// A snapshot is due when the log has this many entries.
    pub snapshot_log_entries_max: u64,
    /// Entries below a snapshot that stay in the log, for followers that are a little behind.
    pub log_entries_kept: u64,
    /// How often a node without proposals lets time pass in the log, which must not grow for nothing.
    pub idle_tick_interval: Duration,
    /// How often the states of all nodes are compared while anything happens.
    pub state_hash_interval: Duration,
    /// Free disk below which commands are refused and checkpoints wait.
    pub free_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            checkpoint_interval: Duration::from_secs(1),
            snapshot_log_bytes_min: 128 * 1024 * 1024,
            snapshot_log_entries_max: 500_000,
            log_entries_kept: 1_000,
            idle_tick_interval: Duration::from_secs(60),
            state_hash_interval: Duration::from_secs(10),
            free_bytes_min: FREE_BYTES_MIN,
        }
    }
}

/// The store, ready to be given to openraft.
pub struct Opened {
    pub log: Log,
    pub machine: Machine,
    pub keeper: Keeper,
    pub room: Room,
    /// End when every handle to log and keeper is gone; the files are closed then.
    pub threads: Vec<JoinHandle<()>>,
}

/// Where the state comes from.
enum Base {
    /// The checkpoint is whole and the log continues it.
    Checkpoint(Checkpoint, State),
    /// From a snapshot, or from nothing where the log begins with the first entry.
    Other(State, Option<LogId>, Membership),
}

/// Opens the store under the home directory. The log is not replayed yet: openraft does that.
pub fn open(home: &Home, limits: &Limits, failure: &Failure) -> Result<Opened, OpenError> {
    let directory = home.directory();
    for part in ["log", "snapshot"] {
        owner::claim(&directory.join(part), home.owner())?;
    }
    let (log, log_thread) = Log::open(directory, failure.clone())?;
    let extent = log.extent();
    if home.identity.formed && extent.last.is_none() {
        return Err(OpenError::damaged(&directory.join("log"), "the log is gone"));
    }
    check_vote(directory, extent.last)?;
    let snapshots = Snapshots::open(directory).map_err(OpenError::io(directory))?;
    let state_path = directory.join("state");
    let cluster = home.identity.cluster;
    let (replica, checkpoint, fresh) = match choose(&state_path, cluster, &snapshots, extent)? {
        Base::Checkpoint(checkpoint, state) => {
            let meta = checkpoint.meta().clone();
            (Replica::new(state, meta.applied, meta.membership), checkpoint, false)
        }
        Base::Other(state, applied, membership) => {
            let checkpoint =
                Checkpoint::create(&state_path, cluster).map_err(|error| from_checkpoint(&state_path, error))?;
            (Replica::new(state, applied, membership), checkpoint, true)
        }
    };
    let room = Room::new(directory, limits.free_bytes_min);
    let interval = limits.checkpoint_interval;
    let (keeper, keeper_thread) =
        Keeper::start(replica.clone(), checkpoint, snapshots.clone(), failure.clone(), room.clone(), interval, fresh)
            .map_err(OpenError::io(directory))?;
    let machine = Machine::new(replica, keeper.clone(), snapshots, log.purges(), failure.clone());
    Ok(Opened { log, machine, keeper, room, threads: vec![log_thread, keeper_thread] })
}

/// A node notes a vote before it takes the first entry of that term: one that is older, or gone, might be given twice.
fn check_vote(directory: &Path, last: Option<LogId>) -> Result<(), OpenError> {
    let file = VoteFile::new(directory);
    let voted = file.read()?.map_or(0, |vote| vote.leader_id.term);
    match last {
        Some(last) if last.leader_id.term > voted => {
            let what =
                format!("it knows of no term behind {voted}, but the log has entries of term {}", last.leader_id.term);
            Err(OpenError::damaged(file.path(), what))
        }
        Some(_) | None => Ok(()),
    }
}

fn from_checkpoint(path: &Path, error: CheckpointError) -> OpenError {
    OpenError::Io(path.to_owned(), std::io::Error::other(error))
}

fn next(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn choose(state_path: &Path, cluster: [u8; 16], snapshots: &Snapshots, extent: Extent) -> Result<Base, OpenError> {
    let directory = snapshots.directory();
    let snapshot = snapshots.current().map_err(OpenError::io(directory))?;
    let snapshot_reaches = snapshot.as_ref().map_or(0, |(meta, _)| next(meta.last_log_id));
    if state_path.exists() {
        match usable(state_path, cluster, extent, snapshot_reaches) {
            Ok((checkpoint, state)) => return Ok(Base::Checkpoint(checkpoint, state)),
            Err(Unusable::Ahead(index)) => {
                let what = format!("the state holds entry {index}, but the log ends before it");
                return Err(OpenError::damaged(state_path, what));
            }
            Err(Unusable::Rebuild(reason)) => {
                let aside = checkpoint::move_aside(state_path).map_err(OpenError::io(state_path))?;
                tracing::warn!(
                    "{} is rebuilt from snapshot and log because {reason}; the old copy is in {}",
                    state_path.display(),
                    aside.display()
                );
            }
        }
    }
    match snapshot {
        Some((meta, file)) => from_snapshot(&meta, &file, extent),
        None if extent.purged.is_none() => Ok(Base::Other(State::default(), None, Membership::default())),
        None => Err(OpenError::damaged(directory, "there is neither a snapshot nor a state that the log continues")),
    }
}

fn from_snapshot(meta: &SnapshotMeta, file: &SnapshotFile, extent: Extent) -> Result<Base, OpenError> {
    let read = file.load();
    match read {
        Ok((_, state)) if next(meta.last_log_id) >= next(extent.purged) => {
            Ok(Base::Other(state, meta.last_log_id, meta.last_membership.clone()))
        }
        _ if extent.purged.is_none() => Ok(Base::Other(State::default(), None, Membership::default())),
        Ok(_) => Err(OpenError::damaged(&file.path, "the log continues a newer snapshot")),
        Err(error) => Err(OpenError::damaged(&file.path, error.to_string())),
    }
}

enum Unusable {
    /// The log has lost entries that were applied.
    Ahead(u64),
    Rebuild(String),
}

fn usable(
    path: &Path,
    cluster: [u8; 16],
    extent: Extent,
    snapshot_reaches: u64,
) -> Result<(Checkpoint, State), Unusable> {
    let (checkpoint, state) = checkpoint::load(path, cluster).map_err(|error| Unusable::Rebuild(error.to_string()))?;
    let applied = checkpoint.meta().applied;
    match applied {
        Some(id) if next(applied) > next(extent.last).max(snapshot_reaches) => Err(Unusable::Ahead(id.index)),
        // A crash while a snapshot was installed: openraft would not take it from the leader again.
        _ if snapshot_reaches > next(extent.last) && snapshot_reaches > next(applied) => {
            Err(Unusable::Rebuild("a newer snapshot was being installed".to_owned()))
        }
        _ if next(applied) < next(extent.purged) => {
            Err(Unusable::Rebuild("it is older than what the log continues".to_owned()))
        }
        _ => Ok((checkpoint, state)),
    }
}
