//! The face of the cluster crate: one cloneable handle to read the replica and to propose commands.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Admission, AdmissionId, Admit, Command, Outcome};
use crate::name::Timestamp;
use crate::state::State;

/// A node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Holds `identity`, `log/`, `snapshot/` and `state/` (sled).
    pub directory: PathBuf,
    /// How long a proposal may take before [`ProposeError::Timeout`].
    pub propose_timeout: Duration,
}

/// A committed and applied command.
#[derive(Clone, Debug)]
pub struct Applied<T> {
    pub index: u64,
    pub at: Timestamp,
    pub outcome: T,
}

#[derive(thiserror::Error, Debug)]
pub enum OpenError {
    #[error("{0} holds no node: run `outgate init` first")]
    NotInitialised(PathBuf),
    #[error("{0} already holds a node")]
    AlreadyInitialised(PathBuf),
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("{0} is damaged: {1}")]
    Damaged(PathBuf, String),
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, std::io::Error),
}

/// The command may or may not take effect later with `Timeout`; an [`AdmissionId`] makes a retry harmless.
#[derive(thiserror::Error, Clone, Debug)]
pub enum ProposeError {
    #[error("no quorum")]
    NoQuorum,
    #[error("not decided in time")]
    Timeout,
    #[error("too many proposals are waiting")]
    Busy,
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

impl Cluster {
    /// Makes the directory of a new cluster of one node: id 1 and a fresh cluster id.
    pub fn init(_options: &OpenOptions) -> Result<(), OpenError> {
        todo!()
    }

    /// Opens the directory, replays the log and waits until this node is ready to decide.
    pub async fn open(_options: OpenOptions) -> Result<Self, OpenError> {
        todo!()
    }

    /// Reads the local replica; `read` must be short, it holds the state's lock.
    pub fn read<T>(&self, _read: impl FnOnce(&State) -> T) -> T {
        todo!()
    }

    /// The log's clock as this node estimates it now, for advice; only the leader's stamp decides.
    pub fn now(&self) -> Timestamp {
        todo!()
    }

    pub fn node_id(&self) -> u64 {
        todo!()
    }

    /// This life of the process; grows with each [`Cluster::open`].
    pub fn epoch(&self) -> u64 {
        todo!()
    }

    /// The next admission id of this node; the id stays unsettled until [`Cluster::settle`].
    pub fn next_admission(&self) -> AdmissionId {
        todo!()
    }

    /// Says that the answer to this admission is safe elsewhere (or no longer matters).
    pub fn settle(&self, _id: AdmissionId) {
        todo!()
    }

    /// Decides one message; fills in `settled_below` itself.
    pub async fn admit(&self, _admit: Admit) -> Result<Applied<Admission>, ProposeError> {
        todo!()
    }

    pub async fn propose(&self, _command: Command) -> Result<Applied<Outcome>, ProposeError> {
        todo!()
    }

    /// True while this node can decide (a leader with a quorum is known).
    pub fn is_ready(&self) -> bool {
        todo!()
    }

    /// Resolves with one sentence when the store can no longer go on (an fsync error, a damaged log).
    pub async fn failed(&self) -> String {
        todo!()
    }

    /// Writes a last checkpoint and stops.
    pub async fn shutdown(&self) {
        todo!()
    }
}
