//! How the state survives: three layers, each with its own promise.
//!
//! 1. The **log** ([`log`], [`vote`]): every entry is in a checksummed record of a segment file, and synced, before
//!    anybody hears that it was decided. It is the only layer on the path of a decision.
//! 2. The **state in memory** ([`machine`]): reads never touch the disk.
//! 3. The **checkpoint** ([`checkpoint`], sled) holds the state as of about a second ago with the index up to which it
//!    is complete; **snapshot files** ([`snapshot`]) are written from it and allow the log to be purged. One thread
//!    ([`keeper`]) writes both.
//!
//! At start-up the checkpoint is loaded and the log behind it is replayed. A checkpoint that does not open, does not add
//! up or is older than what the log still holds is moved aside and built anew from snapshot and log.
//!
//! Invariants:
//! * Nothing is acknowledged before the fdatasync of its log record has returned; after an error of a write or a sync
//!   nothing is acknowledged any more ([`Failure`]), because a second sync may report success for lost data.
//! * A log entry is purged only when a snapshot file that holds it was synced, renamed and its directory synced.
//! * A checkpoint holds whole log entries only: all changes up to its index and none behind it.
//! * What was acknowledged and cannot be read back is an error at start-up ([`OpenError::Damaged`]), never an empty state.
//! * The store knows nothing of what is inside the state: it moves keys and records.

pub mod checkpoint;
pub mod codec;
pub mod durable;
pub mod entry;
pub mod failure;
pub mod identity;
pub mod keeper;
pub mod keys;
pub mod log;
pub mod machine;
pub mod open;
pub mod owner;
pub mod room;
pub mod snapshot;
pub mod state_hash;
pub mod vote;

use std::path::{Path, PathBuf};

pub use failure::Failure;
pub use open::{Limits, Opened, open};
pub use room::Room;

#[derive(thiserror::Error, Debug)]
pub enum OpenError {
    #[error("{0} holds no node: `outgate init` makes the first one of a cluster, `outgate join` any other")]
    NotInitialised(PathBuf),
    #[error("{0} already holds a node")]
    AlreadyInitialised(PathBuf),
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("{0} belongs to another node, number {1} of its cluster: put back what belongs to this one")]
    Foreign(PathBuf, u64),
    #[error("{0} is damaged: {1}; remove this node and join anew, or restore a backup where it is alone")]
    Damaged(PathBuf, String),
    #[error("{0} must not be used again: {1}; remove this node and join anew")]
    Unfit(PathBuf, String),
    /// It could lead all others, and none of them could ask it anything.
    #[error("this node is one of {0}, which could not reach it: set cluster.listen")]
    NotListening(usize),
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, std::io::Error),
}

impl OpenError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |error| Self::Io(path.to_owned(), error)
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged(path.to_owned(), what.into())
    }
}
